"""The published layout: what is read, and how each fault is named."""

import numpy as np
import pytest
import torch
from PIL import Image

from prrfl.data.images import load_entries
from prrfl.data.layout import CLASSES, find_sites, read_table, site_entries
from prrfl.data.sources import load_sites
from prrfl.errors import DataError
from tests.reference import DERMOSCOPY, needs_dermoscopy
from tests.sites_on_disk import write_layout


@pytest.fixture
def folder(tmp_path):
    return write_layout(tmp_path / "Klinik für Haut")


def load(folder, **settings):
    return load_sites(folder, **{"image_size": 32, "classes": CLASSES, **settings})


def refused(folder, **settings):
    with pytest.raises(DataError) as caught:
        load(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(folder, split="train", site="clientA"):
    return folder / "csv_folder" / site / f"{split}_{site}.csv"


def image(folder, name="clientA_train_0", site="clientA"):
    return folder / "data" / site / "img_resize32" / f"{name}.png"


def test_sites_rows_and_pixels_in_file_order(folder):
    sites = load(folder)
    assert [site.name for site in sites] == find_sites(folder) == ["clientA", "clientB"]
    train = sites[0].train
    assert train.ids[:3] == ("clientA_train_0", "clientA_train_1", "clientA_train_2")
    assert train.labels.tolist() == [0, 1, 2] * 3
    assert train.inputs.dtype == torch.uint8
    assert train.inputs.shape == (9, 3, 32, 32)
    wanted = np.array(Image.open(image(folder, "clientA_train_4")))
    assert np.array_equal(train.inputs[4].permute(1, 2, 0).numpy(), wanted)


def test_other_sizes_kinds_and_spellings(folder):
    Image.open(image(folder)).convert("L").save(image(folder).with_suffix(".JPG"))
    image(folder).unlink()
    table(folder).write_bytes(
        b"\xef\xbb\xbf"
        + table(folder).read_bytes().replace(b"\n", b"\r\n").replace(b"train_1,", b"train_1.png,")
    )
    large = folder / "data" / "clientA" / "img_resize64"
    large.mkdir()
    assert load(folder, image_size=24)[0].train.inputs.shape == (9, 3, 24, 24)
    assert "img_resize64" in refused(folder, image_size=48)  # the smallest that is large enough, still empty


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_id,label\n", "is empty"),
        ("", "no column 'image_id'"),
        ("image_id,labels\nx,0\n", "no column 'label' (did you mean 'labels'?)"),
        ("image_id,label\nclientA_train_0,3\n", ":2: unknown label '3'; expected one of"),
        ("image_id,label\nclientA_train_0,nw\n", ":2: unknown label 'nw'; expected one of 0 = nv"),
        ("image_id,label\nclientA_train_0,\n", ":2: unknown label ''"),
        ("image_id,label\nclientA_train_0,²\n", ":2: unknown label '²'"),
        ("image_id,label\na,0\na,1\n", ":3: image 'a' is already on line 2"),
        ("image_id,label\n../../secret,0\n", ":2: invalid image_id"),
        ("image_id,label\n,0\n", ":2: invalid image_id ''"),
        (
            "image_id,label\nclientA_train_0,0\nclientA_train_3,0\n",
            "fewer than two classes (nv 2, bkl 0, mel 0)",
        ),
        ("image_id,label\nclientA_train_0\n", ":2: unknown label ''"),
    ],
)
def test_faults_of_a_table(folder, text, said):
    table(folder).write_text(text)
    message = refused(folder)
    assert said in message
    assert "clientA" in message


def test_a_table_that_is_no_text(folder):
    table(folder, "valid").write_bytes(b"image_id,label\n\xff\xfe\x00,0\n")
    assert "UTF-8" in refused(folder)
    table(folder, "valid").write_text('image_id,label\n"' + "x" * 200_000 + "\n")
    assert "valid_clientA.csv" in refused(folder)


def test_no_validation_split(folder):
    table(folder, "valid").unlink()
    message = refused(folder)
    assert "valid_clientA.csv" in message
    assert "hold out" in message


def test_missing_images_are_named_and_counted(folder, caplog):
    for k in (2, 5):
        image(folder, f"clientA_train_{k}").unlink()
    message = refused(folder)
    assert "2 of 9 images missing" in message
    assert "clientA_train_2, clientA_train_5" in message
    assert "--allow-missing" in message
    assert len(load(folder, allow_missing=True)[0].train) == 7
    assert "2 of 9" in caplog.text


def test_broken_images_are_named(folder):
    whole = image(folder).read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"not an image"):
        image(folder).write_bytes(broken)
        message = refused(folder)
        assert "clientA_train_0.png" in message
        assert "cannot be decoded" in message


def test_a_bomb_is_refused_before_it_is_decoded(folder):
    Image.new("1", (20_000, 20_000)).save(image(folder))
    message = refused(folder)
    assert "clientA_train_0.png" in message


def test_folders_that_are_not_there(folder, tmp_path):
    assert "nowhere" in refused(tmp_path / "nowhere")
    (tmp_path / "empty" / "csv_folder").mkdir(parents=True)
    (tmp_path / "empty" / "data").mkdir()
    assert "holds no site" in refused(tmp_path / "empty")
    (folder / "data" / "clientB").rename(folder / "data" / "elsewhere")
    assert "clientB has tables but no images" in refused(folder)
    (folder / "data" / "clientB").mkdir()
    assert "img_resize" in refused(folder)


def test_the_number_of_classes_is_the_users(folder):
    assert "unknown label '2'; expected one of 0 = a, 1 = b" in refused(folder, classes=("a", "b"))


@needs_dermoscopy
def test_the_real_data():
    entries = site_entries(DERMOSCOPY, "clientD", image_size=32)
    with pytest.raises(DataError, match="2 of 1400 images missing") as caught:
        load_entries(entries, image_size=32, classes=CLASSES)
    assert "ISIC_0012175" in str(caught.value)
    assert "ISIC_0012271" in str(caught.value)
    (site,) = load_entries(entries, image_size=32, classes=CLASSES, allow_missing=True)
    assert [len(site.split(name)) for name in ("train", "valid", "test")] == [1398, 199, 401]
    assert torch.bincount(site.test.labels).tolist() == [275, 51, 75]
    counts = {
        name: [
            len(read_table(DERMOSCOPY / f"csv_folder/{name}/{s}_{name}.csv"))
            for s in ("train", "valid", "test")
        ]
        for name in find_sites(DERMOSCOPY)
    }
    assert counts == {
        "clientA": [2091, 298, 598], "clientB": [2708, 386, 774],
        "clientC": [1144, 163, 328], "clientD": [1400, 199, 401],
    }  # fmt: skip
