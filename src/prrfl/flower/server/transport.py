"""Transport of orders: each order reaches its site, and the answers come back in order of name."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import MappingProxyType

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from prrfl.errors import StateMismatchError, one_line
from prrfl.flower.federation import Federation
from prrfl.flower.messages import Answer, Order, OrderStep, from_records, to_records
from prrfl.types import ClientId, Tensors

log = logging.getLogger("prrfl")

POLL = 0.5
"""Seconds between two checks for answers."""

REMIND = 60.0
"""Seconds between two log lines that name the sites still awaited."""

TRIES = 3
"""Times that an order is sent to a site whose process fails."""

LOST = {
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
}
"""Flower's error codes for messages that were lost or have expired. The site's process did not fail."""


class Transport:
    """Sends orders to the sites of a federation over Flower's grid, and collects their answers."""

    def __init__(self, grid: Grid, federation: Federation) -> None:
        self._grid = grid
        self._federation = federation

    def ask(
        self,
        step: OrderStep,
        index: int,
        sites: Iterable[ClientId],
        *,
        cohort: str = "",
        mean: Tensors = MappingProxyType({}),
    ) -> Iterator[tuple[ClientId, Answer]]:
        """Send an order to each site, and yield the answers in order of name.

        An order is sent again when a node reconnects or a message is lost, until the deadline. A site whose
        process fails gets it :data:`TRIES` times. Sending an order twice is safe, because a site carries out
        each order once. A site without a valid answer yields one that holds only an error.

        Args:
            step: what the sites are to do.
            index: the round, from 0.
            sites: their names.
            cohort: for ``share`` and ``reveal``, see :class:`prrfl.flower.messages.Order`.
            mean: for ``receive``, likewise.
        """
        federation = self._federation
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
        )
        delivery = _Delivery(self._grid, order, sites)
        started = reminded = time.monotonic()
        while delivery.waiting:
            delivery.dispatch()
            delivery.collect()
            yield from delivery.next_answers()
            now = time.monotonic()
            if delivery.waiting and federation.deadline and now - started > federation.deadline:
                break
            if (missing := delivery.missing()) and now - reminded > REMIND:
                log.warning("round %d, %s: waiting for %s", index + 1, step, ", ".join(missing))
                reminded = now
            if missing:
                time.sleep(POLL)
        yield from delivery.remaining(f"no answer within {federation.deadline:g} s")


@dataclass(frozen=True)
class _Sent:
    """Flower's id of a message, and the time at which its node had connected when the message was sent."""

    message: str
    connected: str


class _Delivery:
    """One order on its way to several sites.

    Attributes:
        waiting: sites whose answer was not yielded yet, in order of name.
    """

    def __init__(self, grid: Grid, order: Order, sites: Iterable[ClientId]) -> None:
        self.waiting = sorted(sites)
        self._grid = grid
        self._order = order
        self._answers: dict[ClientId, Answer] = {}
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
                    to_records(replace(self._order, site=name)),
                    node.node_id,
                    f"train.{self._order.step}",
                    group_id=str(self._order.round + 1),
                )
                (message_id,) = self._grid.push_messages([message])
                self._sent[name] = _Sent(message_id, node.last_activated_at)

    def collect(self) -> None:
        """Fetch the replies that have arrived; forget a message that failed, so that it is sent again."""
        pending = {self._sent[name].message: name for name in self.missing() if name in self._sent}
        for reply in self._grid.pull_messages(list(pending)) if pending else ():
            name = pending[reply.metadata.reply_to_message_id]
            if reply.has_error():
                del self._sent[name]
                self._failures[name] += reply.error.code not in LOST
                log.info("site %s, %s: %s", name, self._order.step, one_line(str(reply.error.reason)))
                if self._failures[name] < TRIES:
                    continue
            self._answers[name] = self._read(reply, name)

    def next_answers(self) -> Iterator[tuple[ClientId, Answer]]:
        """Yield the answers that are next in order of name."""
        while self.waiting and self.waiting[0] in self._answers:
            name = self.waiting.pop(0)
            yield name, self._answers.pop(name)

    def remaining(self, error: str) -> Iterator[tuple[ClientId, Answer]]:
        """Yield an answer of every site that is left, with an error for those that sent none."""
        for name in self.waiting:
            yield name, self._answers.get(name, self._failed(name, error))

    def _read(self, reply: Message, name: ClientId) -> Answer:
        """Return the answer in a reply, or one with an error if the reply is invalid."""
        if reply.has_error():
            return self._failed(name, f"its process failed {TRIES} times: {reply.error.reason}")
        try:
            answer = from_records(Answer, reply.content)
        except StateMismatchError as fault:
            return self._failed(name, str(fault))
        if answer.site != name:
            return self._failed(name, f"it answers as site '{answer.site}', but its key belongs to {name}")
        return answer

    def _failed(self, name: ClientId, error: str) -> Answer:
        return Answer(self._order.experiment, name, self._order.round, error=error)
