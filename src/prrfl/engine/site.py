"""One visit to a site, shared by every engine: train, score, share; later receive, score."""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic

import torch
from torch import Tensor

from prrfl.algorithms.base import Algorithm, C
from prrfl.engine.rounds import Deployed
from prrfl.errors import NonFiniteShareError
from prrfl.evaluation import score
from prrfl.tensors import non_finite
from prrfl.training import Site, predict
from prrfl.types import (
    ClientId,
    Moment,
    RoundContext,
    RoundRecord,
    ScoreRecord,
    Scores,
    Share,
    SiteData,
    Split,
    Tensors,
    TrainRecord,
)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What a network gave on one split of one site; its weights, while the site is visited."""

    weights: Tensors | None
    logits: Tensor
    scores: Scores


@dataclass(eq=False)
class Visitor(Generic[C]):
    """Carries an algorithm to one site.

    It remembers the last outputs of each network, because the same weights would give the same again. So each
    visit must begin with the state that the last one returned, or be preceded by :meth:`forget`.

    Attributes:
        algorithm: the method.
        site: where it trains.
        share_dtype: real-valued tensors travel in this type, both ways: ``torch.float16`` halves the bytes;
            ``None`` leaves them as they are.
        judged_on: the sites whose valid and test images score it; only the site itself, if not given.
    """

    algorithm: Algorithm[C]
    site: Site
    share_dtype: torch.dtype | None = None
    judged_on: Sequence[SiteData] = ()
    _known: dict[tuple[str, ClientId, Split], _Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.judged_on = self.judged_on or (self.site.data,)

    def train(self, client: C, ctx: RoundContext) -> Generator[RoundRecord, Any, tuple[C, Share]]:
        """Run the round's local epochs; yield records as they arise, return the new state and the share.

        Raises:
            NonFiniteShareError: if a loss or a tensor to be sent is NaN or infinite.
        """
        self._recognise(client)
        for epoch in range(ctx.epochs):
            now = replace(ctx, epoch=epoch)
            client, metrics = self.algorithm.train(client, self.site, now)
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise NonFiniteShareError(
                        f"site {self.site.name}, {_when(now)}: {name} is {value}; "
                        "lower the learning rate, or look for broken inputs at this site"
                    )
            yield TrainRecord(ctx.round, epoch, self.site.name, dict(metrics))
            yield from self._scores(client, now, "test", "epoch", deployed_only=True)
        last = replace(ctx, epoch=ctx.epochs - 1)
        yield from self._scores(client, last, "test", "before")
        share = packed(self.algorithm.share(client, ctx), self.share_dtype)
        if broken := non_finite(share.tensors):
            raise NonFiniteShareError(
                f"site {self.site.name}, {_when(last)}: '{broken[0]}' of its share holds NaN or "
                "infinity; the share is not sent"
            )
        self._rest(client)
        return client, share

    def receive(self, client: C, mean: Tensors, ctx: RoundContext) -> Generator[RoundRecord, Any, C]:
        """Hand the round's mean to the site; yield the scores after it, return the new state."""
        self._recognise(client)
        mean = mean if self.share_dtype is None else _cast(mean, torch.float32)
        client = self.algorithm.receive(client, mean, ctx)
        last = replace(ctx, epoch=ctx.epochs - 1)
        yield from self._scores(client, last, "test", "after")
        yield from self._scores(client, last, "valid", "after", deployed_only=True)
        self._rest(client)
        return client

    def deployed(self, client: C) -> Deployed:
        """Return what the site would take home now."""
        self._recognise(client)
        model, weights = next(iter(self.algorithm.models(client).items()))

        def outputs(split: Split) -> Tensors:
            return {
                data.name: self._outcome(model, weights, data, split, "at the end").logits
                for data in self.judged_on
            }

        taken_home = Deployed(self.site.name, model, weights, outputs("valid"), outputs("test"))
        self._rest(client)
        return taken_home

    def forget(self) -> None:
        """Forget all outputs, because the site's state was replaced."""
        self._known.clear()

    def _rest(self, client: C) -> None:
        """Keep what belongs to the state that a visit ends with; not its weights, which may rest on disk."""
        models = self.algorithm.models(client)
        self._known = {
            key: replace(known, weights=None)
            for key, known in self._known.items()
            if known.weights is models[key[0]]
        }

    def _recognise(self, client: C) -> None:
        """Take the state that a visit begins with as the one that the last visit ended with."""
        models = self.algorithm.models(client)
        self._known = {key: replace(known, weights=models[key[0]]) for key, known in self._known.items()}

    def _scores(
        self, client: C, ctx: RoundContext, split: Split, moment: Moment, deployed_only: bool = False
    ) -> Iterator[ScoreRecord]:
        for index, (name, weights) in enumerate(self.algorithm.models(client).items()):
            deployed = index == 0
            for data in self.judged_on if deployed or not deployed_only else ():
                when = _when(ctx) if moment != "after" else f"round {ctx.round + 1}, after the mean came back"
                scores = self._outcome(name, weights, data, split, when).scores
                yield ScoreRecord(ctx.round, ctx.epoch, data.name, split, name, deployed, moment, scores)

    def _outcome(self, name: str, weights: Tensors, data: SiteData, split: Split, when: str) -> _Outcome:
        known = self._known.get((name, data.name, split))
        if known is None or known.weights is not weights:
            examples = data.split(split)
            (logits,) = predict([weights], examples, self.site.recipe)
            if not logits.isfinite().all():
                raise NonFiniteShareError(
                    f"site {data.name}, {when}: the {name} network gives NaN or infinity on its {split} "
                    "images; lower the learning rate, or look for broken inputs at this site"
                )
            known = _Outcome(weights, logits, score(logits, examples.labels))
            self._known[name, data.name, split] = known
        return known


def _when(ctx: RoundContext) -> str:
    """Say the moment as users count, from 1."""
    return f"round {ctx.round + 1}, epoch {ctx.epoch + 1}"


def packed(share: Share, dtype: torch.dtype | None) -> Share:
    """Return a share as it travels: real-valued tensors in a type; unchanged, if none is given."""
    return share if dtype is None else replace(share, tensors=_cast(share.tensors, dtype))


def _cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    return {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}
