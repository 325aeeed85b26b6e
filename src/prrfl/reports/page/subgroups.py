"""The section of a page on subgroups of test images."""

from collections.abc import Sequence

from prrfl.reports.comparison import Estimate
from prrfl.reports.page.model import Cell, Section, Sheet
from prrfl.reports.page.pictures import Dot, intervals
from prrfl.reports.subgroups import Subgroup, findings, subgroup_table


def subgroup_section(rows: Sequence[Subgroup], classes: Sequence[str]) -> Section:
    """Return the section: what was found in words, a forest plot of the differences, and the table."""
    columns = list(dict.fromkeys(row.column for row in rows))
    lead = " ".join([f"Test images of each site, divided by {', '.join(columns)}.", *findings(rows, classes)])
    gaps = [
        Dot(
            f"{row.site}, {row.column} {row.name}",
            Estimate(row.gap.value, images=row.gap.interval),
            note="told apart" if row.told_apart else "",
        )
        for row in rows
        if row.gap
    ]
    picture = intervals(
        "Difference of each subgroup to the rest of its site's images",
        {"balanced accuracy, points": gaps},
        "Left of 0: worse than the rest. Intervals are 95 % over other images, for these very networks. "
        "The p-values in the table are corrected for the number of tests. Not told apart is not equal.",
        zero=True,
    )
    shown = subgroup_table(rows, classes)
    body = [[Cell(f"{site}, {name}"), *map(_cell, cells)] for site, name, *cells in shown.body]
    sheet = Sheet(
        shown.title,
        ["subgroup", *shown.heads[2:]],
        body,
        note="Percent, with 95 % intervals over images. The difference is that of the mean recall of the "
        "classes which at least five lesions or patients show on both sides; p is Holm-corrected.",
    )
    return Section("Subgroups", lead, [picture] if gaps else [], [sheet])


def _cell(text: str) -> Cell:
    value, _, interval = text.partition("\n")
    return Cell(value, interval)
