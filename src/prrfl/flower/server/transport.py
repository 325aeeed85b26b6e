"""Transport of orders: each order reaches its site, and the answers come back in order of name."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from httpx import HTTPError

from prrfl.errors import ParticipationError, PRRFLError, StateMismatchError, one_line
from prrfl.flower.federation import Federation
from prrfl.flower.messages import Answer, Order, OrderStep, from_records, to_records
from prrfl.runs.position import Position, SitePosition, SiteState
from prrfl.types import ClientId, Tensors

log = logging.getLogger("prrfl")

T = TypeVar("T")

POLL = 0.5
"""Seconds between two checks for answers."""

REMIND = 60.0
"""Seconds between two log lines that name the sites still awaited."""

TRIES = 3
"""Times that an order is sent to a site whose process fails."""

FAREWELL = 60.0
"""Seconds for which a complete run waits for sites to learn that it is, whatever the deadline."""

LOST = {
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
}
"""Flower's error codes for messages that were lost or have expired. The site's process did not fail."""


@dataclass(frozen=True)
class Refusal:
    """Why a site's answer is not used: it sent none, reported an error, or sent something invalid."""

    reason: str


class Transport:
    """Sends orders to the sites of a federation over Flower's grid, and collects their answers.

    This is the boundary between the server and what others send. A site's answer is parsed and checked here
    and nowhere else, and whatever goes wrong meanwhile is that site's refusal.

    Attributes:
        class_counts: training images of each class at all sites, once they are known. Every order holds them.
    """

    def __init__(self, grid: Grid, federation: Federation) -> None:
        self.class_counts: tuple[int, ...] = ()
        self._grid = grid
        self._federation = federation
        self._rounds = federation.config.rounds
        self._delivery: _Delivery[Any] | None = None

    def position(self, index: int) -> Position:
        """Return where the run is, by the order that is on its way; any thread may ask.

        Args:
            index: the round in progress; the number of rounds once all are complete.
        """
        rounds, now = self._rounds, self._delivery
        if now is None or now.order.round != index:  # between two rounds, or while class counts are added
            return Position(index, min(1.0, index / rounds))
        states = {name: now.state(name) for name in self._federation.sites}
        asked = [state for state in states.values() if state != "absent"]
        trained = asked.count("answered") / max(1, len(asked)) if now.order.step == "train" else 1.0
        sites = {name: SitePosition(state) for name, state in states.items()}
        return Position(index, min(1.0, (index + trained) / rounds), sites, now.order.step)

    def ask(
        self,
        step: OrderStep,
        index: int,
        sites: Iterable[ClientId],
        read: Callable[[Answer], T],
        *,
        cohort: str = "",
        mean: Tensors = MappingProxyType({}),
    ) -> Iterator[tuple[ClientId, T | Refusal]]:
        """Send an order to each site, and yield what the answers hold in order of name.

        An order is sent again when a node reconnects or a message is lost, until the deadline. A site whose
        process fails gets it :data:`TRIES` times. Sending an order twice is safe, because a site carries out
        each order once. A site without a valid answer yields the reason.

        Args:
            step: what the sites are to do.
            index: the round, from 0.
            sites: their names.
            read: checks an answer of this run and round in full, and returns what is used of it. Whatever it
                raises is the reason why the answer is refused.
            cohort: for ``share`` and ``reveal``, see :class:`prrfl.flower.messages.Order`.
            mean: for ``receive``, likewise.
        """
        federation = self._federation
        patience = FAREWELL if step == "end" else federation.deadline
        order = Order(
            step,
            federation.experiment,
            "",
            index,
            federation.settings_for_sites(),
            version("prrfl"),
            federation.secure,
            cohort,
            mean,
            json.dumps(self.class_counts) if self.class_counts else "",
        )
        delivery = self._delivery = _Delivery(self._grid, order, sites, read)
        started = reminded = time.monotonic()
        while delivery.waiting:
            delivery.dispatch()
            delivery.collect()
            yield from delivery.next_answers()
            now = time.monotonic()
            if delivery.waiting and patience and now - started > patience:
                break
            if (missing := delivery.missing()) and now - reminded > REMIND:
                log.warning("round %d, %s: waiting for %s", index + 1, step, ", ".join(missing))
                reminded = now
            if missing:
                time.sleep(POLL)
        yield from delivery.remaining(f"no answer within {patience:g} s")


@dataclass(frozen=True)
class _Sent:
    """Flower's id of a message, and the time at which its node had connected when the message was sent."""

    message: str
    connected: str


class _Delivery(Generic[T]):
    """One order on its way to several sites.

    Attributes:
        order: the order, without a site's name.
        waiting: sites whose answer was not yielded yet, in order of name.
    """

    def __init__(
        self, grid: Grid, order: Order, sites: Iterable[ClientId], read: Callable[[Answer], T]
    ) -> None:
        self.waiting = sorted(sites)
        self._asked = frozenset(self.waiting)
        self._grid = grid
        self.order = order
        self._use = read
        self._answers: dict[ClientId, T | Refusal] = {}
        self._sent: dict[ClientId, _Sent] = {}
        self._failures: Counter[ClientId] = Counter()

    def missing(self) -> list[ClientId]:
        """Return the sites that have not answered yet."""
        return [name for name in self.waiting if name not in self._answers]

    def dispatch(self) -> None:
        """Send the order to each connected site that does not have it, or that has reconnected since."""
        nodes = {node.name: node for node in self._grid.get_nodes() if node.name}
        for name in self.missing():
            node = nodes.get(name)
            if node is None:
                continue
            if name not in self._sent or self._sent[name].connected != node.last_activated_at:
                message = Message(
                    to_records(replace(self.order, site=name)),
                    node.node_id,
                    f"train.{self.order.step}",
                    group_id=str(self.order.round + 1),
                )
                (message_id,) = self._grid.push_messages([message])
                self._sent[name] = _Sent(message_id, node.last_activated_at)

    def collect(self) -> None:
        """Fetch the replies that have arrived; forget a message that failed, so that it is sent again."""
        for name in self.missing():
            if name not in self._sent:
                continue
            try:
                # One by one, because a reply that cannot be unpacked would take the others with it.
                replies = list(self._grid.pull_messages([self._sent[name].message]))
            except HTTPError:
                raise  # the SuperLink is gone, which is no site's fault
            except Exception as cause:
                self._answers[name] = _unusable(name, cause)
                continue
            for reply in replies:
                self._take(name, reply)

    def _take(self, name: ClientId, reply: Message) -> None:
        if not reply.has_error():
            self._answers[name] = self._read(name, reply)
            return
        del self._sent[name]
        reason = one_line(str(reply.error.reason))
        self._failures[name] += reply.error.code not in LOST
        log.info("site %s, %s: %s", name, self.order.step, reason)
        if self._failures[name] >= TRIES:
            self._answers[name] = Refusal(one_line(f"its process failed {TRIES} times: {reason}"))

    def state(self, name: ClientId) -> SiteState:
        """Return how far the order is with a site; any thread may ask."""
        if name not in self._asked:
            return "absent"
        if name not in self.waiting or name in self._answers:
            return "answered"
        return "asked" if name in self._sent else "not connected"

    def next_answers(self) -> Iterator[tuple[ClientId, T | Refusal]]:
        """Yield the answers that are next in order of name."""
        while self.waiting and self.waiting[0] in self._answers:
            name = self.waiting.pop(0)
            yield name, self._answers.pop(name)

    def remaining(self, error: str) -> Iterator[tuple[ClientId, T | Refusal]]:
        """Yield the answers that are left, and the given reason for each site that sent none."""
        for name in self.waiting:
            yield name, self._answers.pop(name, Refusal(error))

    def _read(self, name: ClientId, reply: Message) -> T | Refusal:
        """Return what is used of a reply, or why it is not used."""
        try:
            answer = from_records(Answer, reply.content)
            check_answer(answer, replace(self.order, site=name))
            return self._use(answer)
        except PRRFLError as fault:
            return Refusal(str(fault))
        # A site can send anything. Whatever its answer breaks here costs the site this round, and no other.
        except Exception as cause:
            return _unusable(name, cause)


def check_answer(answer: Answer, order: Order) -> None:
    """Check that an answer holds no error and is the site's answer for this run and round.

    Raises:
        ParticipationError: if the site reports an error.
        StateMismatchError: if the answer is for another run or round, or in the name of another site.
    """
    if answer.site != order.site:
        raise StateMismatchError(f"it answers as site '{answer.site}', but its key belongs to {order.site}")
    if answer.error:
        raise ParticipationError(answer.error)
    if answer.experiment != order.experiment or answer.round != order.round:
        raise StateMismatchError(
            f"its answer is for round {answer.round + 1} of experiment {answer.experiment}; "
            f"expected round {order.round + 1} of {order.experiment}"
        )


def _unusable(name: ClientId, cause: Exception) -> Refusal:
    log.debug("the answer of site %s cannot be used", name, exc_info=cause)
    return Refusal(one_line(f"its answer cannot be used ({type(cause).__name__}: {cause})"))
