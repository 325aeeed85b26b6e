"""Subgroups of test images by columns of the data's tables: scores, differences, and what is published."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from prrfl import cli
from prrfl.data.sources import read_entries
from prrfl.data.subgroups import parse_columns, read_tables
from prrfl.errors import DataError
from prrfl.reports.subgroups import by_subgroup
from prrfl.storage.records import predictions_to_csv, read_predictions
from prrfl.types import Predictions
from tests.sites_on_disk import write_layout

DERMOSCOPY = Path(__file__).parents[2].parent / "shared/dermoscopy"
CLASSES = ("nv", "bkl", "mel")
SMALL = ["--image-size", 32, "--rounds", 1, "--epochs", 1, "--batch", 16, "--precision", "float32"]
SMALL += ["--network", "tiny", "--workers", 1]
TESTS = 72


def sex(n):
    return "" if n < 6 else ("male", "female")[n // 3 % 2]


def age(n):
    return "unknown" if n == 0 else f"{n}.0"


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_columns(data, **columns):
    """Add columns to the test tables of a data set; each is a function of the number of an image."""
    for path in data.glob("csv_folder/*/test_*.csv"):
        rows = rows_of(path)
        for n, row in enumerate(rows):
            row.update({name: column(n) for name, column in columns.items()})
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return data with columns, and a run on it whose network misses what a man has at clientA."""
    folder = tmp_path_factory.mktemp("subgroups")
    data = write_layout(folder / "data", train=24, other=TESTS)
    write_columns(data, sex=sex, age=age, skin=lambda n: f"{n % 7 // 2 + 1}", scanner=lambda n: f"number {n}")
    run = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prrfl.runs.report.draw_retrogress", lambda *_: None)
        patch.setattr(
            sys, "argv", ["prrfl", "train", "--data", str(data), "--out", str(run), *map(str, SMALL)]
        )
        assert cli.guarded(cli.app) == 0
    for site in ("clientA", "clientB"):
        path = run / "predictions" / site / "best.csv"
        found = read_predictions(path, CLASSES)
        answers = found.labels.clone()
        for n, name in enumerate(found.ids):
            assert name == f"{site}_test_{n}"
            if n % 5 == 0 or (site == "clientA" and sex(n) == "male" and n % 4):
                answers[n] = (answers[n] + 1) % 3
        sure = 0.6 * torch.eye(3, dtype=torch.float64)[answers] + 0.4 / 3
        path.write_text(predictions_to_csv(replace(found, probabilities=sure), CLASSES))
    return data, run


@pytest.fixture
def copy(made, tmp_path):
    for name, folder in zip(("data", "run"), made, strict=True):
        shutil.copytree(folder, tmp_path / name)
    return tmp_path


@pytest.fixture(autouse=True)
def quick(undrawn):
    pass


def refused(answer):
    code, _, err = answer
    assert code == 2
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


def test_a_report_scores_each_subgroup_of_each_site(prrfl, made):
    _, run = made
    code, out, err = prrfl("report", run, "--subgroups", "sex,age")
    assert (code, err) == (0, "")
    rows = {(row["site"], row["column"], row["subgroup"]): row for row in rows_of(run / "subgroups.csv")}
    ages = ["<40", "40 to <60", ">=60", "unknown"]
    assert list(rows) == [
        *((site, "sex", name) for site in ("clientA", "clientB") for name in ("female", "male", "unknown")),
        *((site, "age", name) for site in ("clientA", "clientB") for name in ages),
    ]
    for site in ("clientA", "clientB"):
        saved = read_predictions(run / "predictions" / site / "best.csv", CLASSES)
        labels, answers = saved.labels.numpy(), saved.probabilities.argmax(1).numpy()
        numbers = np.arange(TESTS)
        members = {
            ("sex", "male"): np.array([sex(n) == "male" for n in numbers]),
            ("sex", "unknown"): numbers < 6,
            ("age", "<40"): (numbers > 0) & (numbers < 40),
            ("age", "40 to <60"): (numbers >= 40) & (numbers < 60),
            ("age", "unknown"): numbers == 0,
        }
        for (column, name), which in members.items():
            row = rows[site, column, name]
            assert int(row["images"]) == int(row["lesions"]) == which.sum()
            assert [int(row[f"images_{c}"]) for c in CLASSES] == np.bincount(
                labels[which], minlength=3
            ).tolist()
            if len(set(labels[which])) > 1:
                expected = balanced_accuracy_score(labels[which], answers[which])
                assert float(row["balanced_accuracy"]) == pytest.approx(expected)
                expected = f1_score(labels[which], answers[which], average="macro")
                assert float(row["macro_f1"]) == pytest.approx(expected)
            if row["difference"]:
                others = balanced_accuracy_score(labels[~which], answers[~which])
                own = float(row["balanced_accuracy"])
                assert float(row["difference"]) == pytest.approx(own - others)
                assert float(row["difference_low"]) < own - others < float(row["difference_high"])
    few = rows["clientA", "sex", "unknown"]
    assert (few["difference"], few["p"], few["macro_f1_low"]) == ("", "", "")
    assert few["not_compared"].startswith("fewer than two classes with 5 lesions")
    lines = " ".join(out.split())
    assert "Test images with unknown sex: 6 of 72 at clientA, 6 of 72 at clientB." in lines
    assert "(p < 0.05, Holm over 8 tests): sex male at clientA, sex female at clientA." in lines
    assert "Largest gap: at clientA, the balanced accuracy (nv, bkl, mel) of sex male is" in lines
    assert "points below that of the rest" in lines
    page = (run / "report.html").read_text()
    assert "Difference of each subgroup to the rest of its site" in page
    assert "of sex male is" in page


def test_nothing_told_apart_is_not_called_equal(prrfl, made):
    _, run = made
    code, out, _ = prrfl("report", run, "--subgroups", "age:36,skin")
    assert code == 0
    rows = rows_of(run / "subgroups.csv")
    assert [row["subgroup"] for row in rows if row["site"] == "clientB"] == [
        *("<36", ">=36", "unknown"),
        *("1", "2", "3", "4"),
    ]
    assert all(float(row["p"]) > 0.05 for row in rows if row["p"])
    lines = " ".join(out.split())
    assert "No subgroup was told apart" in lines
    assert "does not mean that the network is equally good for all of them." in lines
    assert "Largest gap, which may be chance: at client" in lines


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ("sexx", "test_clientA.csv has no column 'sexx' (did you mean 'sex'?); its columns are image_id"),
        ("age:60+40", "'age:60+40' is not a column; separate columns by commas"),
        ("age:40,,sex", "'' is not a column"),
        ("sex,sex", "column 'sex' is given twice"),
        ("sex:40", "site clientA, image 'clientA_test_6': 'male' is not a number; leave out the edges"),
        ("scanner", "column 'scanner' has 72 different values; at most 30"),
    ],
)
def test_what_does_not_divide_is_refused_and_nothing_is_written(prrfl, copy, columns, told):
    before = {path: path.stat().st_mtime_ns for path in (copy / "run").rglob("*")}
    assert told in refused(prrfl("report", copy / "run", "--subgroups", columns))
    assert told in refused(prrfl("evaluate", copy / "run", "--subgroups", columns))
    site = ["--site", "clientA", "--out", copy / "exported"]
    assert told in refused(prrfl("export", copy / "run", "--subgroups", columns, *site))
    assert not (copy / "exported").exists()
    assert {path: path.stat().st_mtime_ns for path in (copy / "run").rglob("*")} == before


def test_many_numbers_are_refused_with_an_edge_to_use(prrfl, copy):
    write_columns(copy / "data", thickness=lambda n: f"{n / 10}")
    answer = prrfl("report", copy / "run", "--data", copy / "data", "--subgroups", "thickness")
    assert "divide its numbers, for instance in the middle: thickness:3.6" in refused(answer)
    code, _, _ = prrfl("report", copy / "run", "--data", copy / "data", "--subgroups", "thickness:3.6")
    assert code == 0
    names = {row["subgroup"] for row in rows_of(copy / "run/subgroups.csv")}
    assert names == {"<3.6", ">=3.6"}


def test_a_site_without_the_column_is_named_with_its_table(prrfl, copy):
    path = copy / "data/csv_folder/clientB/test_clientB.csv"
    path.write_text("\n".join(",".join(line.split(",")[:2]) for line in path.read_text().splitlines()) + "\n")
    told = refused(prrfl("report", copy / "run", "--data", copy / "data", "--subgroups", "sex"))
    assert told.startswith(f"--subgroups: {path} has no column 'sex'; its columns are image_id, label; ")
    assert "add it (an empty cell is read as unknown)" in told


def test_rows_are_matched_by_image_not_by_line(prrfl, copy):
    prrfl("report", copy / "run", "--subgroups", "sex")
    before = (copy / "run/subgroups.csv").read_text()
    for path in (copy / "data").glob("csv_folder/*/test_*.csv"):
        head, *lines = path.read_text().splitlines()
        path.write_text("\n".join([head, *reversed(lines)]) + "\n")
    code, _, _ = prrfl("report", copy / "run", "--data", copy / "data", "--subgroups", "sex")
    assert code == 0
    assert (copy / "run/subgroups.csv").read_text() == before
    table = copy / "data/csv_folder/clientA/test_clientA.csv"
    whole = table.read_text()
    table.write_text(whole.replace("clientA_test_9,0", "clientA_test_9,1"))
    told = refused(prrfl("report", copy / "run", "--data", copy / "data", "--subgroups", "sex"))
    assert "test image 'clientA_test_9' of site clientA has another label in the data's tables" in told
    table.write_text("".join(line for line in whole.splitlines(True) if "_test_9," not in line))
    told = refused(prrfl("report", copy / "run", "--data", copy / "data", "--subgroups", "sex"))
    assert "test image 'clientA_test_9' of site clientA is missing in the data's tables" in told


def test_a_manifest_has_columns_and_arrays_have_none(prrfl, copy):
    prrfl("report", copy / "run", "--subgroups", "sex")
    expected = rows_of(copy / "run/subgroups.csv")
    manifest = copy / "made.csv"
    assert prrfl("data", "split", copy / "data", "--out", manifest)[0] == 0
    rows = [row | {"split": row["path"].split("_")[-2]} for row in rows_of(manifest)]
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    code, _, err = prrfl("report", copy / "run", "--data", manifest, "--subgroups", "sex")
    assert (code, err) == (0, "")
    assert rows_of(copy / "run/subgroups.csv") == expected
    arrays = {
        f"{part}_{what}": np.zeros(1) for part in ("train", "val", "test") for what in ("images", "labels")
    }
    np.savez(copy / "arrays.npz", **arrays)
    told = refused(prrfl("report", copy / "run", "--data", copy / "arrays.npz", "--subgroups", "sex"))
    assert "arrays.npz holds arrays, which have no columns; give image files with a manifest CSV" in told


def test_images_of_one_name_in_several_folders_stay_apart(prrfl, tmp_path):
    """Patients' folders often hold files of the same names."""
    data = write_layout(tmp_path / "data", sites=2, train=12, other=6)
    rows = ["path,label,site,split,sex"]
    for path in sorted((tmp_path / "data").rglob("*.png")):
        site, split, n = path.stem.split("_")
        target = data / site / split / f"patient{n}" / "image.png"
        target.parent.mkdir(parents=True)
        path.rename(target)
        rows.append(f"{target.relative_to(tmp_path)},{int(n) % 3},{site},{split},{'mf'[int(n) > 1]}")
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")
    run = tmp_path / "run"
    assert prrfl("train", "--data", tmp_path / "all.csv", "--out", run, *SMALL)[0] == 0
    assert prrfl("report", run, "--subgroups", "sex")[0] == 0
    counts = [[int(row[f"images_{c}"]) for c in CLASSES] for row in rows_of(run / "subgroups.csv")]
    assert counts == 2 * [[1, 1, 2], [1, 1, 0]]


def test_subgroups_are_for_the_page_of_a_run(prrfl, copy):
    told = refused(prrfl("report", copy / "run", "--for", "paper", "--subgroups", "sex"))
    assert "--subgroups is for the page of a run" in told
    (copy / "runs").mkdir()
    told = refused(prrfl("report", copy, "--subgroups", "sex"))
    assert f"give one of the runs in {copy / 'runs'}" in told


def test_values_that_differ_in_case_are_noted(prrfl, copy, caplog):
    write_columns(copy / "data", sex=lambda n: ("male", "Male", "n/a")[n % 3])
    assert prrfl("report", copy / "run", "--data", copy / "data", "--subgroups", "sex")[0] == 0
    assert "column sex holds 'Male' and 'male', which are read as different" in caplog.text
    assert {row["subgroup"] for row in rows_of(copy / "run/subgroups.csv")} == {"Male", "male", "unknown"}


def test_evaluate_scores_subgroups_by_the_network_itself(prrfl, copy):
    code, out, _ = prrfl("evaluate", copy / "run", "--subgroups", "sex", "--json", copy / "scores.json")
    assert code == 0
    assert "Subgroups of test images" in " ".join(out.split())
    scores = json.loads((copy / "scores.json").read_text())
    for found in scores.values():
        parts = found["subgroups"]
        assert [part["name"] for part in parts] == ["female", "male", "unknown"]
        together = sum(np.array(part["scores"]["confusion"]) for part in parts)
        assert together.tolist() == found["confusion"]
    told = refused(prrfl("evaluate", copy / "run", "--subgroups", "sex", "--data", copy / "data"))
    assert "--subgroups cannot be used with --data" in told


def test_the_card_publishes_no_numbers_of_few_images(prrfl, copy):
    pytest.importorskip("onnxruntime")
    write_columns(
        copy / "data",
        place=lambda n: "nose" if n < 3 else "hand" if n < 9 else ("arm|hand", "leg")[n % 2],
        rare=lambda n: "mel only" if n % 3 == 2 or n < 2 else "others",
    )
    site = ["--site", "clientA", "--data", copy / "data"]
    code, _, err = prrfl(
        "export", copy / "run", *site, "--out", copy / "card", "--subgroups", "sex,place,rare"
    )
    assert (code, err) == (0, "")
    card = (copy / "card/model_card.md").read_text()
    section = card.split("## Subgroups")[1].split("## Limits")[0]
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in section.splitlines()
        if line.startswith("| ")
    }
    assert cells["place nose"] == ["<5", *["–"] * 6]
    assert r"| place arm\|hand | " in section
    # 72 minus the others would tell the number of noses.
    assert cells["place hand"] == ["withheld", *["–"] * 6]
    assert cells["sex male"][0] == "33"
    # One image of nv and one of bkl: neither recall, nor the mean from which they could be found.
    images, balanced, nv, bkl, mel, *_ = cells["rare mel only"]
    assert (images, balanced, nv, bkl) == ("26", "–", "–", "–")
    assert "to" in mel
    told = [line for line in section.splitlines() if line.startswith("- ")]
    assert told[-1] == "- Test images with unknown sex: 6 of 72 at clientA."
    assert not [line for line in told if "nose" in line or "hand" in line]
    limits = card.split("## Limits")[1]
    assert "Subgroups were divided by sex, place, rare only." in limits
    assert "skin tone" not in limits
    assert "clientA_test" not in card
    assert "only --subgroups reads the data" in refused(
        prrfl("export", copy / "run", "--site", "clientA", "--out", copy / "c", "--data", copy / "data")
    )


@pytest.mark.skipif(not DERMOSCOPY.is_dir(), reason="the real four sites are not on this machine")
def test_the_real_sites_are_divided_by_age_sex_and_localization():
    settings = {"classes": CLASSES, "image_size": 128}
    columns = parse_columns("age,sex,localization")
    with pytest.raises(DataError, match=r"test_clientD.csv has no column 'age'"):
        read_tables(DERMOSCOPY, columns, ["clientA", "clientD"], **settings)
    tables = read_tables(DERMOSCOPY, columns, ["clientA", "clientC"], **settings)
    draw = torch.Generator().manual_seed(0)
    predictions = {}
    for site in ("clientA", "clientC"):
        entries = [e for e in read_entries(DERMOSCOPY, needed=("test",), **settings) if e.site == site]
        labels = torch.tensor([e.label for e in entries])
        random = torch.rand(len(entries), 3, generator=draw, dtype=torch.float64).softmax(1)
        names, groups = tuple(e.name for e in entries), tuple(e.group for e in entries)
        predictions[site] = Predictions(names, labels, random, groups)
    age, sex, place = tables.divide(predictions)
    assert age.subgroups[:3] == ("<40", "40 to <60", ">=60")
    assert set(sex.subgroups) >= {"female", "male"}
    assert "lower extremity" in place.subgroups
    rows = by_subgroup(predictions, [age, sex])
    assert sum(row.scores.images for row in rows if (row.site, row.column) == ("clientA", "age")) == 598
    # Random answers are equally bad for all.
    assert not any(row.told_apart for row in rows)
