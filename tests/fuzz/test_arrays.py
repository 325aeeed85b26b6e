"""Arrays in MedMNIST's form: what is accepted has an example for each label, what is not is named."""

import io
import shutil
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prrfl.data import images
from prrfl.data.sources import load_sites
from tests.fuzz.cases import cases, tried
from tests.fuzz.mutators import changes, files, inserted

CLASSES = ("nv", "bkl", "mel")
NAMES = [f"{split}_{what}" for split in ("train", "val", "test") for what in ("images", "labels")]


def whole():
    arrays = {}
    for split, n in (("train", 6), ("val", 3), ("test", 3)):
        arrays[f"{split}_images"] = np.arange(n * 64, dtype=np.uint8).reshape(n, 8, 8)
        arrays[f"{split}_labels"] = np.arange(n) % 3
    return arrays


def packed(arrays, save=np.savez):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays") / "north.npz"


def loaded(path):
    sites = tried(lambda: load_sites(path, image_size=8, classes=CLASSES), path)
    if not isinstance(sites, str):
        (site,) = sites
        assert site.name == "north"
        for split in images.SPLITS:
            part = site.split(split)
            assert part.inputs.shape == (len(part.labels), 3, 8, 8)
            assert str(part.inputs.dtype) == "torch.uint8"
            assert 0 <= part.labels.min() <= part.labels.max() < 3
    return sites


@cases(200)
@given(change=changes, save=st.sampled_from([np.savez, np.savez_compressed]))
def test_a_file_of_changed_bytes(change, save, path):
    path.write_bytes(change(packed(whole(), save)))
    loaded(path)


@cases(100)
@given(name=st.sampled_from(NAMES), change=changes)
def test_a_member_of_changed_bytes(name, change, path):
    """The zip is whole, so that no checksum hides what the array's own header says."""
    with zipfile.ZipFile(io.BytesIO(packed(whole()))) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            new.writestr(member, change(content) if member == f"{name}.npy" else content)
    loaded(path)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8]), max_size=5).map(tuple)
DTYPES = st.sampled_from(
    ["u1", "i1", "i8", "u8", "f2", "f8", "c16", "?", "S3", "U3", "O", "M8[s]", "V4", ">i4", "u1,u1"]
)


@cases(150)
@given(name=st.sampled_from(NAMES), shape=SHAPES, dtype=DTYPES, fill=st.sampled_from([0, 1, 2, -1, 7]))
def test_an_array_of_another_shape_or_type(name, shape, dtype, fill, path):
    array = np.zeros(shape, dtype)
    if array.dtype.kind in "iuf":
        array[...] = np.array(fill).astype(dtype)
    path.write_bytes(packed({**whole(), name: array}))
    sites = loaded(path)
    if not isinstance(sites, str):
        assert shape[0] in (3, 6)
        assert array.dtype.kind in "iu"


@cases(60)
@given(mutation=files)
def test_a_broken_file(mutation, path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(packed(whole()))
    mutation(path)
    loaded(path)


def claiming(shape):
    """Return an array's bytes whose header claims another shape than its content has."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return inserted(10**9, b"\0" * 100, file.getvalue())


@pytest.mark.parametrize(
    "shape",
    [(10**6, 1024, 1024), (2**32, 2**32), (-1, 8, 8), (2**63,), (10**18, 0), (6, 8, 8), (10**30, 8, 8)],
)
def test_more_than_the_file_holds_is_refused(shape, path):
    with zipfile.ZipFile(io.BytesIO(packed(whole()))) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            new.writestr(member, claiming(shape) if member == "train_images.npy" else old.read(member))
    assert "train_images cannot be read" in loaded(path)


def test_what_does_not_fit_into_memory_is_refused_with_both_figures(path, monkeypatch):
    many = {
        **whole(),
        "train_images": np.zeros((3000, 28, 28), np.uint8),
        "train_labels": np.arange(3000) % 3,
    }
    path.write_bytes(packed(many, np.savez_compressed))
    assert path.stat().st_size < 50_000  # it inflates
    monkeypatch.setattr(images, "available_memory", lambda: 2_000_000)
    assert "train_images needs 0.0 GiB of memory" in loaded(path)
    # The arrays fit, the images made of them do not.
    monkeypatch.setattr(images, "available_memory", lambda: 2_500_000)
    line = tried(lambda: load_sites(path, image_size=128, classes=CLASSES), path)
    assert "train needs 0.1 GiB of memory, but 0.0 GiB are free" in line
    monkeypatch.setattr(images, "available_memory", lambda: 2**33)
    assert not isinstance(loaded(path), str)
