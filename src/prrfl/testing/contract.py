"""The contract: what every method, network and loss must keep to, whatever it does inside."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from prrfl.algorithms import Algorithm, traits_of
from prrfl.algorithms.base import C
from prrfl.algorithms.prototyped import Prototyped, taken_apart
from prrfl.engine import InProcess, rounds_from
from prrfl.errors import NonFiniteShareError
from prrfl.losses import Loss
from prrfl.models.freezing import frozen_keys
from prrfl.storage.tensor_files import read_state, write_state
from prrfl.tensors import head_keys, norm_keys
from prrfl.testing.sites import TINY_CLASSES, tiny_examples, tiny_network, tiny_sites
from prrfl.training import Learner, Recipe, Site, train_epoch
from prrfl.types import RoundContext, RoundRecord, ScoreRecord, SiteData, Tensors

Models = Mapping[str, Mapping[str, Tensors]]


def check_method(method: Algorithm[Any]) -> None:
    """Check a method: the same bits in any order of sites, pure functions, states that can be stored.

    Args:
        method: an instance, with the hyper-parameters to check it with.

    Raises:
        AssertionError: saying what it does not keep to.
    """
    for check in METHOD_CHECKS:
        check(method)


def check_network(make: Callable[[int], nn.Module], image_size: int = 64) -> None:
    """Check a network: outputs, determinism, and that its state_dict holds all that it remembers.

    Args:
        make: function or class; gets the number of classes.
        image_size: width and height of the images to try, in pixels.

    Raises:
        AssertionError: saying what it does not keep to.
    """
    torch.manual_seed(0)
    network = make(TINY_CLASSES)
    assert isinstance(network, nn.Module), f"expected a torch.nn.Module, got {type(network).__name__}"
    images = torch.rand(2, 3, image_size, image_size) * 2 - 1
    network.eval()
    with torch.inference_mode():
        logits = network(images)
        assert isinstance(logits, Tensor), f"expected a tensor of logits, got {type(logits).__name__}"
        assert logits.shape == (2, TINY_CLASSES), (
            f"expected logits (2, {TINY_CLASSES}), got {tuple(logits.shape)}"
        )
        other = make(TINY_CLASSES).eval()
        other.load_state_dict(network.state_dict())
        assert torch.equal(other(images), logits), (
            "a network rebuilt from its state_dict gives other outputs; keep all that it remembers in "
            "parameters and persistent buffers"
        )
    assert head_keys(network), "expected a linear layer that computes the logits"
    examples = tiny_examples(6, 0, image_size)
    site = Site(SiteData("site", examples, examples, examples), Recipe(network, batch=3))
    epoch = train_epoch([Learner(network.state_dict())], site, moment(site.recipe))
    trained = epoch.learners[0].weights
    still = [
        key for key, _ in network.named_parameters() if torch.equal(trained[key], network.state_dict()[key])
    ]
    assert len(still) < len(list(network.parameters())), "training changes none of its parameters"


def check_loss(loss: Loss) -> None:
    """Check a loss: a finite scalar that depends on the logits, and counts as it declares.

    Raises:
        AssertionError: saying what it does not keep to.
    """
    assert loss.counts in ("none", "site", "federation"), f"counts is {loss.counts!r}"
    counts = torch.empty(0) if loss.counts == "none" else torch.tensor([40, 9, 1])
    constants = loss.constants(counts)
    assert all(isinstance(value, Tensor) for value in constants.values()), "constants are not all tensors"
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(8, TINY_CLASSES, generator=draw, requires_grad=True)
    labels = torch.arange(8) % TINY_CLASSES
    value = loss(logits, labels, constants)
    assert value.ndim == 0, f"expected the mean over the batch, a scalar; got shape {tuple(value.shape)}"
    assert value.isfinite(), f"the loss is {value.item()}"
    (slope,) = torch.autograd.grad(value, logits)
    assert slope.any(), "the loss does not depend on the logits"
    assert torch.equal(loss(logits, labels, constants), value), "the same batch gives another loss"


def check_same_bits(method: Algorithm[Any]) -> None:
    """The same seed gives the same bits, whatever the order of sites; another seed gives others."""
    sites = tiny_sites(2)
    # With Adam, because it has a memory.
    first, second, other = (
        run(method, order, seed=seed, optimizer="adam")
        for order, seed in ((sites, 3), (sites[::-1], 3), (sites, 4))
    )
    assert first[0] == second[0], "another order of sites gives other records"
    assert same_bits(first[1], second[1]), "another order of sites gives other weights"
    assert not same_bits(first[1], other[1]), "the seed has no effect"


def check_weights(method: Algorithm[Any]) -> None:
    """A share counts by its weight if the sum of shares is enough for the method. Prototypes do not."""
    recipe = recipe_of(method)
    ctx, initial = moment(recipe), recipe.network.state_dict()
    aggregator = method.aggregator(ctx)
    if not aggregator.only_adds:
        return
    states = [method.start({key: tensor * c for key, tensor in initial.items()}) for c in (1, 5)]
    shares = [method.share(state, ctx) for state in states]
    for name, share, weight in zip("ab", shares, (1.0, 3.0), strict=True):
        aggregator.add(name, replace(share, weight=share.weight * weight))
    for key, found in taken_apart(aggregator.result())[0].items():
        first, second = (share.tensors[key].double() for share in shares)
        assert torch.allclose(found.double(), (first + 3 * second) / 4, rtol=1e-4, atol=1e-6), (
            f"a share that weighs three times as much does not count three times as much in '{key}'"
        )


def check_purity(method: Algorithm[Any]) -> None:
    """No function changes its arguments, and training changes the state."""
    site = Site(tiny_sites()[0], recipe_of(method))
    ctx = moment(site.recipe)
    start = method.start(site.recipe.network.state_dict())
    untouched = [tensor.clone() for tensor in tensors_of(start)]
    trained, _ = method.train(start, site, ctx)
    assert _equal(tensors_of(start), untouched), "train changes its argument; return a new state"
    assert not _equal(tensors_of(trained), untouched), "train changes nothing"
    untouched = [tensor.clone() for tensor in tensors_of(trained)]
    aggregator = method.aggregator(ctx)
    aggregator.add("a", method.share(trained, ctx))
    aggregator.add("b", method.share(start, ctx))
    method.receive(trained, aggregator.result(), ctx)
    assert _equal(tensors_of(trained), untouched), "share or receive changes its argument; return a new state"


def check_absence(method: Algorithm[Any]) -> None:
    """An absent site keeps what it has."""
    away = run(method, tiny_sites(), present=lambda ctx: {"s0", "s2"} if ctx.round == 0 else {"s0"})
    initial = network_of(method).state_dict()
    for tensors in away[1]["s1"].values():
        assert all(torch.equal(tensors[key], initial[key]) for key in initial), (
            "a site that never took part has other weights than at the start"
        )
    scored = {r.client for r in away[0] if isinstance(r, ScoreRecord) and r.round == 1}
    assert scored == {"s0"}, (
        f"only s0 took part in the second round, but {', '.join(sorted(scored))} were scored"
    )


def check_small_batches(method: Algorithm[Any]) -> None:
    """A last batch of one image, a batch larger than the data, and a single epoch are no trouble."""
    for n, batch, epochs in ((17, 8, 1), (9, 64, 1), (17, 16, 2)):
        made = recipe_of(method, batch=batch)
        engine = InProcess(method, tiny_sites(2, n), made)
        records = list(rounds_from(moment(made, 1, epochs), method, engine))
        found = sum(r.kind == "train" for r in records)
        assert found == 2 * epochs, f"expected a record of each local epoch, {2 * epochs}; got {found}"


def check_breakdown(method: Algorithm[Any]) -> None:
    """Training that diverges is reported with site, round and epoch."""
    try:
        run(method, tiny_sites(), lr=1e30)
        message = ""
    except NonFiniteShareError as error:
        message = str(error)
    assert message, "training at a learning rate of 1e30 was not noticed"
    assert "s0, round 1, epoch 1" in message, f"the error names no site, round and epoch: {message}"


def check_storage(method: Algorithm[Any]) -> None:
    """A state that was written and read again trains on to the same bits: at any moment of a round."""
    site = Site(tiny_sites()[0], recipe_of(method, optimizer="adam"))
    ctx = moment(site.recipe)
    start = method.start(site.recipe.network.state_dict())
    trained, _ = method.train(start, site, ctx)
    aggregator = method.aggregator(ctx)
    aggregator.add("a", method.share(trained, ctx))
    received = method.receive(trained, aggregator.result(), ctx)
    for state, later in (
        (start, ctx),
        (trained, replace(ctx, epoch=1)),
        (received, replace(ctx, round=1)),
    ):
        back = _stored(state)
        assert type(back) is type(state), f"expected {type(state).__name__}, read {type(back).__name__}"
        expected, found = (method.train(one, site, later)[0] for one in (state, back))
        assert _equal(tensors_of(expected), tensors_of(found)), (
            "a state that was written and read again trains to other weights"
        )


def _stored(state: C) -> C:
    """Return a state as it is read from a file that it was written to."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "s.safetensors"
        write_state(path, state)
        return read_state(path, type(state))


def check_frozen(method: Algorithm[Any]) -> None:
    """It trains what is left of a network whose first layers do not train, which its states do not hold."""
    network = tiny_network()
    plain = Recipe(network, frozen=frozen_keys(network, ["0.*", "1.*"]))
    recipe = recipe_of(method, frozen=plain.around(network_of(method)).frozen)
    engine = InProcess(method, tiny_sites(2), recipe)
    try:
        list(rounds_from(moment(recipe), method, engine))
    except KeyError as cause:
        raise AssertionError(
            f"{cause} does not train, so it is not in the state; of step.networks, use only parameters with "
            "requires_grad"
        ) from cause
    sent = method.share(method.start(recipe.initial()), moment(recipe)).tensors
    assert not recipe.frozen & sent.keys(), (
        f"it sends '{min(recipe.frozen & sent.keys())}', which does not train"
    )
    began = recipe.network.state_dict()
    for networks in engine.models().values():
        for tensors in networks.values():
            same = {key for key, tensor in tensors.items() if torch.equal(tensor, began[key])}
            assert same == recipe.frozen, (
                f"expected only frozen tensors to stay the same, but {sorted(same)} did"
            )


def check_networks(method: Algorithm[Any]) -> None:
    """Its networks are those of the recipe, the deployed one first, and none is changed by naming them."""
    network = network_of(method)
    state = method.start(network.state_dict())
    models = method.models(state)
    assert models, "models returns no network"
    for name, tensors in models.items():
        layout = {key: tensor.shape for key, tensor in network.state_dict().items()}
        found = {key: tensor.shape for key, tensor in tensors.items()}
        assert found == layout, f"network {name} has other tensors than the recipe's network"


METHOD_CHECKS: tuple[Callable[[Algorithm[Any]], None], ...] = (
    check_networks,
    check_same_bits,
    check_weights,
    check_purity,
    check_absence,
    check_small_batches,
    check_breakdown,
    check_storage,
    check_frozen,
)
"""What :func:`check_method` checks."""


def run(
    method: Algorithm[Any],
    sites: list[SiteData],
    *,
    present: Callable[[RoundContext], set[str]] | None = None,
    seed: int = 3,
    **recipe: Any,
) -> tuple[list[RoundRecord], Models]:
    """Run two rounds; return the records and every site's networks."""
    made = recipe_of(method, **recipe)
    engine = InProcess(method, sites, made, present)
    return list(rounds_from(moment(made, seed=seed), method, engine)), engine.models()


def recipe_of(method: Algorithm[Any], **recipe: Any) -> Recipe:
    """Return a recipe for the tiny network, with the loss that a method with prototypes needs."""
    loss = {"loss": method.loss} if isinstance(method, Prototyped) else {}
    return Recipe(network_of(method), **{"batch": 8, **loss, **recipe})


def network_of(method: Algorithm[Any]) -> nn.Module:
    """Return the tiny network, or what the method makes of it."""
    return traits_of(method).network(tiny_network())


def moment(recipe: Recipe, rounds: int = 2, epochs: int = 2, seed: int = 7) -> RoundContext:
    """Return the start of a run of the recipe's network."""
    keys = norm_keys(recipe.network), head_keys(recipe.network)
    return RoundContext(0, rounds, 0, epochs, seed, *keys, (30, 20, 10))


def same_bits(first: Models, second: Models) -> bool:
    """Return whether all networks of all sites have the same weights."""
    return all(
        torch.equal(first[client][role][key], tensor)
        for client, roles in second.items()
        for role, tensors in roles.items()
        for key, tensor in tensors.items()
    )


def tensors_of(state: object) -> list[Tensor]:
    """Return all tensors in a state: dataclasses and mappings, nested."""
    if isinstance(state, Tensor):
        return [state]
    if is_dataclass(state):
        return [tensor for part in fields(state) for tensor in tensors_of(getattr(state, part.name))]
    if isinstance(state, dict):
        return [tensor for key in sorted(state) for tensor in tensors_of(state[key])]
    return []


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))
