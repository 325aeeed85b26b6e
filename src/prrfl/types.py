"""The words that every other module speaks: tensors by name, shares, contexts and records."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

ClientId = str
"""A site's name, unique in a run: ``clientA``, ``hospital-3``."""

Tensors = Mapping[str, Tensor]
"""A state_dict, or a part of one: tensors by full dotted name. Never changed in place."""

Split = Literal["train", "valid", "test"]

Moment = Literal["epoch", "before", "after"]
"""When a network was scored: after a local epoch, or just before or just after it received the mean."""


@dataclass(frozen=True, eq=False)
class Examples:
    """One split of one site, decoded once and kept in memory.

    Attributes:
        inputs: images, (N, 3, H, W) uint8 in 0...255; or any tensor whose first axis counts examples,
            for data that is no image or is prepared already (float; then with a ``Recipe.normalise`` that
            leaves it as it is).
        labels: (N,) int64 class indices.
        ids: (N,) names for messages and predictions; empty where the examples have none.
        groups: (N,) the lesion or patient that each shows, ``None`` where unknown; empty where none is known.
    """

    inputs: Tensor
    labels: Tensor
    ids: tuple[str, ...] = ()
    groups: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return self.labels.numel()

    def to(self, device: str) -> "Examples":
        """Return the same examples on a device; themselves where they are there already."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, eq=False)
class SiteData:
    """All the data of one site: what it trains on, selects on and is judged on."""

    name: ClientId
    train: Examples
    valid: Examples
    test: Examples

    def split(self, name: Split) -> Examples:
        """Return the examples of one split by its name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def to(self, device: str) -> "SiteData":
        """Return the same data on a device."""
        return replace(
            self, train=self.train.to(device), valid=self.valid.to(device), test=self.test.to(device)
        )


@dataclass(frozen=True)
class Share:
    """All that leaves a site in a round: named tensors and their weight in the mean."""

    tensors: Tensors
    weight: float = 1.0


@dataclass(frozen=True)
class RoundContext:
    """What every site and the server know about the present moment of a run.

    Attributes:
        round: index t of the communication round, from 0.
        rounds: number T of rounds.
        epoch: index w of the local epoch, from 0.
        epochs: number E of local epochs in a round.
        seed: the run's seed, from which all randomness is derived.
        norm_keys: full names of the tensors that belong to normalisation layers.
    """

    round: int
    rounds: int
    epoch: int
    epochs: int
    seed: int
    norm_keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scores:
    """How well one network does on one split of one site. Fractions in [0, 1], never percent.

    Attributes:
        n: number of images scored.
        loss: mean cross-entropy.
        macro_f1: unweighted mean over classes of F1 (scikit-learn's ``average="macro"``).
        auc: unweighted mean over classes of the one-vs-rest area under the ROC curve of the softmax
            outputs; ``None`` where the split shows a single class.
        accuracy: share of images whose most probable class is right.
        recall: per class, share of its images found; ``None`` for a class without images.
        confusion: rows are true classes, columns predicted ones.
    """

    n: int
    loss: float
    macro_f1: float
    auc: float | None
    accuracy: float
    recall: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a site's deployed network says of each image of one split.

    Attributes:
        ids: (N,) names of the images; numbers where they have none.
        labels: (N,) true classes.
        probabilities: (N, C) softmax outputs.
        groups: (N,) the lesion or patient that each shows, ``None`` where unknown; empty where none is known.
    """

    ids: tuple[str, ...]
    labels: Tensor
    probabilities: Tensor
    groups: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class TrainRecord:
    """One local epoch at one site, with whatever the algorithm measured (losses, DET stage, ...)."""

    round: int
    epoch: int
    client: ClientId
    metrics: Mapping[str, float]
    kind: Literal["train"] = "train"


@dataclass(frozen=True)
class ScoreRecord:
    """One network scored on one split of one site.

    Attributes:
        model: the network's name in the algorithm: ``personalised`` or ``deputy`` for PRR-FL.
        deployed: whether this is the network that the method would hand to the hospital.
        moment: after a local epoch, or just before or after the round's mean was received.
    """

    round: int
    epoch: int
    client: ClientId
    split: Split
    model: str
    deployed: bool
    moment: Moment
    scores: Scores
    kind: Literal["score"] = "score"


@dataclass(frozen=True)
class ExchangeRecord:
    """The end of a round: who took part, and how many bytes travelled.

    Attributes:
        bytes_up: per participating site, the bytes of its share.
        bytes_down: bytes of the mean, which every one of them received.
    """

    round: int
    bytes_up: Mapping[ClientId, int]
    bytes_down: int
    kind: Literal["exchange"] = "exchange"


@dataclass(frozen=True)
class AbsenceRecord:
    """A site that took no part in a round, or in the end of it, and why."""

    round: int
    client: ClientId
    reason: str
    kind: Literal["absence"] = "absence"


RoundRecord = TrainRecord | ScoreRecord | ExchangeRecord | AbsenceRecord
"""What a run yields, in the order in which it happens."""
