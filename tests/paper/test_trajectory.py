"""Whole runs in float64, epoch by epoch, against the authors' code: PRR-FL, and its follow-up."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from prrfl import PRRFL, InProcess, Recipe, vgg16_slim
from prrfl.algorithms import PRRFLImbalance
from prrfl.algorithms.prototyped import Prototyped
from prrfl.engine import rounds_from
from prrfl.losses import CPA, CrossEntropy
from prrfl.tensors import head_keys, norm_keys
from prrfl.types import RoundContext, ScoreRecord, TrainRecord
from tests.reference import VECTORS, reference_sites, reference_weights

pytestmark = pytest.mark.slow
convolve = functional.conv2d

FOLLOW_UP = CPA(init_iter=1, global_proto="avg")
RUNS = {
    "trajectory": (PRRFL(), CrossEntropy()),
    "imbalance": (Prototyped(PRRFLImbalance(), FOLLOW_UP, "fc2.linear.weight"), FOLLOW_UP),
}


def by_one_product(x, weight, bias=None, stride=1, padding=0, *others):
    """Convolve small images by one product of matrices for the whole batch.

    In float64, PyTorch multiplies image by image, and reads all weights for each. Where images are of 4 px or
    less, that takes two to four times as long, for the same sums but for the order of their terms.
    """
    if x.shape[-1] > 4:
        return convolve(x, weight, bias, stride, padding, *others)
    columns = functional.unfold(x, weight.shape[2:], padding=padding)  # (N, C * 9, pixels)
    sums = weight.flatten(1) @ columns.transpose(0, 1).flatten(1)
    result = sums.unflatten(1, (len(x), *x.shape[2:])).transpose(0, 1)
    return result if bias is None else result + bias[:, None, None]


@pytest.fixture(scope="module", params=RUNS)
def outcome(request):
    method, loss = RUNS[request.param]
    network = vgg16_slim().double()
    network.load_state_dict(reference_weights())
    recipe = Recipe(network, shuffle=False, normalise=lambda x: x, precision="float64", loss=loss)
    engine = InProcess(method, reversed(reference_sites()), recipe)
    start = RoundContext(0, 3, 0, 5, 0, norm_keys(network), head_keys(network), (5408, 941, 994))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "conv2d", by_one_product)
        records = list(rounds_from(start, method, engine))
    return SimpleNamespace(name=request.param, records=records, models=engine.models())


@pytest.mark.parametrize("bias", [None, torch.randn(5, dtype=torch.float64)])
def test_the_product_is_a_convolution(bias):
    x, weight = torch.randn(3, 4, 4, 4).double(), torch.randn(5, 4, 3, 3).double()
    found = by_one_product(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)
    torch.testing.assert_close(found, convolve(x, weight, bias, padding=1), rtol=1e-12, atol=1e-12)


def test_every_stage_loss_and_score(outcome):
    trained = {(r.round, r.epoch, r.client): r.metrics for r in outcome.records if isinstance(r, TrainRecord)}
    scored = {
        (r.round, r.epoch, r.client): r.scores
        for r in outcome.records
        if isinstance(r, ScoreRecord) and r.moment == "epoch"
    }
    rows = json.loads((VECTORS / f"{outcome.name}_log.json").read_text())
    assert len(rows) == len(trained) == len(scored) == 60
    for row in rows:
        key = (row["round"], row["epoch"], str(row["client"]))
        ours, scores = trained[key], scored[key]
        assert ours["stage"] == row["stage"], key
        found = [
            100 * ours["f1_personalised"], 100 * ours["f1_deputy"], ours["loss_personalised"],
            ours["loss_deputy"], 100 * ours["train_f1"], 100 * scores.macro_f1, 100 * scores.auc,
        ]  # fmt: skip
        wanted = [
            row[name]
            for name in (
                "f1_personal", "f1_deputy", "loss_personal", "loss_deputy", "train_f1",
                "test_f1", "test_auc",
            )
        ]  # fmt: skip
        np.testing.assert_allclose(found, wanted, atol=1e-9, rtol=1e-9, err_msg=str(key))


def test_final_tensors(outcome):
    arrays = np.load(VECTORS / f"{outcome.name}_final.npz")
    final = dict(zip(arrays["names"].tolist(), arrays["numbers"], strict=True))
    checked = 0
    for client, networks in outcome.models.items():
        for role, tensors in networks.items():
            for key, tensor in tensors.items():
                name = f"{'personal' if role == 'personalised' else role}_{client}_{key}"
                if name not in final:
                    continue
                flat = tensor.double().flatten()
                ours = [flat.sum().item(), flat.norm().item(), *flat[:6].tolist()]
                np.testing.assert_allclose(ours, final[name][: len(ours)], atol=1e-9, rtol=1e-9, err_msg=name)
                checked += 1
    assert checked == len(final) == 568


# That of the follow-up depends on prototypes that the run no longer has.
@pytest.mark.parametrize("outcome", ["trajectory"], indirect=True)
def test_the_reference_averages_its_test_loss_over_batches(outcome):
    # Ours is the mean over images; fed the final networks batch by batch, it gives the reference's figure.
    tests = {site.name: site.test for site in reference_sites()}
    last = json.loads((VECTORS / "trajectory_log.json").read_text())[-4:]
    network = vgg16_slim().double().eval()
    for row in last:
        site = str(row["client"])
        network.load_state_dict(dict(outcome.models[site]["personalised"]))
        with torch.inference_mode():
            logits = network(tests[site].inputs)
        parts = zip(logits.split(16), tests[site].labels.split(16), strict=True)
        loss = np.mean([torch.nn.functional.cross_entropy(a, b).item() for a, b in parts])
        np.testing.assert_allclose(loss, row["test_loss"], atol=1e-9)
