"""Data one can trust: manifests, arrays, checks, splits and the archives, as a user meets them."""

import csv
import json
import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from prrfl.data.sources import load_sites, read_entries
from prrfl.errors import DataError
from tests.reference import DERMOSCOPY, needs_dermoscopy
from tests.sites_on_disk import write_layout

CLASSES = ("nv", "bkl", "mel")


def picture(path, seed, size=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)).save(path)


def write_manifest(folder, rows, header="path,label,site,split,group"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "m.csv"


def whole_manifest(folder, lesions=False):
    """Two sites, 30 images each; with lesions, pairs of images show the same one, across all splits."""
    rows = []
    for site in "xy":
        for n in range(30):
            picture(folder / "pics" / site / f"{n}.png", 100 * (site == "y") + n)
            split = ("train", "train", "train", "valid", "test")[n % 5]
            group = f"{site}{n // 2}" if lesions else ""
            rows.append(f"pics/{site}/{n}.png,{CLASSES[n // 2 % 3]},{site},{split},{group}")
    return write_manifest(folder, rows)


def test_a_manifest_gives_the_same_sites_as_the_layout(tmp_path):
    layout = write_layout(tmp_path / "layout")
    entries = read_entries(layout, image_size=32, classes=CLASSES)
    rows = [f"{e.path},{e.label},{e.site},{e.split}," for e in entries]
    manifest = write_manifest(tmp_path / "elsewhere", rows)
    for ours, theirs in zip(
        load_sites(manifest, image_size=32, classes=CLASSES),
        load_sites(layout, image_size=32, classes=CLASSES),
        strict=True,
    ):
        assert ours.name == theirs.name
        for split in ("train", "valid", "test"):
            assert (ours.split(split).inputs == theirs.split(split).inputs).all()
            assert ours.split(split).labels.tolist() == theirs.split(split).labels.tolist()
            assert ours.split(split).ids == theirs.split(split).ids


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,9,x,train,", "m.csv:2: label '9' is outside the classes"),
        ("a.png,nv,x,trian,", "m.csv:2: split 'trian' is unknown; expected train, valid, test .*'train'"),
        ("a.png,nv,../x,train,", "m.csv:2: site '../x' is no plain name"),
        (",nv,x,train,", "m.csv:2: no path"),
        ("a.png,nv,x,train,\na.png,nv,x,test,", "m.csv:3: .*a.png stands on line 2 already"),
        ("a.png,nv,x,train,", "site x has no valid images"),
    ],
)
def test_a_bad_manifest_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load_sites(write_manifest(tmp_path, [row]), image_size=32, classes=CLASSES)


def test_training_runs_on_a_manifest_and_on_arrays(prrfl, tmp_path):
    small = ["--image-size", 32, "--rounds", 1, "--epochs", 1]
    manifest = whole_manifest(tmp_path / "m")
    code, _, err = prrfl("train", "--data", manifest, *small, "--out", tmp_path / "a")
    assert code == 0, err
    rng = np.random.default_rng(0)
    arrays = {}
    for name, n in (("train", 12), ("val", 6), ("test", 6)):
        arrays[f"{name}_images"] = rng.integers(0, 255, (n, 28, 28), dtype=np.uint8)
        arrays[f"{name}_labels"] = (np.arange(n) % 3)[:, None]
    (tmp_path / "n").mkdir()
    for site in ("north", "south"):
        np.savez(tmp_path / "n" / f"{site}.npz", **arrays)
    code, out, err = prrfl("train", "--data", tmp_path / "n", *small, "--out", tmp_path / "b")
    assert code == 0, err
    assert "north, south" in out
    sites = load_sites(tmp_path / "n", image_size=28, classes=CLASSES)
    assert (sites[0].train.inputs[:, 1].numpy() == arrays["train_images"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_images": None}, "val_images"),
        ({"test_labels": np.array([[3], [0]])}, "labels run from 0 to 3, there are 3 classes"),
        ({"test_labels": np.array([0])}, "expected one whole number per image"),
        ({"train_images": np.zeros((2, 8, 8), np.float32)}, "expected uint8"),
        ({"train_labels": np.array([{}, {}])}, "cannot be read as arrays"),
    ],
)
def test_bad_arrays_are_named(tmp_path, change, message):
    arrays = {f"{name}_images": np.zeros((2, 8, 8), np.uint8) for name in ("train", "val", "test")}
    arrays |= {f"{name}_labels": np.array([0, 1]) for name in ("train", "val", "test")}
    arrays = {key: value for key, value in (arrays | change).items() if value is not None}
    np.savez(tmp_path / "site.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_sites(tmp_path / "site.npz", image_size=8, classes=CLASSES)


def test_check_finds_everything_at_once(prrfl, tmp_path):
    manifest = whole_manifest(tmp_path, lesions=True)
    pics = tmp_path / "pics/x"
    (pics / "0.png").unlink()
    (pics / "1.png").write_bytes(b"no image")
    (pics / "3.png").write_bytes((pics / "2.png").read_bytes())
    code, out, _ = prrfl("data", "check", manifest, "--json", tmp_path / "found.json", "--batch", 17)
    found = json.loads((tmp_path / "found.json").read_text())
    assert code == 1
    assert found["missing"] == [str(pics / "0.png")]
    assert list(found["broken"]) == [str(pics / "1.png")]
    assert found["duplicates"] == [["x/train/2", "x/valid/3"]]
    assert found["counts"]["x/train"] == [6, 6, 6]
    # By hand: test images are n = 4, 9, 14, ...; the lesion of n is shared with its neighbour n ^ 1.
    expected = sum((n ^ 1) % 5 in (0, 1, 2) for n in range(4, 30, 5))
    assert {(k["site"], k["images"], k["of"]) for k in found["leaks"] if k["split"] == "test"} == {
        ("x", expected, 6),
        ("y", expected, 6),
    }
    assert found["lone"] == [["x", 18], ["y", 18]]
    for words in ("leakage", "missing", "broken", "copies", "few", "lone"):
        assert f"{words}: " in out


def test_split_leaks_nothing_and_keeps_the_shares(prrfl, tmp_path):
    manifest = whole_manifest(tmp_path, lesions=True)
    picture(tmp_path / "pics/x/29.png", 0)  # the same pixels as x/0, whose group is another
    code, _, err = prrfl("data", "split", manifest, "--out", tmp_path / "s.csv", "--seed", 1)
    assert code == 0, err
    assert prrfl("data", "check", tmp_path / "s.csv", "--json", tmp_path / "f.json")[0] == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert [leak["images"] for leak in found["leaks"]] == [0] * 4
    entries = read_entries(tmp_path / "s.csv", image_size=32, classes=CLASSES)
    assert len(entries) == 60
    places = {e.name: e.split for e in entries if e.site == "x"}
    assert places["0"] == places["29"]
    sizes = Counter(e.split for e in entries)
    assert 8 <= sizes["test"] <= 16
    assert 4 <= sizes["valid"] <= 10
    first = (tmp_path / "s.csv").read_text()
    prrfl("data", "split", manifest, "--out", tmp_path / "s.csv", "--seed", 1)
    assert (tmp_path / "s.csv").read_text() == first
    code, _, err = prrfl(
        "data", "split", manifest, "--out", tmp_path / "t.csv", "--valid", 0.6, "--test", 0.5
    )
    assert code == 2
    assert "leave nothing for a split" in err
    assert not (tmp_path / "t.csv").exists()


def write_archives(folder):
    """HAM10000 as two zips, ISIC 2017 as a folder, tiny."""
    rows = []
    for n in range(120):
        picture(folder / "raw" / f"ISIC_{n:07}.jpg", n, 40)
        source = ("vidir_modern", "vidir_molemax", "rosendahl", "vienna_dias")[n % 4]
        dx = ("nv", "bkl", "mel", "df")[n // 4 % 4]
        rows.append(f"HAM_{n // 8},ISIC_{n:07},{dx},histo,50,male,face,{source}")
    heads = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
    (folder / "HAM10000_metadata").write_text("\n".join([heads, *rows]) + "\n")
    for part, names in ((1, range(60)), (2, range(60, 120))):
        with zipfile.ZipFile(folder / f"HAM10000_images_part_{part}.zip", "w") as archive:
            for n in names:
                archive.write(folder / "raw" / f"ISIC_{n:07}.jpg", f"ISIC_{n:07}.jpg")
    rows = []
    for n in range(30):
        picture(folder / "isic" / f"ISIC_9{n:06}.jpg", 1000 + n, 40)
        picture(folder / "isic" / f"ISIC_9{n:06}_superpixels.png", 1, 8)
        rows.append(f"ISIC_9{n:06},{float(n % 3 == 2)},{float(n % 3 == 1)}")
    rows.append("ISIC_9999999,0.0,0.0")  # named, but in no archive
    (folder / "gt.csv").write_text("\n".join(["image_id,melanoma,seborrheic_keratosis", *rows]) + "\n")


def test_build_makes_the_four_sites_from_zips_and_folders(prrfl, tmp_path):
    write_archives(tmp_path)
    command = [
        "data", "build",
        "--ham", tmp_path / "HAM10000_images_part_1.zip", "--ham", tmp_path / "HAM10000_images_part_2.zip",
        "--ham-csv", tmp_path / "HAM10000_metadata",
        "--isic", tmp_path / "isic", "--isic-csv", tmp_path / "gt.csv",
        "--out", tmp_path / "built", "--image-size", 32,
    ]  # fmt: skip
    code, out, err = prrfl(*command)
    assert code == 0, err
    assert "30 images of source vienna_dias" in out
    assert "such as ISIC_9999999" in out
    sites = load_sites(tmp_path / "built", image_size=32, classes=CLASSES)
    assert [s.name for s in sites] == ["clientA", "clientB", "clientC", "clientD"]
    tables = [
        row
        for path in (tmp_path / "built/csv_folder/clientD").iterdir()
        for row in csv.DictReader(path.open())
    ]
    assert {row["image_id"]: row["label"] for row in tables} == {
        f"ISIC_9{n:06}": str(n % 3) for n in range(30)
    }
    assert prrfl("data", "check", tmp_path / "built", "--json", tmp_path / "f.json")[0] == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert all(leak["images"] == 0 for leak in found["leaks"])
    assert found["without_groups"] == ["clientD"]
    assert prrfl(*command)[0] == 2
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".built")]


@needs_dermoscopy
def test_the_published_split_leaks_as_is_known_and_a_new_one_does_not(prrfl, tmp_path):
    code, _, _ = prrfl("data", "check", DERMOSCOPY, "--json", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    assert code == 1
    assert len(found["missing"]) == 2
    leaks = {k["site"]: (k["images"], k["of"]) for k in found["leaks"] if k["split"] == "test"}
    assert leaks == {"clientA": (419, 598), "clientB": (0, 774), "clientC": (159, 328)}
    assert found["without_groups"] == ["clientD"]
    assert prrfl("data", "split", DERMOSCOPY, "--out", tmp_path / "s.csv")[0] == 0
    entries = read_entries(tmp_path / "s.csv", image_size=128, classes=CLASSES)
    assert len(entries) == 10488
    for site in "ABCD":
        here = [e for e in entries if e.site == f"client{site}"]
        groups = {s: {e.group for e in here if e.split == s and e.group} for s in ("train", "valid", "test")}
        assert not groups["train"] & (groups["valid"] | groups["test"])
        assert not groups["valid"] & groups["test"]
        for split, share in (("test", 0.2), ("valid", 0.1)):
            part = [e for e in here if e.split == split]
            assert len(part) / len(here) == pytest.approx(share, abs=0.02)
            for k in range(3):
                whole = sum(e.label == k for e in here)
                assert sum(e.label == k for e in part) == pytest.approx(
                    share * whole, abs=1 + 0.25 * share * whole
                )
