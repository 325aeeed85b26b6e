"""PRR-FL: a personalised network that stays, a deputy that travels, PFA between them, DET at each site."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from prrfl.algorithms.base import MeanOfShares, Traits
from prrfl.algorithms.single import train_one, without
from prrfl.det import Stage, det_epoch
from prrfl.pfa import low_band_amplitudes, low_frequency_ratio, rebuild
from prrfl.tensors import detached
from prrfl.training import Learner, Site
from prrfl.types import RoundContext, Share, Tensors


@dataclass(frozen=True, eq=False)
class PRRFLState:
    """What a site keeps: both networks, and the DET stage of the last local epoch."""

    personalised: Learner
    deputy: Learner
    stage: Stage | None = None


@dataclass(frozen=True)
class PRRFL:
    """Personalised retrogress-resilient federated learning (Chen et al., MICCAI 2021).

    Attributes:
        r0: low-frequency ratio of the first round.
        r1: low-frequency ratio approached in the last; equal to ``r0`` for the fixed-ratio ablation.
        alpha1: below this share of the personalised network's F1 the deputy recovers.
        alpha2: below this share both networks exchange.
        aggregation: ``pfa``; or ``mean``, an ablation: deputies' weights outside norm layers are averaged.
        transfer: ``staged``; or an ablation: one DET stage throughout, or ``off``: a single network, which
            the one that comes back from the server overwrites.
    """

    r0: float = 0.7
    r1: float = 0.95
    alpha1: float = 0.7
    alpha2: float = 0.9
    aggregation: Literal["pfa", "mean"] = "pfa"
    transfer: Literal["staged", "recover", "exchange", "sublimate", "off"] = "staged"

    traits: ClassVar[Traits] = Traits(
        variants=("ablated",), stages=tuple(stage.name.lower() for stage in Stage)
    )

    @property
    def variant(self) -> str:
        """``ablated`` if it sends weights instead of amplitudes, or has a single network, which it sends."""
        return "ablated" if self.aggregation != "pfa" or self.transfer == "off" else ""

    def start(self, initial: Tensors) -> PRRFLState:
        """Give the site two networks with the common initial weights."""
        return PRRFLState(Learner(detached(initial)), Learner(detached(initial)))

    def train(
        self, client: PRRFLState, site: Site, ctx: RoundContext
    ) -> tuple[PRRFLState, Mapping[str, float]]:
        """Run one DET epoch."""
        if self.transfer == "off":
            deputy, metrics = train_one(client.deputy, site, ctx)
            return PRRFLState(deputy, deputy), metrics
        fixed = None if self.transfer == "staged" else Stage[self.transfer.upper()]
        after = det_epoch(
            client.personalised, client.deputy, client.stage, site, ctx, self.alpha1, self.alpha2, fixed
        )
        return PRRFLState(after.personalised, after.deputy, after.stage), after.metrics

    def share(self, client: PRRFLState, ctx: RoundContext) -> Share:
        """Send the low-band amplitudes of the deputy; the personalised network never leaves."""
        if self.aggregation == "mean":
            return Share(without(client.deputy.weights, ctx.norm_keys))
        return Share(low_band_amplitudes(client.deputy.weights, self._ratio(ctx), ctx.norm_keys))

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        """Average the amplitudes, every site counting the same."""
        return MeanOfShares()

    def receive(self, client: PRRFLState, mean: Tensors, ctx: RoundContext) -> PRRFLState:
        """Rebuild the deputy from the mean amplitudes; the personalised network is untouched."""
        weights = client.deputy.weights
        if self.aggregation == "mean":
            rebuilt = Learner({**weights, **detached(mean)})
        else:
            rebuilt = Learner(rebuild(weights, mean, self._ratio(ctx), ctx.norm_keys))
        if self.transfer == "off":
            return PRRFLState(rebuilt, rebuilt)
        return replace(client, deputy=rebuilt, stage=None)

    def models(self, client: PRRFLState) -> Mapping[str, Tensors]:
        """Return both networks; the personalised one is deployed."""
        return {"personalised": client.personalised.weights, "deputy": client.deputy.weights}

    def _ratio(self, ctx: RoundContext) -> float:
        return low_frequency_ratio(ctx.round, ctx.rounds, self.r0, self.r1)
