"""One visit to a site, shared by every engine: train, score, share; later receive, score."""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic

from prrfl.algorithms.base import Algorithm, C
from prrfl.errors import NonFiniteShareError
from prrfl.evaluation import score
from prrfl.tensors import non_finite
from prrfl.training import Site, predict
from prrfl.types import (
    Moment,
    RoundContext,
    RoundRecord,
    ScoreRecord,
    Scores,
    Share,
    Split,
    Tensors,
    TrainRecord,
)


@dataclass(eq=False)
class Visitor(Generic[C]):
    """Carries an algorithm to one site.

    It remembers the last scores of each network, because scoring the same weights twice would give the same.
    """

    algorithm: Algorithm[C]
    site: Site
    _known: dict[tuple[str, Split], tuple[Tensors, Scores]] = field(default_factory=dict)

    def train(self, client: C, ctx: RoundContext) -> Generator[RoundRecord, Any, tuple[C, Share]]:
        """Run the round's local epochs; yield records as they arise, return the new state and the share.

        Raises:
            NonFiniteShareError: if a loss or a tensor to be sent is NaN or infinite.
        """
        for epoch in range(ctx.epochs):
            now = replace(ctx, epoch=epoch)
            client, metrics = self.algorithm.train(client, self.site, now)
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise NonFiniteShareError(
                        f"site {self.site.name}, round {ctx.round}, epoch {epoch}: {name} is {value}; "
                        "lower the learning rate, or look for broken inputs at this site"
                    )
            yield TrainRecord(ctx.round, epoch, self.site.name, dict(metrics))
            yield from self._scores(client, now, "test", "epoch", deployed_only=True)
        last = replace(ctx, epoch=ctx.epochs - 1)
        yield from self._scores(client, last, "test", "before")
        share = self.algorithm.share(client, ctx)
        if broken := non_finite(share.tensors):
            raise NonFiniteShareError(
                f"site {self.site.name}, round {ctx.round}: '{broken[0]}' of its share holds NaN or "
                "infinity; the share is not sent"
            )
        return client, share

    def receive(self, client: C, mean: Tensors, ctx: RoundContext) -> Generator[RoundRecord, Any, C]:
        """Hand the round's mean to the site; yield the scores after it, return the new state."""
        client = self.algorithm.receive(client, mean, ctx)
        last = replace(ctx, epoch=ctx.epochs - 1)
        yield from self._scores(client, last, "test", "after")
        yield from self._scores(client, last, "valid", "after", deployed_only=True)
        return client

    def _scores(
        self, client: C, ctx: RoundContext, split: Split, moment: Moment, deployed_only: bool = False
    ) -> Iterator[ScoreRecord]:
        for index, (name, weights) in enumerate(self.algorithm.models(client).items()):
            deployed = index == 0
            if deployed or not deployed_only:
                scores = self._score(name, weights, split)
                yield ScoreRecord(ctx.round, ctx.epoch, self.site.name, split, name, deployed, moment, scores)

    def _score(self, name: str, weights: Tensors, split: Split) -> Scores:
        before = self._known.get((name, split))
        if before is None or before[0] is not weights:
            data = self.site.data.split(split)
            (logits,) = predict([weights], data, self.site.recipe)
            if not logits.isfinite().all():
                raise NonFiniteShareError(
                    f"site {self.site.name}: the {name} network gives NaN or infinity on its {split} images; "
                    "lower the learning rate, or look for broken inputs at this site"
                )
            before = (weights, score(logits, data.labels))
            self._known[name, split] = before
        return before[1]
