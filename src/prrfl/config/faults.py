"""What is wrong with a setting, in one line."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from prrfl.config.settings import TrainConfig
from prrfl.errors import nearest


def first_fault(cause: ValidationError, source: str, overrides: Mapping[str, object]) -> str:
    """Return the first fault that pydantic found: the flag, or the file and key, and what was expected."""
    first = cause.errors()[0]
    key = str(first["loc"][0])
    where = f"--{key.replace('_', '-')}" if key in overrides else f"{source}: key '{key}'"
    if first["type"] == "extra_forbidden":
        known = TrainConfig.model_fields
        return f"{source}: unknown key '{key}'{nearest(key, known)}"
    return f"{where}: {_expected(key, first['type'], first)}, got {_shown(first['input'])}"


def choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a setting that is one of a few; nothing for other settings."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _expected(key: str, fault: str, error: Mapping[str, Any]) -> str:
    """Return what a setting must be, for the kinds of faults that pydantic finds; else what a check said."""
    field = TrainConfig.model_fields[key]
    if fault == "literal_error":
        known = [str(choice) for choice in choices(field.annotation)]
        given = error["input"] if isinstance(error["input"], str) else ""
        return f"expected one of {', '.join(known)}{nearest(given, known)}"
    if fault.startswith(("greater_than", "less_than")):
        return f"expected {_bounds(field.metadata)}"
    kinds = {"int": "a whole number", "float": "a number", "finite": "a finite number"}
    kinds |= {"bool": "true or false", "path": "a path", "string": "text", "tuple": "a list of names"}
    kinds |= {"dict": "a table of settings"}
    kind = kinds.get(fault.partition("_")[0])
    return f"expected {kind}" if kind else error["msg"].removeprefix("Value error, ")


def _bounds(metadata: Sequence[object]) -> str:
    """Return the bounds of a number in words. Those of a setting come before those of its type."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    found: dict[str, str] = {}
    for item in metadata:
        for name, word in words.items():
            if (bound := getattr(item, name, None)) is not None:
                found.setdefault(name[0], f"{word} {bound}")
    return " and ".join(found[side] for side in sorted(found))


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python does not print integers of more than 4,300 digits
        return "a value that is too long to print"
    return text if len(text) <= 200 else f"{text[:200]} ..."
