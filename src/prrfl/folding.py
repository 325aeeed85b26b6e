"""Batch norm folded into the convolution before it: in evaluation the same outputs, for less arithmetic."""

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Pairs = tuple[tuple[str, str], ...]
"""Names of a convolution and of the batch norm that alone takes its outputs."""


def foldable(network: nn.Module) -> Pairs:
    """Return the pairs that can be folded; none where the network's forward cannot be traced."""
    try:
        graph = fx.symbolic_trace(network).graph
    # Tracing runs the network's own code on stand-ins, which may raise anything.
    except Exception:
        return ()
    calls = [node for node in graph.nodes if node.op == "call_module"]
    names = [str(node.target) for node in calls]
    pairs = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = str(before.target), str(node.target)
        if names.count(conv) == names.count(norm) == 1 and _fits(network, conv, norm):
            pairs.append((conv, norm))
    return tuple(pairs)


def _fits(network: nn.Module, conv: str, norm: str) -> bool:
    norm_module = network.get_submodule(norm)
    return (
        type(network.get_submodule(conv)) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        and isinstance(norm_module, nn.modules.batchnorm._BatchNorm)
        and norm_module.running_mean is not None
    )


def fold(network: nn.Module, pairs: Pairs) -> nn.Module:
    """Fold each pair of a network in evaluation mode, in place, and return the network."""
    for conv_name, norm_name in pairs:
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)  # type: ignore[arg-type]
        network.set_submodule(norm_name, nn.Identity())
    return network
