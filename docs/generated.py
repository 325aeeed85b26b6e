"""What the pages take from the package and the repository when the site is built.

``<!-- settings -->`` becomes a table of every setting, ``<!-- commands -->`` the command line's own help, and
files outside docs/ that a page links to (``../deploy/...``) come along.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
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


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated, and point links out of docs/ to the files that came along."""
    for name, make in (("settings", settings), ("commands", commands)):
        mark = f"<!-- {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(make()))
    return re.sub(rf"\]\(\.\./({'|'.join(OUTSIDE)})/", r"](\1/", markdown)


def settings() -> Iterator[str]:
    """Yield the lines of a table of every setting: key, default, and what it is."""
    yield "| key | default | what it is |"
    yield "| --- | --- | --- |"
    for name, field in TrainConfig.model_fields.items():
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = "" if default is None else f"`{str(default).lower() if default in (True, False) else default}`"
        bounds = [f"{sign} {getattr(rule, word)}" for rule in field.metadata for word, sign in BOUNDS if hasattr(rule, word)]
        choices = re.findall(r"'(\w+)'", str(field.annotation)) if "Literal" in str(field.annotation) else []
        more = ", ".join(bounds) or ", ".join(choices)
        yield f"| `{name}` | {shown} | {field.description}{f' ({more})' if more else ''} |"


BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


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
    options = [p for p in command.params if p.param_type_name == "option" and p.name not in TrainConfig.model_fields]
    yield f"## {name}\n"
    yield "    " + " ".join([name, *(p.human_readable_name for p in arguments)]) + "\n"
    yield f"{command.help}\n"
    if len(options) + len(arguments) < len(command.params):
        yield "Every [setting](settings.md) is a flag, too.\n"
    if arguments or options:
        yield "| argument or flag | what it is |"
        yield "| --- | --- |"
        for parameter in arguments:
            yield f"| `{parameter.human_readable_name}` | {parameter.help} |"
        for option in options:
            shown = _default(option)
            yield f"| `{max(option.opts, key=len)}` | {option.help}{shown} |"
        yield ""


def _default(option: click.Parameter) -> str:
    if option.required:
        return " (must be given)"
    if "[default:" in (option.help or "") or option.default in (None, False):
        return ""
    return f" (default: {option.default})"
