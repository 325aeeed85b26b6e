"""Skeletons of parts: small, complete files that work, to start from."""

import keyword
import re
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import prrfl
from prrfl.errors import ConfigError
from prrfl.storage.atomic import write_text

Kind = Literal["method", "network", "project"]


def write_skeleton(kind: Kind, name: str, folder: Path) -> list[Path]:
    """Write a part with its test, or a project of both kinds; return the files.

    Args:
        kind: what to write.
        name: in any case: ``part-way``, ``PartWay``.
        folder: where to write it; a project gets a folder of its own below.

    Raises:
        ConfigError: if the name cannot be that of a module, or is that of one, or a file exists already.
    """
    words = _words(name)
    module = "_".join(word.lower() for word in words)
    if not module.isidentifier() or keyword.iskeyword(module) or re.sub(r"\W|_", "", name) != "".join(words):
        raise ConfigError(f"name '{name}': expected letters and digits, such as part-way or PartWay")
    title = title_of(name)
    if kind == "project":
        root = folder / name
        files = _project(root, module, title)
    else:
        values = {"module": module, "title": title, "reference": f"./{module}.py:{title}"}
        files = {
            folder / f"{module}.py": _filled(f"{kind}.py", values),
            folder / f"test_{module}.py": _filled(f"test_{kind}.py", values),
        }
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} exists already; choose another name, or remove it")
    if find_spec(module) is not None:
        raise ConfigError(
            f"name '{name}': a module {module} is installed, which the new one would hide; choose "
            "another name"
        )
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def title_of(name: str) -> str:
    """Return a name as that of a class.

    Examples:
        >>> title_of("part-way"), title_of("WideNet")
        ('PartWay', 'WideNet')
    """
    return "".join(word[0].upper() + word[1:] for word in _words(name))


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)


def _project(root: Path, module: str, title: str) -> dict[Path, str]:
    package = root / "src" / module
    both = {"module": module, "title": title, "version": prrfl.__version__}
    method = {**both, "reference": module, "module": f"{module}.method"}
    network = {"module": f"{module}.network", "title": f"{title}Net", "reference": f"{module}-net"}
    return {
        root / "pyproject.toml": _filled("pyproject.toml", both),
        root / "README.md": _filled("readme.md", both),
        package / "__init__.py": f'"""Parts for prrfl: {title}, and a network."""\n',
        package / "method.py": _filled("method.py", method),
        package / "network.py": _filled("network.py", network),
        root / "tests" / "test_method.py": _filled("test_method.py", method),
        root / "tests" / "test_network.py": _filled("test_network.py", network),
    }


def _filled(name: str, values: Mapping[str, str]) -> str:
    text = resources.files("prrfl.cli").joinpath("skeletons", f"{name}.txt").read_text("utf-8")
    for key, value in values.items():
        text = text.replace(f"{{{{ {key} }}}}", value)
    return text
