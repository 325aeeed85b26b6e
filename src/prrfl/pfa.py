"""Progressive Fourier Aggregation (PFA): Chen et al., MICCAI 2021, section 2.2.

Sites average the low-frequency amplitudes of their deputies' weights and keep everything else: the high
frequencies, all phases, and the normalisation layers. The band widens from round to round.

Two forms of the same mathematics. The *server form*, :func:`progressive_fourier_aggregation`, reads like the
paper: it takes whole state dicts and returns one per client.

The *split form* is what runs. Weights are real, so F(-u) is the conjugate of F(u), and taking the real part
after the inverse transform averages the band with its mirror image. With the gain
m(u) = (band(u) + band(-u)) / 2 on the half-plane of ``rfft2``,

    w'_k = irfft2(G_k F_k),    G_k(u) = 1 - m(u) + m(u) mean_j A_j(u) / A_k(u),

so all that a site needs from the others is mean_j A_j(u) inside the band. It sends
:func:`low_band_amplitudes` and applies the mean with :func:`rebuild`.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prrfl.errors import ConfigError, ParticipationError
from prrfl.tensors import WeightedMean, check_real, check_same_layout
from prrfl.types import Tensors

Treatment = Literal["fourier", "mean", "local"]


R0, R1 = 0.7, 0.95
"""The paper's ratios of the first round and at the end."""


def low_frequency_ratio(round_index: int, rounds: int, r0: float = R0, r1: float = R1) -> float:
    """Return the ratio r(t) = r0 + (t/T)(r1 - r0): the fraction of the spectrum's sides averaged in round t.

    Args:
        round_index: t, from 0 to T - 1. The ratio r1 itself is approached, never reached.
        rounds: T.
        r0: ratio of the first round, in [0, 1].
        r1: ratio approached at the end, in [0, 1].
    """
    return r0 + (round_index / rounds) * (r1 - r0)


def treatment(key: str, tensor: Tensor, local_keys: Collection[str]) -> Treatment:
    """Return what PFA does with one tensor of a state dict.

    ``fourier``: convolution (rank 4) and linear (rank 2) weights; ``local``: normalisation layers (given by
    ``local_keys``) and integer tensors, for which a spectrum or mean makes no sense; ``mean``: all others
    (biases).

    Raises:
        StateMismatchError: if the tensor is complex.
    """
    check_real({key: tensor}, "PFA")
    if key in local_keys or not tensor.is_floating_point():
        return "local"
    return "fourier" if tensor.ndim in (2, 4) else "mean"


def progressive_fourier_aggregation(
    states: Sequence[Tensors], ratio: float, local_keys: Collection[str] = ()
) -> list[dict[str, Tensor]]:
    """PFA at the server, step by step as in the paper (MICCAI 2021, equations 1 to 3).

    Args:
        states: one state dict per client, all with the same names and shapes.
        ratio: low-frequency ratio r in [0, 1].
        local_keys: names that stay as each client has them: :func:`prrfl.tensors.norm_keys` of the network.

    Returns:
        One new state dict per client, in the same order; inputs do not change.

    Raises:
        ParticipationError: if no state is given.
        StateMismatchError: if names or shapes differ between clients.
        ConfigError: if the ratio is outside [0, 1].
    """
    if not states:
        raise ParticipationError("PFA needs at least one client's state, got none")
    _check_ratio(ratio)
    for index, state in enumerate(states):
        check_same_layout(states[0], state, f"client {index}")
    results: list[dict[str, Tensor]] = [{} for _ in states]
    for key, first in states[0].items():
        match treatment(key, first, local_keys):
            case "local":
                updated = [state[key].clone() for state in states]
            case "mean":
                updated = [torch.stack([state[key] for state in states]).mean(0)] * len(states)
            case "fourier":
                updated = _mix_low_band([state[key] for state in states], ratio)
        for result, tensor in zip(results, updated, strict=True):
            result[key] = tensor.clone()
    return results


def _mix_low_band(weights: Sequence[Tensor], ratio: float) -> list[Tensor]:
    spectra = [torch.fft.fftshift(torch.fft.fft2(_as_matrix(weight))) for weight in weights]
    mean_amplitude = torch.stack([spectrum.abs() for spectrum in spectra]).mean(0)
    height, width = mean_amplitude.shape
    rows, columns = _half_side(height, ratio), _half_side(width, ratio)
    band = (
        slice(height // 2 - rows, height // 2 + rows),
        slice(width // 2 - columns, width // 2 + columns),
    )
    results = []
    for weight, spectrum in zip(weights, spectra, strict=True):
        amplitude, phase = spectrum.abs(), spectrum.angle()
        amplitude[band] = mean_amplitude[band]
        mixed = torch.fft.ifft2(torch.fft.ifftshift(torch.polar(amplitude, phase))).real
        results.append(_from_matrix(mixed, weight.shape))
    return results


def low_band_amplitudes(state: Tensors, ratio: float, local_keys: Collection[str] = ()) -> dict[str, Tensor]:
    """Return all that a site sends in the split form of PFA.

    Args:
        state: the deputy's state dict.
        ratio: low-frequency ratio r in [0, 1].
        local_keys: names that never leave the site.

    Returns:
        For each Fourier-treated name, a vector of the spectrum's amplitudes inside the band, each conjugate
        pair once (about r²/2 of the weights' count); for each mean-treated name, the tensor itself.

    Raises:
        ConfigError: if the ratio is outside [0, 1].
    """
    _check_ratio(ratio)
    sent = {}
    for key, tensor in state.items():
        match treatment(key, tensor, local_keys):
            case "fourier":
                matrix = _as_matrix(tensor)
                band = _low_band(len(matrix), matrix.shape[1], ratio, tensor.device)
                sent[key] = band.pick(_amplitude(torch.fft.rfft2(matrix)[:, : band.columns]))
            case "mean":
                sent[key] = tensor.clone()
    return sent


def rebuild(
    state: Tensors, mean: Tensors, ratio: float, local_keys: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return a site's deputy after PFA, from its own state and the mean of all sites' low-band amplitudes.

    Args:
        state: the deputy's state dict, the one whose amplitudes were sent.
        mean: mean over sites of :func:`low_band_amplitudes`, at the same ratio.
        ratio: low-frequency ratio r in [0, 1].
        local_keys: names that stay as they are.

    Raises:
        StateMismatchError: if a shape of the mean does not fit the state and the ratio.
    """
    _check_ratio(ratio)
    check_same_layout(_sent_layout(state, ratio, local_keys), mean, "the mean received")
    rebuilt = {}
    for key, tensor in state.items():
        match treatment(key, tensor, local_keys):
            case "local":
                rebuilt[key] = tensor.clone()
            case "mean":
                rebuilt[key] = mean[key].to(tensor.dtype).clone()
            case "fourier":
                rebuilt[key] = _rebuild_weight(tensor, mean[key], ratio)
    return rebuilt


def _rebuild_weight(weight: Tensor, mean_amplitude: Tensor, ratio: float) -> Tensor:
    matrix = _as_matrix(weight)
    height, width = matrix.shape
    band = _low_band(height, width, ratio, weight.device)
    spectrum = torch.fft.rfft2(matrix)
    low = spectrum[:, : band.columns]
    # A zero has no phase. The published code takes it as 0, which is the phase of a tiny positive number.
    low += 1e-30
    own = band.pick(_amplitude(low))
    # G(u) = 1 - m(u) + m(u) mean A(u) / A(u)
    sent_gain = torch.lerp(torch.ones_like(own), mean_amplitude.to(own.dtype) / own, band.share.to(own.dtype))
    gain = own.new_ones(low.shape)
    gain.view(-1).index_copy_(0, band.sent, sent_gain)
    for column in band.paired:
        # Of u and -u one was sent; the gain is the same at both.
        gain[height // 2 + 1 :, column] = gain[1 : (height + 1) // 2, column].flip(0)
    low *= gain
    return _from_matrix(torch.fft.irfft2(spectrum, s=[height, width]), weight.shape)


def _amplitude(spectrum: Tensor) -> Tensor:
    if spectrum.device.type != "cpu":
        return spectrum.abs()
    # NumPy's is vectorised and several times as fast as PyTorch's on a CPU.
    return torch.from_numpy(np.abs(spectrum.detach().numpy()))


@dataclass(frozen=True, eq=False)
class _LowBand:
    """Where the band lies on the columns 0 ... k-1 of an (h, w) matrix's ``rfft2``; it is 0 on the others.

    Attributes:
        columns: k.
        sent: (n,) positions, in the flattened (h, k), whose amplitude is sent, each conjugate pair once.
        share: (n,) m(u) there: 1, or one half on the border that only one of u and -u shares.
        paired: the columns that hold u and -u both: 0, and w/2 of an even width.
    """

    columns: int
    sent: Tensor
    share: Tensor
    paired: tuple[int, ...]

    def pick(self, amplitude: Tensor) -> Tensor:
        """Return the (n,) amplitudes that are sent, from all (h, k)."""
        return amplitude.flatten().index_select(0, self.sent)


def _low_band(height: int, width: int, ratio: float, device: torch.device) -> _LowBand:
    return _bands_at(ratio)(height, width, device)


@lru_cache(maxsize=1)
def _bands_at(ratio: float) -> Callable[[int, int, torch.device], _LowBand]:
    # All sites and layers of a round have one ratio, and no later round has it again.
    return cache(partial(_find_low_band, ratio))


def _find_low_band(ratio: float, height: int, width: int, device: torch.device) -> _LowBand:
    # Frequencies run 0 ... n-1 here; a frequency f and f - n are the same.
    row_in, row_mirror_in = _inside(height, ratio)
    column_in, column_mirror_in = _inside(width, ratio)
    columns = min(_half_side(width, ratio), width // 2) + 1
    band = torch.outer(row_in, column_in[:columns])
    mirrored = torch.outer(row_mirror_in, column_mirror_in[:columns])
    share = (band + mirrored) / 2
    paired = tuple(c for c in {0, width // 2} if c < columns and 2 * c % width == 0)
    is_sent = share > 0
    is_sent[height // 2 + 1 :, list(paired)] = False
    sent = is_sent.flatten().nonzero().squeeze(1)
    return _LowBand(columns, sent.to(device), share.flatten()[sent].to(device), paired)


def _inside(size: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Return, per frequency f = 0 ... size-1, whether f and whether -f lies in the half-open band."""
    frequency = torch.arange(size)
    half = _half_side(size, ratio)
    # Half-open: from -half to half - 1. In the shifted spectrum, frequency 0 is at size // 2.
    inside = (frequency + size // 2) % size
    inside = (inside >= size // 2 - half) & (inside < size // 2 + half)
    return inside.float(), inside[(-frequency) % size].float()


def _sent_layout(state: Tensors, ratio: float, local_keys: Collection[str]) -> dict[str, Tensor]:
    """Return tensors with the names and shapes of those that :func:`low_band_amplitudes` would send."""
    layout = {}
    for key, tensor in state.items():
        match treatment(key, tensor, local_keys):
            case "fourier":
                layout[key] = _low_band(*_matrix_shape(tensor.shape), ratio, tensor.device).sent
            case "mean":
                layout[key] = tensor
    return layout


def mean_of_amplitudes(shares: Sequence[Tensors]) -> dict[str, Tensor]:
    """Return the mean over clients of their low-band amplitudes: all that the server computes in PFA."""
    mean = WeightedMean()
    for index, share in enumerate(shares):
        mean.add(share, whose=f"client {index}")
    return mean.result()


def _half_side(size: int, ratio: float) -> int:
    return math.floor(size * ratio / 2)


def _matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) == 2:
        return shape[0], shape[1]
    n, c, d1, d2 = shape
    return c * d1, d2 * n


def _as_matrix(weight: Tensor) -> Tensor:
    """Unfold (N, C, d1, d2) to (C·d1, d2·N), as the paper does; a matrix stays as it is."""
    if weight.ndim == 2:
        return weight
    # In memory that is the transpose of N rows of C·d1·d2, which takes half the time of a permutation.
    return weight.reshape(len(weight), -1).T.reshape(_matrix_shape(weight.shape))


def _from_matrix(matrix: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 2:
        return matrix.contiguous()
    return matrix.reshape(-1, shape[0]).T.reshape(shape)


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise ConfigError(f"low-frequency ratio is {ratio}, expected a number in [0, 1]")
