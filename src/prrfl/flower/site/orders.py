"""A site's end of a federation: it carries out orders on its own disk, each of them once.

Flower starts a new process for every order, so all that a site remembers is in its folder,
``<home>/<experiment>``:

    settings.json                   the settings that the experiment was started with
    data.json                       fingerprints of the data that it was started with
    state/<round>-<n>-<done>/       the site's state, its share and its records after training (n = 1) and
                                    after the mean (n = 2); the last three of them
    config.toml                     all settings, from which `prrfl evaluate` learns where the data is
    models/<site>/{best,last}.safetensors, predictions/<site>/{best,last}.csv
    own_counts.safetensors, class_counts.json
                                    if the loss needs them: training images of each class, here and everywhere
    sum.key                         under secure summation, the private key for the experiment, until its end
    received.json, masked.json, revealed.json
                                    what is done only once, see prrfl.flower.site.ledger
    position.json                   while the site trains: where it is, see prrfl.runs.position
    lock                            held by the process that carries out an order

If an order comes again, the site answers it from this folder. So a message that arrives twice, or a node or
server that was killed, never trains a round twice.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from prrfl.algorithms import DEFAULT
from prrfl.config import TrainConfig, checked
from prrfl.data.fingerprint import difference, fingerprints
from prrfl.data.sources import load_site
from prrfl.engine import Visitor
from prrfl.errors import ConfigError, DataError
from prrfl.flower.consent import needed, own_parts
from prrfl.flower.messages import COUNTING, Answer, Order, OrderRefusedError, OrderStep
from prrfl.flower.secure_sum import Identity, masked, own_seed, read_cohort, read_roster
from prrfl.flower.site.ledger import Ledger, exclusive
from prrfl.flower.site.steps import StepStore, parse_object, read_saved
from prrfl.machine import prepared
from prrfl.runs.deployed import DeployedWriter, network_path, predictions_path, read_about
from prrfl.runs.folder import RunFolder
from prrfl.runs.position import Position, position_of, reporting
from prrfl.runs.setup import Run, resolved, share_dtype
from prrfl.storage.atomic import remove, remove_partial, replacing, write_json, write_text
from prrfl.storage.records import to_line
from prrfl.storage.tensor_files import read_state, to_bytes, write_state
from prrfl.tensors import check_same_layout, non_finite
from prrfl.training import ImageCounter, Site
from prrfl.types import ClientId, RoundContext, RoundRecord, Share, SiteData, TrainRecord

log = logging.getLogger("prrfl")

COUNTING_STEPS: tuple[OrderStep, ...] = ("count", "share", "reveal")
"""The steps in which class counts are added."""

OWN_COUNTS = "own_counts.safetensors"
"""The share of a site when class counts are added."""

EXPERIMENT = r"(?!flower$)[A-Za-z0-9][A-Za-z0-9_-]{0,239}"
"""What an experiment may be called: a folder of this name is below the site's home, beside Flower's own."""


class DataChangedError(DataError):
    """The site's data is not that with which the experiment was started."""


@dataclass(frozen=True)
class SiteSettings:
    """What a site decides itself, whatever the server asks for.

    Attributes:
        name: the site's name.
        data: its data, as for ``prrfl train --data``.
        home: the folder for its states and networks.
        device: where it trains.
        threads: threads of its arithmetic; 0 chooses.
        allow_missing: skip images that a table names but that do not exist.
        roster: the consortium's public signing keys. A site with a roster takes part only under secure
            summation: it never sends a share without a mask.
        signing_key: its own private signing key.
        methods: those of :data:`prrfl.flower.consent.METHODS` that it agrees to.
    """

    name: ClientId
    data: Path
    home: Path
    device: str = "auto"
    threads: int = 0
    allow_missing: bool = False
    roster: Path | None = None
    signing_key: Path | None = None
    methods: tuple[str, ...] = (DEFAULT,)


def carry_out(order: Order, local: SiteSettings) -> Answer:
    """Carry out an order, or find that this was done before, and return the answer.

    Raises:
        OrderRefusedError: if the order is not for this site, or the site does not agree to it.
        PRRFLError: if it cannot be carried out.
        OSError: if the site's disk is full or cannot be written.
    """
    check_addressed(order, local)
    participant = Participant(order, local)
    with participant.locked():
        match order.step:
            case "count":
                return participant.count()
            case "train":
                return participant.train()
            case "share":
                return participant.share()
            case "reveal":
                return participant.reveal()
            case "receive":
                return participant.receive()
            case "keep":
                return participant.keep()
            case "end":
                return participant.end()


def check_addressed(order: Order, local: SiteSettings) -> None:
    """Check that an order is for this site, from a server of the same version, and masked as the site is.

    Raises:
        OrderRefusedError: if not.
    """
    if order.site != local.name:
        raise OrderRefusedError(f"site {local.name} received an order for site {order.site}")
    if order.version != version("prrfl"):
        raise OrderRefusedError(
            f"site {local.name} runs prrfl {version('prrfl')}, but the server runs {order.version}; install "
            "the same version on both"
        )
    if order.secure and local.roster is None:
        raise OrderRefusedError(
            f"the server asks for secure summation, but site {local.name} has no roster; start the site with "
            "--secure"
        )
    if local.roster is not None and not order.secure:
        raise OrderRefusedError(
            f"site {local.name} takes part only under secure summation, which the server did not ask for; "
            "start the server with --secure"
        )


class Participant:
    """One site with one order to carry out."""

    def __init__(self, order: Order, local: SiteSettings) -> None:
        """Combine the order's settings with the site's own.

        Raises:
            ConfigError: if the settings are invalid at this site.
            OrderRefusedError: if the site does not agree to the method, or a name or number is not one that a
                server sends.
        """
        self.given = parse_object(order.settings, "the server's settings")
        self._check_agreed(own_parts(self.given), local)  # before anything is imported
        own = {
            "data": local.data,
            "device": local.device,
            "allow_missing": local.allow_missing,
            "weights": None,  # or the server could ask for the content of a file of the site
        }
        config = checked(
            {**self.given, **own, "workers": 1, "threads": local.threads}, "the server's settings"
        )
        self.order, self.local = order, local
        self._check_agreed(needed(config), local)
        self.config: TrainConfig = resolved(config, 1)
        counts = order.round == COUNTING and config.loss_function().counts == "federation"
        if not 0 <= order.round < config.rounds and not (counts and order.step in COUNTING_STEPS):
            raise OrderRefusedError(
                f"site {local.name} received an order for round {order.round + 1}; expected 1 to "
                f"{config.rounds}"
            )
        if not re.fullmatch(EXPERIMENT, order.experiment, re.IGNORECASE | re.ASCII):
            raise OrderRefusedError(
                f"site {local.name} refuses the experiment name '{order.experiment}'; use at most 240 "
                "letters, digits, - and _, starting with a letter or digit, and not 'flower'"
            )
        self.folder = local.home / order.experiment
        self._steps = StepStore(self.folder / "state", local.name, order.experiment)
        self._ledger = Ledger(self.folder, local.name)

    @staticmethod
    def _check_agreed(asked: Sequence[str], local: SiteSettings) -> None:
        if missing := [name for name in asked if name not in local.methods]:
            raise OrderRefusedError(
                f"site {local.name} does not agree to {', '.join(missing)}, only to "
                f"{', '.join(local.methods)}; to agree, start the site with --methods {','.join(asked)}"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the experiment's folder, once no other process uses it, such as one of a killed node."""
        with exclusive(self.folder / "lock"):
            remove_partial(self.folder)
            self._check_settings()
            self._check_class_counts()
            yield

    def count(self) -> Answer:
        """Count the site's training images by class; answer with the counts, or under masks with the key."""
        path = self.folder / OWN_COUNTS
        if not path.exists():
            labels = self._visitor.site.data.train.labels.cpu()
            counts = torch.bincount(labels, minlength=len(self.config.classes))
            write_state(path, Share({"class_counts": counts.double()}))
        if self.order.secure:
            return self._answer(key=json.dumps(self._identity.signed_key()))
        return self._answer(share=self._round_share().tensors)

    def train(self) -> Answer:
        """Train for the round, unless that is done; answer with the records, and the share or the key."""
        done = self._steps.find(self.order.round, "trained")
        if done is None:
            self._say("trains")
            before = self._steps.last_before(self.order.round)
            state = read_state(before / "state.safetensors", self._kind) if before else self._start()
            with prepared(self.config.threads), reporting(RunFolder(self.folder), self._position):
                state, share, lines = self._run(self._visitor.train(state, self._ctx))
            done = self._steps.commit(
                self.order.round, "trained", {"state": state, "share": share}, {"records.jsonl": lines}
            )
        records = read_saved(done / "records.jsonl")
        if self.order.secure:
            return self._answer(records=records, key=json.dumps(self._identity.signed_key()))
        share = read_state(done / "share.safetensors", Share)
        self._say("sends its share, and waits for the mean of all")
        return self._answer(records=records, share=share.tensors, weight=share.weight)

    def share(self) -> Answer:
        """Answer with the masked share of the round."""
        share = self._round_share()
        cohort = read_cohort(self.order.cohort, self.local.name)
        sums = masked(share, self._identity, cohort, self.order.round)
        self._ledger.mask(share, self._identity, cohort, self.order.round)
        self._say("sends its share under masks, and waits for the mean of all")
        return self._answer(share={"masked": torch.from_numpy(sums)})

    def reveal(self) -> Answer:
        """Answer with the seed of the site's own mask, for the one cohort of the round that gets it."""
        share = self._round_share()
        cohort = read_cohort(self.order.cohort, self.local.name)
        seed = own_seed(share, self._identity, cohort, self.order.round)
        self._ledger.reveal(share, self._identity, cohort, self.order.round)
        return self._answer(seed=seed.hex())

    def receive(self) -> Answer:
        """Take the round's mean, which is the only one, unless that is done; answer with the records."""
        digest = hashlib.sha256(to_bytes(Share(self.order.mean))).hexdigest()
        done = self._steps.find(self.order.round, "received")
        if done is not None and read_saved(done / "mean.sha256") != digest:
            self._ledger.receive(read_saved(done / "mean.sha256"), self.order.round)  # of an older version
            self._ledger.receive(digest, self.order.round)
        if done is None:
            trained = self._steps.trained(self.order.round)
            share = read_state(trained / "share.safetensors", Share)
            check_same_layout(share.tensors, self.order.mean, "the mean that the server sent")
            if broken := non_finite(self.order.mean):
                raise OrderRefusedError(
                    f"site {self.local.name}: the mean that the server sent holds NaN or infinity "
                    f"in tensor '{broken[0]}'"
                )
            self._ledger.receive(digest, self.order.round)
            state = read_state(trained / "state.safetensors", self._kind)
            with prepared(self.config.threads):
                state, lines = self._run(self._visitor.receive(state, self.order.mean, self._ctx))
                self._save_last(state)
            texts = {"records.jsonl": lines, "mean.sha256": digest}
            done = self._steps.commit(self.order.round, "received", {"state": state}, texts)
            self._say("took the mean")
        return self._answer(records=read_saved(done / "records.jsonl"))

    def keep(self) -> Answer:
        """Save the round's network and predictions as the best."""
        name = self.local.name
        last, best = (
            [network_path(self.folder, name, which)]
            + [predictions_path(self.folder, name, which, split) for split in ("valid", "test")]
            for which in ("last", "best")
        )
        saved = read_about(last[0]).round
        if saved != self.order.round:
            raise OrderRefusedError(
                f"site {name} has no network of round {self.order.round + 1} to save as the best, only "
                "that of another round"
            )
        for path, copy in zip(last, best, strict=True):
            with replacing(copy) as temporary:
                shutil.copyfile(path, temporary)
        return self._answer()

    def end(self) -> Answer:
        """Delete the private key, which opens all masks of the run: nobody needs it any more.

        Raises:
            OrderRefusedError: if the run is not complete at this site.
        """
        last = self.config.rounds - 1
        if self.order.round != last or self._steps.find(last, "received") is None:
            raise OrderRefusedError(f"site {self.local.name} has not taken the mean of the last round")
        remove(self.folder / "sum.key")
        log.info("site %s: the run is done; its networks are in %s", self.local.name, self.folder)
        return self._answer()

    def _say(self, what: str) -> None:
        # `prrfl site` repeats these lines on its screen.
        log.info("site %s: round %d/%d: %s", self.local.name, self.order.round + 1, self.config.rounds, what)

    def _round_share(self) -> Share:
        if self.order.round == COUNTING:
            return read_state(self.folder / OWN_COUNTS, Share)
        return read_state(self._steps.trained(self.order.round) / "share.safetensors", Share)

    def _answer(self, **what: Any) -> Answer:
        return Answer(self.order.experiment, self.local.name, self.order.round, **what)

    @cached_property
    def _training(self) -> Run:
        return replace(Run.of(self.config), class_counts=RunFolder(self.folder).class_counts())

    def _check_class_counts(self) -> None:
        """Save the class counts of all sites, if the loss needs them, and refuse others in later orders."""
        there = RunFolder(self.folder)
        if self.config.loss_function().counts != "federation" or self.order.round == COUNTING:
            return
        try:
            counts = TypeAdapter(tuple[NonNegativeInt, ...]).validate_json(self.order.class_counts)
        except ValidationError:
            counts = ()
        if len(counts) != len(self.config.classes):
            raise OrderRefusedError(
                f"site {self.local.name} received no valid class counts of all sites; expected "
                f"{len(self.config.classes)} whole numbers"
            )
        if not (known := there.class_counts()):
            there.write_class_counts(counts)
        elif known != counts:
            raise OrderRefusedError(
                f"site {self.local.name} received class counts {counts}, but {known} before; start a new run"
            )

    def _position(self) -> Position:
        return position_of(self._counter, self.order.round, self.config)

    @cached_property
    def _counter(self) -> ImageCounter:
        return ImageCounter({self.local.name: len(self._data.train)})

    @cached_property
    def _data(self) -> SiteData:
        data = load_site(
            self.local.data,
            self.local.name,
            image_size=self.config.image_size,
            classes=self.config.classes,
            allow_missing=self.config.allow_missing,
        )
        self._check_data(data)
        return data

    @cached_property
    def _visitor(self) -> Visitor[Any]:
        recipe = replace(self._training.recipe, counter=self._counter)
        site = Site(self._data.to(self.config.device), recipe)
        return Visitor(self._training.method, site, share_dtype(self.config))

    @property
    def _ctx(self) -> RoundContext:
        return self._training.moment(self.order.round)

    @cached_property
    def _identity(self) -> Identity:
        if self.local.roster is None or self.local.signing_key is None:
            raise ConfigError(f"site {self.local.name} has no signing key; start the site with --secure")
        identity = Identity.load(
            self.local.name,
            self.order.experiment,
            self.local.signing_key,
            read_roster(self.local.roster),
            self.folder / "sum.key",
        )
        return replace(identity, mean=self._ledger.last_mean(self.order.round))

    @property
    def _kind(self) -> type[Any]:
        return type(self._start())

    def _start(self) -> Any:
        return self._training.method.start(self._training.recipe.initial())

    def _check_settings(self) -> None:
        """Save an experiment's settings, and refuse others under the same name."""
        path, given = self.folder / "settings.json", self.given
        if not path.exists():
            write_json(path, given)
        elif (started := parse_object(read_saved(path), str(path))) != given:
            key = next(k for k in sorted(started | given) if started.get(k) != given.get(k))
            raise OrderRefusedError(
                f"site {self.local.name} started experiment {self.order.experiment} with {key} = "
                f"{started.get(key)!r}, but the server now sends {given.get(key)!r}; start a new run for "
                "other settings"
            )

    def _check_data(self, data: SiteData) -> None:
        """Save the fingerprints of an experiment's data, and refuse other data in later rounds."""
        there, now = RunFolder(self.folder), fingerprints([data])
        started = there.data()
        if started is None:
            there.write_data(now)
        elif changed := difference(started, now):
            raise DataChangedError(
                f"the data {self.local.data} has changed since the run began ({changed}; see "
                f"{self.folder / 'data.json'}); restore the data, or start a new run"
            )

    def _run(self, visit: Generator[RoundRecord, Any, Any]) -> tuple[Any, ...]:
        """Run a visit to its end; return its results, and its records as lines."""
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

    def _save_last(self, state: Any) -> None:
        data = self._visitor.site.data
        # So that `prrfl evaluate` finds the data.
        write_text(self.folder / "config.toml", self.config.to_toml())
        writer = DeployedWriter(self.folder, self.config, {data.name: data})
        writer.write(self._visitor.deployed(state), ["last"], self.order.round)
