"""Further measures for a comparison: any scorer of scikit-learn by name, or a function of the user's own."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from prrfl.errors import ConfigError, nearest
from prrfl.parts import PartError, Parts, label, placed
from prrfl.reports.sampled import OF_CLASS, OVER_SITES, Scorer
from prrfl.reports.statistics import Floats, Ints
from prrfl.storage.atomic import write_json
from prrfl.storage.reading import read_bytes

METRICS: Parts[Callable[..., float]] = Parts("metric", "prrfl.metrics", {})
"""Functions of true classes (N,) and probabilities (N, C); higher is better."""

_ALWAYS = {"f1", "macro_f1", "auc", "balanced_accuracy", "accuracy", *OVER_SITES}
"""Measures that every comparison has, beside those of each class."""

FILE = "scorers.json"
"""File of a comparison's further measures; absent if none were asked for."""


def scorers(names: Sequence[str]) -> dict[str, Scorer]:
    """Return measures by the names under which tables show them.

    Args:
        names: those of scikit-learn's scorers, such as ``matthews_corrcoef``; entry points; or references
            such as ``./file.py:function``.

    Raises:
        ConfigError: if a name is unknown, or its scorer needs something else than a classifier.
        PartError: if a function cannot be imported.
    """
    from sklearn.metrics import get_scorer_names

    found: dict[str, Scorer] = {}
    for name in names:
        shown = label(name)
        if shown in found:
            raise ConfigError(f"--scorers: two measures are called {shown}; give each once, or rename one")
        if shown in _ALWAYS or shown.rpartition("_")[0] in OF_CLASS:
            raise ConfigError(
                f"--scorers: every comparison has a measure {shown}; leave it out, or rename the function"
            )
        if name in get_scorer_names():
            found[shown] = _by_scikit_learn(name)
        elif name in METRICS:
            found[shown] = _own(METRICS[name], name)
        else:
            known = [*get_scorer_names(), *METRICS]
            raise ConfigError(
                f"--scorers: unknown measure '{name}'{nearest(name, known)}; give a scorer of scikit-learn "
                "(sklearn.metrics.get_scorer_names lists them) or a function, as ./file.py:name"
            )
    return found


def try_scorers(names: Sequence[str], classes: int) -> None:
    """Try further measures, because a comparison needs them only after the training of all runs.

    Args:
        names: of the measures.
        classes: number of classes.

    Raises:
        ConfigError: as :func:`scorers`.
        PartError: if a function returns no number.
    """
    labels = np.arange(4 * classes) % classes
    for score in scorers(names).values():
        score(labels, np.full((len(labels), classes), 1 / classes))


def keep_scorers(folder: Path, names: Sequence[str]) -> None:
    """Write the names of a comparison's further measures to its folder, those of files as absolute paths."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, [placed(name) for name in names])


def read_scorers(folder: Path) -> dict[str, Scorer]:
    """Return the further measures of a comparison; none if it was asked for none.

    Raises:
        ConfigError: if their file is damaged, or as :func:`scorers`.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        names = TypeAdapter(list[str]).validate_json(read_bytes(path))
    except ValidationError:
        raise ConfigError(
            f"{path}: expected a list of names; repeat `prrfl compare` with --scorers, or remove the file"
        ) from None
    return scorers(names)


def _by_scikit_learn(name: str) -> Scorer:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.metrics import get_scorer

    class Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """A classifier whose probabilities are given, as scorers want one."""

        def __init__(self, probabilities: Floats) -> None:
            self.probabilities = probabilities
            self.classes_ = np.arange(probabilities.shape[1])

        def fit(self, *_: Any) -> "Given":
            return self

        def predict(self, _: Any) -> Ints:
            answers: Ints = self.probabilities.argmax(1)
            return answers

        def predict_proba(self, _: Any) -> Floats:
            return self.probabilities

    scorer = get_scorer(name)

    def score(labels: Ints, probabilities: Floats) -> float:
        return float(scorer(Given(probabilities), probabilities, labels))

    _check_defined(score, name)
    return _or_nan(score)


def _own(function: Callable[..., float], name: str) -> Scorer:
    if len(inspect.signature(function).parameters) < 2:
        raise ConfigError(
            f"--scorers: {function.__name__} must take the true classes (N,) and the probabilities (N, C)"
        )

    def score(labels: Ints, probabilities: Floats) -> float:
        value: Any = function(labels, probabilities)
        if np.ndim(value) or isinstance(value, str) or not hasattr(value, "__float__"):
            raise PartError(f"metric {name}: expected a number, got {type(value).__name__}")
        return float(value)

    return _or_nan(score)


def _check_defined(score: Scorer, name: str) -> None:
    """Raise unless a scorer works for a classifier of three classes, whatever their order."""
    labels, answers = np.arange(9) % 3, np.array([0, 1, 2, 0, 1, 2, 1, 2, 2])
    probabilities = np.full((9, 3), 0.2) + 0.4 * np.eye(3)[answers]
    order = np.array([2, 0, 1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = score(labels, probabilities)
            renamed = score(order[labels], probabilities[:, np.argsort(order)])
    except Exception as cause:
        raise ConfigError(
            f"--scorers: {name} cannot score a classifier of several classes: {' '.join(str(cause).split())}"
        ) from None
    # A score of regression takes the indices of classes for numbers.
    if np.isnan(value) or not np.isclose(value, renamed):
        raise ConfigError(f"--scorers: {name} cannot score a classifier of several classes")


def _or_nan(score: Scorer) -> Scorer:
    """Return a measure that is NaN where it is not defined, such as for a sample of a single class."""

    def defined(labels: Ints, probabilities: Floats) -> float:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return score(labels, probabilities)
        except ValueError:
            return float("nan")

    return defined
