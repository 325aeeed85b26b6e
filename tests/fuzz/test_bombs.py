"""What asks for much memory or time gets neither."""

import json
import subprocess
import sys

import pytest

from tests.fuzz import bombs
from tests.fuzz.cases import SECONDS

pytestmark = pytest.mark.slow

FIT = {
    # What is read is bounded, not small: an image of the largest size in several forms, a member of a zip.
    "many_large_images_at_once": 1200,
    "png_with_text_that_inflates": 400,
    "png_with_a_profile_that_inflates": 400,
    "png_whose_pixels_inflate": 400,
    "zip_whose_image_inflates": 400,
    "csv_of_one_line_of_100_megabytes": 400,
    "csv_of_fifty_million_columns": 400,
    "csv_with_a_quote_that_never_ends": 400,
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    command = [sys.executable, "-m", "tests.fuzz.bombs", tmp_path_factory.mktemp("bombs")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=10 * SECONDS, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    return {one["name"]: one for one in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("name", [bomb.__name__ for bomb in bombs.BOMBS])
def test_a_bomb(name, outcomes):
    found = outcomes[name]
    accepted = ("gif_of_many_frames", "many_large_images_at_once", "png_whose_pixels_inflate")
    assert found["said"].startswith("accepted: " if name in accepted else "refused: "), found
    assert name in accepted or found["said"].isprintable()
    assert found["grown"] < FIT.get(name, 150), found
    assert found["seconds"] < SECONDS, found
