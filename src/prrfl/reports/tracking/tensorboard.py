"""A run as TensorBoard events, in the folder ``tensorboard`` of its run."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from prrfl.reports.tracking.base import Results, Tracked


class TensorBoard:
    """Writes events; see :class:`prrfl.reports.tracking.Tracker`.

    Needs the package tensorboard: ``pip install 'prrfl[tensorboard]'``.
    """

    rounds = 0
    """Every process of a run writes all rounds, because a killed one may have lost what it had buffered."""

    def __init__(self, run: Tracked) -> None:
        """Open the folder of events; what earlier processes wrote there no longer counts."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=0)
        self._last = 0
        table = "\n".join(f"| {name} | {value} |" for name, value in {**run.tags, **run.settings}.items())
        self._writer.add_text("settings", f"| {run.name} | |\n| --- | --- |\n{table}", 0)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log a round."""
        self._last = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, results: Results | None) -> None:
        """Add the figures, and write what is buffered. TensorBoard keeps no networks."""
        for path in results.figures if results else ():
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(path.stem, pixels, self._last, dataformats="HWC")
        self._writer.close()
