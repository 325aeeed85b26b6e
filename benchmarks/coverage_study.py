"""How often intervals cover, and tests err, on simulated comparisons whose truth is known.

python -m benchmarks.coverage_study [REPETITIONS]    # prints the tables of docs/statistics.md

Each network sees images of lesions. Its score for the true class is its skill, which differs between
trainings, plus what makes the lesion difficult for all networks, or for this method alone, plus noise.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from prrfl.reports.comparison import FinishedRun, Row, compare
from prrfl.reports.statistics import f1_of, resampled_confusions
from prrfl.types import ExchangeRecord, Predictions, RoundRecord, ScoreRecord, Scores

SHARES = (0.67, 0.25, 0.08)
DRAWS = 400
MARGIN = 0.05


@dataclass(frozen=True)
class World:
    """What a comparison is drawn from.

    Attributes:
        seeds: trainings of each method.
        images: test images of each of two sites; two show one lesion.
        trainings: standard deviation of the skill over trainings.
        lesions: standard deviation of a lesion's difficulty for one method.
        skills: of the methods.
    """

    seeds: int
    images: int
    trainings: float
    lesions: float
    skills: tuple[float, ...]


def drawn(
    world: World, skill: float, labels: np.ndarray, shared: np.ndarray, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield the probabilities of a method's trainings, for lesions of given difficulty."""
    lesions = len(labels) // 2
    own = world.lesions * np.repeat(rng.normal(size=(lesions, 3)), 2, axis=0)
    for trained in skill + world.trainings * rng.normal(size=world.seeds):
        logits = shared + own + rng.normal(size=(len(labels), 3))
        logits[np.arange(len(labels)), labels] += trained
        values = np.exp(logits)
        yield values / values.sum(1, keepdims=True)


def comparison(world: World, rng: np.random.Generator) -> dict[str, Row]:
    """Return the rows of one simulated comparison."""
    sites = {}
    for site in "ab":
        lesions = world.images // 2
        labels = np.repeat(rng.choice(3, lesions, p=SHARES), 2)
        shared = np.repeat(rng.normal(size=(lesions, 3)), 2, axis=0)
        ids = tuple(map(str, range(world.images)))
        groups = tuple(str(k // 2) for k in range(world.images))
        sites[site] = [
            [
                Predictions(ids, torch.from_numpy(labels), torch.from_numpy(values), groups)
                for values in drawn(world, skill, labels, shared, rng)
            ]
            for skill in world.skills
        ]
    nothing = Scores(1, 1.0, 0.5, 0.5, 0.5, (None,) * 3, ())
    moments = [ScoreRecord(0, 0, "a", "test", "m", True, moment, nothing) for moment in ("before", "after")]
    records: list[RoundRecord] = [*moments, ExchangeRecord(0, {"a": 1}, 1)]
    runs = [
        FinishedRun(
            str(method), seed, records, {site: sites[site][method][seed] for site in "ab"}, 1.0, 1, 1, {}
        )
        for method in range(len(world.skills))
        for seed in range(world.seeds)
    ]
    return {row.method: row for row in compare(runs, "0", MARGIN, DRAWS, int(rng.integers(2**31)))}


def truth(world: World, skill: float) -> Mapping[str, float]:
    """Return the expected scores of a method, over trainings and images."""
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"f1": [], "auc": []}
    many = World(60, 8000, world.trainings, world.lesions, (skill,))
    labels = np.repeat(rng.choice(3, many.images // 2, p=SHARES), 2)
    shared = np.repeat(rng.normal(size=(many.images // 2, 3)), 2, axis=0)
    once = np.ones((1, many.images), dtype=np.float32)
    for values in drawn(many, skill, labels, shared, rng):
        found["f1"].append(f1_of(resampled_confusions(once, labels, values.argmax(1), 3)).item())
        found["auc"].append(roc_auc_score(labels, values, multi_class="ovr"))
    return {name: float(np.mean(values)) for name, values in found.items()}


def intervals(repetitions: int) -> Iterator[str]:
    """Yield the lines of the table of coverage and type I error: two methods that are equal."""
    yield "| seeds | images | trainings | covers F1 | covers AUC | of images, F1 | type I F1 | type I AUC |"
    yield "| --- " * 8 + "|"
    for seeds in (2, 3, 5, 10):
        for images, spread in ((200, 0.0), (200, 0.3), (600, 0.3)):
            world = World(seeds, images, spread, 0.5, (2.0, 2.0))
            expected, rng = truth(world, 2.0), np.random.default_rng(seeds)
            hits = np.zeros(5)
            for _ in range(repetitions):
                rows = comparison(world, rng)
                for name, at in (("f1", 0), ("auc", 1)):
                    low, high = rows["0"].scores[name]["mean"].interval or (0.0, 1.0)
                    hits[at] += low <= expected[name] <= high
                    p = rows["1"].tests[name].p
                    hits[3 + at] += p is not None and p < 0.05
                low, high = rows["0"].scores["f1"]["mean"].images or (0.0, 1.0)
                hits[2] += low <= expected["f1"] <= high
            cells = " | ".join(f"{100 * hit / repetitions:.1f} %" for hit in hits)
            yield f"| {seeds} | {images} | {spread} | {cells} |"


def marks(repetitions: int) -> Iterator[str]:
    """Yield the lines of the table of wrong marks: ten equal methods."""
    yield "| seeds | trainings | a method told apart from the best | of 18 tests one p < 0.05 |"
    yield "| --- " * 4 + "|"
    for seeds in (3, 5):
        for spread in (0.3,):
            world = World(seeds, 200, spread, 0.5, (2.0,) * 10)
            rng, hits = np.random.default_rng(seeds), np.zeros(2)
            for _ in range(repetitions):
                rows = comparison(world, rng).values()
                hits[0] += any(len(row.untold) < 2 for row in rows)
                hits[1] += any(p < 0.05 for row in rows for p in row.p.values())
            cells = " | ".join(f"{100 * hit / repetitions:.1f} %" for hit in hits)
            yield f"| {seeds} | {spread} | {cells} |"


def power(repetitions: int) -> Iterator[str]:
    """Yield the lines of the table of power and equivalence: two methods, of which one may be better."""
    yield "| seeds | true difference of F1 | mean detectable | found | equal within 5 points |"
    yield "| --- " * 5 + "|"
    for seeds in (3, 5):
        for better in (0.0, 0.4, 0.8):
            world = World(seeds, 400, 0.1, 0.5, (2.0, 2.0 + better))
            gap = truth(world, 2.0 + better)["f1"] - truth(world, 2.0)["f1"]
            rng = np.random.default_rng(seeds)
            tests = [(row.tests["f1"], row.p["f1"]) for row in _second(world, repetitions, rng)]
            detectable = np.mean([test.detectable for test, _ in tests])
            found = np.mean([p < 0.05 for _, p in tests])
            equal = np.mean([test.equivalent is not None and test.equivalent < 0.05 for test, _ in tests])
            cells = f"{100 * gap:.1f} | {100 * detectable:.1f} | {100 * found:.1f} % | {100 * equal:.1f} %"
            yield f"| {seeds} | {cells} |"


def _second(world: World, repetitions: int, rng: np.random.Generator) -> Iterator[Row]:
    for _ in range(repetitions):
        yield comparison(world, rng)["1"]


def main() -> None:
    """Print the tables as they are computed."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for title, table, share in (
        ("Two equal methods", intervals, 1.0),
        ("Ten equal methods", marks, 0.25),
        ("Two methods, of which the second may be better", power, 0.5),
    ):
        print(f"\n### {title}: {int(share * repetitions)} repetitions\n")
        for line in table(int(share * repetitions)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
