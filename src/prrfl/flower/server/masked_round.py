"""A round's sum under masks: the server learns the mean of the shares and no single share."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from prrfl.engine import Arrival
from prrfl.errors import ParticipationError, StateMismatchError
from prrfl.flower.federation import Federation
from prrfl.flower.messages import Answer
from prrfl.flower.secure_sum import SEED, SignedKey, check_key, check_part, is_plausible, unmasked
from prrfl.flower.server.admission import MOST_IMAGES, Attendance
from prrfl.flower.server.transport import Refusal, Transport
from prrfl.storage.atomic import write_json
from prrfl.storage.reading import parse_json, read_bytes
from prrfl.types import ClientId, RoundContext, RoundRecord, Share


@dataclass(frozen=True)
class _Sum:
    """The round and the sites of a masked sum."""

    round: int
    sites: tuple[ClientId, ...]


class MaskedRound:
    """Sums the shares of a round under masks, and remembers which sum it started.

    Once a site reveals the seed of its own mask for one sum, it refuses to do so for another sum of the same
    round. So a sum that was started is final: the round needs all of its sites and accepts no others, also
    after the server was restarted. The sites are therefore written to ``sum.json`` before the first seed is
    asked for.
    """

    def __init__(
        self, federation: Federation, transport: Transport, attendance: Attendance, path: Path
    ) -> None:
        """Sum over the sites of a federation.

        Args:
            federation: what the consortium agreed on.
            transport: how to reach the sites.
            attendance: which sites take part in the round; the sum removes those that drop out.
            path: the file ``sum.json`` in the run's folder.
        """
        self._federation = federation
        self._transport = transport
        self._attendance = attendance
        self._path = path

    def sum(
        self, ctx: RoundContext, keys: Sequence[SignedKey], expected: Share, weighted: bool = False
    ) -> Iterator[RoundRecord | Arrival]:
        """Ask for masked shares until every site of a cohort answers; a site that does not is left out.

        Args:
            ctx: the round.
            keys: the signed keys of all sites that have trained.
            expected: a share as the method sends it in this round.
            weighted: whether its weight is a number of images, of which the server learns only the sum.

        Raises:
            ParticipationError: if too few sites are left, or one is lost after others revealed their masks.
            StateMismatchError: if masks are left in the sum.
        """

        def read(answer: Answer) -> Tensor:
            check_part(answer.share, expected.tensors, f"site {answer.site}")
            return answer.share["masked"]

        while True:
            cohort = [key for key in keys if key["site"] in self._attendance.present]
            parts, lost = {}, False
            order = self._transport.ask(
                "share", ctx.round, self._attendance.present, read, cohort=json.dumps(cohort)
            )
            for name, part in order:
                if isinstance(part, Refusal):
                    lost = True
                    yield self._attendance.absent(ctx.round, name, part.reason)
                else:
                    parts[name] = part
            self._attendance.present = list(parts)
            self._attendance.check_quorum(ctx.round)
            self.check_complete(ctx.round)
            if not lost:
                break
        size = {name: part.numel() * part.element_size() for name, part in parts.items()}
        summed = unmasked(list(parts.values()), self._seeds(ctx, cohort), expected.tensors)
        weight = len(parts) * expected.weight
        if weighted:
            weight = min(max(round(summed.weight), len(parts)), MOST_IMAGES)
        if not is_plausible(summed, weight):
            raise StateMismatchError(
                f"round {ctx.round + 1}: the sum of the shares of {', '.join(parts)} is not one of shares: "
                "one of these sites sent a wrong part, and masks hide which; ask each for its log, and start "
                "a new run without it"
            )
        yield Arrival(summed, size)

    def started(self, index: int) -> tuple[ClientId, ...]:
        """Return the sites of the sum that was started in a round; none if there is no such sum.

        Raises:
            StateMismatchError: if ``sum.json`` cannot be read.
        """
        if not self._path.is_file():
            return ()
        try:
            found = TypeAdapter(_Sum).validate_json(read_bytes(self._path))
        except (OSError, ValidationError) as cause:
            raise StateMismatchError(
                f"{self._path} cannot be read: {' '.join(str(cause).split())}; restore it from a copy, or "
                "start a new run"
            ) from None
        return found.sites if found.round == index else ()

    def check_complete(self, index: int) -> None:
        """Check that no site is missing from the sum that was started in a round.

        Raises:
            ParticipationError: naming the missing sites and the reasons.
        """
        sites, attendance = self.started(index), self._attendance
        if missing := [name for name in sites if name not in attendance.present]:
            why = "; ".join(f"{name}: {attendance.reasons.get(name, 'no answer')}" for name in missing)
            raise ParticipationError(
                f"round {index + 1}: the masked sum of {', '.join(sites)} was started and lacks "
                f"{', '.join(missing)} ({why}); fix this and start the server again when all of them are "
                "online, or start a new run"
            )

    def _seeds(self, ctx: RoundContext, cohort: Sequence[SignedKey]) -> list[bytes]:
        """Return the seeds of the sites' own masks. From here on the sum cannot do without any of them."""
        attendance = self._attendance
        write_json(self._path, asdict(_Sum(ctx.round, tuple(attendance.present))))
        seeds: dict[ClientId, bytes] = {}
        order = self._transport.ask(
            "reveal", ctx.round, attendance.present, parse_seed, cohort=json.dumps(cohort)
        )
        for name, seed in order:
            if isinstance(seed, Refusal):
                attendance.reasons[name] = seed.reason
            else:
                seeds[name] = seed
        attendance.present = list(seeds)
        self.check_complete(ctx.round)
        return list(seeds.values())


def parse_seed(answer: Answer) -> bytes:
    """Return the seed of a site's own mask.

    Raises:
        StateMismatchError: if it is not :data:`~prrfl.flower.secure_sum.SEED` bytes in hex.
    """
    try:
        seed = bytes.fromhex(answer.seed)
    except ValueError:
        seed = b""
    if len(seed) != SEED:
        raise StateMismatchError(f"its mask seed is invalid; expected {SEED} bytes in hex")
    return seed


def parse_key(answer: Answer) -> SignedKey:
    """Return a site's signed key, whose signature the other sites check.

    Raises:
        StateMismatchError: if it is not an object of site, key, mean and signature, or names another site.
    """
    try:
        return check_key(parse_json(answer.key), answer.site)
    except (ValueError, TypeError, AttributeError):
        raise StateMismatchError("its signed key is missing or invalid") from None
