"""A method of your own in a few lines: each hospital keeps its own last layer, and shares the rest.

python examples/own_method.py    # under a minute on two cores

The idea is FedPer's (Arivazhagan et al., arXiv 1912.00818). docs/extending.md explains the rules for methods.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from prrfl import InProcess, Recipe, build_network, run_rounds
from prrfl.algorithms import FedAvg
from prrfl.algorithms.base import MeanOfShares
from prrfl.algorithms.single import train_one
from prrfl.data.synthetic import GeneratedData, generate, site_name
from prrfl.reports.meter import measure
from prrfl.tensors import detached
from prrfl.training import Learner, Site
from prrfl.types import RoundContext, Share, Tensors

ROUNDS, EPOCHS = 4, 2
DATA = GeneratedData(sites=3, images=120, size=32, seed=0)


@dataclass(frozen=True)
class OwnHead:
    """Federated averaging in which the last layer never leaves the site.

    Attributes:
        head: names of the last layer's tensors begin with this.
    """

    head: str = "fc2."

    def start(self, initial: Tensors) -> Learner:
        """Give the site the common initial network."""
        return Learner(detached(initial))

    def train(self, client: Learner, site: Site, ctx: RoundContext) -> tuple[Learner, Mapping[str, float]]:
        """Train for one local epoch."""
        return train_one(client, site, ctx)

    def share(self, client: Learner, ctx: RoundContext) -> Share:
        """Send all tensors but those of the last layer. This is everything that leaves the site."""
        return Share({key: w for key, w in client.weights.items() if not key.startswith(self.head)})

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        """Average the shares."""
        return MeanOfShares()

    def receive(self, client: Learner, mean: Tensors, ctx: RoundContext) -> Learner:
        """Take the mean over, except for the last layer."""
        return Learner({**client.weights, **mean})

    def models(self, client: Learner) -> Mapping[str, Tensors]:
        """Return the one network."""
        return {"model": client.weights}


def main() -> None:
    """Compare the method with FedAvg: drops at communications, and the bytes that a site sends."""
    sites = [generate(DATA, site_name(index)) for index in range(DATA.sites)]
    network = build_network("vgg16_slim", num_classes=3, seed=0)
    for method in (FedAvg(), OwnHead()):
        engine = InProcess(method, sites, Recipe(network, lr=0.03))
        records = list(run_rounds(method, engine, rounds=ROUNDS, epochs=EPOCHS, seed=0, network=network))
        drop = 100 * fmean(drop.f1 for drop in measure(records) if drop.deployed)
        sent = [size for r in records if r.kind == "exchange" for size in r.bytes_up.values()]
        name = type(method).__name__
        print(f"{name}: {drop:.1f} points lost at a communication, {fmean(sent) / 1e6:.2f} MB sent per site")


if __name__ == "__main__":
    main()
