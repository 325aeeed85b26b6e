"""What a page consists of: sections with pictures and tables, prepared in Python and drawn in the browser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prrfl.types import ClientId


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        detail: a second line, such as an interval.
        title: explanation of its mark.
        best: whether it is printed bold.
        heat: depth of its colour, 0 to 1.
    """

    text: str
    detail: str = ""
    title: str = ""
    best: bool = False
    heat: float = 0.0


@dataclass(frozen=True)
class Sheet:
    """A table of the page, sortable. The first cell of a row names it; the foot stays last.

    Attributes:
        heads: headings of columns.
        groups: headings above them, each with its number of columns; together they span all but the first.
        note: text below.
        sortable: whether its headings are buttons that sort it.
        printed: whether it belongs to the printed page.
    """

    title: str
    heads: Sequence[str]
    body: Sequence[Sequence[Cell]]
    foot: Sequence[Sequence[Cell]] = ()
    groups: Sequence[tuple[str, int]] = ()
    note: str = ""
    sortable: bool = True
    printed: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture, which ``pictures.js`` draws from data.

    Attributes:
        kind: name of the drawing function.
        data: what it draws: numbers, texts, lists and dictionaries of them.
        numbers: the same as a table, for those who do not see it.
        note: text below.
        folded: whether it is shown only on demand.
    """

    kind: str
    title: str
    data: Mapping[str, Any]
    numbers: Sheet | None = None
    note: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Sample:
    """A test image with the prediction of the deployed network.

    Attributes:
        png: the image, as the bytes of a PNG file.
        probability: probability of the predicted class.
    """

    site: ClientId
    name: str
    png: bytes
    truth: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class SiteImages:
    """What a page shows of a site's images.

    Attributes:
        balance: per split, number of images of each class.
        samples: test images to show.
    """

    balance: Mapping[str, Sequence[int]] = field(default_factory=dict)
    samples: Sequence[Sample] = ()


@dataclass(frozen=True)
class Section:
    """A section of the page: pictures, then tables.

    Attributes:
        printed: whether it belongs to the printed page, with its pictures that are not folded.
    """

    title: str
    lead: str = ""
    pictures: Sequence[Picture] = ()
    sheets: Sequence[Sheet] = ()
    printed: bool = False


@dataclass(frozen=True)
class Panel:
    """A method's network at a site; one is shown at a time.

    Attributes:
        stages: number and name of the training stage of each local epoch, by round; empty without stages.
        confusion: rows are true classes, columns predicted ones.
    """

    site: ClientId
    method: str
    pictures: Sequence[Picture]
    confusion: Sequence[Sequence[int]]
    stages: Sequence[Sequence[tuple[int, str]]] = ()
    stage_names: Sequence[str] = ()
    samples: Sequence[Sample] = ()


@dataclass(frozen=True)
class Heading:
    """What a page is about.

    Attributes:
        name: of the run's or comparison's folder.
        data: the data's name.
        date: day of the training, as in 2026-01-31; empty if unknown.
        version: of prrfl.
    """

    name: str
    data: str
    date: str
    version: str
