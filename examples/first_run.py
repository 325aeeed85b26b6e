"""A first run: what a communication does to each hospital's network, with FedAvg and with PRR-FL.

python examples/first_run.py    # under a minute on two cores; draws retrogress-*.png
"""

from pathlib import Path
from statistics import fmean

from prrfl import PRRFL, InProcess, Recipe, build_network, run_rounds
from prrfl.algorithms import FedAvg
from prrfl.data.synthetic import GeneratedData, generate, site_name
from prrfl.reports.meter import measure
from prrfl.reports.retrogress import draw_retrogress

ROUNDS, EPOCHS = 4, 2
DATA = GeneratedData(sites=3, images=120, size=32, seed=0)


def main() -> None:
    """Train both methods from the same start, and compare the drops at communications."""
    sites = [generate(DATA, site_name(index)) for index in range(DATA.sites)]
    network = build_network("vgg16_slim", num_classes=3, seed=0)
    for name, method in (("fedavg", FedAvg()), ("prrfl", PRRFL())):
        engine = InProcess(method, sites, Recipe(network, lr=0.03))
        records = list(run_rounds(method, engine, rounds=ROUNDS, epochs=EPOCHS, seed=0, network=network))
        draw_retrogress(records, Path(f"retrogress-{name}.png"), EPOCHS)
        drops = [drop.f1 for drop in measure(records) if drop.deployed]
        print(f"{name}: a communication costs {100 * fmean(drops):.1f} points of macro-F1 on average")


if __name__ == "__main__":
    main()
