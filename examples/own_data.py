"""Train on your own images, then use a hospital's network.

python examples/own_data.py split.csv nv,bkl,mel

The first argument is a manifest (columns path, label, site, split, group), or data in any other format of
docs/data.md. The second one names the classes.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from prrfl import PRRFL, InProcess, Recipe, build_network, run_rounds
from prrfl.data.augment import Augmentation
from prrfl.data.sources import load_sites
from prrfl.training import normalise
from prrfl.types import ScoreRecord

IMAGE_SIZE, ROUNDS, EPOCHS = 64, 6, 3


def main(data: Path, classes: tuple[str, ...]) -> None:
    """Train PRR-FL, print and save each site's network, and predict one image."""
    sites = load_sites(data, image_size=IMAGE_SIZE, classes=classes)
    for site in sites:
        print(f"{site.name}: {len(site.train)} images to train on, {len(site.test)} to test on")

    network = build_network("vgg16_slim", num_classes=len(classes), seed=0)
    method = PRRFL()
    engine = InProcess(method, sites, Recipe(network, augment=Augmentation()))
    for record in run_rounds(method, engine, rounds=ROUNDS, epochs=EPOCHS, network=network):
        if isinstance(record, ScoreRecord) and record.deployed and record.moment == "after":
            f1 = 100 * record.scores.macro_f1
            print(f"round {record.round + 1}, {record.client}, {record.split}: macro-F1 {f1:.1f} %")

    for name, networks in engine.models().items():
        save_file(dict(networks["personalised"]), f"{name}.safetensors")

    site = sites[0]
    network.load_state_dict(dict(engine.models()[site.name]["personalised"]))
    with torch.inference_mode():
        probabilities = network.eval()(normalise(site.test.inputs[:1])).softmax(1)[0]
    print(f"first test image of {site.name}:")
    for label, probability in zip(classes, probabilities.tolist(), strict=True):
        print(f"  {label}: {probability:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2].split(",")))
