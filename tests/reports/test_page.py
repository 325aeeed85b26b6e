"""The page in a real browser: nothing is fetched, values are there, site and curve can be chosen."""

import csv
import re
import shutil
import subprocess

import pytest
from sklearn.metrics import balanced_accuracy_score

from prrfl.config import load_config
from prrfl.reports import page
from prrfl.runs import report, run, setup
from prrfl.runs.folder import RunFolder
from prrfl.storage.records import read_predictions, read_records
from prrfl.types import ScoreRecord
from tests.reports.by_scikit_learn import sensitivity
from tests.sites_on_disk import write_layout

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    data = write_layout(tmp_path_factory.mktemp("data"), other=9)
    small = {"network": "tiny", "image_size": 32, "rounds": 2, "epochs": 3, "batch": 8, "workers": 1}
    settings = load_config(None, {"data": data, **small})
    folder = tmp_path_factory.mktemp("runs") / "<one>"  # a name that HTML would take for a tag
    list(run.train(settings, setup.load_data(settings), folder))
    report.report(folder)
    return folder


def dom(path, tmp_path, fragment=""):
    """Return the page as the browser sees it once its script has run."""
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip
    url = path.as_uri() + (f"#{fragment}" if fragment else "")
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def shown_sites(text):
    sections = re.findall(r"<section ([^>]*)>", text)
    return [re.search(r'data-site="([^"]*)"', s).group(1) for s in sections if "hidden" not in s]


@needs_chromium
def test_the_browser_shows_the_scores_and_one_site_at_a_time(folder, tmp_path):
    text = dom(folder / "report.html", tmp_path)
    summary = RunFolder(folder).summary()
    for site, scores in summary["best"]["sites"].items():
        assert f'<th scope="row">{site}</th><td>9</td><td>{100 * scores["macro_f1"]:.2f}</td>' in text
    assert shown_sites(text) == ["clientA"]
    assert shown_sites(dom(folder / "report.html", tmp_path, "clientB")) == ["clientB"]
    predictions = read_predictions(folder / "predictions/clientB/best.csv")
    found = re.search(r'data-site="clientB".*?class="confusion".*?<tbody>(.*?)</tbody>', text, re.DOTALL)
    cells = [int(cell) for cell in re.findall(r"<td[^>]*>(\d+)</td>", found.group(1))]
    answers = predictions.probabilities.argmax(1)
    expected = [int(((predictions.labels == a) & (answers == b)).sum()) for a in range(3) for b in range(3)]
    assert cells == expected


def test_the_page_is_whole_in_itself(folder):
    text = (folder / "report.html").read_text("utf-8")
    links = re.findall(r"(?:src|href)=[\"']([^\"']*)", text)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "@import" not in text
    # Three epochs a round, two rounds, two sites: twelve stages, the first of each round recover.
    timelines = re.findall(r'<div class="timeline">(.*?)</div>', text)
    letters = [re.findall(r">([RES])</span>", line) for line in timelines]
    assert [len(line) for line in letters] == [6, 6]
    assert {line[k] for line in letters for k in (0, 3)} == {"R"}
    expected = 0
    for site in ("clientA", "clientB"):
        p = read_predictions(folder / f"predictions/{site}/best.csv")
        right = int((p.probabilities.argmax(1) == p.labels).sum())
        expected += min(4, right) + min(4, 9 - right)
    assert text.count("data:image/png") == expected
    for control in ("<select", '<input type="checkbox"', '<button type="button"', 'tabindex="0"'):
        assert control in text


def test_a_comparison_has_a_page_with_a_curve_for_each_method(tmp_path, prrfl, forked, undrawn):
    data = write_layout(tmp_path / "data")
    arguments = ["compare", "--methods", "prrfl,fedavg", "--seeds", "0", "--data", data, "--image-size", 32]
    arguments += ["--rounds", 1, "--epochs", 1, "--network", "tiny", "--out", tmp_path / "c"]
    assert prrfl(*arguments)[0] == 0
    text = (tmp_path / "c/report.html").read_text("utf-8")
    assert "<p>1 communication rounds of 1 local epochs, seeds 0; the panels" in text
    for index, method in enumerate(("prrfl", "fedavg")):
        assert f'id="curve-{index}-macro_f1"' in text
        assert f'<th scope="row">{method}</th>' in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings[:2] == ["Scores (mean of sites)", "Difference to prrfl (mean of sites)"]
    assert headings[2:4] == ["Difference to prrfl by class", "By class (mean of sites)"]
    assert headings[4:7] == [
        "By class (images of all sites pooled)", "Per site", "Retrogress and cost",
    ]  # fmt: skip
    assert headings[7] == "Drop in macro-F1 at a communication, by site"
    assert '<td title="best mean' not in text  # a single seed
    assert re.search(r"<td[^>]*>-?[\d.]+ / -?[\d.]+</td>", text)
    panels = re.findall(r'<section data-site="(\w+)" data-method="(\w+)"', text)
    assert sorted(panels) == [(f"client{s}", m) for s in "AB" for m in ("fedavg", "prrfl")]
    if CHROMIUM:
        assert shown_sites(dom(tmp_path / "c/report.html", tmp_path)) == ["clientA"]


def test_methods_of_other_lengths_are_told_and_drawn_so(tmp_path, prrfl, forked, undrawn):
    data = write_layout(tmp_path / "data")
    arguments = ["compare", "--methods", "fedavg,fedavg:epochs=2+rounds=1", "--seeds", "0", "--data", data]
    arguments += [
        "--image-size",
        32,
        "--rounds",
        2,
        "--epochs",
        1,
        "--network",
        "tiny",
        "--out",
        tmp_path / "c",
    ]
    assert prrfl(*arguments)[0] == 0
    text = (tmp_path / "c/report.html").read_text("utf-8")
    assert "local epochs of fedavg:epochs=2+rounds=1 1 × 2, fedavg 2 × 1, seeds 0;" in text
    settings = text[text.index("All settings") :]
    assert ">batch<" in settings
    for own in ("rounds", "epochs", "method", "seed"):
        assert f">{own}<" not in settings  # they are not the same for all


def test_a_report_writes_every_score(folder):
    lines = list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))
    records = [r for r in read_records(folder / "metrics.jsonl") if isinstance(r, ScoreRecord)]
    assert len(lines) == len(records) > 0
    for line, r in zip(lines, records, strict=True):
        assert (line["method"], line["seed"], line["site"]) == ("prrfl", "0", r.client)
        assert (int(line["round"]), int(line["epoch"])) == (r.round + 1, r.epoch + 1)
        assert (float(line["macro_f1"]), float(line["recall_mel"])) == (r.scores.macro_f1, r.scores.recall[2])


def test_without_the_data_the_page_goes_without_images(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "run")
    config = tmp_path / "run/config.toml"
    config.write_text(
        re.sub(r'^data = ".*"', f'data = "{tmp_path}/gone"', config.read_text(), flags=re.MULTILINE)
    )
    report.report(tmp_path / "run")
    assert "the page shows no images" in caplog.text
    assert "data:image/png" not in (tmp_path / "run/report.html").read_text("utf-8")


def test_the_scores_of_a_run_show_what_accuracy_hides(folder):
    text = (folder / "report.html").read_text("utf-8")
    table = re.search(r'<table class="sheet">.*?</table>', text, re.DOTALL).group()
    heads = re.findall(r'<button type="button">(.*?)</button>', table)
    assert heads == [
        "site", "images", "macro-F1", "AUC", "balanced accuracy", "recall nv", "recall bkl", "recall mel",
        *(f"sensitivity {name} at 90 % specificity" for name in ("nv", "bkl", "mel")),
    ]  # fmt: skip
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', table)
    cells = {site: re.findall(r"<td[^>]*>(.*?)</td>", row) for site, row in rows}
    balanced = {}
    for site in ("clientA", "clientB"):
        p = read_predictions(folder / f"predictions/{site}/best.csv")
        truth, values = p.labels.numpy(), p.probabilities.numpy()
        balanced[site] = balanced_accuracy_score(truth, values.argmax(1))
        assert cells[site][3] == f"{100 * balanced[site]:.2f}"
        assert cells[site][7:] == [f"{100 * sensitivity(truth == c, values[:, c]):.2f}" for c in range(3)]
    assert cells["mean"][3:] == [f"{50 * sum(balanced.values()):.2f}", *[""] * 6]
    assert "Sensitivity at 90 % specificity: largest" in text


def test_a_federation_has_no_sensitivities_because_predictions_stay_at_the_sites(folder):
    sheet = page._score_sheet(RunFolder(folder).summary(), {}, ("nv", "bkl", "mel"))
    assert list(sheet.heads[4:]) == ["balanced accuracy", "recall nv", "recall bkl", "recall mel"]
    assert {len(row) for row in (*sheet.body, *sheet.foot)} == {8}
    assert "Sensitivity" not in sheet.note
    lone = {"site": {"n": 0, "macro_f1": 0.0, "auc": None, "recall": [None] * 3}}
    best = {"sites": lone, "mean": {"macro_f1": 0.0, "auc": None}}
    sheet = page._score_sheet({"best": best, "best_round": 0}, {}, ("nv", "bkl", "mel"))
    assert sheet.body[0][4].text == sheet.foot[0][4].text == "–"


@needs_chromium
def test_sorting_keeps_the_mean_last_and_says_its_direction(folder, tmp_path):
    click = "<script>document.querySelectorAll('.sheet thead button')[0].click()</script></html>"
    page = tmp_path / "sorted.html"
    page.write_text((folder / "report.html").read_text("utf-8").replace("</html>", click), "utf-8")
    table = re.search(r'<table class="sheet">.*?</table>', dom(page, tmp_path), re.DOTALL).group()
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["clientB", "clientA", "mean"]
    assert re.findall(r'aria-sort="(\w+)"', table) == ["descending"]
    assert re.search(r"<tfoot>\s*<tr><th scope=\"row\">mean</th>", table)


def test_every_communication_shows_both_drops_and_what_came_of_it(folder):
    text = (folder / "report.html").read_text("utf-8")
    table = re.search(r"<details><summary>Every communication.*?</details>", text, re.DOTALL).group()
    assert re.findall(r'<button type="button">(.*?)</button>', table)[-3:] == [
        "F1 drop", "AUC drop", "epochs to recover",
    ]  # fmt: skip
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", table)
    assert len(rows) == 2 * 2 * 2  # rounds, sites, networks
    # PRR-FL's personalised network is never replaced, so that it cannot fall.
    assert all("<td>no fall</td>" in row for row in rows if "personalised" in row)
    assert "deputy: scored only before and after each communication" in text
