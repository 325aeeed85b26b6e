"""FedAvg with local fine-tuning, also called local adaptation (Yu et al., 2020, arXiv 2002.04758).

Each site deploys the mean after some local epochs of training on its own images. In FedAvg every round
begins with exactly that: the site trains the mean that it received. So the deployed network is the site's
network after these epochs, and a communication does not change it. This costs nothing more than FedAvg, in
arithmetic or in bytes.

Differs from the paper and its code, which fine-tune the mean once, after the last round: here the network
that is deployed after round t comes from the mean of round t - 1. The mean of the last round is not tuned;
it is scored as the second network, ``global``. The paper's other adaptations (multi-task learning,
distillation) are not used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from prrfl.algorithms.base import MeanOfShares
from prrfl.algorithms.single import train_one
from prrfl.tensors import detached
from prrfl.training import Learner, Site
from prrfl.types import RoundContext, Share, Tensors


@dataclass(frozen=True, eq=False)
class FineTuneState:
    """The network in training, which is shared, and the deployed one."""

    learner: Learner
    tuned: Tensors


@dataclass(frozen=True)
class FineTune:
    """Federated averaging that deploys the mean after local fine-tuning.

    Attributes:
        tune_epochs: local epochs of fine-tuning, at most those of a round; 0 is all of them.
    """

    tune_epochs: int = 0

    def start(self, initial: Tensors) -> FineTuneState:
        """Start from the common initial network."""
        weights = detached(initial)
        return FineTuneState(Learner(weights), weights)

    def train(
        self, client: FineTuneState, site: Site, ctx: RoundContext
    ) -> tuple[FineTuneState, Mapping[str, float]]:
        """Train for one local epoch; in the first ones of a round, the result is deployed."""
        learner, metrics = train_one(client.learner, site, ctx)
        tunes = ctx.epoch < (self.tune_epochs or ctx.epochs)
        return FineTuneState(learner, learner.weights if tunes else client.tuned), metrics

    def share(self, client: FineTuneState, ctx: RoundContext) -> Share:
        """Share all weights of the network in training."""
        return Share(client.learner.weights)

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        """Average the weights."""
        return MeanOfShares()

    def receive(self, client: FineTuneState, mean: Tensors, ctx: RoundContext) -> FineTuneState:
        """Start the next round's training from the mean; the deployed network stays as it is."""
        return replace(client, learner=Learner(detached(mean)))

    def models(self, client: FineTuneState) -> Mapping[str, Tensors]:
        """Return the tuned network, which is deployed, and the shared one."""
        return {"tuned": client.tuned, "global": client.learner.weights}
