"""Deputy-Enhanced Transfer (DET): Chen et al., MICCAI 2021, section 2.3.

At each site two networks train on the same batches. The site deploys the personalised network. The deputy has
just been changed by a communication, and may be weak on this site's images. Before every local epoch a stage
is chosen, which decides who teaches whom: first the deputy *recovers* by learning from the personalised
network, then both *exchange*, and finally the deputy's knowledge *sublimates* into the personalised network.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional

from prrfl.evaluation import macro_f1
from prrfl.training import Learner, Site, Step, predict, site_generator, train_epoch
from prrfl.types import RoundContext

ALPHA1, ALPHA2 = 0.7, 0.9
"""The paper's thresholds between stages."""


class Stage(IntEnum):
    """Who teaches whom during a local epoch."""

    RECOVER = 1
    """The personalised network teaches the deputy."""
    EXCHANGE = 2
    """Each teaches the other."""
    SUBLIMATE = 3
    """The deputy teaches the personalised network."""


def next_stage(
    stage: Stage | None,
    f1_deputy: float,
    f1_personalised: float,
    alpha1: float = ALPHA1,
    alpha2: float = ALPHA2,
) -> Stage:
    """Return the stage of the next local epoch (MICCAI 2021, section 2.3).

    Args:
        stage: the previous stage of this round, ``None`` in the round's first epoch.
        f1_deputy: macro-F1 of the deputy on the site's training set.
        f1_personalised: macro-F1 of the personalised network there, on the same scale.
        alpha1: the deputy recovers while its score is below this fraction of the personalised network's.
        alpha2: both exchange while it is below this fraction. EXCHANGE always follows RECOVER before
            SUBLIMATE can.

    Examples:
        >>> from prrfl.det import Stage, next_stage
        >>> next_stage(None, f1_deputy=0.85, f1_personalised=0.9)
        <Stage.RECOVER: 1>
        >>> next_stage(Stage.EXCHANGE, f1_deputy=0.85, f1_personalised=0.9)
        <Stage.SUBLIMATE: 3>
    """
    if stage is None or f1_deputy < alpha1 * f1_personalised:
        return Stage.RECOVER
    if stage is Stage.RECOVER or f1_deputy < alpha2 * f1_personalised:
        return Stage.EXCHANGE
    return Stage.SUBLIMATE


def learning(stage: Stage) -> Tensor:
    """Return (2,) for personalised network and deputy: 1 if it learns from the other in a stage, or 0.

    The personalised network does in every stage but RECOVER, the deputy in every stage but SUBLIMATE.
    """
    return torch.tensor([float(stage is not Stage.RECOVER), float(stage is not Stage.SUBLIMATE)])


def transfer_losses(learns: Tensor, personalised: Tensor, deputy: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distillation terms of the personalised network and of the deputy.

    Args:
        learns: (2,) weights of the two terms, :func:`learning` of the stage. A tensor, so that a step that
            was recorded for a GPU fits every stage.
        personalised: (N, C) logits.
        deputy: (N, C) logits.

    Returns:
        KL(softmax d ‖ softmax p) with d detached, and KL(softmax p ‖ softmax d) with p detached; summed over
        classes, mean over the batch; times their weights.
    """
    log_p, log_d = personalised.log_softmax(1), deputy.log_softmax(1)
    return learns[0] * distillation(log_p, log_d), learns[1] * distillation(log_d, log_p)


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of (N, C) log-probabilities, mean over the batch, the teacher detached."""
    return functional.kl_div(student, teacher.detach(), reduction="batchmean", log_target=True)


def objective(step: Step) -> list[Tensor]:
    """Return the losses of both networks: cross-entropy, plus the distillation terms of the stage."""
    terms = transfer_losses(step.given["learns"], *step.logits)
    return [loss + term for loss, term in zip(step.losses, terms, strict=True)]


@dataclass(frozen=True)
class Schedule:
    """How the stage of each local epoch is chosen.

    Attributes:
        alpha1: see :func:`next_stage`.
        alpha2: see :func:`next_stage`.
        fixed: always this stage, whatever the scores: an ablation.
    """

    alpha1: float = ALPHA1
    alpha2: float = ALPHA2
    fixed: Stage | None = None

    def choose(
        self, stage: Stage | None, ctx: RoundContext, f1_deputy: float, f1_personalised: float
    ) -> Stage:
        """Return the stage of the local epoch ``ctx.epoch``, given the previous stage and both scores.

        With a single local epoch per round there is no time to recover first: the stage is EXCHANGE.
        """
        if self.fixed is not None:
            return self.fixed
        if ctx.epochs == 1:
            return Stage.EXCHANGE
        before = None if ctx.epoch == 0 else stage
        return next_stage(before, f1_deputy, f1_personalised, self.alpha1, self.alpha2)


PAPER = Schedule()
"""The paper's schedule."""


@dataclass(frozen=True, eq=False)
class Transfer:
    """The result of one DET epoch: both networks, the stage, and the metrics."""

    personalised: Learner
    deputy: Learner
    stage: Stage
    metrics: dict[str, float]


def det_epoch(
    personalised: Learner,
    deputy: Learner,
    stage: Stage | None,
    site: Site,
    ctx: RoundContext,
    schedule: Schedule = PAPER,
) -> Transfer:
    """Run one local epoch of DET: score both networks, choose the stage, train both on the same batches.

    Differs from the published code, which fails if a last batch has one image or a round has one local epoch.
    Both networks are scored on the same augmented images.

    Args:
        personalised: the network that the site deploys.
        deputy: the network that takes part in communications.
        stage: the previous stage; ignored in a round's first epoch.
        site: data and recipe.
        ctx: the current moment.
        schedule: how the stage is chosen.
    """
    data = site.data.train
    logits_p, logits_d = predict(
        [personalised.weights, deputy.weights], data, site.recipe, site_generator(site, ctx, "score")
    )
    f1_personalised, f1_deputy = macro_f1(logits_p, data.labels), macro_f1(logits_d, data.labels)
    stage = schedule.choose(stage, ctx, f1_deputy, f1_personalised)
    epoch = train_epoch([personalised, deputy], site, ctx, objective, {"learns": learning(stage)})
    return Transfer(
        personalised=epoch.learners[0],
        deputy=epoch.learners[1],
        stage=stage,
        metrics={
            "stage": float(stage),
            "f1_personalised": f1_personalised,
            "f1_deputy": f1_deputy,
            "loss_personalised": epoch.losses[0],
            "loss_deputy": epoch.losses[1],
            "train_f1": macro_f1(epoch.logits[0], epoch.labels),
        },
    )
