"""Nothing within an epoch waits for a GPU: shown on the meta device, whose numbers nobody can read."""

from contextlib import nullcontext

import pytest
import torch

from prrfl import PRRFL, Examples, Recipe, SiteData, build_network, det
from prrfl.algorithms import ALGORITHMS
from prrfl.data.augment import Augmentation
from prrfl.losses import CrossEntropy
from prrfl.training import Site, generator, predict
from prrfl.types import RoundContext

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")

BATCHES = 3


class Device:
    """A site on the meta device, with a loss that counts how often it is computed."""

    def __init__(self, monkeypatch):
        # The meta device has no autocast.
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
        data = Examples(
            torch.empty(16 * BATCHES, 3, 32, 32, dtype=torch.uint8, device="meta"),
            torch.empty(16 * BATCHES, dtype=torch.int64, device="meta"),
        )
        self.loss = Counting()
        recipe = Recipe(build_network("vgg16_slim"), augment=Augmentation(), loss=self.loss, device="meta")
        self.site = Site(SiteData("a", data, data, data), recipe)


class Counting(CrossEntropy):
    """The cross-entropy; counts how often it is computed."""

    calls = 0

    def __call__(self, logits, labels, constants):
        object.__setattr__(self, "calls", self.calls + 1)
        return super().__call__(logits, labels, constants)


def where_it_stopped(caught):
    """Return the last function of the package that was reached when a number was asked for."""
    return [entry.name for entry in caught.traceback if "prrfl" in str(entry.path)][-1]


def test_a_number_cannot_be_read_there(monkeypatch):
    site = Device(monkeypatch).site
    with pytest.raises(RuntimeError, match="meta tensors"):
        bool(site.data.train.labels.sum() > 0)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fml"])
def test_training_asks_for_no_number_before_the_epoch_is_over(monkeypatch, name):
    device, method = Device(monkeypatch), ALGORITHMS[name]()
    start = method.start(device.site.recipe.network.state_dict())
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor") as caught:
        method.train(start, device.site, RoundContext(0, 1, 0, 1, 0))
    assert where_it_stopped(caught) == "<dictcomp>"  # of weights_of, which takes them home
    assert any(entry.name == "weights_of" for entry in caught.traceback)
    assert device.loss.calls == BATCHES * (2 if name == "fml" else 1)


@pytest.mark.parametrize("stage", ["recover", "exchange", "sublimate"])
def test_nor_does_det(monkeypatch, stage):
    device, method = Device(monkeypatch), PRRFL(transfer=stage)
    monkeypatch.setattr(det, "predict", lambda *_: (None, None))
    monkeypatch.setattr(det, "macro_f1", lambda *_: 0.5)
    start = method.start(device.site.recipe.network.state_dict())
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor") as caught:
        method.train(start, device.site, RoundContext(0, 1, 0, 2, 0))
    assert any(entry.name == "weights_of" for entry in caught.traceback)
    assert device.loss.calls == BATCHES * 2


def test_nor_does_scoring_before_its_end(monkeypatch):
    site = Device(monkeypatch).site
    weights = site.recipe.network.state_dict()
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor") as caught:
        predict([weights, weights], site.data.train, site.recipe, generator(0))
    assert where_it_stopped(caught) == "predict"
    assert ".cpu()" in str(caught.traceback[-1].statement)
