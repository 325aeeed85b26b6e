"""Manifests and tables: what is accepted is what stands there, what is not is named by file and line."""

import codecs
import csv
import io
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prrfl.data.columns import UNKNOWN
from prrfl.data.images import SPLITS
from prrfl.data.sources import load_sites, read_entries
from tests.fuzz.cases import cases, tried
from tests.fuzz.mutators import CELLS, changes, copied, encodings, files
from tests.sites_on_disk import write_layout

CLASSES = ("nv", "bkl", "mel")
HEADER = ["path", "label", "site", "split", "group"]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("layout") / "whole", train=6, other=3)


@pytest.fixture(scope="module")
def rows(layout):
    entries = read_entries(layout, image_size=32, classes=CLASSES)
    return [[str(e.path), str(e.label), e.site, e.split, f"g{k // 2}"] for k, e in enumerate(entries)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "loop").symlink_to("loop")
    return folder / "m.csv"


def as_csv(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def entries_of(manifest):
    return tried(lambda: read_entries(manifest, image_size=32, classes=CLASSES), manifest)


def assert_sane(entries, text):
    """Assert that there is one entry for each row that another reader of CSV finds, and says the same."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    found = [row for row in rows if any((row[name] or "").strip() for name in row if name is not None)]
    assert len(entries) == len(found) > 0
    for entry, row in zip(entries, found, strict=True):
        cell = {name.strip(): (row[name] or "").strip() for name in row if name is not None}
        assert cell["label"] == CLASSES[entry.label] or float(cell["label"]) == entry.label
        assert (entry.site, entry.split) == (cell["site"], cell["split"])
        assert entry.split in SPLITS
        group = cell.get("group", "")
        assert entry.group == (None if group.casefold() in UNKNOWN else group)
        assert "/" not in entry.site
        assert entry.site.isprintable()
        assert entry.path.is_absolute()


@cases(250)
@given(change=changes, encode=encodings)
def test_a_manifest_of_changed_bytes(change, encode, rows, manifest):
    manifest.write_bytes(change(encode(as_csv([HEADER, *rows]))))
    entries = entries_of(manifest)
    if not isinstance(entries, str):
        content = manifest.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        assert_sane(entries, content.decode("utf-16" if wide else "utf-8-sig"))


@cases(250)
@given(data=st.data())
def test_a_manifest_of_changed_cells(data, rows, manifest):
    table = [HEADER, *map(list, rows)]
    for _ in range(data.draw(st.integers(1, 3))):
        row = data.draw(st.integers(0, len(table) - 1))
        column = data.draw(st.integers(0, len(HEADER) - 1))
        table[row] = [*table[row]]
        table[row][column] = data.draw(CELLS)
    text = as_csv(table)
    manifest.write_text(text, encoding="utf-8", newline="")
    entries = entries_of(manifest)
    if isinstance(entries, str):
        # A line, unless what is wrong is the header, or no row is left.
        assert re.search(r"m\.csv:\d+|has no column|columns '|is empty", entries), entries
        return
    assert_sane(entries, text)
    sites = tried(
        lambda: load_sites(manifest, image_size=8, classes=CLASSES, allow_missing=True),
        *(entry.site for entry in entries),
        *(entry.path for entry in entries),
    )
    if not isinstance(sites, str):
        assert sum(len(site.split(part)) for site in sites for part in SPLITS) <= len(entries)
        assert all(site.train.inputs.shape[1:] == (3, 8, 8) for site in sites)


@cases(150)
@given(data=st.data())
def test_a_layouts_table_of_changed_cells(data, layout, tmp_path_factory):
    path = layout / "csv_folder/clientA/train_clientA.csv"
    whole = path.read_bytes()
    table = [line.split(",") for line in whole.decode().splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        row, column = data.draw(st.integers(0, len(table) - 1)), data.draw(st.integers(0, 1))
        table[row][column] = data.draw(CELLS)
    try:
        path.write_text(as_csv(table), encoding="utf-8", newline="")
        sites = tried(
            lambda: load_sites(layout, image_size=8, classes=CLASSES, allow_missing=True),
            path,
            "site clientA",
        )
        if not isinstance(sites, str):
            assert [site.name for site in sites] == ["clientA", "clientB"]
            assert len(sites[0].train) <= len(table) - 1
            assert sites[0].train.labels.max() < len(CLASSES)
    finally:
        path.write_bytes(whole)


@cases(120)
@given(data=st.data(), mutation=files)
def test_a_layout_with_a_broken_file(data, mutation, layout, tmp_path_factory):
    folder = copied(layout, tmp_path_factory.getbasetemp() / "broken layout")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    # A table as often as an image, though there are fewer.
    kind = data.draw(st.sampled_from([".csv", ".png"]))
    path = data.draw(st.sampled_from([p for p in paths if p.suffix == kind]))
    mutation(path)
    sites = tried(
        lambda: load_sites(folder, image_size=8, classes=CLASSES), path, path.stem, path.parent.name
    )
    if not isinstance(sites, str):
        assert [site.name for site in sites] == ["clientA", "clientB"]
        assert all(len(site.valid) and len(site.test) for site in sites)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["\n", "a\x1b[2J", "x" * 201, "\udcff", "a\u2028b"])
def test_a_folder_whose_name_is_no_sites(name, layout, tmp_path, prrfl):
    folder = copied(layout, tmp_path / "sites")
    for part in ("data", "csv_folder"):
        (folder / part / "clientA").rename(folder / part / name)
    code, _, err = prrfl("train", "--data", folder, "--out", tmp_path / "run")
    assert code == 2
    assert err.startswith("error: ")
    assert "invalid name of a site" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_markup_in_names_is_shown_as_it_is(layout, tmp_path, prrfl):
    folder = copied(layout, tmp_path / "sites")
    (folder / "data/clientA").rename(folder / "data" / "[bold]:x:")
    (folder / "csv_folder/clientA").rename(folder / "csv_folder" / "[bold]:x:")
    for table in (folder / "csv_folder" / "[bold]:x:").iterdir():
        table.rename(table.with_name(table.name.replace("clientA", "[bold]:x:")))
    code, out, err = prrfl("data", "check", folder, "--classes", "nv,[red],[i]mel", "--image-size", 32)
    assert code == 0, err
    assert "[bold]:x:" in out
    assert "[red]" in out
