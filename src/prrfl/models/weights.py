"""Initial weights from a file: safetensors, or a ``.pth`` file, from which only tensors are read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from prrfl.errors import StateMismatchError, nearest
from prrfl.storage.tensor_files import read_tensors
from prrfl.tensors import check_same_layout, non_finite

PARALLEL = "module."
"""Prefix that ``nn.DataParallel`` adds to every name."""


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
    if all(key.startswith(PARALLEL) for key in tensors):
        return {key.removeprefix(PARALLEL): tensor for key, tensor in tensors.items()}
    return tensors


def load_weights(network: nn.Module, file: str) -> None:
    """Load the weights of a file into a network.

    Raises:
        StateMismatchError: as in :func:`read_weights`; or if they do not fit the network, or hold NaN or
            infinity.
    """
    weights = read_weights(file)
    check_same_layout(network.state_dict(), weights, f"weights {file}")
    if broken := non_finite(weights):
        raise StateMismatchError(f"weights {file}: '{broken[0]}' holds NaN or infinity")
    network.load_state_dict(weights)


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
    if not name and found and all(isinstance(value, Tensor) for value in found.values()):
        return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    networks = {str(key): value for key, value in found.items() if isinstance(value, Mapping)}
    inner = networks.get(name) if name else next(iter(networks.values())) if len(networks) == 1 else None
    if inner and all(isinstance(value, Tensor) for value in inner.values()):
        return _chosen(path, inner, "")
    if not networks or inner is not None:
        raise StateMismatchError(f"weights {path} hold no state_dict; expected tensors by name")
    there = ", ".join(sorted(networks))
    if name:
        raise StateMismatchError(f"weights {path} hold no '{name}'{nearest(name, networks)}, but {there}")
    raise StateMismatchError(f"weights {path} hold several networks; choose one: {path}#NAME of {there}")
