"""Folds batch norm into the convolution before it, and adapters into weights: the same outputs with less."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from prrfl.errors import StateMismatchError

Pairs = tuple[tuple[str, str], ...]
"""Names of convolutions, each with the batch norm that is the only reader of its outputs."""


def foldable(network: nn.Module) -> Pairs:
    """Return the pairs that can be folded; none if the network's forward cannot be traced."""
    # Tracing runs the network's code, which may depend on its mode and change its buffers.
    network = copy.deepcopy(network).eval()
    try:
        graph = fx.symbolic_trace(network).graph
    # The code runs on symbolic values and may raise any exception.
    except Exception:
        return ()
    used = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    used += [str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"]
    pairs = []
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = str(before.target), str(node.target)
        if used.count(conv) == used.count(norm) == 1 and _fits(network, conv, norm):
            pairs.append((conv, norm))
    return tuple(pairs)


def _fits(network: nn.Module, conv: str, norm: str) -> bool:
    conv_module, norm_module = network.get_submodule(conv), network.get_submodule(norm)
    return (
        type(conv_module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        and isinstance(norm_module, nn.modules.batchnorm._BatchNorm)
        and norm_module.running_mean is not None
        and _is_unshared(network, conv_module)
        and _is_unshared(network, norm_module)
    )


def _is_unshared(network: nn.Module, module: nn.Module) -> bool:
    """Return whether no other module holds a module or its weights, and no hook watches it."""
    owners = [other for _, other in network.named_modules(remove_duplicate=False)]
    own = set(map(id, module.parameters()))
    holders = [other for other in owners if own & {id(p) for p in other.parameters(recurse=False)}]
    return owners.count(module) == 1 and holders in ([module], []) and not _is_hooked(module)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def without_norms(network: nn.Module, pairs: Pairs) -> nn.Module:
    """Remove the batch norm of each pair from a network, in place; return the network, for folded weights."""
    for conv_name, norm_name in pairs:
        conv = network.get_submodule(conv_name)
        if conv.bias is None:
            conv.bias = nn.Parameter(conv.weight.new_zeros(len(conv.weight)))
        network.set_submodule(norm_name, nn.Identity())
    return network


def folded(weights: Mapping[str, Tensor], network: nn.Module, pairs: Pairs) -> dict[str, Tensor]:
    """Return the weights of :func:`without_norms` that give the same outputs in evaluation mode.

    Args:
        weights: state_dict of the whole network.
        network: the architecture.
        pairs: what to fold.

    Raises:
        StateMismatchError: naming a tensor that is missing.
    """
    left = dict(weights)
    for conv, norm_name in pairs:
        norm = network.get_submodule(norm_name)
        try:
            own = {key: left.pop(f"{norm_name}.{key}") for key in norm.state_dict()}
            weight = left[f"{conv}.weight"]
        except KeyError as cause:
            raise StateMismatchError(f"the weights do not fit the network: {cause}") from None
        statistics = (own["running_mean"], own["running_var"], norm.eps, own.get("weight"), own.get("bias"))
        fused = fuse_conv_bn_weights(weight, left.get(f"{conv}.bias"), *statistics)  # type: ignore[arg-type]
        left[f"{conv}.weight"], left[f"{conv}.bias"] = (parameter.data for parameter in fused)
    return left


def without_adapters(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state_dict of a network without its adapters, which computes the same outputs.

    Adapters are the parametrisations whose class has the attribute ``is_adapter = True``.

    Args:
        network: the network with adapters, which does not change.
        weights: its state_dict.
    """
    plain = dict(weights)
    # PyTorch's remove_parametrizations would change the class, which copies of the network share.
    for place, chain in network.named_modules():
        if isinstance(chain, parametrize.ParametrizationList) and getattr(chain[0], "is_adapter", False):
            own = {key: plain.pop(f"{place}.{key}") for key in chain.state_dict()}
            with torch.no_grad():
                plain[place.replace("parametrizations.", "")] = functional_call(chain, own, ())
    return plain
