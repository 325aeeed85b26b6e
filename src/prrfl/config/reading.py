"""Settings from TOML files and flags."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from prrfl.config.faults import first_fault
from prrfl.config.settings import LARGEST_FILE, TrainConfig
from prrfl.errors import ConfigError
from prrfl.storage.reading import read_text


def load_config(path: Path | None, overrides: Mapping[str, object]) -> TrainConfig:
    """Return the settings of a TOML file, overridden by flags.

    Without a file and without ``data``, the base is the quickstart in the package.

    Raises:
        ConfigError: with the key and what was expected; for an unknown key, with the nearest known one.
    """
    source, settings = given_settings(path, overrides)
    return checked(settings, source, overrides)


def given_settings(path: Path | None, overrides: Mapping[str, object]) -> tuple[str, dict[str, Any]]:
    """Return the settings that are given, by key, before defaults and checks; see :func:`load_config`.

    Returns:
        The name of their source, for messages, and the settings.
    """
    if path is not None:
        source, text = str(path), _read_text(path)
    elif overrides.get("data") is None:
        source, text = "quickstart", resources.files("prrfl").joinpath("quickstart.toml").read_text("utf-8")
    else:
        source, text = "flags", ""
    return source, merged(parse_settings(text, source), overrides)


def merged(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with some overridden; settings of own parts are overridden one by one."""
    whole = {**settings, **overrides}
    if "set" not in settings or "set" not in overrides:
        return whole
    before, after = settings["set"], overrides["set"]
    tables = {kind: {**before.get(kind, {}), **after.get(kind, {})} for kind in {**before, **after}}
    return {**whole, "set": tables}


def checked(
    settings: Mapping[str, object],
    source: str,
    overrides: Mapping[str, object] = MappingProxyType({}),
    context: str | None = None,
) -> TrainConfig:
    """Return valid settings.

    Args:
        settings: values by key; other settings get their defaults.
        source: name of the source of the settings, for messages.
        overrides: the settings that come from flags instead.
        context: ``READING`` for the settings of a run that was started already.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    try:
        return TrainConfig.model_validate(renamed(settings), context=context)
    except ValidationError as cause:
        raise ConfigError(first_fault(cause, source, overrides)) from None


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of version 0.1.0, which had ``tensorboard = true``, by their present names."""
    now = dict(settings)
    if "track" not in now and isinstance(now.get("tensorboard"), bool):
        now["track"] = ("tensorboard",) if now.pop("tensorboard") else ()
    return now


def parse_settings(text: str, source: str) -> dict[str, Any]:
    """Return the settings of a TOML text, such that :func:`merged` can override them.

    Raises:
        ConfigError: as :func:`parse_toml`, or if ``set`` does not hold a table for each kind of part.
    """
    settings = parse_toml(text, source)
    tables = settings.get("set", {})
    for table in (tables, *(tables.values() if isinstance(tables, dict) else ())):
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: key 'set': expected a table of settings, got {table!r}")
    return settings


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Return the keys and values of a TOML text.

    Args:
        text: the TOML.
        source: name of its source, for messages.

    Raises:
        ConfigError: if the text is not TOML, or exceeds the limits of Python's parser.
    """
    try:
        return tomllib.loads(text)
    # TOML errors are ValueErrors. So is an integer with more digits than Python converts.
    except ValueError as cause:
        raise ConfigError(f"{source} is not TOML: {' '.join(str(cause).split())}") from None
    except RecursionError:
        raise ConfigError(
            f"{source} is nested too deeply; expected one line per setting, key = value"
        ) from None


def _read_text(path: Path) -> str:
    try:
        return read_text(path, LARGEST_FILE)
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist; give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(f"config file {path} cannot be read: {cause}") from None
