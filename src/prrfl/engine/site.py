"""One visit to a site, the same for every engine: train, score, share; later receive, score."""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic

import torch
from torch import Tensor

from prrfl.algorithms.base import Algorithm, C, meeting
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
    """Outputs of a network on one split of one site, with its weights while the site is visited."""

    weights: Tensors | None
    logits: Tensor
    scores: Scores


@dataclass(eq=False)
class Visitor(Generic[C]):
    """Runs a method at one site.

    It caches the last outputs of each network: weights that did not change are not scored again. Therefore
    each visit must start with the state that the previous visit returned, or :meth:`forget` must be called
    first.

    Attributes:
        algorithm: the method.
        site: data and recipe of the site.
        share_dtype: type in which real-valued tensors are sent, both ways; ``torch.float16`` halves the
            traffic, ``None`` leaves the types unchanged.
        scored_on: the sites on whose validation and test images networks are scored; by default the site
            itself.
    """

    algorithm: Algorithm[C]
    site: Site
    share_dtype: torch.dtype | None = None
    scored_on: Sequence[SiteData] = ()
    _known: dict[tuple[str, ClientId, Split], _Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scored_on = self.scored_on or (self.site.data,)

    def train(self, client: C, ctx: RoundContext) -> Generator[RoundRecord, Any, tuple[C, Share]]:
        """Run a round's local epochs; yield the records as they arise, return the new state and the share.

        Raises:
            NonFiniteShareError: if a loss or a tensor to be sent is NaN or infinite.
        """
        self._recognise(client)
        for epoch in range(ctx.epochs):
            client = yield from self._epoch(client, replace(ctx, epoch=epoch))
        share = yield from self._share(client, ctx)
        self._rest(client)
        return client, share

    def epoch(self, client: C, ctx: RoundContext) -> Generator[RoundRecord, Any, tuple[C, Share]]:
        """Run one local epoch, for a method whose sites meet after each; return the state and what it sends.

        Raises:
            NonFiniteShareError: if a loss or a tensor to be sent is NaN or infinite.
        """
        self._recognise(client)
        client = yield from self._epoch(client, ctx)
        self._rest(client)
        return client, self._checked(meeting(self.algorithm).epoch_share(client, ctx), ctx)

    def meet(self, client: C, mean: Tensors, ctx: RoundContext) -> C:
        """Give the site the mean of what all sites sent after an epoch; return the new state."""
        self._recognise(client)
        after: C = meeting(self.algorithm).epoch_receive(client, self._unpacked(mean), ctx)
        self._rest(after)
        return after

    def share(self, client: C, ctx: RoundContext) -> Generator[RoundRecord, Any, Share]:
        """End a round's training of which :meth:`epoch` ran the epochs; return the share.

        Raises:
            NonFiniteShareError: if a tensor to be sent is NaN or infinite.
        """
        self._recognise(client)
        share = yield from self._share(client, ctx)
        self._rest(client)
        return share

    def _epoch(self, client: C, ctx: RoundContext) -> Generator[RoundRecord, Any, C]:
        client, metrics = self.algorithm.train(client, self.site, ctx)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NonFiniteShareError(
                    f"site {self.site.name}, {_when(ctx)}: {name} is {value}; "
                    "lower the learning rate, or check the images of this site"
                )
        yield TrainRecord(ctx.round, ctx.epoch, self.site.name, dict(metrics))
        yield from self._scores(client, ctx, "test", "epoch", deployed_only=True)
        return client

    def _share(self, client: C, ctx: RoundContext) -> Generator[RoundRecord, Any, Share]:
        last = replace(ctx, epoch=ctx.epochs - 1)
        yield from self._scores(client, last, "test", "before")
        share = self.algorithm.share(client, ctx)
        if self.site.recipe.weighting == "images":
            share = replace(share, weight=share.weight * len(self.site.data.train))
        return self._checked(share, last)

    def _checked(self, share: Share, ctx: RoundContext) -> Share:
        share = packed(share, self.share_dtype)
        if broken := non_finite(share.tensors):
            raise NonFiniteShareError(
                f"site {self.site.name}, {_when(ctx)}: '{broken[0]}' of its share holds NaN or "
                "infinity; the share is not sent"
            )
        return share

    def _unpacked(self, mean: Tensors) -> Tensors:
        return mean if self.share_dtype is None else _cast(mean, torch.float32)

    def receive(self, client: C, mean: Tensors, ctx: RoundContext) -> Generator[RoundRecord, Any, C]:
        """Give the round's mean to the site; yield the scores afterwards, return the new state."""
        self._recognise(client)
        client = self.algorithm.receive(client, self._unpacked(mean), ctx)
        last = replace(ctx, epoch=ctx.epochs - 1)
        yield from self._scores(client, last, "test", "after")
        yield from self._scores(client, last, "valid", "after", deployed_only=True)
        self._rest(client)
        return client

    def deployed(self, client: C) -> Deployed:
        """Return the network that the site would deploy now."""
        self._recognise(client)
        model, weights = next(iter(self.algorithm.models(client).items()))

        def outputs(split: Split) -> Tensors:
            return {
                data.name: self._outcome(model, weights, data, split, "at the end").logits
                for data in self.scored_on
            }

        network = Deployed(
            self.site.name, model, self.site.recipe.whole(weights), outputs("valid"), outputs("test")
        )
        self._rest(client)
        return network

    def forget(self) -> None:
        """Clear the cache of outputs, because the state of the site was replaced."""
        self._known.clear()

    def _rest(self, client: C) -> None:
        """Keep the outputs of a visit's final state, but not its weights, which may be stored on disk."""
        models = self.algorithm.models(client)
        self._known = {
            key: replace(known, weights=None)
            for key, known in self._known.items()
            if known.weights is models[key[0]]
        }

    def _recognise(self, client: C) -> None:
        """Match the cached outputs with the networks of the state that a visit starts with."""
        models = self.algorithm.models(client)
        self._known = {key: replace(known, weights=models[key[0]]) for key, known in self._known.items()}

    def _scores(
        self, client: C, ctx: RoundContext, split: Split, moment: Moment, deployed_only: bool = False
    ) -> Iterator[ScoreRecord]:
        for index, (name, weights) in enumerate(self.algorithm.models(client).items()):
            deployed = index == 0
            for data in self.scored_on if deployed or not deployed_only else ():
                when = _when(ctx) if moment != "after" else f"round {ctx.round + 1}, after receiving the mean"
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
                    "images; lower the learning rate, or check the images of this site"
                )
            known = _Outcome(weights, logits, score(logits, examples.labels))
            self._known[name, data.name, split] = known
        return known


def _when(ctx: RoundContext) -> str:
    """Return round and epoch for messages, counted from 1."""
    return f"round {ctx.round + 1}, epoch {ctx.epoch + 1}"


def packed(share: Share, dtype: torch.dtype | None) -> Share:
    """Return a share as it is sent: real-valued tensors cast to a type, or unchanged without one."""
    return share if dtype is None else replace(share, tensors=_cast(share.tensors, dtype))


def _cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    return {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}
