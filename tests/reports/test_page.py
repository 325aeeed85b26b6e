"""The page: what the commands write, and what a reader meets in a real browser."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from prrfl.config import load_config
from prrfl.reports.calibration import chance_error
from prrfl.reports.comparison import FinishedRun, compare
from prrfl.reports.page import ComparisonResults, Heading, RunResults, comparison_page, run_page
from prrfl.reports.page.pictures import roc
from prrfl.reports.page.render import with_terms
from prrfl.reports.summary import summarise
from prrfl.runs import report, run, setup
from prrfl.runs.folder import RunFolder
from prrfl.storage.records import read_predictions, read_records
from prrfl.types import ExchangeRecord, Predictions, ScoreRecord, Scores
from tests.reports.by_scikit_learn import sensitivity
from tests.sites_on_disk import write_layout

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    """Yield one Chromium for all tests of this file."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no Playwright here (pip install playwright)"
    )
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser, path, fragment="", **options):
    """Return the page once its pictures are drawn, with the errors and requests that it makes."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
    page.set_default_timeout(20_000)
    page.seen = SimpleNamespace(errors=[], requests=[])
    page.on("pageerror", lambda error: page.seen.errors.append(str(error)))
    page.on("request", lambda request: page.seen.requests.append(request.url))
    page.goto(path.as_uri() + fragment)
    if options.get("java_script_enabled", True):
        page.wait_for_selector("#verdict .drawing svg")
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    data = write_layout(tmp_path_factory.mktemp("data"), other=9)
    small = {"network": "tiny", "image_size": 32, "rounds": 2, "epochs": 3, "batch": 8, "workers": 1}
    settings = load_config(None, {"data": data, **small})
    folder = tmp_path_factory.mktemp("runs") / "<one>"  # a name that HTML would take for a tag
    list(run.train(settings, setup.load_data(settings), folder))
    report.report(folder)
    return folder


LONG = "Universitätsklinikum mit einem sehr langen Namen, Klinik für Dermatologie"
SITES = {LONG: (30, 12, 8, 6, 9, 40, 5), "北京协和医院": (8, 9, 7, 0, 6, 30, 2)}
SEVEN = ("akiec", "bcc", "bkl", "df", "</script><b>mel", "nv", "vasc")
METHODS = (
    "prrfl",
    "local",
    "fedavg",
    "fedprox",
    "fedbn",
    "ditto",
    "fedper",
    "ida",
    "pfa",
    "prrfl:transfer=off",
)


def random_run(method, seed, skill, sites=None, rounds=3):
    """Return a run with random predictions, whose scores have nothing to do with its records."""
    sites = sites or SITES
    rng = np.random.default_rng([seed, len(method), int(100 * skill)])
    predictions, records = {}, []
    for site, counts in sites.items():
        labels = np.repeat(np.arange(7), counts)
        logits = rng.normal(size=(len(labels), 7)) + skill * np.eye(7)[labels]
        probabilities = torch.softmax(torch.tensor(logits, dtype=torch.float32), 1)
        predictions[site] = Predictions(
            tuple(map(str, range(len(labels)))), torch.tensor(labels), probabilities
        )
    for index in range(rounds):
        for site, counts in sites.items():
            confusion = tuple(tuple(int(c * (a == b)) for b in range(7)) for a, c in enumerate(counts))
            f1 = (0.3 + 0.1 * skill) * (index + 1) / rounds
            recall = tuple(1.0 if c else None for c in counts)
            scores = Scores(sum(counts), 1.0, f1, f1 + 0.2, f1, recall, confusion)
            for split, moment in (
                ("test", "epoch"),
                ("test", "before"),
                ("test", "after"),
                ("valid", "after"),
            ):
                records.append(ScoreRecord(index, 0, site, split, "network", True, moment, scores))
        records.append(ExchangeRecord(index, dict.fromkeys(sites, 10), 10))
    training = {site: tuple(4 * c for c in counts) for site, counts in sites.items()}
    return FinishedRun(method, seed, records, predictions, 60.0, rounds, 1, training)


HEADING = Heading("many", "hospitals.csv", "2026-01-31", "0.2.0")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Write the page of ten methods and two seeds, at sites and with classes of awkward names."""
    runs = [random_run(m, s, 2.0 - 0.15 * k) for k, m in enumerate(METHODS) for s in range(2)]
    rows = compare(runs, "prrfl", draws=200)
    settings = {"classes": list(SEVEN), "rounds": 3}
    path = tmp_path_factory.mktemp("pages") / "many.html"
    path.write_text(
        comparison_page(ComparisonResults(HEADING, runs, rows, "prrfl", "local", settings)), "utf-8"
    )
    return SimpleNamespace(path=path, rows=rows)


def cells(table):
    """Return the first line of each cell of a table's rows, by the name of the row."""
    read = "rows => rows.map(r => [...r.cells].map(c => c.firstChild?.textContent ?? ''))"
    return {first: rest for first, *rest in table.locator("tbody tr, tfoot tr").evaluate_all(read)}


def sheet(page, name):
    return page.locator(f'[role=group][aria-label="{name}"] table').first


def violations(page):
    """Return what axe-core finds, as rule and elements."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    found = axe.Axe().run(page).response["violations"]
    return [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found]


def test_a_reader_of_a_run_finds_scores_sites_and_the_words_explained(browser, folder):
    page = opened(browser, folder / "report.html")
    summary = RunFolder(folder).summary()
    scores = cells(sheet(page, "Scores"))
    for site, of_site in summary["best"]["sites"].items():
        assert scores[site][:2] == ["9", f"{100 * of_site['macro_f1']:.2f}"]
        assert page.locator("#verdict svg[role=img]").first.get_attribute("aria-label").count(site) == 1
    title = page.title()
    assert title.startswith("<one> · prrfl at 2 sites · ")
    assert re.search(r"\d{4}-\d\d-\d\d · prrfl \d", title)

    # One site at a time.
    shown = page.locator(".panel:visible")
    assert shown.get_attribute("data-site") == "clientA"
    page.select_option("#site", "clientB")
    assert shown.get_attribute("data-site") == "clientB"
    predictions = read_predictions(folder / "predictions/clientB/best.csv")
    answers = predictions.probabilities.argmax(1)
    confusion = [
        [int(((predictions.labels == a) & (answers == b)).sum()) for b in range(3)] for a in range(3)
    ]
    assert [[int(cell) for cell in row] for row in cells(shown.locator(".confusion")).values()] == confusion
    shown.locator("svg").first.wait_for()
    chance = f"would show about {100 * chance_error(predictions):.1f} on so many images"
    assert chance in shown.inner_text()

    # Sorting by keyboard; the mean stays last.
    head = sheet(page, "Scores").locator("thead button").first
    head.focus()
    page.keyboard.press("Enter")
    assert list(cells(sheet(page, "Scores"))) == ["clientB", "clientA", "mean"]
    assert page.locator('[aria-label="Scores"] th[aria-sort]').get_attribute("aria-sort") == "descending"

    # The glossary by keyboard.
    word = page.locator(".term", has_text="macro-F1").first
    word.focus()
    tip = page.locator("[role=tooltip]")
    assert "harmonic mean" in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    word.hover()
    assert tip.is_visible()

    assert not page.seen.errors
    assert {url[:5] for url in page.seen.requests} <= {"file:", "data:"}
    assert len([url for url in page.seen.requests if url.startswith("file:")]) == 1
    page.close()


def test_ten_methods_are_drawn_from_the_numbers_of_the_table(browser, many):
    page = opened(browser, many.path)
    main = cells(sheet(page, "All methods"))
    forest = page.locator("#section-1 figure.picture").first
    panels = json.loads(forest.locator("script").text_content())["panels"]
    drawn = [item["row"] for item in panels[0]["items"]]
    assert sorted(drawn) == sorted(main)
    assert drawn[0] == max(METHODS, key=lambda name: float(main[name][1].rstrip("*=")))
    for item in panels[0]["items"]:
        assert main[item["row"]][1].rstrip("*=") == f"{item['value']:.2f}"
    # A point for each method in each of two panels, by the height of its name.
    forest.locator("svg").nth(1).wait_for()
    for k in range(2):
        names = forest.locator("svg[role=img]").nth(k).locator("text").all_text_contents()
        assert [name for name in names if name in METHODS] == drawn[:-1]
    numbers = forest.locator("details.numbers tbody tr")
    assert numbers.count() == 2 * len(drawn)
    # Small multiples: a panel for each method.
    page.locator("#section-2 .part").nth(9).wait_for()
    assert page.locator("#section-2 figure.picture").first.locator(".part-title").all_inner_texts() == list(
        METHODS
    )
    # Names with signs of HTML and of other alphabets are texts.
    assert page.locator("#verdict .sheet tbody th").all_inner_texts().count(LONG) == 1
    assert "北京协和医院" in page.locator("#verdict").inner_text()
    assert "</script><b>mel" in page.locator("#sites").inner_text()
    # Pictures follow the window.
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_function("document.querySelector('#section-2 .drawing').clientWidth > 500 && "
                           "document.querySelector('#section-2 .part').offsetWidth * 2 < 700")  # fmt: skip
    assert page.locator("#section-2 .part").nth(2).bounding_box()["x"] < 100  # two in a row
    assert not page.seen.errors
    assert len(many.path.read_bytes()) < 8e6
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["run", "many"])
def test_pages_are_accessible_in_light_and_dark_and_fit_a_phone(browser, folder, many, which):
    path = folder / "report.html" if which == "run" else many.path
    page = opened(browser, path, viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.locator("#verdict > .wide")
    assert wide.evaluate("box => box.scrollWidth > box.clientWidth")
    assert page.locator("#verdict > .cue").is_visible()
    page.set_viewport_size({"width": 1280, "height": 900})
    if which == "run":
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    for scheme in ("light", "dark") if which == "run" else ("dark",):  # a large page takes seconds to check
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == []
    page.close()


def test_two_sheets_of_paper_are_enough(browser, many):
    page = opened(browser, many.path)
    pdf = page.pdf(format="A4", prefer_css_page_size=True)
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 2
    page.close()


def test_without_scripts_the_verdict_and_the_tables_remain(browser, folder):
    page = opened(browser, folder / "report.html", java_script_enabled=False)
    assert "What does this not show?" in page.locator("#verdict").inner_text()
    assert page.locator(".panel:visible").count() == 2
    assert sheet(page, "Scores").is_visible()
    page.close()


def test_the_address_names_the_site(browser, folder):
    page = opened(browser, folder / "report.html", "#clientB")
    assert page.locator(".panel:visible").get_attribute("data-site") == "clientB"
    page.close()


def text_of(page, section="verdict"):
    """Return the text of a section of the HTML, without a browser."""
    found = re.search(rf'<section id="{section}".*?\n</section>', page, re.DOTALL).group()
    found = re.sub(r"<script.*?</script>", "", found, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", found).split())


def test_an_unfinished_run_says_so_and_names_no_best_round(folder, tmp_path, prrfl):
    shutil.copytree(folder, tmp_path / "run")
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text().replace("rounds = 2\n", "rounds = 10\n"))
    assert prrfl("report", tmp_path / "run")[0] == 0
    text = (tmp_path / "run/report.html").read_text("utf-8")
    assert "⚠ Not finished: round 2 of 10." in text
    assert "Not finished: round 2 of 10." in text_of(text)
    shown = text[: text.index("All settings")]
    assert "best round" not in re.sub(r"<(script|style).*?</\1>", "", shown, flags=re.DOTALL)
    assert "Scores are of the latest round (2)" in text
    assert "Not finished" not in (folder / "report.html").read_text("utf-8")


def test_a_federations_page_has_scores_but_no_intervals(folder, tmp_path, prrfl):
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run/federation.json").write_text("{}")
    assert prrfl("report", tmp_path / "run")[0] == 0
    text = (tmp_path / "run/report.html").read_text("utf-8")
    assert "Predictions stay at the sites" in text_of(text)
    for site, scores in RunFolder(folder).summary()["best"]["sites"].items():
        assert f'<th scope="row">{site}</th><td>9</td><td>{100 * scores["macro_f1"]:.2f}</td>' in text
    kinds = re.findall(r'data-kind="(\w+)"', text)
    assert set(kinds) == {"intervals", "curves", "balance"}
    assert "sensitivity at 90 % specificity" not in text_of(text, "section-1")
    panel = re.search(r'<section class="panel" data-site="clientB".*?</section>', text, re.DOTALL).group()
    predictions = read_predictions(folder / "predictions/clientB/best.csv")
    right = int((predictions.probabilities.argmax(1) == predictions.labels).sum())
    assert sum(map(int, re.findall(r'class="heat hit">(\d+)<', panel))) == right


def test_the_page_is_whole_in_itself(folder):
    text = (folder / "report.html").read_text("utf-8")
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    links = re.findall(r"(?:src|href)=[\"']([^\"']*)", own)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert {link[1:] for link in links if link[0] == "#"} <= set(re.findall(r' id="([^"]*)"', own))
    assert "@import" not in own
    assert "Observable, Inc." in text  # the licence asks for the notice
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


def test_a_comparison_has_a_verdict_curves_and_tables(tmp_path, prrfl, forked, undrawn):
    data = write_layout(tmp_path / "data")
    arguments = [
        "compare",
        "--methods",
        "prrfl,fedavg:epochs=2+rounds=1,local",
        "--seeds",
        "0",
        "--data",
        data,
    ]
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
    assert "<title>c · 3 methods compared at 2 sites · data · " in text
    assert "There is no test (one seed)" in text_of(text)
    lengths = re.search(r"local epochs of (.*?), seed 0\.", text).group(1)
    assert lengths.split(", ") == ["prrfl 2 × 1", "fedavg:epochs=2+rounds=1 1 × 2", "local 2 × 1"]
    settings = text[text.index("All settings") :]
    assert ">batch<" in settings
    for own in ("rounds", "epochs", "method", "seed"):
        assert f">{own}<" not in settings  # they are not the same for all
    assert 'title="best mean' not in text  # a single seed
    headings = re.findall(r"<h[23][^>]*>(.*?)</h[23]>", text)
    for heading in ("Verdict", "Methods", "Retrogress", "Classes", "Recall by class (mean of sites)"):
        assert headings.count(heading) == 1
    panels = re.findall(r'<section class="panel" data-site="(\w+)" data-method="(\w+)', text)
    assert sorted(panels) == [(f"client{s}", m) for s in "AB" for m in ("fedavg", "local", "prrfl")]
    assert "Not finished" not in text

    # A second seed that is half done is left out, and named.
    half = shutil.copytree(tmp_path / "c/runs/local-seed0", tmp_path / "c/runs/local-seed1")
    (half / "config.toml").write_text((half / "config.toml").read_text().replace("seed = 0\n", "seed = 1\n"))
    (half / "summary.json").unlink()
    shutil.rmtree(half / "state/round-0001")
    assert prrfl("report", tmp_path / "c")[0] == 0
    text = (tmp_path / "c/report.html").read_text("utf-8")
    assert "⚠ Not finished, and left out here: local, seed 1 (round 1 of 2)." in text
    assert "left out here: local, seed 1" in text_of(text)


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
    table = re.search(r'<div class="wide"[^>]* aria-label="Scores">(.*?)</table>', text, re.DOTALL).group()
    groups = re.findall(r'class="group" colspan="(\d)">(.*?)</th>', table)
    assert groups == [("3", "all classes alike"), ("3", "recall"), ("3", "sensitivity at 90 % specificity")]
    heads = re.findall(r'<button type="button">(.*?)</button>', table)
    assert heads == ["site", "images", "macro-F1", "AUC", "balanced accuracy", *2 * ["nv", "bkl", "mel"]]
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
    assert "Sensitivity at 90 % specificity" not in heads


def test_every_communication_shows_both_drops_and_what_came_of_it(folder):
    text = (folder / "report.html").read_text("utf-8")
    table = re.search(r'aria-label="Every communication in numbers">.*?</table>', text, re.DOTALL).group()
    assert re.findall(r'<button type="button">(.*?)</button>', table)[-3:] == [
        "F1 drop", "AUC drop", "epochs to recover",
    ]  # fmt: skip
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", table)
    assert len(rows) == 2 * 2 * 2  # rounds, sites, networks
    # PRR-FL's personalised network is never replaced, so that it cannot fall.
    assert all("<td>no fall</td>" in row for row in rows if "personalised" in row)
    assert "deputy : scored only before and after each communication" in text_of(text, "section-2")


def test_one_site_without_classes_in_test_has_a_page(tmp_path):
    lone = random_run("local", 3, 1.0, {"Klinik": (0, 0, 0, 0, 0, 20, 0)})
    summary = summarise(lone.records)
    page = run_page(RunResults(HEADING, lone, summary, {"classes": list(SEVEN)}, "local"))
    assert "All test images are of one class, so that there is no curve." in page
    assert "mean of sites" not in text_of(page)
    assert "mel: Klinik 0" in text_of(page).replace("&lt;/script&gt;&lt;b&gt;", "")


def test_the_working_point_is_the_best_with_enough_specificity():
    labels = np.array([1] * 4 + [0] * 10)
    values = np.array([0.95, 0.6, 0.45, 0.3, 0.9, 0.5, 0.4, *[0.1] * 7])
    probabilities = torch.tensor(np.stack([1 - values, values], 1))
    picture = roc("ROC", Predictions(tuple(map(str, range(14))), torch.tensor(labels), probabilities), "ab")
    [curve] = [one for one in picture.data["curves"] if one["class"] == "b"]
    assert curve["chosen"] == [10.0, 50.0]
    assert curve["chosen"] in curve["points"]
    assert curve["images"] == 4
    assert [cell.text for cell in picture.numbers.body[1]][3:] == ["50.00", "90.00", "60.0"]


def test_words_of_the_glossary_are_linked_once_and_only_whole():
    words = {"AUC": "…", "nv": "…"}
    text = with_terms("AUC of nv & <nv>: auc, inv, nv-like", words)
    assert text.count('href="#word-auc"') == 1
    assert text.count('href="#word-nv"') == 1
    assert "&amp; &lt;nv&gt;: auc, inv, nv-like" in text
