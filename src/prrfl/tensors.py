"""Arithmetic on named tensors: which ones belong to norm layers, their sizes, their weighted mean."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prrfl.errors import StateMismatchError
from prrfl.types import Tensors

NORM_TYPES: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # BatchNorm, SyncBatchNorm and InstanceNorm of every rank
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def norm_keys(network: nn.Module) -> frozenset[str]:
    """Return the state_dict names of all tensors that belong to normalisation layers.

    Layers are found by type, not by name, so that nested and oddly named ones are found as well. A layer of
    your own counts as one if its class has the attribute ``is_norm = True``.

    Examples:
        >>> from torch import nn
        >>> from prrfl import norm_keys
        >>> sorted(norm_keys(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))))
        ['1.bias', '1.weight']
    """
    # A module under two names has its tensors under both in a state_dict.
    named = network.named_modules(remove_duplicate=False)
    return _keys({name: module for name, module in named if _is_norm(type(module))})


def _is_norm(kind: type[nn.Module]) -> bool:
    return issubclass(kind, NORM_TYPES) or getattr(kind, "is_norm", False) is True


def head_of(network: nn.Module) -> tuple[str, nn.Linear]:
    """Return name and module of a network's last linear layer, whose outputs are the logits.

    Raises:
        StateMismatchError: if it has no linear layer.
    """
    linear = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise StateMismatchError("the network has no linear layer; expected one that computes the logits")
    return linear[-1]


def head_keys(network: nn.Module) -> frozenset[str]:
    """Return the state_dict names of the tensors of the network's last linear layer; none without one."""
    try:
        return _keys(dict([head_of(network)]))
    except StateMismatchError:
        return frozenset()


def _keys(modules: Mapping[str, nn.Module]) -> frozenset[str]:
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in modules.items()
        for name in module.state_dict()
    )


def under(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, under the rest of their names."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def prefixed(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors with a prefix before each name."""
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def detached(tensors: Tensors) -> dict[str, Tensor]:
    """Return contiguous copies that share no memory with the given tensors, on the CPU, without a graph."""
    plain = torch.contiguous_format
    return {key: t.detach().to("cpu", copy=True, memory_format=plain) for key, t in tensors.items()}


def count_bytes(tensors: Tensors) -> int:
    """Return the number of bytes that the tensors' elements take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def non_finite(tensors: Tensors) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity."""
    return [
        key for key, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()
    ]


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a type for messages, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


def check_real(tensors: Tensors, whose: str) -> None:
    """Raise if a tensor is complex: its imaginary part would be lost.

    Raises:
        StateMismatchError: naming the tensor and whose it is.
    """
    for key, tensor in tensors.items():
        if tensor.is_complex():
            raise StateMismatchError(
                f"{whose}: '{key}' is {name_of(tensor.dtype)}; expected real numbers: store both parts "
                "(torch.view_as_real)"
            )


def check_same_layout(expected: Tensors, found: Tensors, whose: str) -> None:
    """Raise unless both hold the same names with the same shapes.

    Raises:
        StateMismatchError: naming the first tensor that differs, in the order of ``expected``.
    """
    for key in dict.fromkeys([*expected, *sorted(found)]):
        if key not in found or key not in expected:
            lacking, side = ("lacks", expected) if key not in found else ("has the unexpected", found)
            raise StateMismatchError(f"{whose} {lacking} tensor '{key}' {tuple(side[key].shape)}")
        if expected[key].shape != found[key].shape:
            raise StateMismatchError(
                f"{whose}: tensor '{key}' has shape {tuple(found[key].shape)}, "
                f"expected {tuple(expected[key].shape)}"
            )


class WeightedMean:
    """The mean of shares, summed as they come, so that memory does not grow with the number of sites.

    Sums run in float64 and the result returns to each tensor's own type.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._weight = 0.0

    def add(self, tensors: Tensors, weight: float = 1.0, whose: str = "a share") -> None:
        """Add one site's tensors.

        Raises:
            StateMismatchError: if names or shapes differ from the first site's, or a tensor is complex.
        """
        check_real(tensors, whose)
        if not self._sums:
            self._dtypes = {key: tensor.dtype for key, tensor in tensors.items()}
            self._sums = {
                key: torch.zeros_like(t, dtype=torch.float64, memory_format=torch.contiguous_format)
                for key, t in tensors.items()
            }
        check_same_layout(self._sums, tensors, whose)
        for key, total in self._sums.items():
            total.add_(tensors[key].to(torch.float64), alpha=weight)
        self._weight += weight

    def result(self) -> dict[str, Tensor]:
        """Return the weighted mean of everything added; empty if nothing was added."""
        return {key: _as_type(total / self._weight, self._dtypes[key]) for key, total in self._sums.items()}


def _as_type(mean: Tensor, dtype: torch.dtype) -> Tensor:
    return mean.to(dtype) if dtype.is_floating_point else mean.round().to(dtype)
