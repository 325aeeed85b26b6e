"""The batch loop, the schedule, optimiser memory, and files that are whole or absent."""

import os
import resource
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score
from torch import nn

from prrfl import PRRFL, Examples, InProcess, Recipe, SiteData, norm_keys, run_rounds
from prrfl.errors import StateMismatchError
from prrfl.evaluation import score
from prrfl.storage.atomic import write_json, write_text
from prrfl.storage.records import append_records, read_records
from prrfl.storage.tensor_files import read_tensors, write_tensors
from prrfl.tensors import WeightedMean
from prrfl.training import Learner, Site, batches, generator, normalise, predict, scoring_batch, train_epoch
from prrfl.types import ExchangeRecord, RoundContext, ScoreRecord, Scores, TrainRecord
from tests.sites import tiny_examples, tiny_network, tiny_sites


def test_normalisation_is_the_papers():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(normalise(pixels), torch.tensor([-1.0, -0.6, 1.0]))


def test_a_lone_last_example_joins_the_batch_before():
    data = tiny_examples(17, 0)
    recipe = Recipe(tiny_network())
    assert [len(y) for _, y in batches(data, recipe, 8)] == [8, 9]
    assert [len(y) for _, y in batches(data, recipe, 16)] == [17]
    assert [len(y) for _, y in batches(tiny_examples(16, 0), recipe, 8)] == [8, 8]


def test_shuffling_keeps_pairs_and_shows_every_example_once():
    data = Examples(torch.arange(50.0).view(50, 1), torch.arange(50))
    recipe = Recipe(tiny_network(), normalise=lambda x: x)
    seen = [(x, y) for x, y in batches(data, recipe, 7, generator(1, "x"), shuffle=True)]
    inputs, labels = torch.cat([x for x, _ in seen]).squeeze(1), torch.cat([y for _, y in seen])
    assert torch.equal(inputs.long(), labels)
    assert sorted(labels.tolist()) == list(range(50))
    assert labels.tolist() != list(range(50))


def test_learning_rate_halves_every_five_rounds():
    recipe = Recipe(tiny_network())
    assert [recipe.learning_rate(t) for t in (0, 4, 5, 10)] == [0.01, 0.01, 0.005, 0.0025]


def test_one_step_of_sgd_by_hand():
    # One linear weight, one batch of two: loss = CE of logits (w x, 0).
    network = torch.nn.Linear(1, 2, bias=False)
    torch.nn.init.zeros_(network.weight)
    data = Examples(torch.tensor([[1.0], [1.0]]), torch.tensor([0, 0]))
    site = Site(
        tiny_sites(1)[0].__class__("a", data, data, data),
        Recipe(network, lr=0.1, weight_decay=0.0, normalise=lambda x: x),
    )
    epoch = train_epoch([Learner(network.state_dict())], site, RoundContext(0, 1, 0, 1, 0))
    torch.testing.assert_close(epoch.learners[0].weights["weight"], torch.tensor([[0.05], [-0.05]]))
    assert epoch.losses[0] == pytest.approx(0.6931472)
    assert torch.equal(network.weight, torch.zeros(2, 1))


def test_adam_remembers_within_a_round_and_forgets_between_rounds():
    site = Site(tiny_sites(1)[0], Recipe(tiny_network(), optimizer="adam", batch=8))
    (first,) = train_epoch(
        [Learner(site.recipe.network.state_dict())], site, RoundContext(0, 2, 0, 2, 0)
    ).learners
    assert any(key.endswith("exp_avg") for key in first.memory)
    forgotten = Learner(first.weights)
    within = RoundContext(0, 2, 1, 2, 0)
    kept, lost = (train_epoch([s], site, within).learners[0].weights["0.weight"] for s in (first, forgotten))
    assert not torch.equal(kept, lost)
    anew = RoundContext(1, 2, 0, 2, 0)
    kept, lost = (train_epoch([s], site, anew).learners[0].weights["0.weight"] for s in (first, forgotten))
    assert torch.equal(kept, lost)


class Either(nn.Module):
    """A network that uses one of two layers, depending on the images; Adam remembers only that one."""

    def __init__(self):
        super().__init__()
        self.dark, self.bright = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return (self.bright if x.mean() > 0 else self.dark)(x.mean((2, 3)))


def test_what_one_site_trained_leaves_nothing_for_the_next():
    torch.manual_seed(0)
    network = Either()
    images = tiny_examples(8, 1)
    dark = replace(images, inputs=images.inputs // 4)
    bright = replace(dark, inputs=255 - dark.inputs)
    sites = {name: SiteData(name, data, data, data) for name, data in (("d", dark), ("b", bright))}

    def trained(recipes):
        learners = dict.fromkeys(sites, Learner(network.state_dict()))
        for epoch in range(3):  # in turns, so that each site continues after the other
            for name, data in sites.items():
                ctx = RoundContext(0, 1, epoch, 3, 0)
                done = train_epoch([learners[name]], Site(data, recipes[name]), ctx)
                (learners[name],) = done.learners
        return {name: learner.weights for name, learner in learners.items()}

    recipe = Recipe(network, optimizer="adam")
    shared, apart = trained(dict.fromkeys(sites, recipe)), trained({name: replace(recipe) for name in sites})
    for name in sites:
        assert all(torch.equal(shared[name][key], apart[name][key]) for key in network.state_dict())
    assert not torch.equal(shared["d"]["dark.weight"], network.dark.weight)
    assert torch.equal(shared["d"]["bright.weight"], network.bright.weight)


def test_precisions_agree_about_as_far_as_they_can():
    data = tiny_examples(30, 1)
    network = tiny_network()
    exact, single, half = (
        predict([network.state_dict()], data, Recipe(network, precision=p))[0].double()
        for p in ("float64", "float32", "bfloat16")
    )
    torch.testing.assert_close(single, exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(half, exact, atol=0.05, rtol=0.05)
    assert not torch.equal(half, single)


def test_scores_are_scikit_learns():
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 3, generator=draw), torch.randint(3, (60,), generator=draw)
    scores = score(logits, labels)
    predicted = logits.argmax(1)
    assert scores.macro_f1 == f1_score(labels, predicted, average="macro")
    wanted = roc_auc_score(labels, logits.double().softmax(1), multi_class="ovr", average="macro")
    assert scores.auc == pytest.approx(wanted, abs=1e-12)
    assert sum(map(sum, scores.confusion)) == scores.n == 60
    assert scores.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("n", [2, 7, 40])
def test_scores_with_ties_and_absent_classes_are_scikit_learns(n, classes):
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        logits = torch.randn(n, classes, generator=draw).double().round(decimals=1)
        labels = torch.randint(classes, (n,), generator=draw)
        scores, predicted = score(logits, labels), logits.argmax(1)
        assert scores.macro_f1 == f1_score(labels, predicted, average="macro", zero_division=0.0)
        wanted = confusion_matrix(labels, predicted, labels=range(classes)).tolist()
        assert [list(row) for row in scores.confusion] == wanted
        if len(shown := labels.unique()) == 1:
            assert scores.auc is None
            continue
        areas = [roc_auc_score(labels == c, logits.softmax(1)[:, c]) for c in shown]
        assert scores.auc == pytest.approx(sum(areas) / len(areas), abs=1e-14)


def test_scores_of_a_split_that_lacks_classes():
    scores = score(torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 0]))
    assert scores.auc is None
    assert scores.recall == (0.5, None, None)


def test_weighted_mean_by_hand_and_its_type():
    mean = WeightedMean()
    mean.add({"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}, weight=1)
    mean.add({"a": torch.tensor([4.0, 8.0]), "n": torch.tensor(4)}, weight=2)
    assert mean.result()["a"].tolist() == [3.0, 6.0]
    assert mean.result()["a"].dtype == torch.float32
    assert mean.result()["n"].item() == 4
    with pytest.raises(StateMismatchError, match="site b lacks tensor 'n'"):
        mean.add({"a": torch.tensor([1.0, 2.0])}, whose="site b")


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "w.safetensors"
    write_tensors(path, {"a": torch.arange(4.0)}, {"round": "1"})
    assert torch.equal(read_tensors(path)["a"], torch.arange(4.0))
    write_text(tmp_path / "t.txt", "old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "t.txt", {"x": float("nan")})
    assert (tmp_path / "t.txt").read_text() == "old"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StateMismatchError, match="is not a complete safetensors file"):
        read_tensors(path)
    with pytest.raises(StateMismatchError, match="is missing"):
        read_tensors(tmp_path / "none")
    assert not list(tmp_path.rglob(".*"))


def test_links_and_devices_are_not_replaced(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    (tmp_path / "link.txt").symlink_to("a.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(FileExistsError, match=r"not a regular file.*" + name):
            write_text(tmp_path / name, "new")
    assert (tmp_path / "pipe").is_fifo()


def test_records_survive_the_file(tmp_path):
    scores = Scores(2, 0.7, 0.5, None, 0.5, (0.5, None), ((1, 1), (0, 0)))
    records = [
        TrainRecord(0, 1, "a", {"loss": 0.25}),
        ScoreRecord(0, 1, "a", "test", "model", True, "before", scores),
        ScoreRecord(0, 1, "a", "test", "model", True, "after", scores),
        ScoreRecord(0, 1, "a", "valid", "model", True, "after", scores),
        ExchangeRecord(0, {"a": 5}, 7),
    ]
    append_records(tmp_path / "m.jsonl", records[:1])
    append_records(tmp_path / "m.jsonl", records[1:])
    assert read_records(tmp_path / "m.jsonl") == records


def test_in_float64_no_weight_is_rounded_on_the_way():
    recipe = Recipe(tiny_network(), precision="float64")  # the network itself is float32
    weights = {
        k: t.double() + 1e-12 if t.is_floating_point() else t for k, t in recipe.network.state_dict().items()
    }
    built = recipe.build(weights).state_dict()
    assert all(torch.equal(built[key], tensor) for key, tensor in weights.items())


def volumes():
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


def signals():
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(56, 3))


def rows():
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("make", "shape"), [(volumes, (1, 6, 6, 6)), (signals, (2, 16)), (rows, (5,))], ids=lambda x: str(x)[:20]
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_inputs_need_not_be_images(make, shape, precision):
    def part(n, seed):
        draw = torch.Generator().manual_seed(seed)
        return Examples(torch.randn(n, *shape, generator=draw), torch.arange(n) % 3)

    sites = [SiteData(name, part(9, k), part(3, k + 5), part(3, k + 9)) for k, name in enumerate("ab")]
    network = make()
    recipe = Recipe(network, batch=4, normalise=lambda x: x, precision=precision)
    engine = InProcess(PRRFL(), sites, recipe)
    list(run_rounds(PRRFL(), engine, rounds=1, epochs=2, network=network))
    for models in engine.models().values():
        assert models["personalised"].keys() == network.state_dict().keys()
        assert not torch.equal(models["personalised"]["0.weight"].float(), network[0].weight)


def test_as_many_are_scored_at_a_time_as_a_device_has_room_for():
    on_cpu, on_gpu = (Recipe(tiny_network(), device=device) for device in ("cpu", "cuda"))
    assert [scoring_batch(side**2, on_cpu) for side in (32, 64, 128, 512)] == [64, 64, 16, 16]
    assert [scoring_batch(side**2, on_gpu) for side in (32, 128, 256, 512, 1024)] == [256, 256, 64, 16, 16]
    # Never more than a step takes where images are larger than that: two volumes here.
    assert [scoring_batch(128**3, replace(r, batch=2)) for r in (on_cpu, on_gpu)] == [2, 2]


def test_layers_with_two_names_stay_at_the_site_under_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), self.norm)

    network = Twice()
    assert {key for key in network.state_dict() if "stem.0" not in key} == norm_keys(network)


def test_records_that_cannot_be_written_leave_the_file_as_it_was(tmp_path):
    path, record = tmp_path / "m.jsonl", TrainRecord(0, 1, "a", {"loss": 0.25})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for before in ([], [record]):
        append_records(path, before)
        whole = path.read_bytes()
        # The system refuses to write beyond the first few kB, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                append_records(path, [record] * 50)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == whole
        assert read_records(path) == before
        path.unlink()
    with pytest.raises(FileNotFoundError, match="absent"):
        append_records(tmp_path / "absent" / "m.jsonl", [record])
