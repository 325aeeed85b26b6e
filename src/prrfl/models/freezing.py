"""Which tensors of a network do not train."""

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from torch import Tensor, nn

from prrfl.errors import ConfigError, nearest


def frozen_keys(network: nn.Module, patterns: Collection[str] = ()) -> frozenset[str]:
    """Return the state_dict names of all tensors of a network that do not train.

    These are the tensors that a pattern matches, and parameters with ``requires_grad = False``; the same
    tensors under other names; and all buffers of a layer of which one is frozen, because batch norm changes
    all of its statistics together.

    Args:
        network: the network.
        patterns: of full names, such as ``features.*``. ``*`` and ``?`` match dots, too.

    Raises:
        ConfigError: if a pattern matches nothing, with the nearest name; or if no parameter is left to train.
    """
    state: dict[str, Tensor] = network.state_dict(keep_vars=True)
    parameters = {key for key, tensor in state.items() if isinstance(tensor, nn.Parameter)}
    frozen = {key for key in parameters if not state[key].requires_grad}
    for pattern in patterns:
        frozen |= _matched(pattern, state)
    for buffers in _buffers_by_layer(network, state):
        if buffers & frozen:
            frozen |= buffers
    same = {id(state[key]) for key in frozen}
    frozen = {key for key, tensor in state.items() if id(tensor) in same}
    if patterns and parameters <= frozen:
        raise ConfigError(f"freeze {','.join(patterns)} leaves no parameter to train; freeze fewer tensors")
    return frozenset(frozen)


def _matched(pattern: str, names: Collection[str]) -> set[str]:
    matched = {name for name in names if fnmatchcase(name, pattern)}
    if not matched:
        parts = (name.split(".") for name in names)
        places = {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}
        hint = nearest(pattern.rstrip(".*?"), sorted(places))
        raise ConfigError(
            f"freeze '{pattern}' matches no tensor of the network{hint}; `prrfl inspect` lists their names"
        )
    return matched


def _buffers_by_layer(network: nn.Module, state: Collection[str]) -> Iterable[set[str]]:
    for name, module in network.named_modules(remove_duplicate=False):
        own = {f"{name}.{key}" if name else key for key, _ in module.named_buffers(recurse=False)}
        yield own & set(state)
