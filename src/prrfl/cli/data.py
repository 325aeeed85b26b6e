"""``prrfl data`` and ``generate``: check, split, build and generate data sets."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from prrfl.cli.screen import console, print_table
from prrfl.data.files import check_free, told
from prrfl.errors import DataError, one_line
from prrfl.reports.formatting import counted
from prrfl.storage.atomic import write_json, write_text

if TYPE_CHECKING:
    from prrfl.data.check import Findings
    from prrfl.data.partition import Skew

data = typer.Typer(
    help="Import, check, split, partition, convert and build data sets.",
    no_args_is_help=True,
    add_completion=False,
)

_Source = Annotated[
    Path, typer.Argument(metavar="DATA", help="folder in the published layout, or a manifest CSV")
]
_LISTED = 50
"""Images of one kind that are listed on the screen."""

_Classes = Annotated[str, typer.Option(help="names of the labels 0, 1, ..., separated by commas")]


@data.command()
def check(
    source: _Source,
    classes: _Classes = "nv,bkl,mel",
    image_size: Annotated[int, typer.Option(min=1, help="stored image size to check")] = 128,
    batch: Annotated[int, typer.Option(min=2, help="images per training step")] = 16,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the findings to this file, too")
    ] = None,
) -> None:
    """Count classes; find duplicates, leaking groups, and missing or broken files.

    The exit code is 1 if files are missing or broken.
    """
    from prrfl.data.check import check as examine
    from prrfl.data.sources import read_entries

    names = _names(classes)
    entries = read_entries(source, image_size=image_size, classes=names)
    with _progress("reading images", len(entries)) as seen:
        found = examine(entries, names, batch, seen)
    _print(found, names, batch)
    if json is not None:
        write_json(json, asdict(found))
    if found.missing or found.broken:
        raise typer.Exit(1)


def _check_csv(out: Path, source: Path) -> None:
    if out.suffix.lower() != ".csv" or out.resolve() == source.resolve():
        raise DataError(f"--out is {out}; expected a file that ends in .csv and is not {source} itself")


def _names(classes: str) -> tuple[str, ...]:
    """Return the class names of a flag, checked like those in a run's settings."""
    from prrfl.config import checked

    given = {"classes": classes}
    return checked(given, "flags", given).classes


def _print(found: "Findings", classes: tuple[str, ...], batch: int) -> None:
    print_table(_table(found, classes), names=2)
    for topic, message, images in _kinds(found):
        if images:
            if message:
                console.print(f"{topic}: {message}")
            _list(topic, images)
    for folder, others in found.passed_over.items():
        console.print(one_line(f"passed over: {folder}: {told(others)}"), soft_wrap=True)
    for site, split in found.empty:
        console.print(f"empty: {site}, {split}: no images; training needs some in each split")
    for site, split, name, count in found.few:
        many = counted(count, "image") if count else "no image"
        console.print(f"few: {site}, {split}: {many} of {name}; its scores are mostly chance")
    for site, count in found.lone:
        console.print(
            f"lone: {site}: {count} training images leave one image over in batches of {batch}; it is "
            "added to the last full batch"
        )


def _table(found: "Findings", classes: tuple[str, ...]) -> Table:
    table = Table(title="Images")
    for name in ("site", "split", *classes, "all", "group also in training"):
        table.add_column(name, justify="left" if name in ("site", "split") else "right")
    leaks = {f"{leak.site}/{leak.split}": f"{leak.images} of {leak.of}" for leak in found.leaks}
    for key, counts in found.counts.items():
        site, _, split = key.rpartition("/")
        unknown = "no group ids" if site in found.without_groups else "–"
        table.add_row(site, split, *map(str, counts), str(sum(counts)), leaks.get(key, unknown))
    return table


def _kinds(found: "Findings") -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield the topic of each kind of finding, a sentence about it, and its images; there may be none."""
    for leak in found.leaks:
        yield (
            "leakage",
            f"{leak.images} of {counted(leak.of, f'{leak.split} image')} of {leak.site} show a group that is "
            "also in its training set; make new splits with `prrfl data split`",
            leak.names,
        )
    for leak in found.selected:
        yield (
            "selection",
            f"{leak.images} of {counted(leak.of, 'test image')} of {leak.site} show a group that is also in "
            "its validation set, which chooses the best round; make new splits with `prrfl data split`",
            leak.names,
        )
    for what, names in (("pixels", found.copies_selected), ("group id", found.groups_selected)):
        yield "selection", f"{_have(names, 'test image', what)} of a validation image of another site", names
    for what, names, then in (
        ("pixels", found.copies_across_names, "every shared network has been trained on them"),
        (
            "group id",
            found.groups_across_names,
            "if ids are unique across sites, every shared network has been trained on the group",
        ),
    ):
        has = _have(names, "valid or test image", what)
        yield "across sites", f"{has} of a training image of another site; {then}", names
    yield "missing", "", found.missing
    yield "broken", "", list(found.broken.values())
    yield (
        "duplicates",
        f"{sum(map(len, found.duplicates))} images in {counted(len(found.duplicates), 'set')} are copies, "
        "with the same pixels",
        [", ".join(group) for group in found.duplicates],
    )
    yield (
        "contradictions",
        f"in {counted(len(found.contradictions), 'set')}, copies of one image have different labels; correct "
        "the labels, or remove the images",
        [", ".join(group) for group in found.contradictions],
    )


def _have(names: Sequence[str], image: str, what: str) -> str:
    return f"{counted(len(names), image)} {'has' if len(names) == 1 else 'have'} the {what}"


def _list(what: str, images: Sequence[str]) -> None:
    for image in images[:_LISTED]:
        console.print(f"{what}: {one_line(image)}", soft_wrap=True)
    if len(images) > _LISTED:
        console.print(f"{what}: and {len(images) - _LISTED} more; --json FILE lists all of them")


@data.command()
def split(
    source: _Source,
    out: Annotated[Path, typer.Option(metavar="FILE", help="manifest CSV to write")],
    valid: Annotated[float, typer.Option(help="fraction of each site's images used for validation")] = 0.1,
    test: Annotated[float, typer.Option(help="fraction used for test")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="same seed, same splits")] = 0,
    classes: _Classes = "nv,bkl,mel",
    image_size: Annotated[int, typer.Option(min=1, help="stored image size to use")] = 128,
    groups_across_sites: Annotated[
        bool,
        typer.Option(
            "--groups-across-sites",
            help="the same group, or the same pixels, at two sites go into the same split at both",
        ),
    ] = False,
) -> None:
    """Make new splits, stratified by class, that keep groups (lesions, patients) and duplicates together.

    Without --groups-across-sites this holds within each site; `prrfl data check` counts what sites share.
    """
    from prrfl.data.check import hashes
    from prrfl.data.images import SPLITS
    from prrfl.data.manifest import manifest_csv
    from prrfl.data.sources import read_entries
    from prrfl.data.split import Shares
    from prrfl.data.split import split as divide

    _check_csv(out, source)
    shares, names = Shares(valid, test), _names(classes)
    entries = read_entries(source, image_size=image_size, classes=names)
    with _progress("reading images", len(entries)) as seen:
        same = hashes(entries, seen)
    whole = [e for e in entries if str(e.path) in same]
    gone = len(entries) - len(whole)
    if not whole:
        raise DataError(
            f"{source}: none of the {gone} images can be read; `prrfl data check` lists what is wrong"
        )
    placed = divide(whole, shares, seed, same, names, across_sites=groups_across_sites)
    write_text(out, manifest_csv(placed, out.parent))
    console.print(f"{len(whole)} images: {out}", soft_wrap=True)
    for site in sorted({e.site for e in placed}):
        here = [e.split for e in placed if e.site == site]
        reached = (f"{name} {n} ({100 * n / len(here):.1f} %)" for name in SPLITS for n in [here.count(name)])
        console.print(one_line(f"{site}: {', '.join(reached)}"), soft_wrap=True)
    if gone:
        console.print(f"{gone} images are missing or broken and were left out; `prrfl data check` lists them")


@data.command(name="import")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="folder with a folder per class, or a table")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="manifest CSV to write")],
    columns: Annotated[
        str | None,
        typer.Option(
            help="the table's columns, as path=filename,label=diagnosis; also site, split and group; by "
            "default the same names",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of the images; by default that of the table")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="classes to take, in this order; by default all, sorted")
    ] = None,
    site: Annotated[str, typer.Option(help="name of the site, if no column names sites")] = "all",
) -> None:
    """Write a manifest of a folder per class, or of a table with other columns.

    Further columns stay, for `prrfl data partition` and subgroups.
    """
    from prrfl.data.importing import from_folders, from_table, manifest_of

    _check_csv(out, source)
    names = _names(classes) if classes else ()
    if source.is_dir():
        if columns or images:
            raise DataError(f"{source} is a folder; --columns and --images are for tables")
        found = from_folders(source, names, site)
    else:
        found = from_table(source, _columns(columns), images, names, site)
    write_text(out, manifest_of(found.rows, out.parent))
    for reason, count in sorted(found.passed_over.items()):
        console.print(one_line(f"left out: {count} {reason}"), soft_wrap=True)
    sites = sorted({row["site"] for row in found.rows})
    console.print(f"{len(found.rows)} images at {', '.join(sites)}: {out}", soft_wrap=True)
    console.print(f"Classes: --classes {quote(','.join(found.classes))}", soft_wrap=True)
    if {row["split"] for row in found.rows} != {"train", "valid", "test"}:
        console.print("Some splits are missing; make them with `prrfl data split`", soft_wrap=True)


def _columns(text: str | None) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    if wrong := [name for name, equals, column in pairs if not (name.strip() and equals and column.strip())]:
        raise DataError(f"--columns: '{wrong[0]}' names no column; expected path=filename,label=diagnosis")
    return {name.strip(): column.strip() for name, _, column in pairs}


@data.command()
def partition(
    source: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="manifest CSV, whose sites are replaced, or .npz as of MedMNIST"),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="manifest CSV to write; for an .npz, folder to create with one .npz per site"
        ),
    ],
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="make a site of each value of a column")
    ] = None,
    sites: Annotated[
        int | None, typer.Option(min=2, max=1000, help="number of sites to divide among")
    ] = None,
    dirichlet: Annotated[
        float, typer.Option(min=0.001, help="with --sites: small values give sites very different classes")
    ] = 0.5,
    least: Annotated[
        int, typer.Option(min=1, help="with --sites: fewest images of a site in each split")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="same seed, same sites")] = 0,
) -> None:
    """Divide a data set among sites: by a column, or at random with different classes at each.

    Splits stay as they are, and images of one group stay together.
    """
    from prrfl.data.importing import in_order
    from prrfl.data.partition import Skew

    if (by is None) == (sites is None):
        raise DataError("give either --by COLUMN or --sites K")
    skew = Skew(sites or 0, dirichlet, least, seed)
    divide = _divided_arrays if source.suffix.lower() == ".npz" else _divided_manifest
    labels, placed = divide(source, out, by, skew)
    classes = sorted(set(labels), key=in_order)
    table = Table(title="Images")
    for name in ("site", *classes, "all"):
        table.add_column(name, justify="left" if name == "site" else "right")
    for there in sorted(set(placed)):
        own = [label for label, place in zip(labels, placed, strict=True) if place == there]
        table.add_row(there, *(str(own.count(label)) for label in classes), str(len(own)))
    print_table(table, names=1)
    console.print(f"{len(labels)} images: {out}", soft_wrap=True)
    if divide is _divided_arrays:
        console.print(f"Classes: --classes {','.join(classes)}, or their names in this order", soft_wrap=True)


def _divided_manifest(
    source: Path, out: Path, by: str | None, skew: "Skew"
) -> tuple[Sequence[str], Sequence[str]]:
    """Write a manifest with other sites; return the label and the site of each image."""
    from prrfl.data.importing import manifest_of
    from prrfl.data.manifest import COLUMNS, split_of
    from prrfl.data.partition import by_column, by_skew
    from prrfl.data.tables import read_rows

    _check_csv(out, source)
    needed = ("path", "label", "split", *([by] if by else []))
    numbered = read_rows(source, needed, "manifest", ("site", "group"))
    rows = [row for _, row in numbered]
    splits = [split_of(row["split"], f"{source}:{line}") for line, row in numbered]
    labels, groups = ([row.get(name, "") for row in rows] for name in ("label", "group"))
    placed = by_skew(labels, splits, groups, skew) if by is None else by_column(rows, by, str(source))
    written = [
        {
            **{name: row.get(name, "") for name in COLUMNS},
            **{name: cell for name, cell in row.items() if name not in COLUMNS},
            "path": str(source.parent / row["path"]),
            "site": there,
        }
        for row, there in zip(rows, placed, strict=True)
    ]
    write_text(out, manifest_of(written, out.parent))
    return labels, placed


def _divided_arrays(
    source: Path, out: Path, by: str | None, skew: "Skew"
) -> tuple[Sequence[str], Sequence[str]]:
    """Write a folder with one .npz file per site; return the label and the site of each image."""
    from prrfl.data.partition import divide_arrays

    if by is not None:
        raise DataError(f"{source} holds arrays, which have no columns; give --sites K instead of --by")
    if out.suffix.lower() in (".csv", ".npz"):
        raise DataError(f"--out is {out}; expected a folder, for one .npz file per site of {source}")
    check_free(out)
    return divide_arrays(source, out, skew)


@data.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="folder of images or DICOM files")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to create")],
    window: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="intensities shown as black and white; DICOM files may hold a window of their own",
        ),
    ] = None,
) -> None:
    """Write DICOM files, and images of 16 bits or floating point, as PNG of 8 bits.

    Convert images that a network is used on later with the same window.
    """
    from prrfl.data.convert import Window
    from prrfl.data.convert import convert as write

    chosen = None
    if window is not None:
        try:
            low, high = map(float, window.split(","))
        except ValueError:
            raise DataError(f"--window {window}: expected two numbers, LOW,HIGH") from None
        chosen = Window(low, high)
    with _progress("converting", sum(1 for path in source.rglob("*"))) as seen:
        done = write(source, out, chosen, seen)
    for used, count in done.windows.most_common():
        console.print(f"{count} images: {used}", soft_wrap=True)
    if done.passed_over:
        console.print(one_line(f"passed over: {told(done.passed_over)}"), soft_wrap=True)
    console.print(f"{done.images} images: {out}", soft_wrap=True)


@data.command()
def build(
    ham: Annotated[list[Path], typer.Option(help="images of HAM10000: a folder or zip; may be repeated")],
    ham_csv: Annotated[Path, typer.Option(help="table of HAM10000: HAM10000_metadata")],
    isic: Annotated[
        list[Path], typer.Option(help="training images of ISIC 2017: a folder or zip; may be repeated")
    ],
    isic_csv: Annotated[
        Path, typer.Option(help="table of ISIC 2017: ISIC-2017_Training_Part3_GroundTruth.csv")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to create")],
    image_size: Annotated[int, typer.Option(min=32, max=1024, help="side of the images, in pixels")] = 128,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="seed of the splits")] = 0,
) -> None:
    """Build the four dermoscopy sites from the public archives, with each lesion in one split only."""
    from prrfl.data import build as archives

    entries, left_out = archives.ham_entries(ham_csv)
    entries += archives.isic_entries(isic_csv)
    source = archives.index_images([*ham, *isic])
    with _progress("writing images", len(entries)) as seen:
        missing = archives.build(entries, source, out, image_size, seed, seen)
    for reason, count in sorted(left_out.items()):
        console.print(one_line(f"left out: {count} images of {reason}"))
    if missing:
        console.print(f"left out: {len(missing)} images missing from the archives, such as {missing[0]}")
    if unused := len(source.places.keys() - {entry.name for entry in entries}):
        source.passed_over["images of rows that were left out, or of no row"] = unused
    if source.passed_over:
        console.print(one_line(f"passed over in the archives: {told(source.passed_over)}"), soft_wrap=True)
    console.print(f"{len(entries) - len(missing)} images: {out}", soft_wrap=True)


def generate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder to create")],
    sites: Annotated[int, typer.Option(min=1, help="number of sites")] = 4,
    images: Annotated[int, typer.Option(min=18, help="images per site")] = 320,
    image_size: Annotated[int, typer.Option(min=32, help="side of the images, in pixels")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same images")] = 0,
) -> None:
    """Write a data set of generated, dermoscopy-like images.

    It has the published layout, like the real four sites.
    """
    from prrfl.data.synthetic import GeneratedData, write_generated

    write_generated(GeneratedData(sites, images, image_size, seed), folder)
    console.print(f"{sites} sites of {images} images: {folder}", soft_wrap=True)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.update(task, completed=count)
