"""Images: what decodes has the shape that was asked for, what does not is named."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prrfl.data.images import MAX_PIXELS, read_image
from tests.fuzz.cases import cases, tried
from tests.fuzz.mutators import changes, name_of, structures

# As in the program: the tests' own runner undoes what the module asks for.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

MODES = {
    "PNG": ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"],
    "JPEG": ["RGB", "L", "CMYK"],
    "BMP": ["RGB", "L", "1"],
    "TIFF": ["RGB", "L", "F", "CMYK"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["P", "L"],
    "PPM": ["RGB"],  # refused: no format of pictures that people hold
}


def picture(kind, mode, frames=1):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
    image = image.convert("I;16") if mode == "I;16" else image
    file = io.BytesIO()
    more = {"save_all": True, "append_images": [image] * frames} if frames > 1 else {}
    image.save(file, kind, **more)
    return file.getvalue()


WHOLE = {(kind, mode): picture(kind, mode) for kind, modes in MODES.items() for mode in modes}
WHOLE |= {(kind, "frames"): picture(kind, "RGB", 5) for kind in ("GIF", "TIFF", "WEBP", "PNG")}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("images") / "one.png"


@pytest.mark.parametrize(("kind", "mode"), WHOLE)
def test_a_whole_image_is_read_or_its_format_refused(kind, mode, path):
    path.write_bytes(WHOLE[kind, mode])
    pixels = tried(lambda: read_image(path), path)
    assert isinstance(pixels, str) == (kind == "PPM" or mode in ("I;16", "F"))
    assert isinstance(pixels, str) or pixels.shape == (20, 24, 3)


@cases(300)
@given(
    which=st.sampled_from(sorted(WHOLE)),
    change=changes,
    size=st.sampled_from([None, 16, 20]),
)
def test_an_image_of_changed_bytes(which, change, size, path):
    path.write_bytes(change(WHOLE[which]))
    pixels = tried(lambda: read_image(path, size), path)
    if isinstance(pixels, str):
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    if size is None:
        assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    else:
        assert pixels.shape == (size, size, 3)


@cases(10)
@given(mutation=structures)
def test_what_is_no_file(mutation, path):
    if path.is_dir() and not path.is_symlink():
        (path / "inside").unlink(missing_ok=True)
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(WHOLE["PNG", "RGB"])
    mutation(path)
    assert isinstance(tried(lambda: read_image(path, 16), path), str), name_of(mutation)
