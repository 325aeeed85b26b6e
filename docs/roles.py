"""Docstrings refer to other objects as ``:func:`name```; here that becomes a link of the site."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(func|class|meth|mod|attr|data|exc):`([\w.]+)`")


class Roles(Extension):
    """Turns roles in docstrings into links."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda role: link(obj, *role.groups()), obj.docstring.value)


def link(obj: Object, role: str, name: str) -> str:
    """Return a link to what a name means in an object's docstring: a full name, or one of its own scope.

    An attribute links to its class, whose docstring describes it.
    """
    head, dot, rest = name.partition(".")
    full = name if head == "prrfl" else f"{obj.resolve(head)}{dot}{rest}"
    target = full.rpartition(".")[0] if role == "attr" else full
    return f"[`{name.rpartition('.')[2]}`][{target}]"
