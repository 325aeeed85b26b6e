"""How what people hand over is broken, as Hypothesis strategies: bytes, tables, and what stands in a folder.

A mutation of bytes or text is a function from the whole to the broken one; one of a path does it to the disk.
"""

import os
import shutil
from functools import partial

from hypothesis import strategies as st

MAGIC = [
    b"",
    b"\0",
    b"\xff" * 8,
    b"\n" * 3,
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"PK\x03\x04",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"\x93NUMPY",
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 5000,
    b"[" * 100_000,
    (2**63).to_bytes(8, "little"),
    (2**64 - 1).to_bytes(8, "big"),
    b"../../x",
    b"\x1b[2J",
]

CELLS = st.one_of(
    st.sampled_from(
        [
            "",
            "0",
            "-1",
            "3",
            "9" * 5000,
            "0" * 5000 + "1",
            "²",
            "٣",
            "nan",
            "1e400",
            "x" * 200_000,
            "n" * 300,
            "..",
            ".",
            "/",
            "../../etc/passwd",
            "a/b",
            "a\0b",
            "a\nb",
            "a\r\nb",
            "a\u2028b",
            "\x1b[31m",
            "[/bold]",
            "[link=x]",
            ":smile:",
            'a"b',
            "a,b",
            "=1+1",
            "loop",
            "pipe",
            "\ufeff",
        ]
    ),
    st.text(max_size=12),
)
"""What people, spreadsheets and strangers put into a cell."""


def flipped(at, value, whole):
    if not whole:
        return whole
    index = at % len(whole)
    return whole[:index] + bytes([whole[index] ^ (value or 1)]) + whole[index + 1 :]


def cut(at, whole):
    return whole[: at % (len(whole) + 1)]


def inserted(at, part, whole):
    index = at % (len(whole) + 1)
    return whole[:index] + part + whole[index:]


def overwritten(at, part, whole):
    index = at % (len(whole) + 1)
    return whole[:index] + part + whole[index + len(part) :]


def doubled(at, length, whole):
    index = at % (len(whole) + 1)
    return whole[: index + length] + whole[index:]


def without(at, length, whole):
    index = at % (len(whole) + 1)
    return whole[:index] + whole[index + length :]


def swapped(at, whole):
    index = at % (len(whole) + 1)
    return whole[index:] + whole[:index]


# Half of the places are near the beginning, where formats keep what the rest means.
places = st.one_of(st.integers(0, 200), st.integers(0, 10**9))
lengths = st.one_of(st.integers(1, 16), st.integers(1, 4096))
one_change = st.one_of(
    st.builds(partial, st.just(flipped), places, st.integers(1, 255)),
    st.builds(partial, st.just(cut), places),
    st.builds(partial, st.just(inserted), places, st.sampled_from(MAGIC) | st.binary(max_size=8)),
    st.builds(partial, st.just(overwritten), places, st.sampled_from(MAGIC) | st.binary(max_size=8)),
    st.builds(partial, st.just(doubled), places, lengths),
    st.builds(partial, st.just(without), places, lengths),
    st.builds(partial, st.just(swapped), places),
)


def apply_all(changes, whole):
    for change in changes:
        whole = change(whole)
    return whole


changes = st.builds(partial, st.just(apply_all), st.lists(one_change, min_size=1, max_size=4))
"""Mutations of bytes: one to four flips, cuts, insertions, copies, omissions, swaps and odd values."""


def encoded(encoding, text):
    return text.encode(encoding, "replace")


encodings = st.builds(
    partial, st.just(encoded), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
)
"""Mutations of text to bytes."""


def emptied(path):
    path.write_bytes(b"")


def deleted(path):
    path.unlink()


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_full_folder(path):
    as_folder(path)
    (path / "inside").write_text("x")


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_loop(path):
    path.unlink()
    path.symlink_to(path.name)


def as_dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


def as_device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def torn(at, path):
    path.write_bytes(cut(at, path.read_bytes()))


def changed(change, path):
    path.write_bytes(change(path.read_bytes()))


def replaced(whole, path):
    path.write_bytes(whole)


TEXTS = [
    b"{}",
    b"[]",
    b"null",
    b'"x"',
    b"{",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5000,
    b'{"rounds": NaN}',
    b"\xff\xfe{\0}\0",
    b"\0" * 100,
]

structures = st.sampled_from(
    [emptied, deleted, as_folder, as_full_folder, as_pipe, as_loop, as_dangling, as_device]
)
"""Mutations of what stands at a path."""

files = st.one_of(
    structures,
    st.builds(partial, st.just(torn), places),
    st.builds(partial, st.just(changed), changes),
    st.builds(partial, st.just(replaced), st.sampled_from(TEXTS)),
)
"""Mutations of a file at its place."""


def name_of(mutation):
    """Return a mutation's name, for messages and for what is known of it."""
    return getattr(mutation, "func", mutation).__name__


def copied(source, target):
    """Copy a folder to a place, in place of what is there; links stay links."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target
