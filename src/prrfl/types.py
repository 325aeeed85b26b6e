"""The types that all rooms share: images, shares, contexts, scores, predictions and records."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

ClientId = str
"""A site's name, unique in a run: ``clientA``, ``hospital-3``."""

Tensors = Mapping[str, Tensor]
"""A state_dict or a part of one: tensors by full dotted name. They are never changed in place."""

Split = Literal["train", "valid", "test"]

Moment = Literal["epoch", "before", "after"]
"""When a network was scored: after a local epoch, or just before or after it received the mean."""


@dataclass(frozen=True, eq=False)
class Examples:
    """One split of one site, decoded once and kept in memory.

    Attributes:
        inputs: images, (N, 3, H, W) uint8 in 0...255. Other data, or images that are prepared already, may
            be any float tensor whose first axis counts examples; ``Recipe.normalise`` must then leave it as
            it is.
        labels: (N,) int64 class indices.
        ids: (N,) names, for messages and predictions; empty without names.
        groups: (N,) the lesion or patient of each, or ``None``; empty if all are unknown.

    Examples:
        >>> import torch
        >>> from prrfl import Examples
        >>> images = torch.zeros(9, 3, 32, 32, dtype=torch.uint8)
        >>> len(Examples(images, labels=torch.arange(9) % 3))
        9
    """

    inputs: Tensor
    labels: Tensor
    ids: tuple[str, ...] = ()
    groups: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return self.labels.numel()

    def to(self, device: str) -> "Examples":
        """Return the examples on a device."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, eq=False)
class SiteData:
    """The data of one site: images to train on, to select the best round on, and to test on.

    Examples:
        >>> import torch
        >>> from prrfl import Examples, SiteData
        >>> def examples(n):
        ...     return Examples(torch.zeros(n, 3, 32, 32, dtype=torch.uint8), torch.arange(n) % 3)
        >>> north = SiteData("north", examples(24), examples(9), examples(12))
        >>> len(north.split("test"))
        12
    """

    name: ClientId
    train: Examples
    valid: Examples
    test: Examples

    def split(self, name: Split) -> Examples:
        """Return the examples of a split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def to(self, device: str) -> "SiteData":
        """Return the data on a device."""
        return replace(
            self, train=self.train.to(device), valid=self.valid.to(device), test=self.test.to(device)
        )


@dataclass(frozen=True)
class Share:
    """What a site sends in a round to be aggregated: named tensors, and their weight in the mean."""

    tensors: Tensors
    weight: float = 1.0


@dataclass(frozen=True)
class RoundContext:
    """The current moment of a run, as the server and all sites know it.

    Attributes:
        round: index t of the communication round, from 0.
        rounds: number T of rounds.
        epoch: index w of the local epoch, from 0.
        epochs: number E of local epochs in a round.
        seed: the run's seed; all randomness derives from it.
        norm_keys: full names of the tensors of normalisation layers.
        head_keys: full names of the tensors of the last linear layer.
        class_counts: number of training images of each class at all sites together; empty if nobody counted.
    """

    round: int
    rounds: int
    epoch: int
    epochs: int
    seed: int
    norm_keys: frozenset[str] = frozenset()
    head_keys: frozenset[str] = frozenset()
    class_counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scores:
    """Scores of one network on one split of one site. Fractions in [0, 1], not percent.

    Attributes:
        n: number of images scored.
        loss: mean cross-entropy.
        macro_f1: unweighted mean over classes of F1 (scikit-learn's ``average="macro"``).
        auc: unweighted mean over classes of the one-vs-rest area under the ROC curve of the softmax
            outputs; ``None`` if the split has a single class.
        accuracy: fraction of images whose most probable class is the true one.
        recall: per class, fraction of its images that are found; ``None`` for a class without images.
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
    """Predictions of a site's deployed network on the images of one split.

    Attributes:
        ids: (N,) names of the images; numbers if they have none.
        labels: (N,) true classes.
        probabilities: (N, C) softmax outputs.
        groups: (N,) the lesion or patient of each, or ``None``; empty if all are unknown.
    """

    ids: tuple[str, ...]
    labels: Tensor
    probabilities: Tensor
    groups: tuple[str | None, ...] = ()


UNKNOWN_SUBGROUP = "unknown"
"""Name of the subgroup of images whose cell in a table is empty, or a word that means unknown."""


@dataclass(frozen=True)
class Partition:
    """The test images of sites, divided into subgroups by a column of the data's tables.

    Attributes:
        column: the column's name.
        subgroups: names of the subgroups in order; the last one may be ``UNKNOWN_SUBGROUP``.
        members: per site, the subgroup of each image, in the order of the site's predictions.
    """

    column: str
    subgroups: tuple[str, ...]
    members: Mapping[ClientId, tuple[str, ...]]


@dataclass(frozen=True)
class TrainRecord:
    """One local epoch at one site, with the method's measurements (losses, DET stage, ...)."""

    round: int
    epoch: int
    client: ClientId
    metrics: Mapping[str, float]
    kind: Literal["train"] = "train"


@dataclass(frozen=True)
class ScoreRecord:
    """Scores of one network on one split of one site.

    Attributes:
        model: the network's name in the method: ``personalised`` or ``deputy`` for PRR-FL.
        deployed: whether it is the network that the site would use.
        moment: after a local epoch, or just before or after the site received the mean.
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
    """The end of a round: the sites that took part, and the bytes sent.

    Attributes:
        bytes_up: bytes of the share, per site that took part.
        bytes_down: bytes of the mean, which each of them received.
    """

    round: int
    bytes_up: Mapping[ClientId, int]
    bytes_down: int
    kind: Literal["exchange"] = "exchange"


@dataclass(frozen=True)
class AbsenceRecord:
    """A site that missed a round, or the end of it, and the reason."""

    round: int
    client: ClientId
    reason: str
    kind: Literal["absence"] = "absence"


RoundRecord = TrainRecord | ScoreRecord | ExchangeRecord | AbsenceRecord
"""What a run yields, in order of time."""
