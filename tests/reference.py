"""The numbers measured from the authors' code, and where the real data lies.

``tests/paper/vectors/README.md`` says what each file of numbers holds and how its inputs were made.
"""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from prrfl import Examples, SiteData

VECTORS = Path(__file__).parent / "paper" / "vectors"
DERMOSCOPY = Path(__file__).parents[2] / "shared" / "dermoscopy"

needs_dermoscopy = pytest.mark.skipif(
    not DERMOSCOPY.is_dir(), reason=f"the four-site dermoscopy data is not in {DERMOSCOPY}"
)

DRAWN_BEFORE = 248_640
"""Normal numbers that the generator had drawn before it drew the trajectory's images."""
TRAJECTORY_DATA = "309284719b85ef54421b070b8999a06e8327023568d6135f614439eb740636e1"
"""SHA-256 of the trajectory's images and labels, which NumPy's generator must redraw bit for bit."""


def reference_weights() -> dict[str, torch.Tensor]:
    """Redraw the VGG16-slim weights that the reference measurements started from."""
    draw = np.random.default_rng(1000)
    weights = {}
    for key, shape in json.loads((VECTORS / "vgg16_slim_keys.json").read_text()):
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(0)
            continue
        z = draw.standard_normal(shape)
        if key.endswith("running_var"):
            value = np.exp(0.1 * z)
        elif key.endswith("running_mean"):
            value = 0.05 * z
        elif key.endswith("bn.weight"):
            value = 1 + 0.1 * z
        elif key.endswith("bn.bias"):
            value = 0.02 * z
        else:
            value = z * np.sqrt(2 / np.prod(shape[1:]))
        weights[key] = torch.from_numpy(value.astype(np.float32))
    return weights


def reference_sites() -> list[SiteData]:
    """Redraw the trajectory's four sites, as float64. Three test images of each serve for validation, too.

    The reference has no validation: nothing of the trajectory depends on it.
    """
    draw = np.random.default_rng(0)
    draw.standard_normal(DRAWN_BEFORE)
    splits = [list(_draw_split(draw, sizes)) for sizes in ((48, 32, 40, 32), (24, 24, 24, 24))]
    digest = sha256(b"".join(part.tobytes() for split in splits for site in split for part in site))
    assert digest.hexdigest() == TRAJECTORY_DATA, "this NumPy draws other numbers; see vectors/README.md"
    train, test = (
        [Examples(torch.from_numpy(x).double(), torch.from_numpy(y)) for x, y in split] for split in splits
    )
    few = [Examples(images.inputs[:3], images.labels[:3]) for images in test]
    return [SiteData(f"{k}", train[k], few[k], test[k]) for k in range(4)]


def _draw_split(draw: np.random.Generator, sizes: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each site's images (N, 3, 32, 32), float32, and labels (N,), int64.

    An image is noise; channel ``label`` is 0.9 brighter, and each site has a tint of its own.
    """
    for site, count in enumerate(sizes):
        labels = draw.integers(0, 3, count)
        labels[:3] = 0, 1, 2
        images = draw.standard_normal((count, 3, 32, 32)).astype(np.float32) * np.float32(0.6)
        images[np.arange(count), labels] += np.float32(0.9)
        tint = 0.3 * np.array([np.cos(site), np.sin(site), 0.2 * site])
        yield (images.astype(np.float64) + tint[:, None, None]).astype(np.float32), labels
