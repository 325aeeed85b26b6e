"""PRR-FL: a personalised network stays at the site, a deputy is shared by PFA, and DET lets both learn."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from prrfl.algorithms.base import MeanOfShares, Traits
from prrfl.algorithms.single import train_one, without
from prrfl.det import ALPHA1, ALPHA2, Schedule, Stage, det_epoch
from prrfl.pfa import (
    R0,
    R1,
    low_band_amplitudes,
    low_band_spectra,
    low_frequency_ratio,
    rebuild,
    rebuild_with_phases,
)
from prrfl.tensors import detached
from prrfl.training import Learner, Site
from prrfl.types import RoundContext, Share, Tensors

Aggregation = Literal["pfa", "pfa-phase", "mean"]
"""How deputies are combined."""

TransferMode = Literal["staged", "recover", "exchange", "sublimate", "off"]
"""How the two networks of a site teach each other."""


@dataclass(frozen=True, eq=False)
class PRRFLState:
    """State of a site: both networks, and the DET stage of the last local epoch."""

    personalised: Learner
    deputy: Learner
    stage: Stage | None = None


@dataclass(frozen=True)
class PRRFL:
    """Personalised retrogress-resilient federated learning (Chen et al., MICCAI 2021).

    Attributes:
        r0: low-frequency ratio of the first round.
        r1: low-frequency ratio approached in the last round; equal to ``r0`` for the fixed-ratio ablation.
        alpha1: the deputy recovers while its F1 is below this fraction of the personalised network's.
        alpha2: both networks exchange while the deputy's F1 is below this fraction.
        aggregation: ``pfa``; ``pfa-phase``, which averages phases too (Chen et al., IEEE TMI 2022); or
            ``mean``, an ablation: the plain mean of the deputies' weights outside norm layers.
        transfer: ``staged``; or an ablation: a single DET stage in every epoch, or ``off``: one network per
            site, which each communication changes.

    Examples:
        >>> from prrfl import PRRFL
        >>> PRRFL(transfer="off")
        PRRFL(r0=0.7, r1=0.95, alpha1=0.7, alpha2=0.9, aggregation='pfa', transfer='off')
    """

    r0: float = R0
    r1: float = R1
    alpha1: float = ALPHA1
    alpha2: float = ALPHA2
    aggregation: Aggregation = "pfa"
    transfer: TransferMode = "staged"

    traits: ClassVar[Traits] = Traits(
        variants=("phases", "ablated"), stages=tuple(stage.name.lower() for stage in Stage)
    )

    @property
    def variant(self) -> str:
        """What it sends more than amplitudes of a deputy.

        ``ablated``: weights, or those of the network that the site uses; ``phases``: phases too.
        """
        if self.aggregation == "mean" or self.transfer == "off":
            return "ablated"
        return "phases" if self.aggregation == "pfa-phase" else ""

    def start(self, initial: Tensors) -> PRRFLState:
        """Start both networks from the common initial weights."""
        learner = Learner(detached(initial))
        return PRRFLState(learner, learner)

    def train(
        self, client: PRRFLState, site: Site, ctx: RoundContext
    ) -> tuple[PRRFLState, Mapping[str, float]]:
        """Run one DET epoch."""
        if self.transfer == "off":
            deputy, metrics = train_one(client.deputy, site, ctx)
            return PRRFLState(deputy, deputy), metrics
        fixed = None if self.transfer == "staged" else Stage[self.transfer.upper()]
        schedule = Schedule(self.alpha1, self.alpha2, fixed)
        after = det_epoch(client.personalised, client.deputy, client.stage, site, ctx, schedule)
        return PRRFLState(after.personalised, after.deputy, after.stage), after.metrics

    def share(self, client: PRRFLState, ctx: RoundContext) -> Share:
        """Share the low-frequency amplitudes of the deputy; the personalised network stays at the site."""
        weights = client.deputy.weights
        match self.aggregation:
            case "pfa":
                return Share(low_band_amplitudes(weights, self._ratio(ctx), ctx.norm_keys))
            case "pfa-phase":
                return Share(low_band_spectra(weights, self._ratio(ctx), ctx.norm_keys, ctx.head_keys))
            case "mean":
                return Share(without(weights, ctx.norm_keys))

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        """Average what is shared, all sites with the same weight."""
        return MeanOfShares()

    def receive(self, client: PRRFLState, mean: Tensors, ctx: RoundContext) -> PRRFLState:
        """Rebuild the deputy from the mean amplitudes; the personalised network stays unchanged."""
        weights, ratio = client.deputy.weights, self._ratio(ctx)
        match self.aggregation:
            case "pfa":
                weights = rebuild(weights, mean, ratio, ctx.norm_keys)
            case "pfa-phase":
                weights = rebuild_with_phases(weights, mean, ratio, ctx.norm_keys, ctx.head_keys)
            case "mean":
                weights = {**weights, **detached(mean)}
        rebuilt = Learner(weights)
        if self.transfer == "off":
            return PRRFLState(rebuilt, rebuilt)
        return replace(client, deputy=rebuilt, stage=None)

    def models(self, client: PRRFLState) -> Mapping[str, Tensors]:
        """Return both networks; the personalised one is deployed."""
        return {"personalised": client.personalised.weights, "deputy": client.deputy.weights}

    def _ratio(self, ctx: RoundContext) -> float:
        return low_frequency_ratio(ctx.round, ctx.rounds, self.r0, self.r1)
