"""Ways in for data sets as people have them: folders, tables with other columns, partitions, DICOM."""

import csv
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from prrfl.data.images import read_image
from prrfl.data.partition import Skew, by_skew
from prrfl.data.sources import load_sites
from prrfl.errors import DataError


def picture(path, colour=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (colour, colour // 2, 10)).save(path)


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_per_class(here, prrfl):
    for name, count in (("nv", 12), ("mel", 9), ("other", 4)):
        for k in range(count):
            picture(here / "set" / name / f"{name}{k}.png", 20 * k)
    code, out, _ = prrfl("data", "import", "set", "--out", "m/all.csv", "--classes", "nv,mel")
    assert (code, "left out: 4 images of class other" in out) == (0, True)
    assert "--classes nv,mel" in out
    assert Counter(row["label"] for row in rows_of(here / "m" / "all.csv")) == {"nv": 12, "mel": 9}
    assert prrfl("data", "split", "m/all.csv", "--classes", "nv,mel", "--out", "split.csv")[0] == 0
    (site,) = load_sites(here / "split.csv", image_size=32, classes=("nv", "mel"))
    assert sum(len(site.split(name)) for name in ("train", "valid", "test")) == 21


def test_a_folder_per_split_and_class(here, prrfl):
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            picture(here / "set" / split / name / "deep" / f"{split}{name}.png")
    assert prrfl("data", "import", "set", "--out", "all.csv", "--site", "north")[0] == 0
    found = {(row["split"], row["label"], row["site"]) for row in rows_of(here / "all.csv")}
    assert found == {(split, name, "north") for split in ("train", "valid", "test") for name in "ab"}


def test_a_table_with_other_columns(here, prrfl):
    """The shape of FLamby's Fed-ISIC2019: image names without ending, a column of centres, no validation."""
    lines = ["image,target,center,fold,fold2,age"]
    for k in range(24):
        picture(here / "images" / "sub" / f"ISIC_{k}.jpg", 10 * k)
        lines.append(f"ISIC_{k},{k % 2},{k % 3},{'test' if k > 17 else 'train'},test_0,{k}")
    (here / "table.csv").write_text("\n".join(lines))
    columns = "path=image,label=target,site=center,split=fold"
    code, out, err = prrfl(
        "data", "import", "table.csv", "--columns", columns, "--images", "images", "--out", "m.csv"
    )
    assert (code, err) == (0, "")
    assert "24 images at 0, 1, 2" in out
    assert "--classes 0,1" in out
    assert "Some splits are missing" in out
    row = rows_of(here / "m.csv")[20]
    assert (row["path"], row["site"], row["split"], row["age"]) == (
        "images/sub/ISIC_20.jpg",
        "2",
        "test",
        "20",
    )
    assert "fold2" in row


def test_a_one_hot_table(here, prrfl):
    for k in range(3):
        picture(here / f"I{k}.jpg")
    (here / "truth.csv").write_text("image,MEL,NV,BKL\nI0,1.0,0.0,0.0\nI1,0,1,0\nI2,0,0,1\n")
    assert prrfl("data", "import", "truth.csv", "--classes", "nv,bkl,mel", "--out", "m.csv")[0] == 0
    assert [row["label"] for row in rows_of(here / "m.csv")] == ["mel", "nv", "bkl"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("t.csv", "--columns", "path=file"), "t.csv has no column 'file'"),
        (("t.csv", "--columns", "pth=name"), "unknown column 'pth' (did you mean 'path'?)"),
        (("t.csv", "--columns", "path"), "'path' names no column"),
        (("t.csv", "--columns", "path=name"), "t.csv has no column label; name its column of labels"),
        (("t.csv", "--columns", "path=name,label=dx"), "t.csv:3: there is no image 'gone' below"),
        (
            ("t.csv", "--columns", "path=name,label=dx,split=part"),
            "t.csv:2: unknown split 'trian' (did you mean",
        ),
        (("loose",), "is in no folder of a class"),
        (("empty",), "holds no image"),
        (("whole", "--site", "a/b"), "--site: invalid name of a site 'a/b'; expected a name such as"),
    ],
)
def test_what_cannot_be_imported_is_one_line(here, prrfl, arguments, error):
    picture(here / "a.png")
    picture(here / "loose" / "b.png")
    picture(here / "whole" / "nv" / "c.png")
    (here / "empty").mkdir()
    (here / "t.csv").write_text("name,dx,part\na,nv,trian\ngone,nv,test\n")
    code, _, err = prrfl("data", "import", *arguments, "--out", "m.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert error in err
    assert not (here / "m.csv").exists()


def manifest(folder, images=300):
    draw = np.random.default_rng(0)
    lines = ["path,label,site,split,group,centre"]
    for k in range(images):
        split = ("train", "train", "train", "valid", "test")[k % 5]
        lines.append(f"i{k}.png,{draw.integers(3)},all,{split},p{k // 10 * 10 + k % 5},c{k % 2}")
    (folder / "m.csv").write_text("\n".join(lines) + "\n")


def test_a_partition_by_column(here, prrfl):
    manifest(here)
    code, out, _ = prrfl("data", "partition", "m.csv", "--by", "centre", "--out", "p.csv")
    assert (code, "c0" in out) == (0, True)
    rows = rows_of(here / "p.csv")
    assert all(row["site"] == row["centre"] for row in rows)
    code, _, err = prrfl("data", "partition", "m.csv", "--by", "center", "--out", "q.csv")
    assert (code, "no column 'center' (did you mean 'centre'?)" in err) == (2, True)


def test_a_partition_by_dirichlet(here, prrfl):
    manifest(here)
    for name, alpha in (("skewed", "0.2"), ("alike", "1000"), ("again", "0.2")):
        code, _, err = prrfl(
            "data",
            "partition",
            "m.csv",
            "--sites",
            "3",
            "--dirichlet",
            alpha,
            "--least",
            "2",
            "--out",
            f"{name}.csv",
        )
        assert (code, err) == (0, "")
    before, skewed = rows_of(here / "m.csv"), rows_of(here / "skewed.csv")
    assert [row["split"] for row in skewed] == [row["split"] for row in before]
    sites = {}
    for row in skewed:
        sites.setdefault(row["group"], set()).add(row["site"])
    assert all(len(places) == 1 for places in sites.values())
    assert (here / "again.csv").read_bytes() == (here / "skewed.csv").read_bytes()
    spread = {
        name: np.ptp([
            Counter(row["label"] for row in rows_of(here / f"{name}.csv") if row["site"] == site)["0"]
            for site in ("site1", "site2", "site3")
        ])
        for name in ("skewed", "alike")
    }  # fmt: skip
    assert spread["skewed"] > 2 * spread["alike"]
    code, _, err = prrfl("data", "partition", "m.csv", "--sites", "90", "--out", "n.csv")
    assert (code, "use a larger --dirichlet, or fewer --sites" in err) == (2, True)


@pytest.mark.parametrize("how", [["--sites", 2, "--least", 1], ["--by", "centre"]])
def test_a_partition_of_an_unknown_split_is_refused(here, prrfl, how):
    manifest(here)
    text = (here / "m.csv").read_text()
    (here / "m.csv").write_text(text.replace(",valid,", ",val,"))
    code, _, err = prrfl("data", "partition", "m.csv", *how, "--out", "p.csv")
    said = "m.csv:5: unknown split 'val'; expected one of train, valid, test (did you mean 'valid'?)"
    assert (code, said in err, err.count("\n")) == (2, True, 1), err
    assert not (here / "p.csv").exists()


def medmnist(path, labels=None):
    """Write arrays in the shape of MedMNIST; the pixels tell which image is which."""
    arrays = {}
    for k, (split, count) in enumerate((("train", 60), ("val", 24), ("test", 24))):
        numbers = np.arange(count, dtype=np.uint8) + 100 * (k == 2) + 130 * (k == 1)
        arrays[f"{split}_images"] = np.tile(numbers[:, None, None], (1, 8, 8))
        arrays[f"{split}_labels"] = (numbers % 3)[:, None] if labels is None else labels[:count]
    np.savez(path, **arrays)
    return arrays


def test_arrays_are_divided_into_a_folder_that_can_be_trained_on(here, prrfl):
    whole = medmnist(here / "pathmnist.npz")
    command = ("data", "partition", "pathmnist.npz", "--sites", 3, "--least", 2)
    code, out, err = prrfl(*command, "--out", "sites")
    assert (code, err) == (0, "")
    assert "108 images: sites" in out
    assert "--classes 0,1,2" in out
    assert prrfl(*command, "--out", "again")[0] == 0
    names = ["site1.npz", "site2.npz", "site3.npz"]
    assert sorted(path.name for path in (here / "sites").iterdir()) == names
    assert all((here / "again" / n).read_bytes() == (here / "sites" / n).read_bytes() for n in names)
    for split in ("train", "val", "test"):
        found = []
        for name in names:
            with np.load(here / "sites" / name) as arrays:
                images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            assert images.shape[1:] == (8, 8)
            assert (images[:, 0, 0] % 3 == labels[:, 0]).all()
            found += images[:, 0, 0].tolist()
        assert sorted(found) == sorted(whole[f"{split}_images"][:, 0, 0].tolist())
    sites = load_sites(here / "sites", image_size=32, classes=("a", "b", "c"))
    assert [site.name for site in sites] == ["site1", "site2", "site3"]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["--by", "centre"], "many.npz holds arrays, which have no columns; give --sites K instead of --by"),
        (["--sites", "3", "--out", "new.csv"], "--out is new.csv; expected a folder, for one .npz file per"),
        (["--sites", "3", "--out", "full"], "full exists already; choose another folder, or remove it"),
        (["--sites", "3"], "labels have shape (60, 4); expected one label per image"),
    ],
)
def test_arrays_that_cannot_be_divided_are_one_line(here, prrfl, given, error):
    medmnist(here / "many.npz", np.zeros((60, 4), dtype=np.int64))
    picture(here / "full" / "a.png")
    code, _, err = prrfl("data", "partition", "many.npz", "--out", "new", *given)
    assert (code, err.count("\n")) == (2, 1)
    assert error in err
    assert not list(here.glob("new*"))


def test_shares_of_sites_follow_the_dirichlet_distribution():
    """The variance of a site's share of a class is (1/K)(1 - 1/K) / (K alpha + 1)."""
    labels, splits, groups = ["a", "b"] * 400, ["train"] * 800, [""] * 800
    shares = []
    for seed in range(200):
        placed = by_skew(labels, splits, groups, Skew(4, 0.5, least=1, seed=seed))
        shares.append(sum(pair == ("site1", "a") for pair in zip(placed, labels, strict=True)) / 400)
    assert np.mean(shares) == pytest.approx(1 / 4, abs=0.06)
    assert np.var(shares) == pytest.approx(0.25 * 0.75 / 3, rel=0.35)


def test_sixteen_bits_and_floats_need_a_window(here, prrfl):
    ramp = np.linspace(0, 1000, 64 * 64).reshape(64, 64)
    (here / "in").mkdir()
    Image.fromarray(ramp.astype(np.uint16)).save(here / "in" / "a.png")
    Image.fromarray(ramp.astype(np.float32)).save(here / "in" / "b.tif")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(here / "in" / "c.png")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.uint8(np.arange(8 * 16).reshape(8, 16))).save(here / "in" / "d.jpg", exif=turned)
    code, _, err = prrfl("data", "convert", "in", "--out", "out")
    assert (code, "a.png has intensities from 0 to 1000" in err) == (2, True)
    assert not (here / "out").exists()
    code, out, _ = prrfl("data", "convert", "in", "--out", "out", "--window", "0,500")
    assert (code, "2 images: 0 to 500" in out, "2 images: 8 bits already" in out) == (0, True, True)
    expected = np.rint(255 * (ramp / 500).clip(0, 1))
    for name in ("a.png.png", "b.tif.png"):
        assert np.abs(np.array(Image.open(here / "out" / name)) - expected).max() <= 1
    assert Image.open(here / "out" / "c.png.png").getpixel((0, 0)) == (1, 2, 3)
    assert (
        np.abs(np.array(Image.open(here / "out" / "d.jpg.png")) - read_image(here / "in" / "d.jpg")).max()
        == 0
    )
    code, _, err = prrfl("data", "convert", "in", "--out", "x", "--window", "5,5")
    assert (code, "--window 5,5: expected two numbers, the lower one first" in err) == (2, True)


def test_colours_of_sixteen_bits_are_not_cut_to_eight(here, prrfl):
    """Pillow reads the upper 8 bits, which may be all black."""
    head, rows = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0), zlib.compress((b"\0" + b"\0\xff" * 24) * 8)
    chunks = ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    whole = b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )
    (here / "in").mkdir()
    (here / "in" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + whole)
    code, _, err = prrfl("data", "convert", "in", "--out", "out", "--window", "0,500")
    assert (code, "a.png is a colour image of 16 bits per channel" in err) == (2, True)
    with pytest.raises(DataError, match="colour image of 16 bits per channel, which is not read"):
        read_image(here / "in" / "a.png")


def dicom(path: Path, values, **tags):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = values.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 0, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = values.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    path.parent.mkdir(exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def test_dicom_is_shown_with_its_window_or_the_given_one(here, prrfl):
    stored = np.arange(64 * 64).reshape(64, 64)
    window = {"WindowCenter": 100, "WindowWidth": 401, "RescaleSlope": 1, "RescaleIntercept": -1000}
    dicom(here / "in" / "a.dcm", stored, **window)
    dicom(here / "in" / "b.dcm", stored, PhotometricInterpretation="MONOCHROME1", **window)
    code, out, err = prrfl("data", "convert", "in", "--out", "out")
    assert (code, err) == (0, "")
    assert "2 images: -100.5 to 299.5" in out
    a, b = (np.array(Image.open(here / "out" / f"{name}.dcm.png")) for name in "ab")
    expected = np.rint(255 * ((stored - 1000 + 100.5) / 400).clip(0, 1))
    assert np.abs(a - expected).max() <= 1
    assert (a.astype(int) + b == 255).all()
    code, out, _ = prrfl("data", "convert", "in", "--out", "out2", "--window", "-1000,0")
    assert (code, "2 images: -1000 to 0" in out) == (0, True)
    dicom(here / "narrow" / "a.dcm", stored, WindowCenter=100, WindowWidth=1)
    code, _, err = prrfl("data", "convert", "narrow", "--out", "out3")
    assert (code, "a.dcm holds a window of width 1, which shows no greys" in err) == (2, True)
    dicom(here / "bare" / "a.dcm", stored)
    code, _, err = prrfl("data", "convert", "bare", "--out", "out3")
    assert (code, "holds no window; its intensities run from 0 to 4095" in err) == (2, True)
    (here / "bare" / "a.dcm").write_bytes(b"not DICOM")
    code, _, err = prrfl("data", "convert", "bare", "--out", "out3")
    assert (code, "cannot be read as DICOM" in err, err.count("\n")) == (2, True, 1)


def test_dicom_with_a_palette_is_shown_in_its_colours(here, prrfl):
    tables = {f"{name}PaletteColorLookupTableDescriptor": [4, 0, 16] for name in ("Red", "Green", "Blue")}
    for k, name in enumerate(("Red", "Green", "Blue")):
        tables[f"{name}PaletteColorLookupTableData"] = np.array([0, 257 * (k + 1), 0, 65535], "<u2").tobytes()
    dicom(here / "in" / "a.dcm", np.eye(8), PhotometricInterpretation="PALETTE COLOR", **tables)
    assert prrfl("data", "convert", "in", "--out", "out")[0] == 0
    shown = np.array(Image.open(here / "out" / "a.dcm.png"))
    assert np.array_equal(shown, np.eye(8)[..., None] * [1, 2, 3])
