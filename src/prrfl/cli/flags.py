"""Flags made from the settings of a run, so that each setting is described once.

The settings are fields of ``prrfl.config.TrainConfig``. Importing it takes seconds, because methods and
networks need PyTorch. The help of a command must not wait for that, so what flags need of the settings is
stored in ``flags.json``. After a change of the settings, ``make flags`` writes it again; a test compares the
two.
"""

import inspect as signatures
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

import typer
from rich.markup import escape

from prrfl.errors import ConfigError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_Command = TypeVar("_Command", bound=Callable[..., None])

STORED = Path(__file__).with_name("flags.json")

PANELS = {
    "data": "Data",
    "method": "Method",
    "loss": "Loss",
    "network": "Network",
    "rounds": "Training",
    "device": "Machine and trackers",
}
"""The panels of the help, by the first setting of each; settings are in the order of ``TrainConfig``."""


@dataclass(frozen=True)
class Setting:
    """What a flag needs of a setting.

    Attributes:
        name: its key in a file of settings.
        kind: what the help shows as its type: BOOLEAN, INTEGER, FLOAT, PATH, TEXT, or LIST if the flag may be
            repeated.
        text: its description, with choices and default.
        panel: title of the help's panel that shows it.
        group: entry points of installed packages that add to its choices; empty for most settings.
        of_site: whether each site of a federation sets it for itself.
        of_server: whether it concerns only where a run is reported.
    """

    name: str
    kind: str
    text: str
    panel: str
    group: str
    of_site: bool
    of_server: bool


@dataclass(frozen=True)
class Described:
    """What the help of commands tells about settings and methods.

    Attributes:
        settings: all settings of a run.
        published: names of the methods that a comparison runs by default.
        default_method: the one that runs by default.
        consent: what a site can agree to send, the default first.
    """

    settings: tuple[Setting, ...]
    published: tuple[str, ...]
    default_method: str
    consent: tuple[str, ...]


@cache
def described() -> Described:
    """Return the description that is stored in the package."""
    stored = json.loads(STORED.read_text("utf-8"))
    settings = tuple(Setting(**setting) for setting in stored.pop("settings"))
    return Described(settings, **{key: _frozen(value) for key, value in stored.items()})


def describe() -> Described:
    """Return the description of the settings and methods as they are in the code."""
    from prrfl.algorithms import DEFAULT, PUBLISHED
    from prrfl.config import PARTS, SCOPES, TrainConfig
    from prrfl.flower.consent import METHODS

    settings, panel = [], ""
    for name, field in TrainConfig.model_fields.items():
        panel = PANELS.get(name, panel)
        group = PARTS[name].group if name in PARTS else ""
        scope = SCOPES[name]
        settings.append(
            Setting(
                name,
                _kind(field.annotation),
                _text(field),
                panel,
                group,
                scope.of_site,
                scope.of_server,
            )
        )
    return Described(tuple(settings), PUBLISHED, DEFAULT, METHODS)


def with_flags(
    own: Mapping[str, Any] = MappingProxyType({}),
    defaults: Mapping[str, object] = MappingProxyType({}),
    leave_out: Collection[str] = (),
) -> Callable[[_Command], _Command]:
    """Give a command one flag per setting of a run, after its own flags.

    Args:
        own: the command's own flags, name to annotation.
        defaults: their defaults; a flag without a default is required.
        leave_out: settings without a flag.
    """
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
        _parameter("config", Path, help="TOML file with settings; flags override it"),
        _parameter("out", Path, help="folder of the results; by default a dated one under runs/"),
        *(_flag(setting) for setting in described().settings if setting.name not in leave_out),
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
                from prrfl.config import PARTS

                raise ConfigError(
                    f"--set {assignment}: expected kind.name=value, such as method.step=0.2; kinds are "
                    f"{', '.join(PARTS)}"
                )
            tables.setdefault(kind, {})[name] = value
        given["set"] = tables
    return given


def _parameter(name: str, kind: Any, **option: Any) -> signatures.Parameter:
    annotation = Annotated[kind | None, typer.Option(show_default=False, **option)]
    return signatures.Parameter(name, signatures.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag(setting: Setting) -> signatures.Parameter:
    installed = sorted(_entry_points().select(group=setting.group).names) if setting.group else []
    more = f"; installed: {', '.join(installed)}" if installed else ""
    text = escape(setting.text + more)  # brackets are no markup of rich's
    shown = {"help": text, "rich_help_panel": setting.panel}
    if kind := {"BOOLEAN": bool, "LIST": list[str]}.get(setting.kind):
        return _parameter(setting.name, kind, **shown)
    number = {"INTEGER": int, "FLOAT": float}.get(setting.kind)
    if number is None:
        return _parameter(setting.name, str, metavar=setting.kind, **shown)
    return _parameter(setting.name, number, metavar=setting.kind, parser=_if_possible(number), **shown)


@cache
def _entry_points() -> Any:  # the type depends on the version of Python
    """Return those of all installed packages, whose files are read once for all flags."""
    return entry_points()


def _if_possible(number: type) -> Callable[[str], Any]:
    """Return a parser of numbers that leaves any other text as it is.

    The settings refuse such text, so that flags and files give the same errors.
    """

    def parse(text: str) -> Any:
        try:
            return number(text)
        except ValueError:
            return text

    return parse


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _kind(annotation: Any) -> str:
    """Return what the help shows as the type of a setting."""
    if get_origin(annotation) is dict:
        return "LIST"
    kinds = {bool: "BOOLEAN", int: "INTEGER", float: "FLOAT", Path: "PATH"}
    parts = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return next((kinds[part] for part in parts if part in kinds), "TEXT")


def _text(field: "FieldInfo") -> str:
    """Return a setting's description, choices and default."""
    from prrfl.config import choices

    values = choices(field.annotation)
    listed = f"; one of {', '.join(map(str, values))}" if values else ""
    shown = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    default = "" if shown in (None, "", {}) else f" [default: {shown}]"
    return f"{field.description}{listed}{default}"


if __name__ == "__main__":
    from prrfl.storage.atomic import write_json

    write_json(STORED, asdict(describe()))
