"""Admission: which answers enter a round, and whether enough sites take part.

An answer is checked in full before anything of it is used or stored. Whatever fails a check is refused, with
the site's name and the reason; the round continues without that site if the others are a quorum.
:mod:`prrfl.flower.server.transport` calls these checks, and refuses whatever they raise.
"""

import logging
import re
from collections.abc import Mapping, Sequence

from prrfl.errors import ParticipationError, StateMismatchError
from prrfl.flower.federation import Federation
from prrfl.flower.messages import Answer, OrderStep
from prrfl.flower.secure_sum import FEWEST, LARGEST_SUM
from prrfl.storage.records import from_line
from prrfl.tensors import check_same_layout, non_finite
from prrfl.types import (
    AbsenceRecord,
    ClientId,
    Moment,
    RoundContext,
    RoundRecord,
    ScoreRecord,
    Share,
    Split,
    TrainRecord,
)

log = logging.getLogger("prrfl")

LONGEST_RECORD, LONGEST_NUMBER = 2000, 30
"""Characters of a record without its confusion matrix, and of each number in that matrix."""

MOST_IMAGES, MOST_METRICS = 10**9, 20


class Attendance:
    """The sites that take part in the current round, and why the others do not.

    Attributes:
        present: sites that take part, in order of name.
        reasons: for each site that dropped out of the round, why.
    """

    def __init__(self, federation: Federation) -> None:
        self.present: list[ClientId] = []
        self.reasons: dict[ClientId, str] = {}
        self._federation = federation

    def start_round(self) -> None:
        """Begin a round in which nobody takes part yet."""
        self.present, self.reasons = [], {}

    def absent(self, index: int, name: ClientId, reason: str) -> AbsenceRecord:
        """Note and log that a site is missing from a round, and return the record of it."""
        log.warning("round %d continues without site %s: %s", index + 1, name, reason)
        self.reasons[name] = reason
        return AbsenceRecord(index, name, reason)

    def check_quorum(self, index: int) -> None:
        """Check that enough sites take part.

        Raises:
            ParticipationError: if they are fewer than the quorum, naming the missing sites and the reasons.
        """
        least = max(self._federation.quorum, FEWEST if self._federation.secure else 1)
        if len(self.present) < least:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())
            raise ParticipationError(
                f"round {index + 1}: {len(self.present)} of {len(self._federation.sites)} sites took part, "
                f"but the quorum is {least} ({why}); fix this and start the server again to resume the run"
            )


def check_share(answer: Answer, expected: Share, weighted: bool = False) -> None:
    """Check that a share has the names, shapes, types and weight that the method sends, and usable numbers.

    Args:
        answer: what the site sent.
        expected: a share as the method sends it.
        weighted: whether the weight is the site's number of training images, which it alone knows.

    Raises:
        StateMismatchError: naming the invalid tensor.
    """
    check_same_layout(expected.tensors, answer.share, "its share")
    for key, tensor in answer.share.items():
        if tensor.dtype != expected.tensors[key].dtype:
            raise StateMismatchError(
                f"its share: tensor '{key}' is {tensor.dtype}; expected {expected.tensors[key].dtype}"
            )
    if broken := non_finite(answer.share):
        raise StateMismatchError(f"its share: tensor '{broken[0]}' holds NaN or infinity")
    for key, tensor in answer.share.items():
        # Larger numbers overflow in the sum or at the other sites, which could not tell whose they were.
        if tensor.numel() and not (largest := tensor.double().abs().max().item()) <= LARGEST_SUM:
            raise StateMismatchError(
                f"its share: tensor '{key}' holds {largest:.3g}; expected at most {LARGEST_SUM:.3g}"
            )
    if weighted:
        if not 1 <= answer.weight <= MOST_IMAGES or answer.weight % 1:
            raise StateMismatchError(f"its share: the weight is {answer.weight}; expected a number of images")
    elif answer.weight != expected.weight:
        raise StateMismatchError(f"its share: the weight is {answer.weight}; expected {expected.weight}")


def expected_records(
    step: OrderStep, ctx: RoundContext, site: ClientId, models: Sequence[str]
) -> list[tuple[object, ...]]:
    """Return what identifies each record of a step, in the order in which a site's visitor yields them.

    Args:
        step: ``train``, ``receive``, or ``count``, which has none.
        ctx: the round.
        site: the site that sends them.
        models: names of the method's networks, the deployed one first.
    """
    last = ctx.epochs - 1

    def scores(epoch: int, names: Sequence[str], split: Split, moment: Moment) -> list[tuple[object, ...]]:
        return [("score", site, ctx.round, epoch, name, name == models[0], split, moment) for name in names]

    if step == "count":
        return []
    if step == "receive":
        return [*scores(last, models, "test", "after"), *scores(last, models[:1], "valid", "after")]
    epochs = [
        one
        for epoch in range(ctx.epochs)
        for one in (("train", site, ctx.round, epoch), *scores(epoch, models[:1], "test", "epoch"))
    ]
    return [*epochs, *scores(last, models, "test", "before")]


def parse_records(
    text: str, expected: Sequence[tuple[object, ...]], classes: int, stages: int
) -> list[RoundRecord]:
    """Return the records that a site sent.

    Args:
        text: one JSON record a line.
        expected: the records' identities, from :func:`expected_records`.
        classes: number of classes of the run.
        stages: number of the method's training stages.

    Raises:
        StateMismatchError: if they are not the expected records, or a reader of the run could not use them.
    """
    most = len(expected) * (LONGEST_RECORD + LONGEST_NUMBER * (classes + 1) ** 2)
    if len(text) > most:
        raise StateMismatchError(f"its records have {len(text):,} characters; expected at most {most:,}")
    try:
        records = [from_line(line) for line in text.splitlines()]
    except ValueError as cause:
        raise StateMismatchError(f"its records cannot be parsed: {cause}") from None
    if [_identity(record) for record in records] != list(expected):
        raise StateMismatchError("its records do not match the site, step and round")
    for record in records:
        if isinstance(record, ScoreRecord) and (
            len(record.scores.recall) != classes or not 1 <= record.scores.n <= MOST_IMAGES
        ):
            raise StateMismatchError(f"its scores do not match images of {classes} classes")
        if isinstance(record, TrainRecord) and not _are_metrics(record.metrics, stages):
            raise StateMismatchError(
                f"its training metrics are invalid; expected at most {MOST_METRICS}, named in lower case"
            )
    return records


def _identity(record: RoundRecord) -> tuple[object, ...]:
    match record:
        case TrainRecord(round=index, epoch=epoch, client=client):
            return ("train", client, index, epoch)
        case ScoreRecord(round=index, epoch=epoch, client=client):
            scored = (record.model, record.deployed, record.split, record.moment)
            return ("score", client, index, epoch, *scored)
    return ()


def _are_metrics(metrics: Mapping[str, float], stages: int) -> bool:
    plain = all(re.fullmatch(r"[a-z0-9_]{1,40}", name) for name in metrics)
    known = "stage" not in metrics or metrics["stage"] in range(1, stages + 1)
    return plain and known and len(metrics) <= MOST_METRICS
