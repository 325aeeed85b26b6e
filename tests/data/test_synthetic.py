import csv
import dataclasses
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from prrfl.data.layout import CLASSES
from prrfl.data.synthetic import (
    STYLES,
    GeneratedData,
    SiteStyle,
    cached,
    dataset,
    draw_images,
    generate,
    site_name,
    site_style,
    write_generated,
)
from prrfl.data.synthetic.cache import cache_folder
from prrfl.errors import DataError
from prrfl.types import Examples, SiteData, Split

SMALL = GeneratedData(sites=2, images=24, size=16)
PLAIN = SiteStyle(shares=(1, 1, 1))
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


def parts(data: SiteData) -> list[Examples]:
    return [data.split(split) for split in SPLITS]


def same(first: SiteData, second: SiteData) -> bool:
    return all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels) and a.ids == b.ids
        for a, b in zip(parts(first), parts(second), strict=True)
    )


def counts(data: SiteData) -> list[list[int]]:
    return [torch.bincount(part.labels, minlength=len(CLASSES)).tolist() for part in parts(data)]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def plain_images(label: int, n: int = 96) -> NDArray[np.float64]:
    """Images of one class, (n, 64, 64, 3) in [0, 1], without artefacts and drift."""
    style = dataclasses.replace(PLAIN, drift=0.0)
    labels = np.full(n, label, np.int64)
    return draw_images(labels, style, 64, np.random.default_rng(7)) / 255


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert same(generate(SMALL, "clientA"), generate(SMALL, "clientA"))


def test_another_seed_gives_other_images() -> None:
    other = dataclasses.replace(SMALL, seed=1)
    assert not same(generate(SMALL, "clientA"), generate(other, "clientA"))


def test_sites_of_one_seed_share_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one style for all, two sites would hold the same pictures if they shared a stream."""
    monkeypatch.setattr(dataset, "STYLES", (PLAIN, PLAIN))
    first, second = (generate(SMALL, site).train.inputs for site in ("clientA", "clientB"))
    assert not torch.equal(first, second)


def test_more_sites_leave_the_earlier_ones_alone(tmp_path: Path) -> None:
    few = files(write_generated(dataclasses.replace(SMALL, sites=1), tmp_path / "few"))
    many = files(write_generated(dataclasses.replace(SMALL, sites=6), tmp_path / "many"))
    assert few.items() <= many.items()
    assert any("clientF" in name for name in many)


def test_drawn_styles_follow_the_seed_and_the_site() -> None:
    fifth, sixth = site_style(SMALL, 4), site_style(SMALL, 5)
    assert fifth == site_style(dataclasses.replace(SMALL, sites=9, images=99), 4)
    assert fifth != sixth
    assert fifth != site_style(dataclasses.replace(SMALL, seed=1), 4)


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "clientA"),
        (25, "clientZ"),
        (26, "clientAA"),
        (51, "clientAZ"),
        (52, "clientBA"),
        (702, "clientAAA"),
    ],
)
def test_site_names_go_on_after_z(index: int, name: str) -> None:
    assert site_name(index) == name


@pytest.mark.parametrize("index", range(4))
def test_class_shares_follow_the_style(index: int) -> None:
    spec = GeneratedData(images=1000, size=16)
    total = np.sum(counts(generate(spec, site_name(index))), axis=0)
    wanted = 1000 * np.array(STYLES[index].shares) / sum(STYLES[index].shares)
    assert total.sum() == 1000
    assert np.abs(total - wanted).max() <= 1


@pytest.mark.parametrize("images", [18, 24, 240])
@pytest.mark.parametrize("site", ["clientB", "clientC", "clientE"])
def test_every_split_has_two_of_every_class(site: str, images: int) -> None:
    table = counts(generate(GeneratedData(sites=5, images=images, size=16), site))
    assert np.min(table) >= 2
    assert np.sum(table) == images


def test_splits_are_40_20_40_within_each_class() -> None:
    train, valid, test = np.array(counts(generate(GeneratedData(images=300, size=16), "clientC")))
    total = train + valid + test
    assert np.abs(valid - 0.2 * total).max() <= 0.5
    assert np.abs(test - 0.4 * total).max() <= 0.5


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("images", [120, 160, GeneratedData().images])
def test_each_class_has_six_test_images(index: int, images: int) -> None:
    for seed in range(3):
        data = generate(GeneratedData(sites=8, images=images, size=16, seed=seed), site_name(index))
        assert torch.bincount(data.test.labels, minlength=len(CLASSES)).min() >= 6


def test_splits_share_no_image_and_ids_tell_no_class() -> None:
    data = generate(GeneratedData(images=90, size=16), "clientC")
    ids = [name for part in parts(data) for name in part.ids]
    labels = torch.cat([part.labels for part in parts(data)])
    assert sorted(ids) == [f"GEN_C_{number:06d}" for number in range(90)]
    in_order = labels[torch.tensor([int(name[-6:]) for name in ids]).argsort()]
    assert (in_order.diff() != 0).sum() > 20  # labels in blocks would change twice


def test_layout_on_disk(tmp_path: Path) -> None:
    folder = write_generated(SMALL, tmp_path / "new" / "set")
    assert folder == tmp_path / "new" / "set"
    for site in ("clientA", "clientB"):
        data = generate(SMALL, site)
        pictures = folder / "data" / site / "img_resize16"
        for split in SPLITS:
            part = data.split(split)
            with (folder / "csv_folder" / site / f"{split}_{site}.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            assert list(rows[0]) == ["image_id", "label", "dx"]
            assert [row["image_id"] for row in rows] == list(part.ids)
            assert [int(row["label"]) for row in rows] == part.labels.tolist()
            assert all(row["dx"] == CLASSES[int(row["label"])] for row in rows)
            for name, picture in zip(part.ids, part.inputs, strict=True):
                stored = np.array(Image.open(pictures / f"{name}.png"))
                np.testing.assert_array_equal(stored, picture.permute(1, 2, 0).numpy())
        assert len(list(pictures.iterdir())) == SMALL.images
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path} exists already")):
        write_generated(SMALL, tmp_path)
    assert files(tmp_path) == {"mine.txt": b"precious"}
    (tmp_path / "mine.txt").unlink()
    write_generated(SMALL, tmp_path)
    assert files(tmp_path)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: SiteData, folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "_write_site", fail)
    with pytest.raises(DataError, match="No space left"):
        write_generated(SMALL, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_cached_generates_once(tmp_path: Path) -> None:
    folder = cached(SMALL, tmp_path)
    assert folder == tmp_path / "generated-2x24-16px-seed0-v2"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (folder / "mark").touch()
    assert cached(SMALL, tmp_path) == folder
    assert (folder / "mark").exists()
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.is_file())
    assert cached(dataclasses.replace(SMALL, seed=1), tmp_path) != folder


def test_cached_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cached(SMALL).parent == tmp_path / "xdg" / "prrfl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cached(SMALL).parent == tmp_path / "home" / ".cache" / "prrfl"


def test_the_loser_of_a_race_uses_the_winners_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes while this one is still drawing."""
    draw: Callable[..., SiteData] = generate
    folder = tmp_path / "generated-2x24-16px-seed0-v2"

    def overtaken(spec: GeneratedData, site: str) -> SiteData:
        folder.mkdir(exist_ok=True)
        (folder / "winner").touch()
        return draw(spec, site)

    monkeypatch.setattr(dataset, "generate", overtaken)
    assert cached(SMALL, tmp_path) == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert files(folder) == {"winner": b""}


@pytest.mark.skipif("sys.platform == 'win32'", reason="folders of Windows have no write bit")
def test_a_cache_that_cannot_be_made_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        cached(SMALL, tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    "wrong", [{"sites": 0}, {"sites": -1}, {"images": 17}, {"size": 15}, {"seed": -1}], ids=str
)
def test_bad_specs_say_what_to_mend(wrong: dict[str, int]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(DataError, match=f"{name} is {value}, expected at least") as caught:
        GeneratedData(**wrong)
    assert "\n" not in str(caught.value)


def test_the_least_spec_is_accepted() -> None:
    data = generate(GeneratedData(sites=1, images=18, size=16, seed=0), "clientA")
    assert counts(data) == [[2, 2, 2]] * 3


def test_an_unknown_site_is_named() -> None:
    with pytest.raises(DataError, match=r"no site 'clientC' \(did you mean 'client[AB]'\?\)"):
        generate(SMALL, "clientC")


@pytest.mark.parametrize("label", [-1, 3])
def test_an_unknown_label_is_named(label: int) -> None:
    with pytest.raises(DataError, match=f"label {label}"):
        draw_images(np.array([0, label]), PLAIN, 16, np.random.default_rng(0))


@pytest.mark.parametrize("size", [16, 17, 96])
def test_images_have_the_promised_form(size: int) -> None:
    images = draw_images(np.arange(3), STYLES[3], size, np.random.default_rng(0))
    assert images.shape == (3, size, size, 3)
    assert images.dtype == np.uint8
    assert images.std(axis=(1, 2)).min() > 5  # something is drawn on each


def test_no_labels_make_no_images() -> None:
    assert draw_images(np.empty(0, np.int64), PLAIN, 16, np.random.default_rng(0)).shape == (0, 16, 16, 3)


def test_styles_shift_the_colours_of_sites_apart() -> None:
    labels = np.tile(np.arange(3), 32)  # the same classes everywhere: only the style differs
    means = []
    for index, style in enumerate(STYLES):
        images = draw_images(labels, style, 32, np.random.default_rng(index))
        centre = images[:, 8:24, 8:24].mean(axis=(0, 1, 2))
        means.append(centre / centre.sum())  # hue, whatever the exposure
    gaps = [np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]]
    assert min(gaps) > 0.008


@pytest.mark.parametrize("artefact", ["vignette", "hair", "bubbles", "ruler"])
def test_artefacts_appear_where_the_style_has_them(artefact: str) -> None:
    with_it = SiteStyle(PLAIN.shares, **{artefact: 1.0})
    clean, marked = (
        draw_images(np.zeros(16, np.int64), style, 48, np.random.default_rng(3)).astype(int)
        for style in (PLAIN, with_it)
    )
    changed = np.abs(clean - marked).max(axis=(1, 2, 3))
    assert (changed > 30).mean() > 0.8


def test_magnification_enlarges_the_lesions() -> None:
    def dark_share(magnification: float) -> float:
        style = dataclasses.replace(PLAIN, magnification=magnification)
        grey = draw_images(np.zeros(64, np.int64), style, 48, np.random.default_rng(5)).mean(axis=-1)
        return float((grey < 0.8 * np.median(grey[:, :4], axis=(1, 2))[:, None, None]).mean())

    assert dark_share(1.3) > 1.3 * dark_share(0.9)


def asymmetry(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each lesion is from its left-right mirror image about its centre of pigment, in [0, 1]."""
    grey = images.mean(axis=-1)
    dark = np.maximum(np.quantile(grey, 0.85, axis=(1, 2))[:, None, None] - grey - 0.05, 0)
    centres = (dark.sum(axis=1) * np.arange(dark.shape[2])).sum(axis=1) / dark.sum(axis=(1, 2))
    mirrored = [
        np.roll(plane[:, ::-1], round(2 * centre) - plane.shape[1] + 1, axis=1)
        for plane, centre in zip(dark, centres, strict=True)
    ]
    return np.abs(dark - mirrored).sum(axis=(1, 2)) / (2 * dark.sum(axis=(1, 2)))


def test_melanomas_are_less_symmetric_than_nevi() -> None:
    nevus, melanoma = asymmetry(plain_images(0)), asymmetry(plain_images(2))
    assert melanoma.mean() > 1.4 * nevus.mean()
    assert (melanoma < np.quantile(nevus, 0.75)).any()  # yet the classes overlap


def test_melanomas_are_bluer_and_keratoses_duller_than_nevi() -> None:
    def centre(label: int) -> NDArray[np.float64]:
        return plain_images(label)[:, 24:40, 24:40].mean(axis=(1, 2))

    nevus, keratosis, melanoma = (centre(label) for label in range(3))

    def blueness(colours: NDArray[np.float64]) -> float:
        return float((colours[:, 2] / colours[:, 0]).mean())

    def saturation(colours: NDArray[np.float64]) -> float:
        return float((1 - colours.min(axis=1) / colours.max(axis=1)).mean())

    assert blueness(melanoma) > blueness(nevus) + 0.1
    assert saturation(keratosis) < saturation(nevus) - 0.1


def test_keratoses_carry_bright_and_dark_dots() -> None:
    def contrast(label: int) -> float:
        """Mean size of the difference between each pixel of the centre and its four neighbours' mean."""
        grey = plain_images(label).mean(axis=-1)
        around = sum(np.roll(grey, step, axis) for step in (-1, 1) for axis in (1, 2)) / 4
        return float(np.abs(grey - around)[:, 20:44, 20:44].mean())

    assert contrast(1) > 1.3 * contrast(0)


def test_a_user_without_home_and_passwd_entry_gets_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # no such user
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert cache_folder() == tmp_path / "prrfl-54321"
