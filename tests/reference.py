"""Where the vectors measured from the authors' code lie, and what each test needs of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
DERMOSCOPY = Path(__file__).parents[2] / "shared" / "dermoscopy"

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the vectors measured from the authors' code are not here"
)
needs_dermoscopy = pytest.mark.skipif(
    not DERMOSCOPY.is_dir(), reason="the real four-site dermoscopy data is not here"
)


def reference_weights() -> dict[str, torch.Tensor]:
    """Redraw the VGG16-slim weights that the reference measurements started from."""
    draw = np.random.default_rng(1000)
    weights = {}
    for key, shape in json.loads((REFERENCE / "vgg16_slim_keys.json").read_text()):
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
