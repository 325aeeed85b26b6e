"""New splits: shares as asked, groups whole, and each class in each split, or a refusal."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prrfl.data.images import SPLITS, Entry
from prrfl.data.sources import read_entries
from prrfl.data.split import Shares, split
from prrfl.errors import DataError
from tests.data.test_trust import picture, write_manifest

CLASSES = ("nv", "bkl", "mel")


def site(groups, name="x"):
    """Entries of a site: for each group, the labels of its images."""
    return [
        Entry(Path(f"{name}/{g}-{n}.png"), label, name, "train", f"p{g}")
        for g, labels in enumerate(groups)
        for n, label in enumerate(labels)
    ]


def of_class(label, groups, images=1):
    return [[label] * images] * groups


def errors(entries, shares):
    """By how many images each split of a site differs from its share."""
    sizes = Counter(e.split for e in entries)
    wanted = (1 - shares.valid - shares.test, shares.valid, shares.test)
    return {name: sizes[name] - share * len(entries) for name, share in zip(SPLITS, wanted, strict=True)}


def places(entries):
    """The splits of each group, and of each class."""
    of_group, of_label = defaultdict(set), defaultdict(set)
    for e in entries:
        of_group[e.group].add(e.split)
        of_label[e.label].add(e.split)
    return of_group, of_label


@pytest.mark.parametrize(("valid", "test"), [(0.1, 0.2), (0.2, 0.4), (0.1, 0.7), (0.3, 0.3), (0.45, 0.45)])
def test_shares_are_what_was_asked(valid, test):
    entries = site(of_class(0, 80) + of_class(1, 25, images=2) + of_class(2, 10, images=3))
    found = split(entries, Shares(valid, test), seed=3)
    assert max(map(abs, errors(found, Shares(valid, test)).values())) <= 3
    for label in range(3):
        of_label = [e for e in found if e.label == label]
        for name, share in (("valid", valid), ("test", test)):
            part = sum(e.split == name for e in of_label)
            assert part == pytest.approx(share * len(of_label), abs=4)


@pytest.mark.parametrize("groups", [3, 4, 5])
def test_a_class_of_few_groups_is_in_every_split_with_any_seed(groups):
    entries = site(of_class(0, 40) + of_class(1, 30) + of_class(2, groups))
    for seed in range(20):
        found = split(entries, seed=seed)
        assert places(found)[1][2] == set(SPLITS)
        assert max(map(abs, errors(found, Shares()).values())) <= 1


@pytest.mark.parametrize("groups", [1, 2])
def test_a_class_of_too_few_groups_is_refused_by_site_and_class(groups):
    entries = site(of_class(0, 40) + of_class(1, 30) + of_class(2, groups, images=5), "north")
    expected = f"site north: class mel has images of {groups} groups only; train, valid, test need one each"
    with pytest.raises(DataError, match=expected):
        split(entries, classes=CLASSES)


def test_classes_that_share_their_groups_are_refused_if_no_split_shows_them_all():
    """Each three of four patients show a class, so that no two of them may be in one split."""
    entries = site([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])
    with pytest.raises(DataError, match=r"site x: no split was found that shows class \S+ in"):
        split(entries)


def test_a_site_without_a_class_is_split():
    found = split(site(of_class(1, 30)), classes=CLASSES)
    assert places(found)[1] == {1: set(SPLITS)}


def test_classes_come_before_shares_with_a_warning(caplog):
    entries = site([group for k in range(10) for group in of_class(k, 3)], "north")
    found = split(entries)
    assert Counter(e.split for e in found) == {"train": 10, "valid": 10, "test": 10}
    first, second = caplog.messages
    assert first.startswith("site north: valid gets 10 of 30 images (33.3 %) instead of 10.0 %: ")
    assert second.startswith("site north: test gets 10 of 30 images (33.3 %) instead of 20.0 %: ")


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=3, max_size=40),
    valid=st.floats(0.05, 0.6),
    rest=st.floats(0.1, 0.9),
    seed=st.integers(0, 99),
)
def test_any_site_is_split_as_promised_or_refused(groups, valid, rest, seed):
    shares = Shares(valid, (1 - valid) * rest)
    entries = site(groups)
    try:
        found = split(entries, shares, seed)
    except DataError as refusal:
        assert str(refusal).startswith("site x: ")  # noqa: PT017
        return
    assert Counter((e.path, e.label) for e in found) == Counter((e.path, e.label) for e in entries)
    of_group, of_label = places(found)
    assert all(len(found) == 1 for found in of_group.values())
    assert all(found == set(SPLITS) for found in of_label.values())
    # A split may be larger than asked by more than a group only if it has no group to spare.
    for name, error in errors(found, shares).items():
        if error > max(map(len, groups)):
            here = [e for e in found if e.split == name]
            owners = [{e.group for e in here if e.label == label} for label in range(3)]
            assert {e.group for e in here} == set().union(*(of for of in owners if len(of) == 1))
    assert split(entries, shares, seed) == found


def test_seeds_differ():
    entries = site(of_class(0, 20) + of_class(1, 20))
    assert len({tuple(e.split for e in split(entries, seed=seed)) for seed in range(5)}) == 5


# Groups across sites


def two_sites():
    """Two sites that number their patients alike: 40 and 45, of two classes."""
    south = site(of_class(0, 25) + of_class(1, 20, images=2), "south")
    return site(of_class(0, 20) + of_class(1, 20, images=2), "north") + south


def test_groups_of_two_sites_stay_together_only_if_asked():
    apart, together = (split(two_sites(), Shares(0.2, 0.3), across_sites=k) for k in (False, True))
    assert any(len(found) > 1 for found in places(apart)[0].values())
    assert all(len(found) == 1 for found in places(together)[0].values())


@pytest.mark.parametrize("across_sites", [False, True])
def test_the_shares_hold_at_each_of_two_sites(across_sites):
    entries = two_sites()
    entries += [Entry(Path(f"south/more{n}.png"), n % 2, "south", "train", f"q{n}") for n in range(30)]
    found = split(entries, Shares(0.2, 0.3), seed=1, across_sites=across_sites)
    for name in ("north", "south"):
        here = [e for e in found if e.site == name]
        assert max(map(abs, errors(here, Shares(0.2, 0.3)).values())) <= 2
        assert places(here)[1] == {0: set(SPLITS), 1: set(SPLITS)}


def test_a_copy_at_another_site_joins_the_groups_of_both(prrfl, tmp_path):
    rows = []
    for name in ("north", "south"):
        for n in range(12):
            picture(tmp_path / name / f"{n}.png", n + 100 * (name == "south"))
            rows.append(f"{name}/{n}.png,{CLASSES[n % 2]},{name},train,{name}{n // 2}")
    picture(tmp_path / "south/0.png", 0)  # the pixels of north/0
    manifest = write_manifest(tmp_path, rows)
    for seed in range(4):
        out = tmp_path / f"{seed}.csv"
        command = ("data", "split", manifest, "--out", out, "--groups-across-sites", "--seed", seed)
        code, _, err = prrfl(*command)
        assert code == 0, err
        found = {f"{e.site}/{e.name}": e.split for e in read_entries(out, image_size=32, classes=CLASSES)}
        assert len({found[name] for name in ("north/0", "north/1", "south/0", "south/1")}) == 1


def test_the_shares_that_were_reached_are_printed(prrfl, tmp_path):
    rows = []
    for n in range(50):
        picture(tmp_path / f"{n}.png", n)
        rows.append(f"{n}.png,{CLASSES[n % 3]},{'north' if n < 20 else 'south'},train,")
    manifest = write_manifest(tmp_path, rows)
    command = ("data", "split", manifest, "--out", tmp_path / "s.csv", "--valid", 0.2, "--test", 0.4)
    code, out, err = prrfl(*command)
    assert code == 0, err
    assert "north: train 8 (40.0 %), valid 4 (20.0 %), test 8 (40.0 %)\n" in out
    assert "south: train 12 (40.0 %), valid 6 (20.0 %), test 12 (40.0 %)\n" in out
