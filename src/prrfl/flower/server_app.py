"""The server's end of a federation: an engine whose sites are Flower's nodes, and Flower's server app."""

import json
import logging
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from pydantic import TypeAdapter, ValidationError

from prrfl.algorithms import Algorithm
from prrfl.det import Stage
from prrfl.engine import Arrival, Deployed
from prrfl.engine.site import packed
from prrfl.errors import ParticipationError, PRRFLError, StateMismatchError, one_line
from prrfl.flower.federation import Federation, as_json, federate, read_federation, read_settings
from prrfl.flower.records import Answer, Order, Step, from_records, to_records
from prrfl.flower.secure_sum import FEWEST, SEED, check_part, unmasked
from prrfl.runs.folder import is_finished
from prrfl.runs.run import make_recipe, run_engine, share_dtype
from prrfl.storage.atomic import write_json
from prrfl.storage.reading import parse_json, read_bytes
from prrfl.storage.records import from_line
from prrfl.tensors import check_same_layout, count_bytes, non_finite
from prrfl.training import Recipe
from prrfl.types import (
    AbsenceRecord,
    ClientId,
    ExchangeRecord,
    Moment,
    RoundContext,
    RoundRecord,
    ScoreRecord,
    Share,
    Split,
    Tensors,
    TrainRecord,
)

log = logging.getLogger("prrfl")

POLL = 0.5
"""Seconds between two looks for answers."""

LINGERS = 120.0
"""Seconds that a server app may live on after the SuperLink that started it was killed."""

REMIND = 60.0
"""Seconds after which it is said, again and again, who is waited for."""

TRIES = 3
"""How often a step is sent to a site whose process fails at it."""

LOST = {
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
}
"""Flower's errors in place of what was lost on the way, or became too old: no fault of the site's process."""

LONGEST_RECORD, LONGEST_NUMBER = 2000, 30
"""Characters of a record of few numbers, and of each number more."""

MOST_IMAGES, MOST_METRICS = 10**9, 20

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation, or what is left of it, from Flower's run config."""
    given = context.run_config
    folder = Path(str(given["folder"]))
    if (folder / "federation.json").is_file() and not given["sites"]:
        federation = read_federation(folder)
    else:
        federation = federate(
            folder,
            read_settings(Path(str(given["config"]))) if given["config"] else {},
            [name.strip() for name in str(given["sites"]).split(",") if name.strip()],
            int(given["quorum"]),
            float(given["deadline"]),
            bool(given["secure"]),
        )
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    if is_finished(folder):
        log.warning("%s is finished; nothing to do", folder)
        return
    for record in run_federation(grid, federation, folder):
        if isinstance(record, ExchangeRecord):
            print(f"round {record.round + 1}/{federation.config.rounds} done", flush=True)


def run_federation(grid: Grid, federation: Federation, folder: Path) -> Iterator[RoundRecord]:
    """Run what is left of a federation, keep everything in its folder, and yield the records as they arise.

    Raises:
        ParticipationError: if a round has fewer sites than the quorum.
    """
    config = federation.config
    algorithm, recipe = config.algorithm(), make_recipe(config)
    fleet = Fleet(grid, federation, algorithm, recipe, folder)
    sites = federation.sites
    yield from run_engine(config, algorithm, recipe, fleet, sites, fleet.keep, folder, patience=LINGERS)


@dataclass(frozen=True)
class _Sent:
    """An order on its way: Flower's id of it, and since when the node it went to has been there."""

    message: str
    activated: str


@dataclass(frozen=True)
class _Sum:
    """A masked sum: its round and sites."""

    round: int
    sites: tuple[ClientId, ...]


class Fleet:
    """An engine whose sites are nodes, each known by the name under which its key is registered.

    Answers are taken in order of name, so that sums come out to the bit as they do in one process.
    """

    def __init__(
        self,
        grid: Grid,
        federation: Federation,
        algorithm: Algorithm[Any],
        recipe: Recipe,
        folder: Path,
    ) -> None:
        """Speak to a federation's sites over a grid, in the method and recipe that its settings describe.

        The run's folder keeps whose masked sum was begun last, see :meth:`_begun`.
        """
        self._grid = grid
        self._sum_begun = folder / "sum.json"
        self._federation = federation
        self._algorithm = algorithm
        self._start = algorithm.start(recipe.network.state_dict())
        self._models = list(algorithm.models(self._start))
        self._share_dtype = share_dtype(federation.config)
        self._sharing: list[ClientId] = []
        self._missing: dict[ClientId, str] = {}

    def train(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Let every site train; go on with those that answer well in time, if they are a quorum.

        Raises:
            ParticipationError: if they are not.
        """
        expected = self._expected(ctx)
        keys: list[Mapping[str, str]] = []
        self._sharing, self._missing = [], {}
        asked = self._begun(ctx.round) or self._federation.sites
        for name in self._federation.sites:
            if name not in asked:
                yield self._absent(ctx.round, name, "the sum of this round was begun without it")
        for name, answer in self._ask("train", ctx.round, asked):
            try:
                records = self._records(answer, "train", ctx)
                if self._federation.secure:
                    keys.append(_key(answer))
                else:
                    _check_share(answer, expected)
            except PRRFLError as fault:
                yield self._absent(ctx.round, name, str(fault))
                continue
            yield from records
            self._sharing.append(name)
            if not self._federation.secure:
                share = Share(answer.share, answer.weight)
                yield Arrival(share, {name: count_bytes(share.tensors)})
        self._check_quorum(ctx.round)
        if self._federation.secure:
            self._check_begun(ctx.round)
            yield from self._sum(ctx, keys, expected)

    def receive(self, mean: Tensors, ctx: RoundContext) -> Iterator[RoundRecord]:
        """Hand the mean to every site that shared in this round; go on if a quorum takes it.

        Raises:
            ParticipationError: if they are fewer.
        """
        received = []
        for name, answer in self._ask("receive", ctx.round, self._sharing, mean=mean):
            try:
                records = self._records(answer, "receive", ctx)
            except PRRFLError as fault:
                yield self._absent(ctx.round, name, str(fault))
                continue
            yield from records
            received.append(name)
        self._sharing = received
        self._check_quorum(ctx.round)

    def keep(self, names: Sequence[str], index: int) -> None:
        """Have the sites keep their networks as the best, if they are; the last they keep by themselves."""
        if "best" in names:
            for name, answer in self._ask("keep", index, self._sharing):
                if answer.error:
                    log.warning(
                        "site %s keeps no best network of round %d: %s",
                        name,
                        index + 1,
                        one_line(answer.error),
                    )

    def deployed(self) -> Iterator[Deployed]:
        """Yield nothing: what a site would take home never leaves it."""
        return iter(())

    def save(self, folder: Path) -> None:
        """Write nothing: sites keep their states themselves."""
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, folder: Path) -> None:
        """Read nothing: sites go on from what they keep."""

    def _sum(
        self, ctx: RoundContext, keys: Sequence[Mapping[str, str]], expected: Share
    ) -> Iterator[RoundRecord | Arrival]:
        """Ask for masked shares until all of a cohort answer; whoever does not is left out of the next.

        Raises:
            ParticipationError: if they are no quorum; or one is lost after others have revealed their masks.
        """
        while True:
            cohort = [key for key in keys if key["site"] in self._sharing]
            parts, lost = {}, False
            for name, answer in self._ask("share", ctx.round, self._sharing, cohort=json.dumps(cohort)):
                try:
                    self._check(answer, ctx.round)
                    check_part(answer.share, expected.tensors, f"site {name}")
                    parts[name] = answer.share["masked"]
                except PRRFLError as fault:
                    lost = True
                    yield self._absent(ctx.round, name, str(fault))
            self._sharing = list(parts)
            self._check_quorum(ctx.round)
            self._check_begun(ctx.round)
            if not lost:
                size = {name: part.numel() * part.element_size() for name, part in parts.items()}
                summed = unmasked(list(parts.values()), self._seeds(ctx, cohort), expected.tensors)
                if not math.isclose(summed.weight, len(parts) * expected.weight, abs_tol=1e-6):
                    raise StateMismatchError(
                        f"round {ctx.round + 1}: masks are left in the sum of the shares of "
                        f"{', '.join(parts)}; one of these sites sent another sum than was asked for: begin "
                        "another run without it"
                    )
                yield Arrival(summed, size)
                return

    def _seeds(self, ctx: RoundContext, cohort: Sequence[Mapping[str, str]]) -> list[bytes]:
        """Return the seeds of the sites' own masks, of which none can be done without from here on."""
        write_json(self._sum_begun, asdict(_Sum(ctx.round, tuple(self._sharing))))
        seeds = []
        for name, answer in self._ask("reveal", ctx.round, self._sharing, cohort=json.dumps(cohort)):
            try:
                self._check(answer, ctx.round)
                seeds.append(_seed(answer))
            except PRRFLError as fault:
                self._missing[name] = str(fault)
        self._sharing = [name for name in self._sharing if name not in self._missing]
        self._check_begun(ctx.round)
        return seeds

    def _begun(self, index: int) -> tuple[ClientId, ...]:
        """Return the sites whose sum of a round was begun: they may have revealed their masks for it.

        They do so for no other sum of the round, so that the round needs all of them, and takes nobody else.
        """
        if not self._sum_begun.is_file():
            return ()
        try:
            begun = TypeAdapter(_Sum).validate_json(read_bytes(self._sum_begun))
        except (OSError, ValidationError) as cause:
            raise StateMismatchError(
                f"{self._sum_begun} cannot be read: {' '.join(str(cause).split())}; restore it from a copy, "
                "or begin another run"
            ) from None
        return begun.sites if begun.round == index else ()

    def _check_begun(self, index: int) -> None:
        """Raise if a site is missing whose sum was begun."""
        begun = self._begun(index)
        if missing := [name for name in begun if name not in self._sharing]:
            why = "; ".join(f"{name}: {self._missing.get(name, 'no answer')}" for name in missing)
            raise ParticipationError(
                f"round {index + 1}: the sum of the shares of {', '.join(begun)} was begun and lacks "
                f"{', '.join(missing)} ({why}); mend that, and start the server again when all are there, or "
                "begin another run"
            )

    def _check_quorum(self, index: int) -> None:
        least = max(self._federation.quorum, FEWEST if self._federation.secure else 1)
        if len(self._sharing) < least:
            why = "; ".join(f"{name}: {reason}" for name, reason in self._missing.items())
            raise ParticipationError(
                f"round {index + 1}: {len(self._sharing)} of {len(self._federation.sites)} sites took part, "
                f"the quorum is {least} ({why}); mend that, and start the server again to go on"
            )

    def _absent(self, index: int, name: ClientId, reason: str) -> AbsenceRecord:
        log.warning("round %d: without site %s: %s", index + 1, name, reason)
        self._missing[name] = reason
        return AbsenceRecord(index, name, reason)

    def _expected(self, ctx: RoundContext) -> Share:
        """Return a share of this round as it must look: names, shapes, types, weight."""
        return packed(self._algorithm.share(self._start, ctx), self._share_dtype)

    def _records(self, answer: Answer, step: Step, ctx: RoundContext) -> list[RoundRecord]:
        """Return an answer's records, which are those that a visitor yields at the site in this step."""
        self._check(answer, ctx.round)
        classes = len(self._federation.config.classes)
        return parse_records(answer.records, expected_records(step, ctx, answer.site, self._models), classes)

    def _check(self, answer: Answer, index: int) -> None:
        if answer.error:
            raise ParticipationError(answer.error)
        if answer.experiment != self._federation.experiment or answer.round != index:
            raise StateMismatchError(
                f"it answered for round {answer.round + 1} of {answer.experiment}, "
                f"expected round {index + 1} of {self._federation.experiment}"
            )

    def _ask(
        self, step: Step, index: int, names: Iterable[ClientId], **more: Any
    ) -> Iterator[tuple[ClientId, Answer]]:
        """Send each site an order; yield the answers in order of name, an error in place of what lacks.

        An order is sent again to a node that went and came back, or where it was lost on the way, until the
        deadline; and to one whose process failed at it, :data:`TRIES` times. A site carries out each order
        once, however often it comes.
        """
        federation = self._federation
        order = Order(
            step,
            federation.experiment,
            "",
            index,
            as_json({key: value for key, value in federation.settings.items() if key != "tensorboard"}),
            version("prrfl"),
            federation.secure,
            **more,
        )
        waiting = sorted(names)
        answers: dict[ClientId, Answer] = {}
        sent: dict[ClientId, _Sent] = {}
        failed: Counter[ClientId] = Counter()
        began = reminded = time.monotonic()
        while waiting:
            nodes = {node.name: node for node in self._grid.get_nodes() if node.name}
            for name in waiting:
                node = nodes.get(name)
                if name in answers or node is None:
                    continue
                if name not in sent or sent[name].activated != node.last_activated_at:
                    message = Message(
                        to_records(replace(order, site=name)),
                        node.node_id,
                        f"train.{step}",
                        group_id=str(index + 1),
                    )
                    (message_id,) = self._grid.push_messages([message])
                    sent[name] = _Sent(message_id, node.last_activated_at)
            pending = {sent[name].message: name for name in waiting if name in sent and name not in answers}
            for reply in self._grid.pull_messages(list(pending)) if pending else ():
                name = pending[reply.metadata.reply_to_message_id]
                if reply.has_error():
                    del sent[name]
                    failed[name] += reply.error.code not in LOST
                    log.info("site %s, %s: %s", name, step, one_line(str(reply.error.reason)))
                    if failed[name] < TRIES:
                        continue
                answers[name] = self._read(reply, name, index)
            while waiting and waiting[0] in answers:
                yield waiting[0], answers.pop(waiting.pop(0))
            now = time.monotonic()
            if waiting and federation.deadline and now - began > federation.deadline:
                break
            missing = [name for name in waiting if name not in answers]
            if missing and now - reminded > REMIND:
                log.warning("round %d, %s: waiting for %s", index + 1, step, ", ".join(missing))
                reminded = now
            if missing:
                time.sleep(POLL)
        for name in waiting:
            late = f"no answer within {federation.deadline:g} s"
            yield name, answers.get(name, Answer(federation.experiment, name, index, error=late))

    def _read(self, reply: Message, name: ClientId, index: int) -> Answer:
        """Return the answer that a reply holds; what is wrong with it as its error."""
        error = f"its process failed {TRIES} times: {reply.error.reason}" if reply.has_error() else ""
        if not error:
            try:
                answer = from_records(Answer, reply.content)
            except StateMismatchError as fault:
                error = str(fault)
            else:
                if answer.site == name:
                    return answer
                error = f"it calls itself '{answer.site}', its key is registered for {name}"
        return Answer(self._federation.experiment, name, index, error=error)


def _check_share(answer: Answer, expected: Share) -> None:
    """Raise unless a share has the names, shapes, types and weight that the method sends, and finite numbers.

    Raises:
        StateMismatchError: naming the tensor at fault.
    """
    check_same_layout(expected.tensors, answer.share, "its share")
    for key, tensor in answer.share.items():
        if tensor.dtype != expected.tensors[key].dtype:
            raise StateMismatchError(
                f"its share: tensor '{key}' is {tensor.dtype}, expected {expected.tensors[key].dtype}"
            )
    if broken := non_finite(answer.share):
        raise StateMismatchError(f"its share: tensor '{broken[0]}' holds NaN or infinity")
    if answer.weight != expected.weight:
        raise StateMismatchError(f"its share: the weight is {answer.weight}, expected {expected.weight}")


def expected_records(
    step: Step, ctx: RoundContext, site: ClientId, models: Sequence[str]
) -> list[tuple[object, ...]]:
    """Return what tells the records of a step apart, in the order in which a visitor yields them at a site.

    Args:
        step: ``train`` or ``receive``.
        ctx: the round.
        site: whose they are.
        models: names of the method's networks, the deployed one first.
    """
    last = ctx.epochs - 1

    def scores(epoch: int, names: Sequence[str], split: Split, moment: Moment) -> list[tuple[object, ...]]:
        return [("score", site, ctx.round, epoch, name, name == models[0], split, moment) for name in names]

    if step == "receive":
        return [*scores(last, models, "test", "after"), *scores(last, models[:1], "valid", "after")]
    epochs = [
        one
        for epoch in range(ctx.epochs)
        for one in (("train", site, ctx.round, epoch), *scores(epoch, models[:1], "test", "epoch"))
    ]
    return [*epochs, *scores(last, models, "test", "before")]


def parse_records(text: str, expected: Sequence[tuple[object, ...]], classes: int) -> list[RoundRecord]:
    """Return the records that a site sent, one a line of JSON.

    Args:
        text: what it sent.
        expected: as :func:`expected_records` gives them.
        classes: how many the run has.

    Raises:
        StateMismatchError: if they are other ones, or a reader of the run's records could not use them.
    """
    most = len(expected) * (LONGEST_RECORD + LONGEST_NUMBER * (classes + 1) ** 2)
    if len(text) > most:
        raise StateMismatchError(f"its records have {len(text):,} characters, expected {most:,} at most")
    try:
        records = [from_line(line) for line in text.splitlines()]
    except ValueError as cause:
        raise StateMismatchError(f"its records are none: {cause}") from None
    if [_told_apart(record) for record in records] != list(expected):
        raise StateMismatchError("its records are not those of this site, step and round")
    for record in records:
        if isinstance(record, ScoreRecord) and (
            len(record.scores.recall) != classes or not 1 <= record.scores.n <= MOST_IMAGES
        ):
            raise StateMismatchError(f"its scores are not those of images of {classes} classes")
        if isinstance(record, TrainRecord) and not _are_metrics(record.metrics):
            raise StateMismatchError("its measures of training are none")
    return records


def _told_apart(record: RoundRecord) -> tuple[object, ...]:
    match record:
        case TrainRecord(round=index, epoch=epoch, client=client):
            return ("train", client, index, epoch)
        case ScoreRecord(round=index, epoch=epoch, client=client):
            seen = (record.model, record.deployed, record.split, record.moment)
            return ("score", client, index, epoch, *seen)
    return ()


def _are_metrics(metrics: Mapping[str, float]) -> bool:
    plain = all(re.fullmatch(r"[a-z0-9_]{1,40}", name) for name in metrics)
    return plain and len(metrics) <= MOST_METRICS and metrics.get("stage", Stage.RECOVER) in set(Stage)


def _seed(answer: Answer) -> bytes:
    try:
        seed = bytes.fromhex(answer.seed)
    except ValueError:
        seed = b""
    if len(seed) != SEED:
        raise StateMismatchError(f"it sent no seed of {SEED} bytes")
    return seed


def _key(answer: Answer) -> Mapping[str, str]:
    try:
        key = parse_json(answer.key)
        if set(key) != {"site", "key", "signature"} or key["site"] != answer.site:
            raise ValueError
    except (ValueError, TypeError):
        raise StateMismatchError("it sent no signed key") from None
    return dict(key)
