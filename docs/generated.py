"""What the pages take from the package and the repository when the site is built.

``<!-- settings -->`` becomes a table of every setting, ``<!-- commands -->`` the command line's own help, and
files outside docs/ that a page links to (``../deploy/...``) come along. No page loads from elsewhere.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo
from typer.main import get_command

from prrfl.cli import app
from prrfl.config import TrainConfig

OUTSIDE = ("deploy",)
"""Folders beside docs/ whose files pages link to."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the files outside docs/ along."""
    root = Path(config.docs_dir).parent
    for folder in OUTSIDE:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file():
                uri = path.relative_to(root).as_posix()
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what is generated, and point links out of docs/ to the files that came along."""
    for name, make in (("settings", settings), ("commands", commands)):
        mark = f"<!-- {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(make()))
    return re.sub(rf"\]\(\.\./({'|'.join(OUTSIDE)})/", r"](\1/", markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that would load anything from elsewhere.

    Raises:
        PluginError: naming the page and what it would load.
    """
    if elsewhere := re.search(
        r"<(?:script|link|img|iframe|source|video)\b[^>]*=\"?(?:https?:)?//[^>]*>", output
    ):
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {elsewhere[0]}; keep the file in docs/")
    return output


def settings() -> Iterator[str]:
    """Yield the lines of a table of every setting: key, default, and what it is."""
    yield "| key | default | what it is |"
    yield "| --- | --- | --- |"
    for name, field in TrainConfig.model_fields.items():
        allowed = f" ({rule})" if (rule := _rule(field)) else ""
        yield f"| `{name}` | {_as_toml(field.default)} | {field.description}{allowed} |"


def _rule(field: FieldInfo) -> str:
    """Return what values a setting may have: its bounds, or its choices."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(rule, word)}"
        for rule in field.metadata
        for word, sign in signs.items()
        if hasattr(rule, word)
    ]
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return ", ".join(bounds or map(str, choices))


def _as_toml(value: object) -> str:
    # JSON's strings, numbers, booleans and lists are TOML's too.
    return "" if value is None else f"`{json.dumps(value)}`"


def commands() -> Iterator[str]:
    """Yield every command's help as Markdown."""
    yield from _group(get_command(app), "prrfl")


def _group(group: click.Command, prefix: str) -> Iterator[str]:
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from _group(command, f"{prefix} {name}")
        else:
            yield from _command(command, f"{prefix} {name}")


def _command(command: click.Command, name: str) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    flags = [p for p in command.params if p.param_type_name == "option"]
    # A command that takes settings has a flag for each of them; they have a table of their own.
    takes_settings = any(p.name == "lr" for p in flags)
    own = [p for p in flags if not (takes_settings and _is_setting(p))]
    yield f"## {name}\n"
    yield "    " + " ".join([name, *(p.human_readable_name for p in arguments), "[FLAGS]"]) + "\n"
    yield f"{command.help}\n"
    if takes_settings:
        yield "Every [setting](settings.md) is a flag, too.\n"
    rows = [(p.human_readable_name, p.help) for p in arguments if p.help]
    rows += [(max(p.opts, key=len), f"{_condition(p)}{p.help}{_default(p)}") for p in own]
    if rows:
        yield "| argument or flag | what it is |"
        yield "| --- | --- |"
        # A name in angle brackets is no HTML.
        yield from (f"| `{flag}` | {text} |".replace("<", "&lt;") for flag, text in rows)
        yield ""


def _condition(option: click.Parameter) -> str:
    """Return when a flag has an effect: the heading that it is under in the help."""
    heading: str | None = getattr(option, "rich_help_panel", None)
    return f"{heading[0].lower()}{heading[1:]}: " if heading else ""


def _is_setting(option: click.Parameter) -> bool:
    """Return whether a flag is that of a setting, whose description its help begins with."""
    field = TrainConfig.model_fields.get(option.name or "")
    return field is not None and (option.help or "").startswith(field.description or "")


def _default(option: click.Parameter) -> str:
    if option.required:
        return " (must be given)"
    if "[default:" in (option.help or "") or option.default is None or option.default is False:
        return ""
    return f" (default: {option.default})"
