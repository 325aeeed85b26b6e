"""A kept network to take away: one ONNX file, from pixels to probabilities, with its model card."""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prrfl.algorithms import ALGORITHMS, traits_of
from prrfl.calibration import at_temperature
from prrfl.errors import PRRFLError
from prrfl.reports.calibration import draw_reliability
from prrfl.reports.card import model_card
from prrfl.runs.deployed import SavedNetwork, Which, predictions_path, sites_of
from prrfl.storage.atomic import PARTIAL, replacing, write_text
from prrfl.storage.records import read_predictions
from prrfl.training import generator

TOLERANCE = 1e-4
"""By which onnxruntime's probabilities may differ from the network's."""


class PixelsToProbabilities(nn.Module):
    """(N, H, W, 3) uint8 RGB pixels, as image libraries give them, to (N, C) probabilities."""

    def __init__(self, kept: SavedNetwork) -> None:
        """Take a kept network with its preparation of inputs and its temperature."""
        super().__init__()
        self.network = kept.recipe.build(kept.weights).eval()
        self.normalise = kept.recipe.normalise
        self.temperature = kept.temperature

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities."""
        logits: Tensor = self.network(self.normalise(images.permute(0, 3, 1, 2)))
        return (logits / self.temperature).softmax(1)


def export(kept: SavedNetwork, run_folder: Path, which: Which, out: Path) -> float:
    """Write ``model.onnx``, ``model_card.md`` and ``calibration.png`` in a new folder, whole or not at all.

    Args:
        kept: the network.
        run_folder: where it was read.
        which: of its networks it is.
        out: the folder, which must not be there, or be empty.

    Returns:
        By how much onnxruntime's probabilities differ from the network's at most.

    Raises:
        DataError: if the folder's predictions on test images are absent or damaged.
        PRRFLError: as :func:`write_onnx`.
    """
    as_it_is = read_predictions(predictions_path(run_folder, kept.site, which, "test"))
    calibrated = None if kept.temperature == 1 else at_temperature(as_it_is, kept.temperature)
    curves = [("as it is", as_it_is), *([("calibrated", calibrated)] if calibrated else [])]
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=out.parent))
    temporary.chmod(0o755)
    try:
        off = write_onnx(kept, temporary / "model.onnx")
        title = f"{kept.site}, {len(as_it_is.labels)} test images"
        with replacing(temporary / "calibration.png") as picture:
            picture.write_bytes(draw_reliability(curves, title))
        facts = {
            "about": kept.about,
            "scope": traits_of(ALGORITHMS.get(kept.about.method)).scope,
            "site": kept.site,
            "which": which,
            "temperature": kept.temperature,
            "fitted_on": kept.fitted_on,
            "version": version("prrfl"),
            "today": date.today().isoformat(),
            "file": "model.onnx",
            "checksum": sha256((temporary / "model.onnx").read_bytes()).hexdigest(),
            "picture": "calibration.png",
        }
        card = model_card(facts, kept.about.classes, sites_of(run_folder), as_it_is, calibrated)
        write_text(temporary / "model_card.md", card)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return off


def write_onnx(kept: SavedNetwork, path: Path) -> float:
    """Write a kept network as ONNX, once onnxruntime gives what the network gives; return how far it is off.

    The input ``images`` is uint8 (N, H, W, 3) with H = W = the network's image size and any N, the output
    ``probabilities`` float32 (N, C). Classes and all else that is known of the network stand in the metadata.

    Raises:
        PRRFLError: if onnxruntime's outputs differ by more than 1e-4; nothing is written then.
    """
    import onnxruntime

    whole = PixelsToProbabilities(kept)
    size = kept.about.image_size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            whole,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # lines of source and folders of this machine
    program.model.metadata_props.update(
        prrfl=version("prrfl"),
        classes=json.dumps(kept.about.classes),
        about=json.dumps({**asdict(kept.about), "site": kept.site, "temperature": kept.temperature}),
    )
    with replacing(path) as temporary:
        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        off = max(_difference(whole, session, pixels) for pixels in _pictures(size))
        if not off <= TOLERANCE:
            raise PRRFLError(
                f"{path}: onnxruntime's probabilities differ from the network's by {off:.1e}, at most "
                f"{TOLERANCE:.0e} was expected; nothing is written"
            )
    return off


def _difference(whole: nn.Module, session: object, pixels: Tensor) -> float:
    (given,) = session.run(["probabilities"], {"images": pixels.numpy()})  # type: ignore[attr-defined]
    with torch.inference_mode():
        expected = whole(pixels).numpy()
    return float(np.abs(given - expected).max())


def _pictures(size: int) -> Iterator[Tensor]:
    """Yield batches of 1 and 5 pictures of soft blobs: like photographs more than noise is."""
    draw = generator(0, "pictures")
    for n in (1, 5):
        coarse = torch.rand(n, 3, 4, 4, generator=draw)
        soft = nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
        yield (255 * soft).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling users what is only of interest to its own developers."""
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(before)
