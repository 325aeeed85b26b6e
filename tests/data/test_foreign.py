"""Data as other programs, systems and archives leave it: read where it is certain, else refused by name."""

import csv
import json
import re
import zipfile

import numpy as np
import pytest
from PIL import ExifTags, Image

from prrfl.data.build import ham_entries, index_images, isic_entries
from prrfl.data.columns import class_indices, group_ids
from prrfl.data.images import find_images, read_image
from prrfl.data.sources import load_sites, read_entries
from prrfl.errors import DataError
from tests.data.test_trust import (
    CLASSES,
    build_command,
    picture,
    whole_manifest,
    write_archives,
    write_arrays,
    write_manifest,
)
from tests.sites_on_disk import write_layout


def entries(source, classes=CLASSES):
    return read_entries(source, image_size=32, classes=classes)


def refused(source, classes=CLASSES):
    with pytest.raises(DataError) as caught:
        load_sites(source, image_size=32, classes=classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def images_of(layout, site="clientA", size=32):
    return layout / f"data/{site}/img_resize{size}"


def tables_of(layout):
    return sorted((layout / "csv_folder").rglob("*.csv"))


def with_endings(layout, ending):
    """Let the layout's tables name files with an ending."""
    for table in tables_of(layout):
        table.write_text(re.sub(r"(\d),", rf"\1{ending},", table.read_text()))


# Two files with one stem


def photos_and_masks(layout):
    """Make each image a photo (.jpg) with a black mask (.png)."""
    for path in layout.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        Image.new("L", (32, 32)).save(path)
    return layout


def test_the_file_that_is_named_is_read_and_not_its_mask(tmp_path):
    layout = photos_and_masks(write_layout(tmp_path / "data"))
    with_endings(layout, ".jpg")
    assert {e.path.suffix for e in entries(layout)} == {".jpg"}
    assert load_sites(layout, image_size=32, classes=CLASSES)[0].train.inputs.max() > 100
    # A photo that is missing is missing: its mask is not read instead.
    (images_of(layout) / "clientA_train_0.jpg").unlink()
    assert "1 of 9 images missing" in (message := refused(layout))
    assert "there is a file clientA_train_0.png" in message


@pytest.mark.parametrize("other", ["jpg", "PNG", "tif", "webp", "jpeg"])
def test_a_name_of_two_files_is_refused(tmp_path, other):
    layout = write_layout(tmp_path / "data")
    path = images_of(layout) / "clientA_train_4.png"
    Image.open(path).save(path.with_suffix(f".{other}"))
    message = refused(layout)
    assert "train_clientA.csv:6: image 'clientA_train_4' may be " in message
    assert f"clientA_train_4.{other}" in message


def test_files_that_were_converted_are_read_with_a_warning(tmp_path, caplog):
    layout = write_layout(tmp_path / "data")
    with_endings(layout, ".jpg")
    assert {e.path.suffix for e in entries(layout)} == {".png"}
    assert "site clientA: 21 images are files of another type than the tables name" in caplog.text


def test_two_folders_of_one_size_are_refused(tmp_path):
    layout = write_layout(tmp_path / "data")
    (layout / "data/clientA/img_resize032").mkdir()
    assert "holds img_resize032 and img_resize32" in refused(layout)


def test_arrays_in_a_layout_are_refused(tmp_path):
    layout = write_layout(tmp_path / "data")
    write_arrays(layout / "north.npz")
    assert "holds north.npz as well as csv_folder" in refused(layout)


def test_two_arrays_of_one_site_are_refused(tmp_path):
    write_arrays(tmp_path / "north.npz")
    (tmp_path / "north.NPZ").write_bytes((tmp_path / "north.npz").read_bytes())
    assert "more than one .npz file of site north" in refused(tmp_path)


@pytest.mark.parametrize("where", ["isic/masks/ISIC_9000003.png", "isic/ISIC_9000003.tif", "zip"])
def test_build_refuses_two_images_of_one_name(prrfl, tmp_path, where):
    write_archives(tmp_path)
    if where == "zip":
        with zipfile.ZipFile(tmp_path / "isic/more.zip", "w") as archive:
            archive.writestr("a/ISIC_9000003.jpg", b"other")
    else:
        picture(tmp_path / where, 77, 40)
    code, _, err = prrfl(*build_command(tmp_path))
    assert code == 2
    assert err.startswith("error: image 'ISIC_9000003' may be ")
    assert "which differ" in err
    assert not (tmp_path / "built").exists()


def test_build_reads_one_of_two_identical_files(prrfl, tmp_path):
    write_archives(tmp_path)
    copy = tmp_path / "isic/again/ISIC_9000003.jpg"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "isic/ISIC_9000003.jpg").read_bytes())
    code, _, err = prrfl(*build_command(tmp_path))
    assert code == 0, err


# Labels


@pytest.mark.parametrize(
    ("label", "classes", "index"),
    [
        ("nv", CLASSES, 0),
        ("2", CLASSES, 2),
        ("0.0", CLASSES, 0),
        ("2.00", CLASSES, 2),
        ("1.", CLASSES, 1),
        ("01", CLASSES, 1),
        ("1", ("0", "1"), 1),
        ("1.0", ("0", "1"), 1),
        ("8", ("7", "8", "9"), 1),  # as an index it is no class
        ("8.0", ("7", "8", "9"), 1),
    ],
)
def test_a_label_is_a_name_or_an_index(label, classes, index):
    assert class_indices([("m.csv:2", label)], classes) == [index]


@pytest.mark.parametrize(
    ("label", "classes", "said"),
    [
        ("0.5", CLASSES, "unknown label '0.5'"),
        ("-1", CLASSES, "unknown label '-1'"),
        ("1,0", CLASSES, "unknown label '1,0'"),
        ("²", CLASSES, "unknown label '²'"),
        ("1e0", CLASSES, "unknown label '1e0'"),
        ("NV", CLASSES, "unknown label 'NV'; expected one of 0 = nv, 1 = bkl, 2 = mel"),
        (
            "3",
            CLASSES,
            "labels run from 3 to 3, but there are 3 classes, counted from 0: the labels begin at 1",
        ),
        ("1", ("1", "2", "3"), "label '1' is ambiguous: it may mean class 1 or 2"),
        ("2.0", ("1", "2", "3"), "label '2.0' is ambiguous"),
        ("0", ("1", "0"), "label '0' is ambiguous"),
        ("2", ("benign", "2", "x"), "label '2' is ambiguous"),
        ("0", ("1", "2", "3"), "unknown label '0'; expected one of 1, 2, 3"),
        ("1.0", ("1", "01"), "is ambiguous"),
    ],
)
def test_other_labels_are_refused(label, classes, said):
    with pytest.raises(DataError) as caught:
        class_indices([("m.csv:2", label)], classes)
    assert str(caught.value).startswith("m.csv:2: ")
    assert said in str(caught.value)


def as_layout(folder, labels):
    layout = write_layout(folder / "layout", sites=1)
    for table in tables_of(layout):
        head, *rows = table.read_text().splitlines()
        named = [row.rpartition(",")[0] for row in rows]
        table.write_text("\n".join([head, *(f"{name},{labels[k % 3]}" for k, name in enumerate(named))]))
    return layout


def as_manifest(folder, labels):
    found = entries(write_layout(folder / "layout", sites=1))
    return write_manifest(folder, [f"{e.path},{labels[e.label]},{e.site},{e.split}," for e in found])


def as_arrays(folder, labels):
    column = [float(label) if label.replace(".", "").isdigit() else label for label in labels]
    three = {f"{name}_labels": np.array(column) for name in ("train", "val", "test")}
    images = {f"{name}_images": np.zeros((3, 8, 8), np.uint8) for name in ("train", "val", "test")}
    return write_arrays(folder / "clientA.npz", **three, **images)


@pytest.mark.parametrize("form", [as_layout, as_manifest, as_arrays])
@pytest.mark.parametrize(
    ("labels", "classes"),
    [(CLASSES, CLASSES), (("0.0", "1.0", "2.0"), CLASSES), (("0", "1", "2"), ("0", "1", "2"))],
)
def test_labels_mean_the_same_in_all_forms(tmp_path, form, labels, classes):
    (site,) = load_sites(form(tmp_path, labels), image_size=32, classes=classes)
    assert site.train.labels.tolist()[:3] == [0, 1, 2]


@pytest.mark.parametrize("form", [as_layout, as_manifest, as_arrays])
def test_ambiguous_labels_are_refused_in_all_forms(tmp_path, form):
    assert "is ambiguous" in refused(form(tmp_path, ("1", "2", "3")), classes=("1", "2", "3"))


@pytest.mark.parametrize("form", [as_layout, as_manifest, as_arrays])
def test_labels_that_begin_at_1_are_told_in_all_forms(tmp_path, form):
    message = refused(form(tmp_path, ("1", "2", "3")))
    assert "unknown label '3" in message
    assert "labels run from 1 to 3" in message
    assert "the labels begin at 1" in message


@pytest.mark.parametrize("rows", ["x,1,yes", "x,0.5,0", "x,nan,0", "x,-1,0", "x,1,1"])
def test_build_does_not_take_what_is_not_1_for_0(tmp_path, rows):
    (tmp_path / "gt.csv").write_text(f"image_id,melanoma,seborrheic_keratosis\ny,0,1\n{rows}\n")
    with pytest.raises(DataError, match=r"gt.csv: image x: melanoma '.*expected 0 or 1, and at most one 1"):
        isic_entries(tmp_path / "gt.csv")


def test_build_refuses_an_image_of_two_rows(tmp_path):
    (tmp_path / "gt.csv").write_text("image_id,melanoma,seborrheic_keratosis\ny,0,1\ny,1,0\n")
    with pytest.raises(DataError, match=r"gt.csv:3: image 'y' is already on line 2"):
        isic_entries(tmp_path / "gt.csv")


# One-hot tables


def as_one_hot(layout, columns=("MEL", "NV", "BKL"), value="1.0", extra=""):
    for table in tables_of(layout):
        rows = [row.split(",") for row in table.read_text().splitlines()[1:]]
        text = [",".join(["image", *columns])]
        for name, label in rows:
            ones = [value if c.casefold() == CLASSES[int(label)] else "0.0" for c in columns]
            text.append(",".join([name, *ones]) + extra)
        table.write_text("\n".join(text) + "\n")
    return layout


@pytest.mark.parametrize("columns", [("MEL", "NV", "BKL"), ("MEL", "NV", "BCC", "AK", "BKL", "UNK"), CLASSES])
def test_one_hot_tables_are_read(tmp_path, columns):
    expected = [(e.path.name, e.label) for e in entries(write_layout(tmp_path / "a"))]
    found = entries(as_one_hot(write_layout(tmp_path / "b"), columns))
    assert [(e.path.name, e.label) for e in found] == expected


def test_a_one_hot_manifest_is_read(tmp_path):
    rows = ["a.png,0,1,0,x,train", "b.png,1,0,0,x,test"]
    found = entries(write_manifest(tmp_path, rows, "path,NV,MEL,BKL,site,split"))
    assert [e.label for e in found] == [2, 0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("x,0,0,0,0", ":3: expected 1 in one column and 0 in the others; found NV 0, MEL 0, BKL 0, BCC 0"),
        ("x,1,1,0,0", ":3: expected 1 in one column"),
        ("x,0.7,0.3,0,0", ":3: expected 1 in one column"),
        ("x,1,0,,0", ":3: expected 1 in one column and 0 in the others; found NV 1, MEL 0, BKL empty"),
        ("x,0,0,0,1", ":3: unknown label 'BCC'"),
    ],
)
def test_one_hot_rows_that_name_no_class_are_refused(tmp_path, row, said):
    layout = write_layout(tmp_path / "data")
    table = layout / "csv_folder/clientA/train_clientA.csv"
    table.write_text(f"image,NV,MEL,BKL,BCC\nclientA_train_0,1,0,0,0\n{row}\n")
    assert f"train_clientA.csv{said}" in refused(layout)


# Groups


@pytest.mark.parametrize(
    "word", ["nan", "NaN", "NA", "N/A", "unknown", "Unknown", "-", "?", "None", "null", "<NA>"]
)
def test_groups_that_are_unknown_in_words_are_unknown(tmp_path, caplog, word):
    rows = [f"{n}.png,{CLASSES[n % 3]},x,train,{('p1', word, '')[n % 3]}" for n in range(9)]
    found = entries(write_manifest(tmp_path, rows))
    assert [e.group for e in found] == ["p1", None, None] * 3
    assert f"3 groups are '{word}', which is read as unknown" in caplog.text


def test_split_takes_unknown_groups_for_what_they_are(prrfl, tmp_path):
    manifest = whole_manifest(tmp_path)
    assert prrfl("data", "split", manifest, "--out", tmp_path / "empty.csv")[0] == 0
    manifest.write_text(re.sub(r",$", ",nan", manifest.read_text(), flags=re.M))
    code, _, err = prrfl("data", "split", manifest, "--out", tmp_path / "nan.csv")
    assert code == 0, err
    assert (tmp_path / "nan.csv").read_text() == (tmp_path / "empty.csv").read_text()


@pytest.mark.parametrize(
    ("cells", "flags", "found"),
    [
        (["0", "1", "0", ""], True, [None] * 4),  # what the published tables hold instead of ids
        (["0.0", "1.0", "0.0", ""], True, [None] * 4),
        (["0", "1", "2", "0"], True, ["0", "1", "2", "0"]),  # ids, counted from 0
        (["0", "1", "HAM_1"], True, ["0", "1", "HAM_1"]),
        (["0", "1"], False, ["0", "1"]),
        (["17", "17.0", ""], False, ["17", "17", None]),
        (["17.0", "v1.0"], False, ["17.0", "v1.0"]),
        (["007", "7"], False, ["007", "7"]),
    ],
)
def test_groups_are_evaluated_by_the_column(cells, flags, found):
    assert group_ids(cells, "m.csv", flags) == found


def test_a_lesion_counted_from_0_is_the_same_in_all_splits(tmp_path):
    layout = write_layout(tmp_path / "data", sites=1)
    for table in tables_of(layout):
        head, *rows = table.read_text().splitlines()
        empty = "test" in table.name  # pandas then writes floats
        ids = [f"{n}.0" if empty else str(n) for n in range(len(rows))]
        text = [f"{row},{lesion}" for row, lesion in zip(rows, ids, strict=True)]
        table.write_text("\n".join([f"{head},lesion_id", *text]) + "\n")
    groups = {split: {e.group for e in entries(layout) if e.split == split} for split in ("train", "test")}
    assert groups["test"] <= groups["train"]
    assert "0" in groups["test"]


def test_columns_that_seem_to_hold_groups_are_told(tmp_path, caplog):
    entries(write_manifest(tmp_path, ["a.png,nv,x,train,p1"], "path,label,site,split,Patient_ID"))
    assert "column Patient_ID is not read" in caplog.text
    assert "call it group" in caplog.text


def test_build_takes_a_lesion_of_na_for_unknown(tmp_path):
    write_archives(tmp_path)
    table = tmp_path / "HAM10000_metadata"
    table.write_text(table.read_text().replace("HAM_0,", "NA,"))
    found, _ = ham_entries(table)
    assert {e.group for e in found if e.path.name <= "ISIC_0000007"} == {None}


# EXIF orientation

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(path, orientation, upright):
    """Save an image as a camera does that is held in another way: viewers show the upright image."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    upright.transpose(TURNS[orientation]).save(path, exif=exif)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_images_are_read_as_viewers_show_them(tmp_path, orientation, suffix):
    upright = Image.fromarray(np.arange(24 * 16 * 3).reshape(24, 16, 3).astype(np.uint8))
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    upright.transpose(TURNS[orientation]).save(path, exif=exif, **options)
    assert np.array_equal(read_image(path), np.array(upright))
    assert read_image(path, 8).shape == (8, 8, 3)


def test_check_finds_a_turned_copy(prrfl, tmp_path):
    manifest = whole_manifest(tmp_path)
    with Image.open(tmp_path / "pics/x/0.png") as upright:
        turned(tmp_path / "pics/x/4.png", 6, upright)
    prrfl("data", "check", manifest, "--json", tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text())["duplicates"] == [["x/train/0", "x/test/4"]]


def test_an_image_with_damaged_exif_data_is_read_as_it_is_stored(tmp_path):
    picture(tmp_path / "a.png", 1)
    with Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "b.png", exif=b"Exif\x00\x00no exif")
    assert np.array_equal(read_image(tmp_path / "b.png"), read_image(tmp_path / "a.png"))


# Files that are passed over


def test_predict_skips_and_counts_what_is_not_an_image(tmp_path, caplog):
    folder = tmp_path / ".data"  # the folder that is named may be hidden
    picture(folder / "a.png", 1)
    picture(folder / "b/c.gif", 2)
    picture(folder / ".ipynb_checkpoints/a-checkpoint.png", 3)
    picture(folder / "__MACOSX/a.png", 3)
    picture(tmp_path / "elsewhere/d.png", 4)
    (folder / "._a.png").write_bytes(b"\0\5\026\7")
    (folder / "labels.csv").write_text("x")
    (folder / "scan.dcm").write_bytes(b"x")
    (folder / "LICENSE").write_text("x")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "link.png").symlink_to(tmp_path / "elsewhere/d.png")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    found = find_images([folder])
    assert [str(path.relative_to(folder)) for path in found] == ["a.png", "b/c.gif", "link.png"]
    assert caplog.messages == [
        f"{folder}: passed over broken links: 1, files ending in .csv: 1, files ending in .dcm: 1, "
        "files without an ending: 1, hidden files: 1, hidden folders: 2, linked folders: 1"
    ]


def test_a_folder_without_an_image_is_refused_with_what_is_in_it(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no image, but files ending in .dcm: 1; .*DICOM is not read"):
        find_images([tmp_path])


def test_a_whole_folder_says_nothing(tmp_path, caplog):
    picture(tmp_path / "a.png", 1)
    find_images([tmp_path])
    layout = write_layout(tmp_path / "layout")
    load_sites(layout, image_size=32, classes=CLASSES)
    assert not caplog.messages


def test_what_is_no_site_is_counted(tmp_path, caplog):
    layout = write_layout(tmp_path / "data")
    (layout / "csv_folder/.ipynb_checkpoints").mkdir()
    (layout / "csv_folder/.DS_Store").write_bytes(b"x")
    (layout / "csv_folder/notes.txt").write_text("x")
    (layout / "data/clientC/img_resize32").mkdir(parents=True)
    assert [s.name for s in load_sites(layout, image_size=32, classes=CLASSES)] == ["clientA", "clientB"]
    assert caplog.messages == [
        f"{layout}: passed over file notes.txt: 1, folders of images without tables (clientC): 1, "
        "hidden files: 1, hidden folders: 1"
    ]


def test_what_is_no_array_is_counted(tmp_path, caplog):
    write_arrays(tmp_path / "north.npz")
    (tmp_path / "._north.npz").write_bytes(b"\0\5\026\7")
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "south").mkdir()
    (site,) = load_sites(tmp_path, image_size=8, classes=CLASSES)
    assert site.name == "north"
    assert f"{tmp_path}: passed over files ending in .md: 1, folders: 1, hidden files: 1" in caplog.messages


def test_check_counts_what_no_table_names(prrfl, tmp_path):
    layout = write_layout(tmp_path / "data")
    for name in ("mask_1.png", "mask_2.png", "._mask_1.png", "Thumbs.db"):
        (images_of(layout) / name).write_bytes(b"x")
    code, out, _ = prrfl("data", "check", layout, "--json", tmp_path / "f.json")
    assert code == 0
    said = "files ending in .db: 1, hidden files: 1, images that no table names: 2"
    assert f"passed over: {images_of(layout)}: {said}" in " ".join(out.split())
    found = json.loads((tmp_path / "f.json").read_text())["passed_over"]
    assert found[str(images_of(layout))]["images that no table names"] == 2


def test_build_counts_what_it_passes_over(prrfl, tmp_path):
    write_archives(tmp_path)
    (tmp_path / "isic/__MACOSX").mkdir()
    (tmp_path / "isic/licence.txt").write_text("x")
    with zipfile.ZipFile(tmp_path / "isic/more.zip", "w") as archive:
        archive.writestr("__MACOSX/._ISIC_9000000.jpg", b"x")
        archive.writestr("a/readme.md", b"x")
    code, out, err = prrfl(*build_command(tmp_path))
    assert code == 0, err
    said = " ".join(out.split())
    assert "passed over in the archives: " in said
    kinds = {"superpixel masks": 30, "files ending in .txt": 1, "files ending in .md": 1, "hidden files": 1}
    for kind in (*(f"{k}: {n}" for k, n in kinds.items()), "hidden folders: 1", "rows that were left out"):
        assert kind in said


@pytest.mark.parametrize("suffix", ["tif", "webp", "bmp", "gif", "TIFF"])
def test_the_layout_has_files_of_all_types(tmp_path, suffix):
    layout = write_layout(tmp_path / "data")
    for path in images_of(layout).iterdir():
        Image.open(path).save(path.with_suffix(f".{suffix}"))
        path.unlink()
    assert len(load_sites(layout, image_size=32, classes=CLASSES)[0].train) == 9


def test_a_missing_image_that_is_there_in_another_format_is_told(tmp_path):
    layout = write_layout(tmp_path / "data")
    path = images_of(layout) / "clientA_train_0.png"
    path.rename(path.with_suffix(".dcm"))
    assert "1 of 9 images missing" in (message := refused(layout))
    assert "there is a file clientA_train_0.dcm" in message


@pytest.mark.parametrize("name", ["a.dcm", "a.png"])
def test_dicom_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM" + b"x" * 100)
    with pytest.raises(DataError, match=r"is DICOM, which is not read; convert it to PNG"):
        read_image(tmp_path / name)


# Tables from other programs


def manifest_text(folder, rows=9):
    lines = ["path,label,site,split,group"]
    for n in range(rows):
        picture(folder / f"pics/{n}.png", n)
        lines.append(f"pics/{n}.png,{CLASSES[n % 3]},x,{('train', 'valid', 'test')[n // 3 % 3]},für{n}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("separator", [";", "\t", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("start", ["", "sep={}\r\n"])
def test_tables_of_other_programs_are_read(tmp_path, separator, encoding, start):
    text = manifest_text(tmp_path)
    (tmp_path / "m.csv").write_text(text)
    expected = entries(tmp_path / "m.csv")
    other = start.format(separator) + text.replace(",", separator).replace("\n", "\r\n")
    (tmp_path / "m.csv").write_bytes((other + f"{separator * 4}\r\n" * 3).encode(encoding))
    assert entries(tmp_path / "m.csv") == expected
    assert expected[0].group == "für0"


@pytest.mark.parametrize("name", ["m.tsv", "m.tab", "m.txt", "m.CSV"])
def test_manifests_may_have_other_endings(tmp_path, name):
    (tmp_path / name).write_text(manifest_text(tmp_path).replace(",", "\t"))
    assert len(entries(tmp_path / name)) == 9


def test_lines_are_counted_as_an_editor_does(tmp_path):
    text = "sep=;\n" + manifest_text(tmp_path).replace(",", ";").replace("nv;x;valid", "nw;x;valid")
    (tmp_path / "m.csv").write_text(text)
    assert "m.csv:6: unknown label 'nw'" in refused(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"path,label,site,split\na.png,nv,f\xfcr,train\n", ":2 is not UTF-8 text (byte 0xFC)"),
        (b"PK\x03\x04 and more", "is an Excel workbook; save it as 'CSV UTF-8'"),
        (b"\xd0\xcf\x11\xe0 and more", "is an Excel workbook"),
        ("path,label,site,split\n".encode("utf-16") + b"x", "is not valid UTF-16 text"),
        (b"path,label,site,split\na,b.png,nv,x,train\n", ":2 has 5 cells, but the header has 4"),
        (b"path label site split\na.png nv x train\n", "no column 'path'"),
        (b"path,label,site,split,group,group\na.png,nv,x,train,1,2\n", "has 2 columns 'group'"),
    ],
)  # fmt: skip
def test_what_makes_a_table_unreadable_is_told(tmp_path, content, said):
    (tmp_path / "m.csv").write_bytes(content)
    assert said in refused(tmp_path / "m.csv")


def test_backslashes_are_slashes_if_only_these_are_files(tmp_path, caplog):
    text = manifest_text(tmp_path)
    (tmp_path / "m.csv").write_text(text)
    expected = entries(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text(text.replace("pics/", "pics\\"))
    assert entries(tmp_path / "m.csv") == expected
    assert "9 paths have backslashes, which are read as slashes" in caplog.text
    picture(tmp_path / "pics\\0.png", 55)  # a name may hold a backslash
    assert entries(tmp_path / "m.csv")[0].path.name == "pics\\0.png"
    (tmp_path / "m.csv").write_text(text.replace("pics/", "C:\\data\\"))
    assert "m.csv:2: there is no file C:\\data\\0.png, which is written with backslashes" in refused(
        tmp_path / "m.csv"
    )


def test_ham10000_is_read_as_dataverse_gives_it_and_refused_as_kaggle_does(tmp_path):
    write_archives(tmp_path)
    table = tmp_path / "HAM10000_metadata"
    expected = ham_entries(table)
    rows = list(csv.reader(table.open()))
    tab = tmp_path / "HAM10000_metadata.tab"
    tab.write_text("".join("\t".join(f'"{cell}"' for cell in row) + "\n" for row in rows))
    assert ham_entries(tab) == expected
    kaggle = tmp_path / "kaggle.csv"
    kaggle.write_text("".join(",".join(row[:-1]) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"has no column 'dataset', .*Kaggle.*https://doi.org/10.7910/DVN/DBW86T"
    ):
        ham_entries(kaggle)


def test_an_index_of_images_knows_folders_and_zips(tmp_path):
    write_archives(tmp_path)
    source = index_images(
        [tmp_path / "isic", tmp_path / "isic/../isic", tmp_path / "HAM10000_images_part_1.zip"]
    )
    assert len(source.places) == 90
    assert {len(places) for places in source.places.values()} == {1}


# What check and split say


def test_copies_with_different_labels_are_called_that(prrfl, tmp_path):
    manifest = whole_manifest(tmp_path)
    for name, seed in (("2.png", 0), ("1.png", 30), ("6.png", 30)):
        picture(tmp_path / "pics/x" / name, seed)
    code, out, _ = prrfl("data", "check", manifest, "--json", tmp_path / "f.json")
    assert code == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["contradictions"] == [["x/train/0 (nv)", "x/train/2 (bkl)"]]
    assert len(found["duplicates"]) == 2
    said = " ".join(out.split())
    assert "contradictions: in 1 set, copies of one image have different labels" in said
    assert "contradictions: x/train/0 (nv), x/train/2 (bkl)" in said


def test_check_says_which_images(prrfl, tmp_path):
    manifest = whole_manifest(tmp_path, lesions=True)
    text = manifest.read_text().replace("pics/y/3.png,bkl,y,valid,y1", "pics/y/3.png,bkl,y,valid,x0")
    manifest.write_text(text)
    (tmp_path / "pics/y/4.png").write_bytes((tmp_path / "pics/x/0.png").read_bytes())
    _, out, _ = prrfl("data", "check", manifest, "--json", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["copies_across_names"] == ["y/test/4"]
    assert found["groups_across_names"] == ["y/valid/3"]
    assert all(len(leak["names"]) == leak["images"] for leak in found["leaks"])
    leaking = [name for leak in found["leaks"] for name in leak["names"]]
    assert "x/test/4" in leaking
    for name in leaking:
        assert f"leakage: {name}\n" in out
    assert "across sites: y/test/4\n" in out
    assert "across sites: y/valid/3\n" in out
    assert "duplicates: x/train/0, y/test/4\n" in out


def test_a_class_of_two_images_is_refused(prrfl, tmp_path):
    manifest = whole_manifest(tmp_path)
    rows = manifest.read_text().splitlines()
    rows = [row for row in rows if not (",x," in row and ",mel," in row)]
    rows += [f"pics/x/{n}.png,mel,x,train," for n in (4, 5)]
    manifest.write_text("\n".join(rows) + "\n")
    code, _, err = prrfl("data", "split", manifest, "--out", tmp_path / "s.csv")
    assert code == 2
    assert err.startswith("error: site x: class mel has images of 2 groups only; ")
    assert err.count("\n") == 1
    assert not (tmp_path / "s.csv").exists()
