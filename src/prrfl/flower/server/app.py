"""Flower's server app, and the fleet: an exchange of shares with sites that are Flower's nodes."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from prrfl.algorithms import traits_of
from prrfl.config import given_settings
from prrfl.engine import Arrival
from prrfl.engine.site import packed
from prrfl.flower.federation import Federation, federate, read_federation
from prrfl.flower.messages import COUNTING, Answer, OrderStep
from prrfl.flower.secure_sum import SignedKey
from prrfl.flower.server.admission import (
    Attendance,
    check_share,
    expected_records,
    parse_records,
)
from prrfl.flower.server.masked_round import MaskedRound, parse_key
from prrfl.flower.server.sent_mean import SentMean
from prrfl.flower.server.transport import Refusal, Transport
from prrfl.runs.deployed import Which
from prrfl.runs.folder import RunFolder
from prrfl.runs.position import Position, reporting
from prrfl.runs.run import open_folder, remaining_rounds
from prrfl.runs.setup import Run, share_dtype
from prrfl.storage.atomic import only_for_this_user
from prrfl.tensors import count_bytes
from prrfl.types import ExchangeRecord, RoundContext, RoundRecord, Share, Tensors

log = logging.getLogger("prrfl")

LINGERS = 120.0
"""Seconds for which a server app may outlive a SuperLink that was killed, and hold the run's folder."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Start or resume a federation from Flower's run config."""
    with only_for_this_user():
        _run(grid, context.run_config)


def _run(grid: Grid, given: Mapping[str, Any]) -> None:
    folder = Path(str(given["folder"]))
    if (folder / "federation.json").is_file() and not given["sites"]:
        federation = read_federation(folder)
    else:
        federation = federate(
            folder,
            given_settings(Path(str(given["config"])), {})[1] if given["config"] else {},
            [name.strip() for name in str(given["sites"]).split(",") if name.strip()],
            int(given["quorum"]),
            float(given["deadline"]),
            bool(given["secure"]),
        )
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    if RunFolder(folder).is_finished:
        log.warning("the run in %s is finished; nothing to do", folder)
        return
    for record in run_federation(grid, federation, folder):
        if isinstance(record, ExchangeRecord):
            print(f"round {record.round + 1}/{federation.config.rounds} done", flush=True)


def run_federation(grid: Grid, federation: Federation, folder: Path) -> Iterator[RoundRecord]:
    """Run the remaining rounds of a federation, save them in its folder, and yield the records as they arise.

    Raises:
        ParticipationError: if a round has fewer sites than the quorum.
    """
    run, there = Run.of(federation.config), RunFolder(folder)
    fleet = Fleet(grid, federation, run, folder)
    with (
        open_folder(there, patience=LINGERS),
        reporting(there, lambda: fleet.position(there.rounds_done)),
    ):
        log.info("sites: %s", ", ".join(federation.sites))
        if run.recipe.loss.counts == "federation":
            counts = there.class_counts() or fleet.count_classes()
            there.write_class_counts(counts)
            log.info("class counts of all sites: %s", ", ".join(map(str, counts)))
            fleet.announce(counts)
            run = replace(run, class_counts=counts)
        yield from remaining_rounds(run, fleet, there, fleet.save_deployed)
        fleet.end()


class Fleet:
    """An exchange with sites that are nodes, each known by the name under which its key is registered.

    The sites save their states themselves. Answers are taken in order of name, so that sums have the same
    bits as in one process.
    """

    def __init__(self, grid: Grid, federation: Federation, run: Run, folder: Path) -> None:
        """Reach the sites of a federation over a grid.

        Args:
            grid: Flower's connection to the nodes.
            federation: what the consortium agreed on.
            run: the run that its settings describe.
            folder: the run's folder.
        """
        self._federation = federation
        self._run = run
        self._method = run.method
        self._start = run.method.start(run.recipe.initial())
        self._models = list(run.method.models(self._start))
        self._share_dtype = share_dtype(federation.config)
        self._transport = Transport(grid, federation)
        self._attendance = Attendance(federation)
        self._masked = MaskedRound(federation, self._transport, self._attendance, folder / "sum.json")
        self._sent = SentMean(folder / "mean.safetensors")

    def position(self, index: int) -> Position:
        """Return where round ``index`` is: which sites have answered the order that is on its way."""
        return self._transport.position(index)

    def train(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Let every site train; continue with those whose answers are valid and in time.

        Raises:
            ParticipationError: if they are fewer than the quorum.
        """
        yield from self._gather("train", ctx, self._expected_share(ctx))

    def count_classes(self) -> tuple[int, ...]:
        """Return the sum of the sites' class counts: of those that answer in time, if they are a quorum.

        Raises:
            ParticipationError: if they are fewer.
        """
        total = torch.zeros(len(self._federation.config.classes), dtype=torch.float64)
        ctx = self._run.moment(COUNTING)
        for event in self._gather("count", ctx, Share({"class_counts": total})):
            if isinstance(event, Arrival):
                total = total + event.share.weight * event.share.tensors["class_counts"]
        return tuple(int(count) for count in total.round())

    def announce(self, counts: tuple[int, ...]) -> None:
        """Put the class counts of all sites into every order from now on."""
        self._transport.class_counts = counts

    def _gather(self, step: OrderStep, ctx: RoundContext, expected: Share) -> Iterator[RoundRecord | Arrival]:
        """Yield what the sites answer to an order, and their shares or the sum of these."""
        keys: list[SignedKey] = []
        attendance, secure = self._attendance, self._federation.secure
        weighted = step == "train" and self._run.recipe.weighting == "images"

        def read(answer: Answer) -> tuple[list[RoundRecord], Share | SignedKey]:
            records = self._records(answer, step, ctx)
            if secure:
                return records, parse_key(answer)
            check_share(answer, expected, weighted)
            return records, Share(answer.share, answer.weight)

        attendance.start_round()
        asked = self._masked.started(ctx.round) or self._federation.sites
        for name in self._federation.sites:
            if name not in asked:
                reason = "the masked sum of this round was started without it"
                yield attendance.absent(ctx.round, name, reason)
        for name, answer in self._transport.ask(step, ctx.round, asked, read):
            if isinstance(answer, Refusal):
                yield attendance.absent(ctx.round, name, answer.reason)
                continue
            records, sent = answer
            yield from records
            attendance.present.append(name)
            if isinstance(sent, Share):
                yield Arrival(sent, {name: count_bytes(sent.tensors)})
            else:
                keys.append(sent)
        attendance.check_quorum(ctx.round)
        if secure:
            self._masked.check_complete(ctx.round)
            yield from self._masked.sum(ctx, keys, expected, weighted)

    def receive(self, mean: Tensors, ctx: RoundContext) -> Iterator[RoundRecord]:
        """Send the mean to every site that shared in this round.

        A site takes one mean a round. So if the round is repeated, because the server was killed, the sites
        get the mean that was sent before, also if others take part now.

        Raises:
            ParticipationError: if fewer sites than the quorum take it.
        """
        mean = self._sent.once(mean, ctx.round)
        attendance, received = self._attendance, []

        def read(answer: Answer) -> list[RoundRecord]:
            return self._records(answer, "receive", ctx)

        for name, answer in self._transport.ask("receive", ctx.round, attendance.present, read, mean=mean):
            if isinstance(answer, Refusal):
                yield attendance.absent(ctx.round, name, answer.reason)
                continue
            yield from answer
            received.append(name)
        attendance.present = received
        attendance.check_quorum(ctx.round)

    def save_deployed(self, names: Sequence[Which], index: int) -> None:
        """Let the sites save their networks as the best, if they are. They save the last ones unasked."""
        if "best" in names:
            for name, answer in self._transport.ask("keep", index, self._attendance.present, _nothing):
                if isinstance(answer, Refusal):
                    log.warning(
                        "round %d: site %s did not save its best network: %s", index + 1, name, answer.reason
                    )

    def end(self) -> None:
        """Tell the sites that the run is complete; they delete what only a running run needs."""
        last = self._federation.config.rounds - 1
        for name, answer in self._transport.ask("end", last, self._attendance.present, _nothing):
            if isinstance(answer, Refusal):
                log.warning("site %s did not learn that the run is complete: %s", name, answer.reason)
        self._sent.forget()

    def _expected_share(self, ctx: RoundContext) -> Share:
        """Return a share with the names, shapes, types and weight of this round's."""
        return packed(self._method.share(self._start, ctx), self._share_dtype)

    def _records(self, answer: Answer, step: OrderStep, ctx: RoundContext) -> list[RoundRecord]:
        """Return the records of a valid answer."""
        expected = expected_records(step, ctx, answer.site, self._models)
        stages = len(traits_of(self._method).stages)
        return parse_records(answer.records, expected, len(self._federation.config.classes), stages)


def _nothing(_: Answer) -> None:
    pass
