"""Small inputs that ask for much memory or time, each tried in this process under a limit.

``python -m tests.fuzz.bombs FOLDER`` prints a line of JSON for each: what was said, the seconds, and by
how many MB the largest resident set that the process ever had grew.
"""

import io
import json
import resource
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from prrfl.config import load_config
from prrfl.data.build import index_images
from prrfl.data.images import read_image
from prrfl.data.manifest import read_manifest
from prrfl.data.sources import load_sites
from prrfl.errors import PRRFLError
from prrfl.runs.folder import RunFolder
from prrfl.storage.records import read_predictions, read_records
from prrfl.storage.tensor_files import from_bytes, read_state
from prrfl.types import Share

CLASSES = ("nv", "bkl", "mel")
MORE = 3 * 2**30
"""Bytes of address space that a case may take beyond what the imports took."""


def chunk(kind, content, length=None):
    size = len(content) if length is None else length
    return struct.pack(">I", size) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *chunks):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def image(folder, content):
    path = folder / "bomb.png"
    path.write_bytes(content)
    return read_image(path, 32)


def png_of_ten_thousand_megapixels(folder):
    return image(folder, png(100_000, 100_000, chunk(b"IDAT", zlib.compress(b"\0" * 1000))))


def png_of_one_row(folder):
    return image(folder, png(2**31 - 1, 1, chunk(b"IDAT", zlib.compress(b"\0" * 1000))))


def png_with_a_chunk_of_two_gigabytes(folder):
    return image(folder, png(8, 8, chunk(b"IDAT", b"\0" * 100, length=2**31 - 1)))


def png_with_text_that_inflates(folder):
    text = zlib.compress(b"\0" * 300_000_000, 9)
    return image(folder, png(8, 8, chunk(b"zTXt", b"key\0\0" + text), chunk(b"IDAT", b"")))


def png_with_a_profile_that_inflates(folder):
    text = zlib.compress(b"\0" * 300_000_000, 9)
    return image(folder, png(8, 8, chunk(b"iCCP", b"key\0\0" + text), chunk(b"IDAT", b"")))


def png_whose_pixels_inflate(folder):
    return image(folder, png(8, 8, chunk(b"IDAT", zlib.compress(b"\0" * 300_000_000, 9))))


def gif_of_many_frames(folder):
    file = io.BytesIO()
    one = Image.new("P", (8, 8))
    one.save(file, "GIF", save_all=True, append_images=[one.copy() for _ in range(3)], duration=1)
    head = file.getvalue()
    frame = b"\x21\xf9\x04\x00\x01\x00\x00\x00\x2c\0\0\0\0\x08\0\x08\0\0\x02\x02\x84\x51\0"
    return image(folder, head[:-1] + frame * 500_000 + b"\x3b")


def tiff_that_claims(folder):
    entries = [(256, 100_000), (257, 100_000), (258, 8), (259, 1), (262, 1), (273, 8), (278, 100_000)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return image(folder, b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0" * 4)


def image_files_of_a_gigabyte(folder):
    path = folder / "bomb.png"
    with path.open("wb") as file:
        file.write(png(8, 8)[:-12])
        file.truncate(2**30)
    return read_image(path, 32)


def many_large_images_at_once(folder):
    """60 megapixels each, 200 kB on disk: one after the other they fit, four at a time they would not."""
    Image.new("RGB", (7700, 7700)).save(folder / "large.png", compress_level=9)
    rows = ["path,label,site,split,group"]
    for n in range(4):
        (folder / f"{n}.png").hardlink_to(folder / "large.png")
        rows.append(f"{n}.png,{n % 3},north,train,")
    (folder / "m.csv").write_text("\n".join(rows) + "\n")
    (site,) = load_sites(folder / "m.csv", image_size=32, classes=CLASSES, needed=["train"])
    return site.train.inputs.shape


def npz(folder, shape, member=b"\0" * 100):
    path = folder / "bomb.npz"
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train", "val", "test"):
            archive.writestr(f"{name}_images.npy", head.getvalue() + member)
            labels = io.BytesIO()
            np.save(labels, np.arange(2))
            archive.writestr(f"{name}_labels.npy", labels.getvalue())
    return load_sites(path, image_size=32, classes=CLASSES)


def npz_that_claims_a_terabyte(folder):
    return npz(folder, (10**6, 1024, 1024))


def npz_that_claims_more_than_there_are_addresses(folder):
    return npz(folder, (2**40, 2**40))


def zip_whose_image_inflates(folder):
    path = folder / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.png", "w") as member:
        for _ in range(300):
            member.write(b"\0" * 10**6)
    _, file = index_images([path]).read("x")
    return read_image(path, 32, file)


def safetensors_with_a_long_header(folder):
    path = folder / "bomb.safetensors"
    with path.open("wb") as file:
        file.write((2**31).to_bytes(8, "little"))
        file.truncate(2**31 + 100)
    return read_state(path, Share)


def bytes_with_a_header_nested_deeply(folder):
    header = b'{"__metadata__":' + b"[" * 1_000_000
    return from_bytes(Share, len(header).to_bytes(8, "little") + header)


def toml_nested_deeply(folder):
    (folder / "c.toml").write_text("a = " + "[" * 100_000)
    return load_config(folder / "c.toml", {})


def toml_of_a_gigabyte(folder):
    with (folder / "c.toml").open("wb") as file:
        file.truncate(2**30)
    return load_config(folder / "c.toml", {})


def table(folder, line):
    (folder / "m.csv").write_text(line)
    return read_manifest(folder / "m.csv", CLASSES)


def csv_of_one_line_of_100_megabytes(folder):
    return table(folder, "path,label,site,split,group\n" + "x" * 10**8)


def csv_of_fifty_million_columns(folder):
    return table(folder, "," * 10**8)


def csv_with_a_quote_that_never_ends(folder):
    return table(folder, 'path,label,site,split,group\n"' + "x\n" * (5 * 10**7))


def json_nested_deeply(folder):
    (folder / "summary.json").write_text("[" * 10**7)
    return RunFolder(folder).summary()


def records_nested_deeply(folder):
    (folder / "metrics.jsonl").write_text('{"kind":"train","metrics":' + '{"a":' * 10**6)
    return read_records(folder / "metrics.jsonl")


def predictions_of_many_digits(folder):
    (folder / "p.csv").write_text(f"image_id,label,p_a,p_b\nx,{'9' * 100_000},0,1\n")
    return read_predictions(folder / "p.csv")


BOMBS = [
    found
    for name, found in list(globals().items())
    if getattr(found, "__module__", None) == __name__
    and callable(found)
    and name not in ("chunk", "png", "image", "npz", "table")
]


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def tried(bomb, folder):
    folder.mkdir()
    before, began = peak(), time.monotonic()
    try:
        said = f"accepted: {bomb(folder)!r}"[:100]
    except PRRFLError as error:
        said = f"refused: {error}"
    return {
        "name": bomb.__name__,
        "said": said,
        "seconds": time.monotonic() - began,
        "grown": peak() - before,
    }


def main(folder):
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MORE, taken + MORE))
    for bomb in BOMBS:
        print(json.dumps(tried(bomb, folder / bomb.__name__)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
