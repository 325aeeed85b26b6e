"""Checks of the installation: system, Python, prrfl itself, required packages and extras."""

import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import prrfl
from prrfl.machine import system
from prrfl.preflight.findings import Finding

FOR_DEVELOPERS = {"dev", "docs"}
"""Extras that users of the package do not need."""


def check_metadata() -> Finding | None:
    """Check that prrfl is installed, and not only found on the path."""
    if installed_version("prrfl") is not None:
        return None
    return Finding(
        "problem",
        "prrfl",
        f"imported from {Path(prrfl.__file__).parent}, but not installed: its metadata is missing",
        "pip install it, with --editable if it is a working copy",
    )


def check_system() -> Finding:
    """Check the operating system."""
    if platform.system() == "Linux":
        return Finding("ok", "system", system())
    return Finding(
        "problem", "system", f"{platform.system()}; prrfl runs on Linux only", "use a Linux machine"
    )


def check_python(version: str | None = None) -> Finding:
    """Check the version of Python against the package's metadata."""
    version = version or platform.python_version()
    wanted = metadata.metadata("prrfl")["Requires-Python"]
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding("ok", "Python", f"{version} ({sys.executable}); prrfl needs {wanted}")
    return Finding(
        "problem", "Python", f"{version}; prrfl needs {wanted}", "install prrfl with a newer Python"
    )


def check_shadowing() -> Iterator[Finding]:
    """Check that the prrfl that is imported is the installed one, and the only one."""
    folder = Path(prrfl.__file__).parent
    here = Finding("ok", "prrfl", f"{prrfl.__version__} from {folder}")
    versions = {one.version: str(one.locate_file("")) for one in metadata.distributions(name="prrfl")}
    others = {version: where for version, where in versions.items() if version != prrfl.__version__}
    if others:
        named = ", ".join(f"{version} in {where}" for version, where in others.items())
        here = Finding(
            "problem",
            "prrfl",
            f"{prrfl.__version__} is imported from {folder}, but other versions are installed: {named}",
            "uninstall prrfl until none is left, remove its folder from PYTHONPATH, and install it once",
        )
    elif not _is_installed(folder):
        here = Finding(
            "note",
            "prrfl",
            f"{prrfl.__version__} is imported from {folder}, which is not where it is installed",
            "unless you intend this, remove that folder from PYTHONPATH, or change to another folder",
        )
    yield here
    command = shutil.which("prrfl")
    if command and Path(command).parent.resolve() != Path(sys.executable).parent.resolve():
        yield Finding(
            "note",
            "prrfl",
            f"the command `prrfl` is {command}, which belongs to another installation",
            f"run {Path(sys.executable).parent / 'prrfl'}, or put its folder first on PATH",
        )


def _is_installed(folder: Path) -> bool:
    """Return whether an installed distribution names this folder as the package's."""
    for one in metadata.distributions(name="prrfl"):
        editable = one.read_text("direct_url.json") or ""
        if Path(str(one.locate_file("prrfl"))).resolve() == folder.resolve() and one.read_text("RECORD"):
            return True
        if any(f'"{parent.as_uri()}"' in editable for parent in folder.parents):
            return True
    return False


def check_packages(
    requires: Sequence[str] | None = None, version: Callable[[str], str | None] | None = None
) -> Iterator[Finding]:
    """Check the versions of all required packages.

    Args:
        requires: lines of requirements; by default, those of the installed prrfl.
        version: returns the installed version of a package, or ``None`` if it is missing.
    """
    needed = requirements(requires)
    fitting, unfit = _compared(needed, version or installed_version)
    if not unfit:
        yield Finding("ok", "packages", ", ".join(fitting))
    for requirement, message in unfit.items():
        yield Finding("problem", "packages", message, f"pip install '{requirement}'")


def check_extras(
    requires: Sequence[str] | None = None,
    version: Callable[[str], str | None] | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Finding]:
    """Check the packages of every extra.

    Args:
        requires: as for :func:`check_packages`.
        version: as for :func:`check_packages`.
        names: names of the extras; by default, all except those for developers.
    """
    known = metadata.metadata("prrfl").get_all("Provides-Extra") or []
    for extra in known if names is None else names:
        if extra in FOR_DEVELOPERS and names is None:
            continue
        fitting, unfit = _compared(requirements(requires, extra), version or installed_version)
        if unfit:
            message = "; ".join(unfit.values())
            yield Finding("note", f"extra {extra}", message, f"pip install 'prrfl[{extra}]' if you need it")
        else:
            yield Finding("ok", f"extra {extra}", ", ".join(fitting))


def requirements(lines: Sequence[str] | None = None, extra: str = "") -> list[Requirement]:
    """Return the requirements of prrfl on this machine, or those that an extra adds."""
    lines = lines if lines is not None else metadata.requires("prrfl") or []
    found: list[Requirement] = []
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        holds = marker is None or marker.evaluate({"extra": extra})
        if not holds or (extra and (marker is None or marker.evaluate({"extra": ""}))):
            continue
        if requirement.name == "prrfl":
            found += [inner for name in sorted(requirement.extras) for inner in requirements(lines, name)]
        else:
            found.append(requirement)
    return found


def installed_version(name: str) -> str | None:
    """Return a package's version without importing it, or ``None`` if it is missing."""
    try:
        return metadata.version(name) or None  # empty if a broken installation left a folder
    except metadata.PackageNotFoundError:
        return None


def _compared(
    needed: Iterable[Requirement], version: Callable[[str], str | None]
) -> tuple[list[str], dict[str, str]]:
    """Return names and versions that meet their requirements, and what is wrong with each of the others."""
    fitting: list[str] = []
    unfit: dict[str, str] = {}
    for requirement in needed:
        wanted, there = f"{requirement.name}{requirement.specifier}", version(requirement.name)
        if there is None:
            unfit[wanted] = f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(there, prereleases=True):
            unfit[wanted] = f"{requirement.name} {there} is installed, prrfl needs {requirement.specifier}"
        else:
            fitting.append(f"{requirement.name} {there}")
    return fitting, unfit
