"""Data one can trust: manifests, arrays, checks, splits and the archives, as a user meets them."""

import csv
import json
import re
import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from prrfl.data import split as splitting
from prrfl.data.build import ham_entries
from prrfl.data.images import Entry
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
        ("a.png,9,x,train,", "m.csv:2: unknown label '9'; expected one of"),
        ("a.png,nv,x,trian,", "m.csv:2: unknown split 'trian'; expected one of train, valid, test .*'train'"),
        ("a.png,nv,../x,train,", "m.csv:2: invalid name of a site '../x'"),
        (",nv,x,train,", "m.csv:2: the path is empty"),
        ("a.png,nv,x,train,\na.png,nv,x,test,", "m.csv:3: .*a.png is already on line 2"),
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


def write_arrays(path, **change):
    """Two grey images of each split, with the labels 0 and 1; ``None`` leaves an array out."""
    arrays = {f"{name}_images": np.zeros((2, 8, 8), np.uint8) for name in ("train", "val", "test")}
    arrays |= {f"{name}_labels": np.array([0, 1]) for name in ("train", "val", "test")}
    np.savez(path, **{key: value for key, value in (arrays | change).items() if value is not None})
    return path


def refused(source, **settings):
    with pytest.raises(DataError) as caught:
        load_sites(source, **{"image_size": 8, "classes": CLASSES, **settings})
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_images": None}, "has no val_images"),
        ({"test_labels": np.array([[3], [0]])}, "labels run from 0 to 3, but there are 3 classes"),
        ({"test_labels": np.array([9, 11])}, "labels run from 9 to 11, but there are 3 classes"),
        ({"test_labels": np.array([0])}, "expected one label per image"),
        ({"test_labels": np.array(0)}, "expected one label per image"),
        ({"test_labels": np.array([0.0, 0.5])}, "test, image 1: unknown label '0.5'"),
        ({"test_labels": np.array([0.0, np.nan])}, "test, image 1: unknown label 'nan'"),
        ({"test_labels": np.array([True, False])}, "test: labels are bool; expected integers"),
        ({"train_images": np.zeros((2, 8, 8), np.float32)}, "expected uint8"),
        ({"train_images": np.zeros((2, 8, 8, 2), np.uint8)}, "expected uint8"),
        (
            {"train_images": np.zeros((0, 8, 8), np.uint8), "train_labels": np.zeros(0, int)},
            "train: .*have no pixels",
        ),
        ({"val_images": np.zeros((2, 0, 0), np.uint8)}, "valid: .*have no pixels"),
        (
            {"train_labels": np.array([{}, {}])},
            r"train_labels cannot be read \(Object arrays cannot be loaded\)",
        ),
        ({"train_labels": np.array([1, 1])}, r"fewer than two classes \(nv 0, bkl 2, mel 0\)"),
    ],
)
def test_bad_arrays_are_named(tmp_path, change, message):
    assert re.search(message, refused(write_arrays(tmp_path / "site.npz", **change)))


def test_what_is_no_npz_is_said_to_be_none(tmp_path):
    path = tmp_path / "site.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros((2, 8, 8), np.uint8))  # an .npy by another name
    assert "is not a complete .npz" in refused(path)
    path.write_text("image,label\n")
    assert "is not a complete .npz" in refused(path)
    assert "pickle" not in refused(path)
    path.write_bytes(write_arrays(tmp_path / "whole.npz").read_bytes()[:-30])
    assert "is not a complete .npz" in refused(path)
    path.unlink()
    assert "does not exist" in refused(path)


def test_a_damaged_array_is_named(tmp_path):
    path = write_arrays(tmp_path / "site.npz")
    flip_data(path, "test_labels.npy")
    assert "test_labels cannot be read (Bad CRC-32" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images", b"no array")
    assert "train_images cannot be read" in refused(path)


def flip_data(path, member):
    """Flip the last byte of an uncompressed member's data."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    content = bytearray(path.read_bytes())
    head = info.header_offset
    start = head + 30 + sum(int.from_bytes(content[head + k : head + k + 2], "little") for k in (26, 28))
    content[start + info.compress_size - 1] ^= 1
    path.write_bytes(content)


def test_grey_images_may_have_an_axis_for_it(tmp_path):
    grey = np.arange(128, dtype=np.uint8).reshape(2, 8, 8)
    (plain,) = load_sites(write_arrays(tmp_path / "a.npz", train_images=grey), image_size=8, classes=CLASSES)
    (axis,) = load_sites(
        write_arrays(tmp_path / "b.npz", train_images=grey[..., None]), image_size=8, classes=CLASSES
    )
    assert (axis.train.inputs == plain.train.inputs).all()
    assert (axis.train.inputs[:, 2].numpy() == grey).all()


def only(split, layout):
    """The layout's first site with one split: as a layout, a manifest and arrays."""
    for table in (layout / "csv_folder").rglob("*.csv"):
        if not table.name.startswith(split):
            table.unlink()
    pictures = sorted((layout / "data/clientA").rglob(f"*_{split}_*.png"))
    rows = [f"{p},{int(p.stem.rpartition('_')[2]) % 3},clientA,{split}" for p in pictures]
    manifest = write_manifest(layout.parent, rows, "path,label,site,split")
    arrays = layout.parent / "clientA.npz"
    name = {"valid": "val"}.get(split, split)
    np.savez(
        arrays,
        **{
            f"{name}_images": np.stack([np.array(Image.open(p)) for p in pictures]),
            f"{name}_labels": np.array([int(row.split(",")[1]) for row in rows]),
        },
    )
    return layout, manifest, arrays


def test_a_site_needs_only_the_splits_that_are_asked_for(tmp_path):
    for source in only("test", write_layout(tmp_path / "layout", sites=1)):
        (site,) = load_sites(source, image_size=32, classes=CLASSES, needed=("test",))
        assert site.name == "clientA"
        assert site.test.inputs.shape == (6, 3, 32, 32)
        assert sorted(site.test.labels.tolist()) == [0, 0, 1, 1, 2, 2]
        for empty in (site.train, site.valid):
            assert len(empty) == 0
            assert empty.inputs.shape == (0, 3, 32, 32)
            assert (empty.inputs.dtype, empty.labels.dtype) == (
                site.test.inputs.dtype,
                site.test.labels.dtype,
            )
        with pytest.raises(DataError, match="train"):
            load_sites(source, image_size=32, classes=CLASSES, needed=("train", "test"))
        with pytest.raises(DataError, match="train"):
            load_sites(source, image_size=32, classes=CLASSES)


def test_images_that_are_enlarged_are_counted_in_one_warning(tmp_path, caplog):
    for source in only("test", write_layout(tmp_path / "layout", sites=2)):
        caplog.clear()
        load_sites(source, image_size=32, classes=CLASSES, needed=("test",))
        assert not caplog.text
        sites = load_sites(source, image_size=64, classes=CLASSES, needed=("test",))
        (said,) = caplog.messages
        images = sum(len(site.test) for site in sites)
        assert said.startswith(f"{images} of {images} images are smaller than 64 px (the smallest: 32 px)")
    # Those that are large enough are not among them; nor are those that are not there.
    layout = write_layout(tmp_path / "both")
    enlarged = layout / "data/clientA/img_resize32/clientA_test_0.png"
    with Image.open(enlarged) as image:
        image.resize((64, 64)).save(enlarged)
    (layout / "data/clientA/img_resize32/clientA_test_1.png").unlink()
    caplog.clear()
    load_sites(layout, image_size=64, classes=CLASSES, allow_missing=True)
    assert caplog.messages[-1].startswith("40 of 41 images are smaller than 64 px")


def test_splits_that_are_not_asked_for_are_not_looked_at(tmp_path):
    layout = write_layout(tmp_path, sites=1)
    (layout / "csv_folder/clientA/train_clientA.csv").write_text("image_id,label\n../x,9\n")
    (site,) = load_sites(layout, image_size=32, classes=CLASSES, needed=("valid",))
    assert [len(site.train), len(site.valid), len(site.test)] == [0, 6, 0]


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
    for word in ("leakage", "missing", "broken", "duplicates", "few", "lone"):
        assert f"{word}: " in out


def test_check_tells_of_an_empty_split_once_and_of_one_image_in_the_singular(prrfl, tmp_path):
    picture(tmp_path / "a.png", 0)
    picture(tmp_path / "b.png", 0)
    rows = ["a.png,nv,x,train,", "b.png,bkl,x,train,"]
    manifest = write_manifest(tmp_path, rows)
    code, out, _ = prrfl("data", "check", manifest, "--json", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    assert code == 0
    assert found["empty"] == [["x", "valid"], ["x", "test"]]
    assert found["few"] == [["x", "train", "nv", 1], ["x", "train", "bkl", 1], ["x", "train", "mel", 0]]
    said = " ".join(out.split())
    assert out.count("few: ") == 3
    assert "few: x, train: 1 image of nv; " in said
    assert "few: x, train: no image of mel; " in said
    assert "empty: x, valid: no images; training needs some in each split" in said
    assert "empty: x, test: " in said
    assert "duplicates: 2 images in 1 set are copies" in said
    assert "contradictions: in 1 set, copies of one image" in said


def test_check_warns_of_what_one_site_trains_on_and_another_is_tested_on(prrfl, tmp_path):
    pics = tmp_path / "pics"
    for name, seed in (("a", 0), ("b", 1), ("c", 0), ("d", 2), ("e", 3), ("f", 4), ("g", 2)):
        picture(pics / f"{name}.png", seed)
    manifest = write_manifest(
        tmp_path,
        [
            "pics/a.png,nv,x,train,p1",
            "pics/b.png,nv,x,train,p2",
            "pics/d.png,nv,x,train,",
            "pics/f.png,nv,x,test,p2",  # of its own site's training: a leak, but not across sites
            "pics/c.png,nv,y,test,p3",  # the pixels of x's a
            "pics/b.png,nv,y,valid,p2",  # pixels and group of x's b
            "pics/e.png,nv,y,test,p1",  # the group of x's a
            "pics/g.png,nv,y,train,",  # used for training at both, for testing at none
        ],
    )
    code, out, _ = prrfl("data", "check", manifest, "--json", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    assert code == 0
    assert (found["copies_across"], found["groups_across"]) == (2, 2)
    said = " ".join(out.split())
    assert "across sites: 2 valid or test images have the pixels of a training image of another site" in said
    assert (
        "across sites: 2 valid or test images have the group id of a training image of another site" in said
    )


def test_check_counts_what_validation_and_test_share(prrfl, tmp_path):
    pics = tmp_path / "pics"
    for name, seed in (("a", 0), ("b", 1), ("c", 2), ("d", 0), ("e", 3), ("f", 4)):
        picture(pics / f"{name}.png", seed)
    manifest = write_manifest(
        tmp_path,
        [
            "pics/a.png,nv,x,valid,p1",
            "pics/b.png,nv,x,test,p1",  # the group of x's a
            "pics/c.png,nv,x,test,p2",
            "pics/d.png,nv,y,test,p3",  # the pixels of x's a
            "pics/e.png,nv,y,test,p1",  # the group of x's a
            "pics/f.png,nv,y,valid,p2",  # its group is in x's test set: that is one more
        ],
    )
    code, out, _ = prrfl("data", "check", manifest, "--json", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    assert code == 0
    assert [(leak["site"], leak["images"], leak["of"]) for leak in found["selected"]] == [
        ("x", 1, 2),
        ("y", 0, 2),
    ]
    assert found["selected"][0]["names"] == ["x/test/b"]
    assert found["copies_selected"] == ["y/test/d"]
    assert found["groups_selected"] == ["x/test/c", "y/test/e"]
    assert (found["copies_across"], found["groups_across"]) == (0, 0)
    said = " ".join(out.split())
    assert "selection: 1 of 2 test images of x show a group that is also in its validation set" in said
    assert "selection: 1 test image has the pixels of a validation image of another site" in said
    assert "selection: 2 test images have the group id of a validation image of another site" in said
    assert "selection: x/test/c" in said


def test_split_counts_as_left_out_what_is_missing_or_broken(prrfl, tmp_path):
    manifest = whole_manifest(tmp_path)
    rows = manifest.read_text().splitlines()
    both = [rows[0], *(row for row in rows if ",x," in row)]
    both += [row.replace(",x,", ",z,") for row in both[1:]]  # the same files at a second site
    manifest.write_text("\n".join(both) + "\n")
    code, out, err = prrfl("data", "split", manifest, "--out", tmp_path / "s.csv")
    assert code == 0, err
    assert "60 images" in out
    assert "left out" not in out
    (tmp_path / "pics/x/0.png").unlink()
    (tmp_path / "pics/x/1.png").write_bytes(b"no image")
    code, out, err = prrfl("data", "split", manifest, "--out", tmp_path / "s.csv")
    assert code == 0, err
    assert "56 images" in out
    assert "4 images are missing or broken and were left out" in out


def test_split_leaks_nothing_and_keeps_the_shares(prrfl, tmp_path):
    manifest = whole_manifest(tmp_path, lesions=True)
    picture(tmp_path / "pics/x/29.png", 0)  # the same pixels as x/0, whose group is another
    command = ("data", "split", manifest, "--out", tmp_path / "s.csv", "--seed", 1, "--valid", 0.2)
    code, _, err = prrfl(*command)
    assert code == 0, err
    assert prrfl("data", "check", tmp_path / "s.csv", "--json", tmp_path / "f.json")[0] == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert [leak["images"] for leak in found["leaks"]] == [0] * 4
    assert [leak["images"] for leak in found["selected"]] == [0] * 2
    entries = read_entries(tmp_path / "s.csv", image_size=32, classes=CLASSES)
    assert len(entries) == 60
    places = {e.name: e.split for e in entries if e.site == "x"}
    assert places["0"] == places["29"]
    for site, largest in (("x", 4), ("y", 2)):  # at x, two lesions are one group, because of the copy
        sizes = Counter(e.split for e in entries if e.site == site)
        assert abs(sizes["test"] - 6) <= largest
        assert abs(sizes["valid"] - 6) <= largest
    first = (tmp_path / "s.csv").read_text()
    prrfl(*command)
    assert (tmp_path / "s.csv").read_text() == first
    code, _, err = prrfl(
        "data", "split", manifest, "--out", tmp_path / "t.csv", "--valid", 0.6, "--test", 0.5
    )
    assert code == 2
    assert "leave a split empty" in err
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
    command = build_command(tmp_path)
    code, out, err = prrfl(*command)
    assert code == 0, err
    assert "30 images of source vienna_dias" in out
    assert "such as ISIC_9999999" in out
    sites = load_sites(tmp_path / "built", image_size=32, classes=CLASSES)
    assert [s.name for s in sites] == ["clientA", "clientB", "clientC", "clientD"]
    for site, expected in (("clientC", ("50", "male", "")), ("clientD", ("", "", "0.0"))):
        table = tmp_path / f"built/csv_folder/{site}/test_{site}.csv"
        row = list(csv.DictReader(table.open()))[-1]
        assert (row["age"], row["sex"], row["melanoma"][:3]) in (expected, ("", "", "1.0"))
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


def build_command(folder):
    """The command for the archives of :func:`write_archives`."""
    return [
        "data", "build",
        "--ham", folder / "HAM10000_images_part_1.zip", "--ham", folder / "HAM10000_images_part_2.zip",
        "--ham-csv", folder / "HAM10000_metadata",
        "--isic", folder / "isic", "--isic-csv", folder / "gt.csv",
        "--out", folder / "built", "--image-size", 32,
    ]  # fmt: skip


def test_a_damaged_archive_is_named_with_the_image(prrfl, tmp_path):
    write_archives(tmp_path)
    archive = tmp_path / "HAM10000_images_part_1.zip"
    flip_data(archive, "ISIC_0000004.jpg")
    code, _, err = prrfl(*build_command(tmp_path))
    assert code == 2
    assert err.startswith(f"error: {archive}: ISIC_0000004.jpg cannot be read (Bad CRC-32")
    assert err.count("\n") == 1
    assert not (tmp_path / "built").exists()
    with zipfile.ZipFile(archive, "w") as whole:
        for n in range(60):
            whole.writestr(f"ISIC_{n:07}.jpg", b"no image")
    code, _, err = prrfl(*build_command(tmp_path))
    assert code == 2
    assert re.search(r"part_1.zip/ISIC_\d+.jpg cannot be decoded", err)


@pytest.mark.parametrize(
    ("table", "row", "column"),
    [
        ("gt.csv", "ISIC_9000000", "melanoma"),
        ("gt.csv", "ISIC_9000000,1.0", "seborrheic_keratosis"),
        ("gt.csv", "ISIC_9000000,1.0, ", "seborrheic_keratosis"),
        ("HAM10000_metadata", "HAM_0,ISIC_0000000,nv", "dataset"),
        ("HAM10000_metadata", "HAM_0", "image_id"),
        ("HAM10000_metadata", "HAM_0,../x,nv,histo,50,male,face,rosendahl", "image_id"),
    ],
)
def test_a_row_with_missing_cells_is_named_by_its_line(prrfl, tmp_path, table, row, column):
    write_archives(tmp_path)
    head, _, *others = (tmp_path / table).read_text().splitlines()
    (tmp_path / table).write_text("\n".join([head, *others[:2], row, *others[2:]]) + "\n")
    code, _, err = prrfl(*build_command(tmp_path))
    assert code == 2
    assert f"{tmp_path / table}:4: " in err
    assert column in err
    assert err.count("\n") == 1


def test_a_lesion_may_be_unknown(tmp_path):
    write_archives(tmp_path)
    table = tmp_path / "HAM10000_metadata"
    table.write_text(table.read_text().replace("HAM_0,", ","))
    entries, _ = ham_entries(table)
    assert {e.group for e in entries if e.path.name <= "ISIC_0000007"} == {None}
    assert "HAM_1" in {e.group for e in entries}


@pytest.mark.slow
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


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pixels_of_more_than_8_bits_are_refused_and_not_clipped_to_white(prrfl, tmp_path, mode):
    manifest = whole_manifest(tmp_path)
    deep = tmp_path / "pics/x/3.tif"
    Image.fromarray(
        np.arange(1024).reshape(32, 32).astype({"I;16": "uint16", "I": "int32", "F": "f4"}[mode])
    ).save(deep)
    manifest.write_text(manifest.read_text().replace("pics/x/3.png", "pics/x/3.tif"))
    with pytest.raises(
        DataError, match=rf"image .*3.tif has pixels of mode {mode}; expected 8 bits .*convert"
    ):
        load_sites(manifest, image_size=32, classes=CLASSES)
    code, out, _ = prrfl("data", "check", manifest)
    assert code == 1
    assert f"pixels of mode {mode}" in " ".join(out.split())


@pytest.mark.parametrize("patients", [3, 4, 5, 7, 9, 10])
@pytest.mark.parametrize("large", [1, 12])
def test_few_patients_are_split_or_refused_in_a_line(tmp_path, patients, large):
    entries = [
        Entry(tmp_path / f"{patient}-{n}.png", n % 3, "x", "train", f"p{patient}")
        for patient in range(patients)
        for n in range(3 * (large if patient == 0 else 1))
    ]
    parts = {}
    for entry in splitting.split(entries):
        parts.setdefault(entry.split, set()).add(entry.group)
    assert set(parts) == {"train", "valid", "test"}
    assert sum(map(len, parts.values())) == patients


def test_a_split_of_nothing_is_refused(prrfl, tmp_path):
    manifest = write_manifest(tmp_path, [f"pics/{n}.png,nv,x,train," for n in range(9)])
    code, _, err = prrfl("data", "split", manifest, "--out", tmp_path / "s.csv")
    assert code == 2
    assert "none of the 9 images" in err
    assert not (tmp_path / "s.csv").exists()


def test_split_does_not_write_over_what_it_reads(prrfl, tmp_path):
    manifest = whole_manifest(tmp_path)
    before = manifest.read_bytes()
    for out in (manifest, tmp_path / "pics/../m.csv", tmp_path / "pics/x/3.png"):
        code, _, err = prrfl("data", "split", manifest, "--out", out)
        assert code == 2
        assert "--out" in err
    assert manifest.read_bytes() == before
