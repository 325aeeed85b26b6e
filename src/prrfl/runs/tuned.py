"""``tuned.toml``: the settings that ``prrfl tune`` found for each method, and how."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prrfl.config import LARGEST_FILE, parse_toml, toml_value
from prrfl.errors import ConfigError, nearest
from prrfl.parts.search import as_choice
from prrfl.storage.atomic import write_text
from prrfl.storage.reading import read_text

TUNED = "tuned.toml"
"""Name of the file, in the folder of a search and in that of a comparison that uses it."""

Settings = Mapping[str, bool | int | float | str]
"""Values by setting; ``method.step`` is a setting of a method of the user's own."""


@dataclass(frozen=True)
class TunedMethod:
    """What the search found for a method.

    Attributes:
        score: mean over sites of macro-F1 on validation, of the best trial.
        trial: number of the best trial, from 0.
        pruned: number of trials that were stopped early, or diverged.
        settings: of the best trial.
        default_score: that of the first trial, which has the settings that the search started from; ``None``
            if it diverged.
    """

    score: float
    trial: int
    pruned: int
    settings: Settings
    default_score: float | None = None


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Attributes:
        trials: number of trials of each method.
        rounds: communication rounds of each trial.
        seed: of all trials.
        methods: by name in the table.
        source: the folder that it was read from.
    """

    trials: int
    rounds: int
    seed: int
    methods: Mapping[str, TunedMethod]
    source: str = ""

    def to_toml(self) -> str:
        """Return it as TOML, which :func:`read_tuned` reads back."""
        lines = ["# Written by `prrfl tune`. Scores are macro-F1 on validation, as fractions."]
        lines += [f"{key} = {getattr(self, key)}" for key in ("trials", "rounds", "seed")]
        lines += [f"source = {toml_value(self.source)}"] if self.source else []
        for name, method in self.methods.items():
            head = f"methods.{toml_value(name)}"
            lines += ["", f"[{head}]", f"score = {method.score!r}"]
            lines += [] if method.default_score is None else [f"default_score = {method.default_score!r}"]
            lines += [f"trial = {method.trial}", f"pruned = {method.pruned}", f"[{head}.settings]"]
            lines += [f"{toml_value(key)} = {toml_value(value)}" for key, value in method.settings.items()]
        return "\n".join([*lines, ""])

    def searched(self, name: str) -> set[str]:
        """Return the settings that were searched for a method."""
        return set(self.methods[name].settings) if name in self.methods else set()

    def settings_of(self, explicit: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, Any]]:
        """Return the tuned settings of methods as a settings file would hold them.

        Args:
            explicit: for each method, by its name in the table, the settings that are given otherwise.

        Raises:
            ConfigError: if a method was not tuned, or a given setting contradicts its tuned value.
        """
        if missing := [name for name in explicit if name not in self.methods]:
            raise ConfigError(
                f"{self.source} holds no settings for {', '.join(missing)}"
                f"{nearest(missing[0], self.methods)}; run `prrfl tune` for all methods of the comparison"
            )
        for name, given in explicit.items():
            for key, value in self.methods[name].settings.items():
                # 1 is 1.0, and true is the choice 'true'.
                if key in given and given[key] != value and as_choice(given[key]) != as_choice(value):
                    raise ConfigError(
                        f"{key} = {given[key]} is given, but {self.source} holds {value} for {name}; "
                        "leave it out, or compare without --tuned"
                    )
        return {name: as_given(self.methods[name].settings) for name in explicit}


def as_given(settings: Settings) -> dict[str, Any]:
    """Return settings as a settings file has them, those of own parts in tables.

    Examples:
        >>> as_given({"lr": 0.1, "method.step": 2})
        {'lr': 0.1, 'set': {'method': {'step': 2}}}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        kind, dot, name = key.rpartition(".")
        if dot:
            found.setdefault("set", {}).setdefault(kind, {})[name] = value
        else:
            found[key] = value
    return found


def write_tuned(folder: Path, tuned: Tuned) -> None:
    """Write the result of a search into a folder."""
    write_text(folder / TUNED, tuned.to_toml())


def read_tuned(folder: Path) -> Tuned:
    """Return the result of a search, from its folder or that of a comparison that uses it.

    Raises:
        ConfigError: if the file is missing or damaged.
    """
    path = folder / TUNED
    try:
        text = read_text(path, 16 * LARGEST_FILE)
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; give a folder in which `prrfl tune` has finished"
        ) from None
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(f"{path} cannot be read: {cause}") from None
    try:
        written = {"source": str(folder.absolute()), **parse_toml(text, str(path))}
        return TypeAdapter(Tuned).validate_python({"methods": {}, **written})
    except ValidationError as cause:
        first = cause.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: {where}: {first['msg']}; repeat the `prrfl tune` command, which writes it again"
        ) from None
