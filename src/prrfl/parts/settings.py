"""Settings of a part that is not the package's: the parameters of its class or function."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from prrfl.errors import ConfigError, nearest
from prrfl.parts.blame import PartError, class_and_message, raised_by_a_part
from prrfl.parts.search import Search

_FINITE = ConfigDict(allow_inf_nan=False)


def complete_settings(
    part: Callable[..., Any], given: Mapping[str, object], whole: str, positional: int = 0
) -> dict[str, object]:
    """Return all settings of a part as a settings file holds them: those given, checked, and the defaults.

    A setting that is ``None``, as by default, is left out.

    Args:
        part: a class or function with annotated parameters.
        given: values by name; texts are converted to the parameters' types, for a tuple or list at commas.
        whole: the part's kind and name, for messages.
        positional: number of its first parameters that are no settings, because the package passes them.

    Raises:
        ConfigError: if a name is unknown, with the nearest one, or a value is invalid or missing.
        PartError: if a setting cannot be written to a file.
    """
    known = _parameters(part, whole, positional)
    for name in given:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has no settings"
            raise ConfigError(f"{whole} has no setting {name}{nearest(name, known)}; {has}")
    settings = {}
    for name, parameter in known.items():
        if name not in given and parameter.default is parameter.empty:
            raise ConfigError(f"{whole} needs a value for {name}; give it with --set")
        value = given.get(name, parameter.default)
        if value is None and parameter.default is None:
            continue  # TOML has no word for None, and a missing setting has its default
        settings[name] = _written(_adapter(parameter, whole), value, f"{whole}: {name}")
    return settings


def construct(
    part: Callable[..., Any], settings: Mapping[str, object], whole: str, positional: tuple[Any, ...] = ()
) -> Any:
    """Call a part with its settings, and return what it makes.

    Args:
        part: the class or function.
        settings: from :func:`complete_settings`.
        whole: the part's kind and name, for messages.
        positional: its first arguments, which are no settings.

    Raises:
        PartError: if it raises.
    """
    known = _parameters(part, whole, len(positional))
    values = {
        name: _adapter(known[name], whole).validate_python(value)
        for name, value in settings.items()
        if name in known
    }
    try:
        return part(*positional, **values)
    except (Exception, SystemExit) as cause:
        raise raised_by_a_part(cause) or PartError(f"{whole}: {class_and_message(cause)}") from cause


def declared_searches(part: Callable[..., Any], whole: str) -> dict[str, Search]:
    """Return which values of a part's settings to try, for settings whose type has a :class:`Search`."""
    return {
        name: item
        for name, parameter in _parameters(part, whole, 0).items()
        for item in getattr(parameter.annotation, "__metadata__", ())
        if isinstance(item, Search)
    }


def _parameters(part: Callable[..., Any], whole: str, positional: int) -> dict[str, inspect.Parameter]:
    try:
        signature = inspect.signature(part, eval_str=True)
    except (NameError, AttributeError, TypeError, ValueError) as cause:
        raise PartError(f"{whole}: its parameters cannot be read: {cause}") from cause
    kinds: Collection[Any] = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    # The signature of a dataclass has a placeholder where a field's default is made by a function.
    made = {
        field.name: field.default_factory()
        for field in (fields(part) if is_dataclass(part) else ())
        if field.default_factory is not MISSING
    }
    return {
        parameter.name: parameter.replace(default=made.get(parameter.name, parameter.default))
        for parameter in list(signature.parameters.values())[positional:]
        if parameter.kind in kinds
    }


def _adapter(parameter: inspect.Parameter, whole: str) -> TypeAdapter[Any]:
    annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
    try:
        return TypeAdapter(annotation, config=_FINITE)
    except PydanticUserError:  # among others, a dataclass or a class that is not a plain value
        raise PartError(
            f"{whole}: setting {parameter.name} is a {getattr(annotation, '__name__', annotation)}, which a "
            "settings file cannot hold; use numbers, texts, booleans, or tuples of them"
        ) from None


def _written(adapter: TypeAdapter[Any], value: object, where: str) -> object:
    try:
        written = adapter.dump_python(_validated(adapter, value), mode="json")
    except ValidationError as cause:
        raise ConfigError(f"{where}: {cause.errors()[0]['msg']}, got {value!r}") from None
    except ValueError as cause:
        raise PartError(f"{where} cannot be written to a settings file: {cause}") from None
    if not _is_plain(written):
        raise PartError(
            f"{where} cannot be written to a settings file, because it is {written!r}; use numbers, texts, "
            "booleans, or tuples of them"
        )
    return written


def _validated(adapter: TypeAdapter[Any], value: object) -> object:
    """Return a value in the setting's type; on the command line, commas separate the items of a tuple."""
    try:
        return adapter.validate_python(value)
    except ValidationError as as_it_is:
        if not isinstance(value, str):
            raise
        try:
            return adapter.validate_python([item.strip() for item in value.split(",") if item.strip()])
        except ValidationError as of_items:
            # Only the second names an item; if it names none, the type has no items.
            raise (of_items if of_items.errors()[0]["loc"] else as_it_is) from None


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool)
