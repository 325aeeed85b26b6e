"""FML (Shen et al., 2020, arXiv 2006.16765): a private network and a shared meme network teach each other."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from prrfl.algorithms.base import MeanOfShares
from prrfl.det import distillation
from prrfl.evaluation import macro_f1
from prrfl.tensors import detached
from prrfl.training import Learner, Site, Step, train_epoch
from prrfl.types import RoundContext, Share, Tensors


@dataclass(frozen=True, eq=False)
class FMLState:
    """The private network, which stays at the site, and the meme, which is shared."""

    private: Learner
    meme: Learner


@dataclass(frozen=True)
class FML:
    """Federated mutual learning: both learn from the labels and from each other; memes are averaged.

    Attributes:
        private_weight: alpha, the weight of the labels in the private network's loss; the rest is the meme's.
        meme_weight: beta, the weight of the labels in the meme's loss; the rest is the private network's.
    """

    private_weight: float = 0.5
    meme_weight: float = 0.5

    def start(self, initial: Tensors) -> FMLState:
        """Start both networks from the common initial weights."""
        learner = Learner(detached(initial))
        return FMLState(learner, learner)

    def train(self, client: FMLState, site: Site, ctx: RoundContext) -> tuple[FMLState, Mapping[str, float]]:
        """Train both networks for one local epoch, each teaching the other."""
        epoch = train_epoch([client.private, client.meme], site, ctx, self._objective)
        return FMLState(*epoch.learners), {
            "loss_private": epoch.losses[0],
            "loss_meme": epoch.losses[1],
            "train_f1": macro_f1(epoch.logits[0], epoch.labels),
        }

    def _objective(self, step: Step) -> list[Tensor]:
        private, meme = (output.log_softmax(1) for output in step.logits)
        a, b = self.private_weight, self.meme_weight
        return [
            a * step.losses[0] + (1 - a) * distillation(private, meme),
            b * step.losses[1] + (1 - b) * distillation(meme, private),
        ]

    def share(self, client: FMLState, ctx: RoundContext) -> Share:
        """Share the meme."""
        return Share(client.meme.weights)

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        """Average the memes."""
        return MeanOfShares()

    def receive(self, client: FMLState, mean: Tensors, ctx: RoundContext) -> FMLState:
        """Replace the meme; the private network stays unchanged."""
        return replace(client, meme=Learner(detached(mean)))

    def models(self, client: FMLState) -> Mapping[str, Tensors]:
        """Return both networks; the private one is deployed."""
        return {"private": client.private.weights, "meme": client.meme.weights}
