"""Finished comparisons on several data sets, put together: which methods rank higher throughout?"""

from collections.abc import Sequence
from pathlib import Path

from prrfl.errors import ConfigError
from prrfl.reports.across import FEWEST_SETS, Standing, standing
from prrfl.reports.comparison import mean_scores
from prrfl.runs.compare import read_runs

MEASURED = {"f1": "F1", "auc": "AUC"}
"""Measures in which methods are ranked, with their names in the table."""


def standings(folders: Sequence[Path]) -> list[Standing]:
    """Return the ranks of methods over the data sets of comparisons, in each measure that all of them have.

    Args:
        folders: of comparisons with the same methods, each on a data set of its own; no folder twice.

    Raises:
        ConfigError: if there are too few comparisons, or their methods differ.
        DataError: if a comparison cannot be read.
    """
    if len(folders) < FEWEST_SETS:
        raise ConfigError(
            f"--across: expected comparisons on at least {FEWEST_SETS} data sets, got {len(folders)}; with "
            "fewer, ranks tell next to nothing"
        )
    found = {folder: mean_scores(read_runs(folder)[0]) for folder in folders}
    first = folders[0]
    for folder, scores in found.items():
        if differing := sorted(scores.keys() ^ found[first].keys()):
            raise ConfigError(
                f"--across: only one of {first} and {folder} has method {differing[0]}; give comparisons of "
                "the same methods"
            )
    if len(found[first]) < 2:
        raise ConfigError(f"--across: {first} has a single method; give comparisons of two or more")
    return [
        standing(name, [{method: of[key] for method, of in scores.items()} for scores in found.values()])
        for key, name in MEASURED.items()
        if all(key in of for scores in found.values() for of in scores.values())
    ]
