"""A site's end of a federation: it carries out orders on its own disk, each of them once.

Every order comes to a new process, so all that a site remembers is in its folder, ``<home>/<experiment>``:

    settings.json                   what the experiment was begun with
    state/<round>-<n>-<done>/       the site's state, its share and its records after training (n = 1) and
                                    after the mean (n = 2); the last three of them
    models/<site>/{best,last}.safetensors, predictions/<site>/{best,last}.csv
    sum.key                         under secure summation, the experiment's own private key
    masked.json, revealed.json      on which share each mask was put; for which sites' sum of each round the
                                    site's own mask was revealed

An order that was carried out already is answered from the folder, so that a message that comes twice, a node
or a server that was killed never train a round twice into the state.
"""

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from prrfl.config import TrainConfig, checked
from prrfl.data.sources import load_site
from prrfl.engine import Visitor
from prrfl.errors import ConfigError, DataError, NonFiniteShareError, StateMismatchError
from prrfl.flower.consent import agreed_as
from prrfl.flower.records import Answer, Order, OrderRefusedError
from prrfl.flower.secure_sum import Identity, SignedKey, mask_of, masked, own_seed, read_cohort, read_roster
from prrfl.machine import prepared
from prrfl.runs.deployed import kept_path, predictions_path, read_about
from prrfl.runs.folder import write_deployed
from prrfl.runs.run import make_recipe, resolved, share_dtype
from prrfl.storage.atomic import remove_partial, replacing, sync, write_json, write_text
from prrfl.storage.reading import changed_file, checksum, parse_json, read_bytes, read_text
from prrfl.storage.records import to_line
from prrfl.storage.tensor_files import read_state, to_bytes, write_state
from prrfl.tensors import check_same_layout, norm_keys
from prrfl.training import Recipe, Site
from prrfl.types import ClientId, RoundContext, RoundRecord, Share, TrainRecord

log = logging.getLogger("prrfl")

CHECKSUMS = "checksums.json"
"""SHA-256 of each other file of a step's folder, by name."""

STEP = 6 * "[0-9]" + "-[12]-*ed"
"""What a step's folder is called; a copy of one that somebody put beside it is none."""

KEPT = 3
"""States that a site keeps: enough to go back to where a server's last complete round ended."""


KINDS: Mapping[type[Exception], str] = {
    DataError: "its data cannot be used",
    ConfigError: "a setting or a key cannot be used there",
    StateMismatchError: "what it keeps of the run cannot be used",
    NonFiniteShareError: "its training gives NaN, infinity or numbers too large to share; lower the learning "
    "rate, or have it look for broken inputs",
    OSError: "a file cannot be read or written there",
    MemoryError: "its memory is too small",
}
"""What the server is told of an error at a site, by its kind."""


@dataclass(frozen=True)
class Local:
    """What a site decides itself, whatever the server says.

    Attributes:
        name: the site's name.
        data: its data, as for ``prrfl train --data``.
        home: the folder in which it keeps its states and networks.
        device: where it trains.
        threads: of its arithmetic; 0 picks.
        allow_missing: go on without images that a table names but nobody has.
        roster: the consortium's public signing keys. A site that has one takes part under secure summation
            alone: it never sends a share without a mask.
        signing_key: its own private signing key.
        methods: those of :data:`prrfl.flower.consent.METHODS` that it agrees to; others send more.
    """

    name: ClientId
    data: Path
    home: Path
    device: str = "auto"
    threads: int = 0
    allow_missing: bool = False
    roster: Path | None = None
    signing_key: Path | None = None
    methods: tuple[str, ...] = ("prrfl",)


def carry_out(order: Order, local: Local) -> Answer:
    """Do as an order says, and return the answer.

    Raises:
        OrderRefusedError: if the order is not for this site, or the site does not agree to it.
        PRRFLError: if it cannot be carried out.
        OSError: if the site's disk is full or cannot be written.
    """
    if order.site != local.name:
        raise OrderRefusedError(f"an order for site {order.site} came to site {local.name}")
    if order.version != version("prrfl"):
        raise OrderRefusedError(
            f"site {local.name} has prrfl {version('prrfl')}, the server {order.version}; install the same"
        )
    if order.secure != (local.roster is not None):
        raise OrderRefusedError(
            f"site {local.name} has a roster, so it takes part under secure summation alone; the server did "
            "not ask for that (--secure)"
            if local.roster
            else f"the server asks for secure summation, for which site {local.name} has no roster (--roster)"
        )
    participant = Participant(order, local)
    with participant.alone():
        done: Answer = getattr(participant, order.step)()
    return done


class Participant:
    """One order at one site."""

    def __init__(self, order: Order, local: Local) -> None:
        """Read the settings, the site's own on top.

        Raises:
            ConfigError: if they do not hold here.
            OrderRefusedError: if the site does not agree to the method.
        """
        self.given = _object(order.settings, "the server's settings")
        own = {
            "data": local.data,
            "device": local.device,
            "allow_missing": local.allow_missing,
            "weights": None,  # a start from a file of the site would send that file away
        }
        config = checked(
            {**self.given, **own, "workers": 1, "threads": local.threads}, "the server's settings"
        )
        self.order, self.local = order, local
        if (asked := agreed_as(config)) not in local.methods:
            raise OrderRefusedError(
                f"site {local.name} does not agree to method {asked}, only to {', '.join(local.methods)}; "
                "what it agrees to says prrfl site --methods"
            )
        self.config: TrainConfig = resolved(config, 1)
        self.algorithm = self.config.algorithm()
        self.folder = local.home / _as_folder(order.experiment)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process works in the experiment's folder, such as one of a node that died."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            remove_partial(self.folder)
            self._check_settings()
            yield

    def train(self) -> Answer:
        """Train for the round, unless that is done; answer with the records, and the share or the key."""
        done = self._done("trained")
        if done is None:
            state = self._state_before()
            with prepared(self.config.threads):
                state, share, lines = self._carried(self._visitor.train(state, self._ctx))
            done = self._commit("trained", {"state": state, "share": share}, {"records.jsonl": lines})
        records = _kept(done / "records.jsonl")
        if self.order.secure:
            return self._answer(records=records, key=json.dumps(self._identity.signed_key()))
        share = read_state(done / "share.safetensors", Share)
        return self._answer(records=records, share=share.tensors, weight=share.weight)

    def share(self) -> Answer:
        """Answer with the masked share of the round."""
        share = read_state(self._trained() / "share.safetensors", Share)
        cohort = read_cohort(self.order.cohort, self.local.name)
        sums = masked(share, self._identity, cohort, self.order.round)
        self._check_mask_is_new(share, cohort)
        return self._answer(share={"masked": torch.from_numpy(sums)})

    def reveal(self) -> Answer:
        """Answer with the seed of the site's own mask, for the one cohort of the round that gets it."""
        cohort = read_cohort(self.order.cohort, self.local.name)
        seed = own_seed(self._identity, cohort, self.order.round)
        self._check_one_sum(cohort)
        return self._answer(seed=seed.hex())

    def receive(self) -> Answer:
        """Take the round's mean, unless that is done; answer with the records."""
        digest = hashlib.sha256(to_bytes(Share(self.order.mean))).hexdigest()
        done = self._done("received")
        if done is None or _kept(done / "mean.sha256") != digest:
            trained = self._trained()
            share = read_state(trained / "share.safetensors", Share)
            check_same_layout(share.tensors, self.order.mean, "the mean that the server sent")
            state = read_state(trained / "state.safetensors", self._kind)
            with prepared(self.config.threads):
                state, lines = self._carried(self._visitor.receive(state, self.order.mean, self._ctx))
                self._keep_last(state)
            texts = {"records.jsonl": lines, "mean.sha256": digest}
            done = self._commit("received", {"state": state}, texts)
        return self._answer(records=_kept(done / "records.jsonl"))

    def keep(self) -> Answer:
        """Keep the round's network and predictions as the best."""
        name = self.local.name
        last, best = (
            [kept_path(self.folder, name, which)]
            + [predictions_path(self.folder, name, which, split) for split in ("valid", "test")]
            for which in ("last", "best")
        )
        kept = read_about(last[0]).round
        if kept != self.order.round:
            raise OrderRefusedError(
                f"site {name} has the network of another round, not that of round {self.order.round + 1}"
            )
        for path, copy in zip(last, best, strict=True):
            with replacing(copy) as temporary:
                shutil.copyfile(path, temporary)
        return self._answer()

    def _answer(self, **what: Any) -> Answer:
        return Answer(self.order.experiment, self.local.name, self.order.round, **what)

    @cached_property
    def _recipe(self) -> Recipe:
        return make_recipe(self.config)

    @cached_property
    def _visitor(self) -> Visitor[Any]:
        data = load_site(
            self.local.data,
            self.local.name,
            image_size=self.config.image_size,
            classes=self.config.classes,
            allow_missing=self.config.allow_missing,
        )
        site = Site(data.to(self.config.device), self._recipe)
        return Visitor(self.algorithm, site, share_dtype(self.config))

    @property
    def _ctx(self) -> RoundContext:
        config = self.config
        return RoundContext(
            self.order.round, config.rounds, 0, config.epochs, config.seed, norm_keys(self._recipe.network)
        )

    @cached_property
    def _identity(self) -> Identity:
        if self.local.roster is None or self.local.signing_key is None:
            raise ConfigError(f"site {self.local.name} has no signing key; give it by --signing-key")
        roster = read_roster(self.local.roster)
        return Identity.load(
            self.local.name, self.order.experiment, self.local.signing_key, roster, self.folder / "sum.key"
        )

    @property
    def _kind(self) -> type[Any]:
        return type(self._start())

    def _start(self) -> Any:
        return self.algorithm.start(self._recipe.network.state_dict())

    def _check_settings(self) -> None:
        """Keep an experiment's settings, and refuse others under the same name."""
        path, given = self.folder / "settings.json", self.given
        if not path.exists():
            write_json(path, given)
        elif (begun := _object(_kept(path), str(path))) != given:
            key = next(k for k in sorted(begun | given) if begun.get(k) != given.get(k))
            raise OrderRefusedError(
                f"site {self.local.name} began experiment {self.order.experiment} with {key} = "
                f"{begun.get(key)!r}, the server now says {given.get(key)!r}; begin another one for that"
            )

    def _check_mask_is_new(self, share: Share, cohort: Sequence[SignedKey]) -> None:
        """Refuse to put a mask on a second share: the difference of the two would be bare."""
        mask = f"{self.order.round} {_digest(mask_of(cohort, self.order.round))}"
        if not self._first("masked.json", mask, hashlib.sha256(to_bytes(share)).hexdigest()):
            raise OrderRefusedError(
                f"site {self.local.name} sent another share of round {self.order.round + 1} to the same "
                "sites before; under secure summation a round gives one share alone: begin another experiment"
            )

    def _check_one_sum(self, cohort: Sequence[SignedKey]) -> None:
        """Refuse a second sum of one round: the difference of the two would be the shares of a few sites."""
        about = mask_of(cohort, self.order.round)
        if not self._first("revealed.json", str(self.order.round), _digest(about)):
            raise OrderRefusedError(
                f"site {self.local.name} put its share of round {self.order.round + 1} into the sum of other "
                "sites before; under secure summation a round has one sum: start the server again when those "
                "are all there, or begin another experiment"
            )

    def _first(self, file: str, what: str, digest: str) -> bool:
        """Keep what something was done with; return whether it was never done with anything else."""
        path = self.folder / file
        kept = _object(_kept(path), str(path)) if path.exists() else {}
        same: bool = kept.setdefault(what, digest) == digest
        write_json(path, kept)
        return same

    def _path(self, done: str) -> Path:
        number = {"trained": 1, "received": 2}[done]
        return self.folder / "state" / f"{self.order.round:06d}-{number}-{done}"

    def _done(self, done: str) -> Path | None:
        """Return what the site has of a step of the round, if it is as it was written."""
        path = self._path(done)
        if path.is_dir() and (torn := _torn(path)):
            log.warning("%s is not as it was written; the step is done again", torn)
            return None
        return path if path.is_dir() else None

    def _trained(self) -> Path:
        """Return what the site has of the round's training.

        Raises:
            OrderRefusedError: if it has none.
        """
        done = self._done("trained")
        if done is None:
            raise OrderRefusedError(f"site {self.local.name} has not trained in round {self.order.round + 1}")
        return done

    def _state_before(self) -> Any:
        """Return the state that the round begins with: the last one before it, or the common start."""
        states = sorted(path for path in (self.folder / "state").glob(STEP) if path.is_dir())
        earlier = [path for path in states if path.name < self._path("trained").name]
        if earlier:
            if torn := _torn(earlier[-1]):
                raise StateMismatchError(
                    f"site {self.local.name}: {torn} is not as it was written; restore {earlier[-1]} from a "
                    "copy, or remove it to go on from what was before it"
                )
            return read_state(earlier[-1] / "state.safetensors", self._kind)
        if states:
            raise OrderRefusedError(
                f"site {self.local.name} is in round {int(states[-1].name[:6]) + 1} of experiment "
                f"{self.order.experiment}, the server in round {self.order.round + 1}, of which the site "
                "keeps nothing any more; begin another experiment, or restore the server's folder"
            )
        if self.order.round > 0:
            log.warning(
                "site %s has no state of experiment %s and begins anew in round %d",
                self.local.name,
                self.order.experiment,
                self.order.round + 1,
            )
        return self._start()

    def _carried(self, visit: Generator[RoundRecord, Any, Any]) -> tuple[Any, ...]:
        """Run a visit to its end; return what it returns, and its records as lines."""
        lines: list[str] = []
        while True:
            try:
                record = next(visit)
            except StopIteration as end:
                result = end.value if isinstance(end.value, tuple) else (end.value,)
                return (*result, "".join(lines))
            lines.append(to_line(record))
            if isinstance(record, TrainRecord):
                log.info(
                    "site %s: round %d/%d, epoch %d/%d done",
                    self.local.name,
                    record.round + 1,
                    self.config.rounds,
                    record.epoch + 1,
                    self.config.epochs,
                )

    def _commit(self, done: str, states: Mapping[str, object], texts: Mapping[str, str]) -> Path:
        """Write what was done whole or not at all, and forget what is older than needed or later than it."""
        final = self._path(done)
        temporary = final.with_name(f".{final.name}")
        for path in (temporary, final):
            shutil.rmtree(path, ignore_errors=True)
        for name, state in states.items():
            write_state(temporary / f"{name}.safetensors", state)
        for name, text in texts.items():
            write_text(temporary / name, text)
        write_json(temporary / CHECKSUMS, {path.name: checksum(path) for path in temporary.iterdir()})
        temporary.replace(final)
        sync(final.parent)
        every = sorted(final.parent.glob(STEP))
        at = every.index(final)
        for path in every[: max(0, at + 1 - KEPT)] + every[at + 1 :]:
            shutil.rmtree(path, ignore_errors=True)
        return final

    def _keep_last(self, state: Any) -> None:
        data = self._visitor.site.data
        # So that `prrfl evaluate` finds the data.
        write_text(self.folder / "config.toml", self.config.to_toml())
        one = self._visitor.deployed(state)
        write_deployed(one, {data.name: data}, self.config, self.folder, ["last"], self.order.round)


def refused(order: Order, local: Local, why: Exception) -> Answer:
    """Return the answer that says that an order is not carried out, and of why what may leave the site."""
    return Answer(order.experiment, local.name, order.round, error=told(why, local.name))


def told(why: Exception, name: ClientId) -> str:
    """Return what the server may know of an error at a site.

    An error can quote files: names of images, cells of tables, paths, numbers of rows. So of all but an order
    that is refused, only the kind is told.
    """
    if isinstance(why, OrderRefusedError):
        return str(why)
    kind = next((words for kind, words in KINDS.items() if isinstance(why, kind)), "its process failed")
    return f"site {name}: {kind}; the reason stands at the site, in HOME/flower/supernode.log"


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError as cause:
        raise ConfigError(f"{what} cannot be read: {cause}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{what} cannot be read: expected names and values in JSON")
    return found


def _digest(about: object) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _kept(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as cause:
        raise StateMismatchError(f"{path} cannot be read: {cause}; begin another experiment") from None


def _torn(step: Path) -> Path | None:
    """Return a file of a step's folder that is not as it was written, if there is one."""
    try:
        sums: dict[str, str] = TypeAdapter(dict[str, str]).validate_json(read_bytes(step / CHECKSUMS))
    except (OSError, ValueError):
        return step / CHECKSUMS
    return changed_file(step, sums)


def _as_folder(experiment: str) -> str:
    if not experiment or not all(c.isalnum() or c in "-_." for c in experiment) or experiment[0] == ".":
        raise ConfigError(f"experiment '{experiment}' cannot name a folder; use letters, digits, - and _")
    return experiment
