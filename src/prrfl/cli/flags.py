"""One flag for each setting of a run, so that a setting is described only once."""

import inspect as signatures
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from prrfl.config import TrainConfig


def with_flags(command: Any) -> Any:
    """Give a command one flag per setting of :class:`TrainConfig`, so that each is described only once."""
    parameters = [
        _parameter("config", Path, "settings from a TOML file; flags override it"),
        _parameter("out", Path, "folder of the run; a dated one under runs/ if not given"),
        *(
            _parameter(
                name, _flag_type(field.annotation), f"{field.description} [default: {_shown(field.default)}]"
            )
            for name, field in TrainConfig.model_fields.items()
        ),
    ]
    command.__signature__ = signatures.Signature(parameters)
    return command


def _parameter(name: str, kind: Any, text: str) -> signatures.Parameter:
    annotation = Annotated[kind | None, typer.Option(help=text, show_default=False)]
    return signatures.Parameter(name, signatures.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag_type(annotation: Any) -> Any:
    """Return what a flag is read as; pydantic checks the rest, so that files and flags err alike."""
    if get_origin(annotation) in (Literal, tuple):
        return str
    return next((kind for kind in get_args(annotation) if kind is Path), annotation)


def _shown(default: Any) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)
