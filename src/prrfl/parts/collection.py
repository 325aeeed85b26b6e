"""Parts of one kind, by name: the package's own, those of installed packages, and any file's or module's."""

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from hashlib import blake2b, sha256
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from prrfl.errors import nearest
from prrfl.parts.blame import PartError, class_and_message, watch_for

T = TypeVar("T")


def is_reference(name: str) -> bool:
    """Return whether a name refers to a class or function in a module or file.

    Examples:
        >>> is_reference("my_pkg.mod:Class"), is_reference("./file.py:Class"), is_reference("prrfl")
        (True, True, False)
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not attribute.isidentifier():
        return False
    return place.endswith(".py") or all(word.isidentifier() for word in place.split("."))


def is_installed(name: str) -> bool:
    """Return whether a name refers to nothing on this machine alone, as a file does."""
    return not (is_reference(name) and name.rpartition(":")[0].endswith(".py"))


def label(name: str) -> str:
    """Return a part's name as tables and folders show it: of a reference, the class or function.

    Examples:
        >>> label("./file.py:PartWay"), label("prrfl")
        ('PartWay', 'prrfl')
    """
    return name.rpartition(":")[2] if is_reference(name) else name


def placed(name: str) -> str:
    """Return a reference to a file with its absolute path; any other name as it is."""
    if is_installed(name):
        return name
    path, _, attribute = name.rpartition(":")
    return f"{Path(path).absolute()}:{attribute}"


class Parts(Mapping[str, T]):
    """All parts of a kind by name. A part that is not the package's own is imported when it is looked up.

    A name is one of the package's, or that of an entry point of an installed package, or a reference:
    ``package.module:Class`` or ``path/to/file.py:Class``. Iteration yields the names of the first two sorts.

    Attributes:
        kind: what the parts are, for messages: ``method``.
        group: the group of entry points in which packages name such parts: ``prrfl.methods``.
        builtin: the package's own.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, T], needs: Sequence[str] = ()) -> None:
        """Collect the parts of a kind.

        Args:
            kind: what they are.
            group: the group of entry points.
            builtin: the package's own.
            needs: names that a class must define to be such a part.
        """
        self.kind, self.group = kind, group
        self.builtin: Mapping[str, T] = MappingProxyType(dict(builtin))
        self._needs = tuple(needs)
        self._found: dict[str, T] = {}

    @cached_property
    def installed(self) -> Mapping[str, EntryPoint]:
        """The entry points of installed packages. The package's own names take precedence."""
        found = entry_points(group=self.group)
        return {point.name: point for point in sorted(found, key=str) if point.name not in self.builtin}

    def __iter__(self) -> Iterator[str]:
        yield from self.builtin
        yield from self.installed

    def __len__(self) -> int:
        return len(self.builtin) + len(self.installed)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            name in self.builtin or name in self.installed or is_reference(name)
        )

    def __getitem__(self, name: str) -> T:
        """Return a part.

        Raises:
            KeyError: if no part has that name.
            PartError: if it cannot be imported, or lacks what such a part needs.
        """
        if name in self.builtin:
            return self.builtin[name]
        if name not in self:
            raise KeyError(name)
        if name not in self._found:
            target = self.installed[name].value if name in self.installed else name
            self._found[name] = self._load(name, target)
        return self._found[name]

    def is_own(self, name: str) -> bool:
        """Return whether a name is that of a part that is not the package's."""
        return name not in self.builtin and name in self

    def origin(self, name: str) -> str:
        """Return the package and version that a part of the user's own comes from, or the hash of its file.

        Nothing is imported.
        """
        if name in self.installed and (dist := self.installed[name].dist):
            return f"{dist.name} {dist.version}"
        place = (self.installed[name].value if name in self.installed else name).rpartition(":")[0]
        if place.endswith(".py"):
            content = Path(place).read_bytes() if Path(place).is_file() else b""
            return f"sha256 {sha256(content).hexdigest()}"
        top = place.partition(".")[0]
        found = _distributions().get(top, [])
        return f"{found[0]} {version(found[0])}" if found else f"module {top}"

    def _load(self, name: str, target: str) -> T:
        place, _, attribute = target.rpartition(":")
        whole = f"{self.kind} {name}"
        module = _module(place, whole)
        found: Any = module
        for word in attribute.split("."):
            if not hasattr(found, word):
                raise PartError(f"{whole}: {place} has no {word}{nearest(word, vars(found))}")
            found = getattr(found, word)
        if not callable(found):
            raise PartError(f"{whole}: expected a class or function, got {type(found).__name__}")
        self._check(whole, found)
        part: T = found
        return part

    def _check(self, whole: str, found: Any) -> None:
        if not self._needs:
            return
        if not isinstance(found, type):
            raise PartError(f"{whole}: expected a class, got a function")
        defined = {word for kind in found.__mro__[:-1] for word in (*vars(kind), *_annotated(kind))}
        if missing := [word for word in self._needs if word not in defined]:
            raise PartError(
                f"{whole} has no {missing[0]}; it needs {', '.join(self._needs)}, see docs/extending.md"
            )


@cache
def _distributions() -> Mapping[str, Sequence[str]]:
    """Return the distributions of each installed package. Scanning them takes most of a second."""
    return packages_distributions()


def _annotated(kind: type) -> Sequence[str]:
    return tuple(vars(kind).get("__annotations__", ()))


def _module(place: str, whole: str) -> ModuleType:
    """Import a file or an installed module.

    Raises:
        PartError: naming the part, and the line of its own code that raised.
    """
    if place.endswith(".py"):
        return _from_file(Path(place), whole)
    top = place.partition(".")[0]
    try:
        module = import_module(place)
    except (Exception, SystemExit) as cause:
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing and f"{place}.".startswith(f"{missing}."):
            raise PartError(
                f"{whole}: module {missing} is not installed; install the package that has it, or give a "
                "file, such as ./file.py:Class"
            ) from None
        raise _unusable(cause, whole, lambda file: top in (*file.parts, file.stem)) from cause
    for folder in getattr(sys.modules[top], "__path__", (module.__file__ or place,)):
        watch_for(Path(folder), whole)
    return module


def _from_file(path: Path, whole: str) -> ModuleType:
    if not path.is_file():
        raise PartError(f"{whole}: file {path} does not exist; give the path of a Python file")
    path = path.resolve()
    # A name of its own for each path. Type hints of its classes are found through it.
    name = f"prrfl_part_{blake2b(str(path).encode(), digest_size=6).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # as in a script, the file can import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as cause:  # a script may end by sys.exit
        del sys.modules[name]
        raise _unusable(cause, whole, lambda file: path.parent in file.parents) from cause
    finally:
        sys.path.remove(str(path.parent))
    watch_for(path, whole)
    return module


def _unusable(cause: BaseException, whole: str, is_own: Callable[[Path], bool]) -> PartError:
    """Return the error of a part that cannot be imported, with the last line of its own code.

    Args:
        cause: what was raised.
        whole: the part's kind and name.
        is_own: tells whether a file holds the part's own code. A library may have raised that it calls.
    """
    if isinstance(cause, SyntaxError):
        return PartError(f"{whole}: {cause.filename}, line {cause.lineno}: {class_and_message(cause)}")
    frames = [f for f in traceback.extract_tb(cause.__traceback__) if "importlib" not in f.filename]
    last = ([f for f in frames if is_own(Path(f.filename))] or frames)[-1]
    return PartError(f"{whole}: {last.filename}, line {last.lineno}: {class_and_message(cause)}")
