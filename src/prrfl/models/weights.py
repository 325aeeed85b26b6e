"""Initial weights from a file: safetensors, or a ``.pth`` file, from which only tensors are read."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from prrfl.errors import StateMismatchError, nearest
from prrfl.models.published import DIFFERENT, with_own_names
from prrfl.storage.tensor_files import read_tensors
from prrfl.tensors import check_same_layout, name_of, non_finite
from prrfl.types import Tensors

log = logging.getLogger("prrfl")

WRAPPERS = ("module.", "_orig_mod.", "_module.", "model.")
"""Prefixes that wrappers add to every name: DataParallel, torch.compile, Opacus, Lightning."""

COUNTER = "num_batches_tracked"
"""Batch norm's counter of batches, which PyTorch before 0.4.1 did not have."""

TYPES = frozenset({
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8,
    torch.int8, torch.int16, torch.int32, torch.int64,
})  # fmt: skip
"""Types of tensors in a file. Others, such as complex or 8-bit floating-point numbers, are refused."""


def read_weights(file: str) -> dict[str, Tensor]:
    """Return named tensors from a file.

    Args:
        file: path of a ``.safetensors`` file, or of a ``.pth`` file with a state_dict. If it holds several
            state_dicts by name, ``FILE.pth#NAME`` chooses one.

    Raises:
        StateMismatchError: if the file is missing or damaged, or holds anything other than tensors.
    """
    path, name = file, ""
    if not Path(file).is_file() and "#" in file:
        path, _, name = file.rpartition("#")
    if not Path(path).is_file():
        raise StateMismatchError(f"weights {path} do not exist; expected a .safetensors or .pth file")
    found: Mapping[str, object] = (
        read_tensors(Path(path)) if Path(path).suffix == ".safetensors" else _pth(Path(path))
    )
    tensors = _chosen(path, found, name)
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise StateMismatchError(
                f"weights {path}: '{key}' is not a plain tensor; save a plain state_dict"
            )
        if tensor.dtype not in TYPES:
            raise StateMismatchError(
                f"weights {path}: '{key}' is {name_of(tensor.dtype)}; expected real numbers of 16 to 64 bits"
            )
    return tensors


def load_weights(network: nn.Module, file: str, head: Collection[str] = ()) -> None:
    """Load the weights of a file into a network.

    The names may begin with the prefixes of wrappers or be those of another library
    (:mod:`prrfl.models.published`), and batch norm's counters may be missing. A warning reports how many
    tensors are left out, start at 0 or are rounded, and weights that give other outputs here than there.

    Args:
        network: takes the weights.
        file: as in :func:`read_weights`.
        head: names of the network's tensors that keep their values, whatever the file holds for them.

    Raises:
        StateMismatchError: as in :func:`read_weights`; or if they do not fit the network, or hold NaN or
            infinity.
    """
    own = network.state_dict()
    library, weights = with_own_names(_unwrapped(read_weights(file), own), own)
    whose = f"weights {file}" + (f" (names as in {library})" if library else "")
    kept = {key: tensor for key, tensor in own.items() if key in head}
    if left_out := sorted(weights.keys() & kept.keys()):
        log.warning("weights %s: the head is left out and starts at random: %s", file, ", ".join(left_out))
    weights |= kept
    counters = {key: tensor for key, tensor in own.items() if key.rpartition(".")[2] == COUNTER}
    if counters and not counters.keys() & weights.keys():
        log.warning("weights %s: %d counters %s are missing and start at 0", file, len(counters), COUNTER)
        weights |= counters
    check_same_layout(own, weights, whose)
    if broken := non_finite(weights):
        raise StateMismatchError(f"weights {file}: '{broken[0]}' holds NaN or infinity")
    converted = {key: _converted(file, key, weights[key], like.dtype) for key, like in own.items()}
    if rounded := [key for key, tensor in weights.items() if not _exact(tensor, converted[key])]:
        log.warning(
            "weights %s: %d tensors, the first is '%s', are rounded to %s",
            file,
            len(rounded),
            rounded[0],
            name_of(converted[rounded[0]].dtype),
        )
    if library in DIFFERENT:
        log.warning("weights %s: %s", file, DIFFERENT[library])
    network.load_state_dict(converted)


def _unwrapped(weights: Mapping[str, Tensor], own: Tensors) -> dict[str, Tensor]:
    """Return weights without the prefixes that wrappers added to every name, unless the network has them."""
    names = list(weights)
    while not own.keys() & set(names):
        prefix = next((p for p in WRAPPERS if all(name.startswith(p) for name in names)), "")
        if not prefix:
            break
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, weights.values(), strict=True))


def _converted(file: str, key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in the type of the network. Only floating-point numbers may be rounded.

    Raises:
        StateMismatchError: if the type cannot hold the values.
    """
    converted = tensor.to(dtype)
    rounding = tensor.is_floating_point() and dtype.is_floating_point
    if not (converted.isfinite().all() if rounding else _exact(tensor, converted)):
        raise StateMismatchError(
            f"weights {file}: '{key}' is {name_of(tensor.dtype)}, and {name_of(dtype)}, which the network "
            "has there, cannot hold its values"
        )
    return converted


def _exact(tensor: Tensor, converted: Tensor) -> bool:
    return tensor.dtype == converted.dtype or torch.equal(converted.to(tensor.dtype), tensor)


def _pth(path: Path) -> Mapping[str, object]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged files, and files that hold other objects than tensors, raise many kinds of exceptions.
    except Exception as cause:
        reason = " ".join(str(cause).split()).partition(". ")[0]
        raise StateMismatchError(
            f"weights {path} cannot be read as plain tensors ({reason}); save a state_dict with torch.save, "
            "or as safetensors"
        ) from None
    if not isinstance(found, Mapping):
        raise StateMismatchError(f"weights {path} hold a {type(found).__name__}; expected a state_dict")
    return found


def _chosen(path: str, found: Mapping[str, object], name: str) -> dict[str, Tensor]:
    """Return a file's state_dict: the whole file, the one of the given name, or the only one."""
    if not name and _is_state(found):
        return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    networks = {str(key): value for key, value in found.items() if isinstance(value, Mapping)}
    if not name and len(whole := {key: value for key, value in networks.items() if _is_state(value)}) == 1:
        networks = whole  # beside an optimiser's state and settings, as in Lightning's checkpoints
    inner = networks.get(name) if name else next(iter(networks.values())) if len(networks) == 1 else None
    if inner and _is_state(inner):
        return _chosen(path, inner, "")
    if not networks or inner is not None:
        raise StateMismatchError(f"weights {path} hold no state_dict; expected tensors by name")
    there = ", ".join(sorted(networks))
    if name:
        raise StateMismatchError(f"weights {path} hold no '{name}'{nearest(name, networks)}, but {there}")
    raise StateMismatchError(f"weights {path} hold several networks; choose one: {path}#NAME of {there}")


def _is_state(found: Mapping[str, object]) -> bool:
    return bool(found) and all(isinstance(value, Tensor) for value in found.values())
