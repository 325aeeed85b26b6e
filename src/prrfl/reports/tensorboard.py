"""Records of a run as TensorBoard events."""

from pathlib import Path
from types import TracebackType

from prrfl.types import ExchangeRecord, RoundRecord, ScoreRecord, TrainRecord


class EventLog:
    """Writes every record of a run into a folder of events; used as a context.

    Needs the package tensorboard: ``pip install prrfl[tensorboard]``.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        """Open a folder for the events of a run.

        Args:
            folder: the folder.
            epochs: local epochs per round.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))
        self._epochs = epochs

    def __enter__(self) -> "EventLog":
        """Return the log."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is buffered, and close the log."""
        self._writer.close()

    def add(self, record: RoundRecord) -> None:
        """Write one record. The step is the number of local epochs so far; for bytes, of rounds."""
        values: dict[str, float]
        if isinstance(record, ExchangeRecord):
            values = {"bytes/up": sum(record.bytes_up.values()), "bytes/down": record.bytes_down}
            step = record.round + 1
        elif isinstance(record, TrainRecord):
            values = {f"{record.client}/train/{name}": value for name, value in record.metrics.items()}
            step = record.round * self._epochs + record.epoch + 1
        elif isinstance(record, ScoreRecord):
            place = f"{record.client}/{record.split}, {record.model}, {record.moment}"
            values = {f"{place}/macro_f1": record.scores.macro_f1, f"{place}/loss": record.scores.loss}
            if record.scores.auc is not None:
                values[f"{place}/auc"] = record.scores.auc
            step = record.round * self._epochs + record.epoch + 1
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
