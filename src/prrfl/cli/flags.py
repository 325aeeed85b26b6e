"""Flags made from the settings of a run, so that each setting is described once."""

import inspect as signatures
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from prrfl.config import PARTS, TrainConfig
from prrfl.errors import ConfigError

_Command = TypeVar("_Command", bound=Callable[..., None])


def with_flags(
    own: Mapping[str, Any] = MappingProxyType({}),
    defaults: Mapping[str, object] = MappingProxyType({}),
    leave_out: Collection[str] = (),
) -> Callable[[_Command], _Command]:
    """Give a command one flag per setting of :class:`TrainConfig`, after its own flags.

    Args:
        own: the command's own flags, name to annotation.
        defaults: their defaults; a flag without a default is required.
        leave_out: settings without a flag.
    """
    settings = {name: field for name, field in TrainConfig.model_fields.items() if name not in leave_out}
    parameters = [
        *(
            signatures.Parameter(
                name,
                signatures.Parameter.KEYWORD_ONLY,
                default=defaults.get(name, signatures.Parameter.empty),
                annotation=annotation,
            )
            for name, annotation in own.items()
        ),
        _parameter("config", Path, "TOML file with settings; flags override it"),
        _parameter("out", Path, "folder of the results; by default a dated one under runs/"),
        *(
            _parameter(name, _flag_type(field.annotation), _described(field))
            for name, field in settings.items()
        ),
    ]

    def decorate(command: _Command) -> _Command:
        command.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def given_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings among flags that were given, those of own parts by kind.

    Raises:
        ConfigError: if --set is not kind.name=value.
    """
    given = {key: value for key, value in flags.items() if value not in (None, [])}
    if assignments := given.pop("set", []):
        tables: dict[str, dict[str, str]] = {}
        for assignment in assignments:
            key, equals, value = assignment.partition("=")
            kind, dot, name = key.partition(".")
            if not (equals and dot and name):
                raise ConfigError(
                    f"--set {assignment}: expected kind.name=value, such as method.step=0.2; kinds are "
                    f"{', '.join(PARTS)}"
                )
            tables.setdefault(kind, {})[name] = value
        given["set"] = tables
    return given


def _parameter(name: str, kind: Any, text: str) -> signatures.Parameter:
    annotation = Annotated[kind | None, typer.Option(help=text, show_default=False)]
    return signatures.Parameter(name, signatures.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag_type(annotation: Any) -> Any:
    """Return the type of a flag. Pydantic checks its value, so that files and flags give the same errors."""
    if get_origin(annotation) is dict:
        return list[str]
    choices = (annotation, *get_args(annotation))
    if any(get_origin(kind) in (Literal, tuple) for kind in choices):
        return str
    return next((kind for kind in choices if kind is Path), annotation)


def _described(field: FieldInfo) -> str:
    """Return a setting's description, choices and default, escaped for rich's markup."""
    kind = field.annotation
    choices = f"; one of {', '.join(map(str, get_args(kind)))}" if get_origin(kind) is Literal else ""
    shown = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    default = "" if shown in (None, "", {}) else f" [default: {shown}]"
    return escape(f"{field.description}{choices}{default}")
