"""Export a network as one ONNX file, from pixels to probabilities, with a model card."""

import json
import logging
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
from prrfl.data.subgroups import TestTables
from prrfl.errors import PRRFLError
from prrfl.reports.calibration import draw_reliability
from prrfl.reports.card import model_card
from prrfl.reports.subgroups import by_subgroup
from prrfl.runs.deployed import SavedNetwork, Which, predictions_path, sites_of
from prrfl.storage.atomic import replace_folder, replacing, write_text
from prrfl.storage.records import read_predictions
from prrfl.training import generator

TOLERANCE = 1e-4
"""Largest difference allowed between the probabilities of onnxruntime and those of the network."""


class PixelsToProbabilities(nn.Module):
    """Maps (N, H, W, 3) uint8 RGB pixels, as image libraries read them, to (N, C) probabilities."""

    def __init__(self, saved: SavedNetwork) -> None:
        """Use a saved network with its preparation of inputs and its temperature."""
        super().__init__()
        self.network = saved.recipe.build(saved.weights).eval()
        self.normalise = saved.recipe.normalise
        self.temperature = saved.temperature

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities."""
        logits: Tensor = self.network(self.normalise(images.permute(0, 3, 1, 2)))
        return (logits / self.temperature).softmax(1)


def export(saved: SavedNetwork, run_folder: Path, which: Which, out: Path, tables: TestTables) -> float:
    """Write a new folder with ``model.onnx``, ``model_card.md`` and ``calibration.png``, or nothing.

    Args:
        saved: the network.
        run_folder: the folder of its run.
        which: whether it is of the best or of the last round.
        out: the folder to write; it must be empty or not exist.
        tables: the site's test images, with columns by which the card divides them into subgroups.

    Returns:
        The largest difference between the probabilities of onnxruntime and those of the network.

    Raises:
        DataError: if the network's predictions on test images are missing or damaged, or the tables are not
            those of the images.
        OSError: if the folder cannot be written.
        PRRFLError: as in :func:`write_onnx`.
    """
    as_it_is = read_predictions(predictions_path(run_folder, saved.site, which, "test"))
    calibrated = None if saved.temperature == 1 else at_temperature(as_it_is, saved.temperature)
    final = {saved.site: calibrated or as_it_is}
    subgroups = by_subgroup(final, tables.divide(final))
    curves = [("as it is", as_it_is), *([("calibrated", calibrated)] if calibrated else [])]
    scope = traits_of(ALGORITHMS.get(saved.about.method)).scope  # the method may be missing: before the work
    with replace_folder(out) as temporary:
        difference = write_onnx(saved, temporary / "model.onnx")
        title = f"{saved.site}, {len(as_it_is.labels)} test images"
        with replacing(temporary / "calibration.png") as picture:
            picture.write_bytes(draw_reliability(curves, title))
        facts = {
            "about": saved.about,
            "scope": scope,
            "site": saved.site,
            "which": which,
            "temperature": saved.temperature,
            "fitted_on": saved.fitted_on,
            "version": version("prrfl"),
            "today": date.today().isoformat(),
            "file": "model.onnx",
            "checksum": sha256((temporary / "model.onnx").read_bytes()).hexdigest(),
            "picture": "calibration.png",
        }
        card = model_card(facts, saved.about.classes, sites_of(run_folder), as_it_is, calibrated, subgroups)
        write_text(temporary / "model_card.md", card)
    return difference


def write_onnx(saved: SavedNetwork, path: Path) -> float:
    """Write a network as ONNX, and check that onnxruntime gives the same probabilities.

    The input ``images`` is uint8 (N, H, W, 3) with H = W = the network's image size and any N. The output
    ``probabilities`` is float32 (N, C). The metadata hold the classes and what is known of the network.

    Returns:
        The largest difference between the probabilities of onnxruntime and those of the network.

    Raises:
        PRRFLError: if it is larger than 1e-4. Nothing is written.
    """
    import onnxruntime

    whole = PixelsToProbabilities(saved)
    size = saved.about.image_size
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
        node.metadata_props.clear()  # source lines and paths on this machine
    program.model.metadata_props.update(
        prrfl=version("prrfl"),
        classes=json.dumps(saved.about.classes),
        about=json.dumps({**asdict(saved.about), "site": saved.site, "temperature": saved.temperature}),
    )
    with replacing(path) as temporary:
        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        difference = max(_difference(whole, session, pixels) for pixels in _pictures(size))
        if not difference <= TOLERANCE:
            raise PRRFLError(
                f"{path} is not written: onnxruntime's probabilities differ from the network's by "
                f"{difference:.1e}; expected at most {TOLERANCE:.0e}"
            )
    return difference


def _difference(whole: nn.Module, session: object, pixels: Tensor) -> float:
    (given,) = session.run(["probabilities"], {"images": pixels.numpy()})  # type: ignore[attr-defined]
    with torch.inference_mode():
        expected = whole(pixels).numpy()
    return float(np.abs(given - expected).max())


def _pictures(size: int) -> Iterator[Tensor]:
    """Yield batches of 1 and 5 images of soft blobs, which are more like photographs than noise is."""
    draw = generator(0, "pictures")
    for n in (1, 5):
        coarse = torch.rand(n, 3, 4, 4, generator=draw)
        soft = nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
        yield (255 * soft).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress output of the exporter that is meant for its developers."""
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(before)
