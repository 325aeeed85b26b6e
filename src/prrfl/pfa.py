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

*PFA with phases* (Chen et al., IEEE TMI 2022) averages the band's phases as well, and takes the last linear
layer row by row. Its server form is :func:`phase_averaging_aggregation`. In its split form all sites get the
same M(u), which replaces the low band:

    w'_k = irfft2(H_k),    H_k(u) = (1 - m(u)) F_k(u) + m(u) M(u),
    M(u) = mean_j A_j(u) exp(i mean_j θ_j(u)).

A site sends :func:`low_band_spectra` and applies their mean with :func:`rebuild_with_phases`.
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

Treatment = Literal["fourier", "rows", "mean", "local"]

_AXES: dict[Treatment, tuple[int, ...]] = {"fourier": (-2, -1), "rows": (-1,)}
"""The axes of a weight's matrix that the Fourier transform is over."""

R0, R1 = 0.7, 0.95
"""The paper's ratios of the first round and at the end."""


def low_frequency_ratio(round_index: int, rounds: int, r0: float = R0, r1: float = R1) -> float:
    """Return the ratio r(t) = r0 + (t/T)(r1 - r0): the fraction of the spectrum's sides averaged in round t.

    Args:
        round_index: t, from 0 to T - 1. The ratio r1 itself is approached, never reached.
        rounds: T.
        r0: ratio of the first round, in [0, 1].
        r1: ratio approached at the end, in [0, 1].

    Examples:
        >>> from prrfl import low_frequency_ratio
        >>> [round(low_frequency_ratio(t, rounds=50), 3) for t in (0, 25, 49)]
        [0.7, 0.825, 0.945]
    """
    return r0 + (round_index / rounds) * (r1 - r0)


def treatment(
    key: str, tensor: Tensor, local_keys: Collection[str], head_keys: Collection[str] = ()
) -> Treatment:
    """Return what PFA does with one tensor of a state dict.

    ``fourier``: convolution (rank 4) and linear (rank 2) weights; ``rows``: the linear weight among
    ``head_keys``, whose rows are transformed one by one; ``local``: normalisation layers (given by
    ``local_keys``) and integer tensors, for which a spectrum or mean makes no sense; ``mean``: all others
    (biases).

    Raises:
        StateMismatchError: if the tensor is complex.
    """
    check_real({key: tensor}, "PFA")
    if key in local_keys or not tensor.is_floating_point():
        return "local"
    if tensor.ndim == 2 and key in head_keys:
        return "rows"
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

    Examples:
        The sites keep the signs of their weights, which are phases, and average the amplitudes:

        >>> import torch
        >>> from prrfl import progressive_fourier_aggregation
        >>> states = [{"fc.weight": torch.full((4, 4), value)} for value in (1.0, -3.0)]
        >>> [state["fc.weight"].mean().item() for state in progressive_fourier_aggregation(states, 0.7)]
        [2.0, -2.0]
    """
    return _aggregate(states, ratio, local_keys, (), _with_mean_amplitude)


def phase_averaging_aggregation(
    states: Sequence[Tensors],
    ratio: float,
    local_keys: Collection[str] = (),
    head_keys: Collection[str] = (),
) -> list[dict[str, Tensor]]:
    """PFA with phases at the server, step by step as in the follow-up's published code (IEEE TMI 2022).

    In the band, amplitudes and angles in (-π, π] are averaged; the mean of angles is the plain one, not the
    circular one. Therefore the result is not continuous in the weights: an angle near π may become one near
    -π. At frequency 0 the angle is 0 or π; if a weight's sum is negative at one of four clients, its mean is
    scaled by cos(π/4).

    Args:
        states: one state dict per client, all with the same names and shapes.
        ratio: low-frequency ratio r in [0, 1].
        local_keys: names that stay as each client has them: :func:`prrfl.tensors.norm_keys` of the network.
        head_keys: names of the last linear layer's tensors. Each row of its weight has a spectrum of its own.

    Returns:
        One new state dict per client, in the same order; inputs do not change.

    Raises:
        ParticipationError: if no state is given.
        StateMismatchError: if names or shapes differ between clients.
        ConfigError: if the ratio is outside [0, 1].
    """
    return _aggregate(states, ratio, local_keys, head_keys, _with_mean_amplitude_and_phase)


def _aggregate(
    states: Sequence[Tensors],
    ratio: float,
    local_keys: Collection[str],
    head_keys: Collection[str],
    average: Callable[[Tensor], Tensor],
) -> list[dict[str, Tensor]]:
    if not states:
        raise ParticipationError("PFA needs at least one client's state, got none")
    _check_ratio(ratio)
    for index, state in enumerate(states):
        check_same_layout(states[0], state, f"client {index}")
    results: list[dict[str, Tensor]] = [{} for _ in states]
    for key, first in states[0].items():
        tensors = [state[key] for state in states]
        match treatment(key, first, local_keys, head_keys):
            case "local":
                updated = tensors
            case "mean":
                updated = [torch.stack(tensors).mean(0)] * len(states)
            case "fourier" | "rows" as kind:
                updated = _mix_low_band(tensors, ratio, _AXES[kind], average)
        for result, tensor in zip(results, updated, strict=True):
            result[key] = tensor.clone()
    return results


def _mix_low_band(
    weights: Sequence[Tensor], ratio: float, axes: tuple[int, ...], average: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    spectra = torch.fft.fftn(torch.stack([_as_matrix(weight) for weight in weights]), dim=axes)
    sizes = spectra.shape[1:]
    # What is not 0 there is rounding, whose sign would choose between the angles π and -π.
    spectra.imag.masked_fill_(_mirrors_itself(sizes, axes).to(spectra.device), 0)
    spectra = torch.fft.fftshift(spectra, dim=axes)
    half_sides = [(sizes[axis] // 2, _half_side(sizes[axis], ratio)) for axis in axes]
    band = (..., *(slice(centre - half, centre + half) for centre, half in half_sides))
    spectra[band] = average(spectra[band])
    mixed = torch.fft.ifftn(torch.fft.ifftshift(spectra, dim=axes), dim=axes).real
    return [_from_matrix(matrix, weight.shape) for matrix, weight in zip(mixed, weights, strict=True)]


def _with_mean_amplitude(spectra: Tensor) -> Tensor:
    """Return spectra (K, ...) with the mean of their amplitudes and each client's own phase."""
    return torch.polar(spectra.abs().mean(0).expand(spectra.shape), spectra.angle())


def _with_mean_amplitude_and_phase(spectra: Tensor) -> Tensor:
    """Return spectra (K, ...) that are all the same: of the mean amplitude and the mean angle."""
    # A zero may have either sign; plus 0 it is +0, whose angle is 0.
    return torch.polar(spectra.abs().mean(0), (spectra + 0).angle().mean(0)).expand(spectra.shape)


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
                band = _low_band(tensor, ratio, _AXES["fourier"])
                sent[key] = band.pick(_amplitude(torch.fft.rfft2(_as_matrix(tensor))[:, : band.columns]))
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
    band = _low_band(weight, ratio, _AXES["fourier"])
    spectrum = torch.fft.rfft2(matrix)
    low = spectrum[:, : band.columns]
    # A zero has no phase. The published code takes it as 0, which is the phase of a tiny positive number.
    low += 1e-30
    own = band.pick(_amplitude(low))
    # G(u) = 1 - m(u) + m(u) mean A(u) / A(u)
    sent_gain = torch.lerp(torch.ones_like(own), mean_amplitude.to(own.dtype) / own, band.share.to(own.dtype))
    gain = own.new_ones(low.shape)
    band.put(sent_gain, gain)
    low *= gain
    return _from_matrix(torch.fft.irfft2(spectrum, s=list(matrix.shape)), weight.shape)


def low_band_spectra(
    state: Tensors, ratio: float, local_keys: Collection[str] = (), head_keys: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return all that a site sends in the split form of PFA with phases.

    Args:
        state: the deputy's state dict.
        ratio: low-frequency ratio r in [0, 1].
        local_keys: names that never leave the site.
        head_keys: names of the last linear layer's tensors. Each row of its weight has a spectrum of its own.

    Returns:
        For each Fourier-treated name, a vector of the spectrum's amplitudes inside the band, each conjugate
        pair once, and under ``<name>.phase`` a vector of their angles in (-π, π], in radians (together about
        r² of the weights' count, and r of the last layer's); for each mean-treated name, the tensor itself.

    Raises:
        ConfigError: if the ratio is outside [0, 1].
    """
    _check_ratio(ratio)
    sent = {}
    for key, tensor in state.items():
        match treatment(key, tensor, local_keys, head_keys):
            case "fourier" | "rows" as kind:
                band = _low_band(tensor, ratio, _AXES[kind])
                low = band.pick(torch.fft.rfftn(_as_matrix(tensor), dim=_AXES[kind])[:, : band.columns])
                sent[key], sent[_phase_key(key)] = _amplitude(low), _phase(low, band.real)
            case "mean":
                sent[key] = tensor.clone()
    return sent


def rebuild_with_phases(
    state: Tensors,
    mean: Tensors,
    ratio: float,
    local_keys: Collection[str] = (),
    head_keys: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return a site's deputy after PFA with phases, from its own state and the mean of all sites' low bands.

    Args:
        state: the deputy's state dict, the one whose spectra were sent.
        mean: mean over sites of :func:`low_band_spectra`, at the same ratio.
        ratio: low-frequency ratio r in [0, 1].
        local_keys: names that stay as they are.
        head_keys: names of the last linear layer's tensors, as they were for :func:`low_band_spectra`.

    Raises:
        ConfigError: if the ratio is outside [0, 1].
        StateMismatchError: if a name or shape of the mean does not fit the state and the ratio.
    """
    _check_ratio(ratio)
    check_same_layout(
        _sent_layout(state, ratio, local_keys, head_keys, phases=True), mean, "the mean received"
    )
    rebuilt = {}
    for key, tensor in state.items():
        match treatment(key, tensor, local_keys, head_keys):
            case "local":
                rebuilt[key] = tensor.clone()
            case "mean":
                rebuilt[key] = mean[key].to(tensor.dtype).clone()
            case "fourier" | "rows" as kind:
                band = _low_band(tensor, ratio, _AXES[kind])
                rebuilt[key] = _replace_low_band(tensor, mean[key], mean[_phase_key(key)], band, _AXES[kind])
    return rebuilt


def _phase_key(key: str) -> str:
    # No other tensor of a network has this name: ``key`` is a tensor, so it is not a module that holds one.
    return f"{key}.phase"


def _replace_low_band(
    weight: Tensor, mean_amplitude: Tensor, mean_phase: Tensor, band: "_LowBand", axes: tuple[int, ...]
) -> Tensor:
    matrix = _as_matrix(weight)
    spectrum = torch.fft.rfftn(matrix, dim=axes)
    low = spectrum[:, : band.columns].contiguous()
    share = band.share.to(matrix.dtype)
    common = torch.polar(mean_amplitude.to(matrix.dtype), mean_phase.to(matrix.dtype))
    # H(u) = (1 - m(u)) F(u) + m(u) M(u)
    mixed = (1 - share) * band.pick(low) + share * common
    mixed.imag[band.real] = 0  # Not every library's inverse transform ignores an imaginary part there.
    band.put(mixed, low)
    spectrum[:, : band.columns] = low
    sizes = [matrix.shape[axis] for axis in axes]
    return _from_matrix(torch.fft.irfftn(spectrum, s=sizes, dim=axes), weight.shape)


def _amplitude(spectrum: Tensor) -> Tensor:
    if spectrum.device.type != "cpu":
        return spectrum.abs()
    # NumPy's is vectorised and several times as fast as PyTorch's on a CPU.
    return torch.from_numpy(np.abs(spectrum.detach().numpy()))


def _phase(spectrum: Tensor, real: Tensor) -> Tensor:
    """Return the angles in (-π, π] of an (n,) spectrum; at the positions ``real``, 0 or π."""
    spectrum = spectrum.detach() + 0  # A zero may have either sign; plus 0 it is +0, whose angle is 0.
    if spectrum.device.type != "cpu":
        phase = spectrum.angle()
    else:
        phase = torch.from_numpy(np.angle(spectrum.numpy()))  # Faster on a CPU, as the amplitude is.
    # The imaginary part is rounding there, whose sign would choose between π and -π.
    phase[real] = spectrum.real[real].angle()
    return phase


@dataclass(frozen=True, eq=False)
class _LowBand:
    """Where the band lies on the columns 0 ... k-1 of an (h, w) matrix's ``rfft2``; it is 0 on the others.

    For a last linear layer, the same of the ``rfft`` of each row.

    Attributes:
        columns: k.
        sent: (n,) positions, in the flattened (h, k), that are sent, each conjugate pair once.
        share: (n,) m(u) there: 1, or one half on the border that only one of u and -u shares.
        real: positions among those sent at which u = -u, so that the spectrum is real.
        paired: the columns that hold u and -u both: 0, and w/2 of an even width; of rows, no column.
    """

    columns: int
    sent: Tensor
    share: Tensor
    real: Tensor
    paired: tuple[int, ...]

    def pick(self, low: Tensor) -> Tensor:
        """Return the (n,) values that are sent, from all (h, k)."""
        return low.flatten().index_select(0, self.sent)

    def put(self, values: Tensor, low: Tensor) -> None:
        """Write (n,) values into a contiguous (h, k), and their conjugates where the other of a pair lies."""
        low.view(-1).index_copy_(0, self.sent, values)
        height = len(low)
        for column in self.paired:
            low[height // 2 + 1 :, column] = low[1 : (height + 1) // 2, column].flip(0).conj()


def _low_band(weight: Tensor, ratio: float, axes: tuple[int, ...]) -> _LowBand:
    return _bands_at(ratio)(_matrix_shape(weight.shape), axes, weight.device)


@lru_cache(maxsize=1)
def _bands_at(ratio: float) -> Callable[[tuple[int, int], tuple[int, ...], torch.device], _LowBand]:
    # All sites and layers of a round have one ratio, and no later round has it again.
    return cache(partial(_find_low_band, ratio))


def _find_low_band(
    ratio: float, sizes: tuple[int, int], axes: tuple[int, ...], device: torch.device
) -> _LowBand:
    # Frequencies run 0 ... n-1 here; a frequency f and f - n are the same.
    height, width = sizes
    by_row = axes == _AXES["rows"]
    row_in, row_mirror_in = (torch.ones(height),) * 2 if by_row else _inside(height, ratio)
    column_in, column_mirror_in = _inside(width, ratio)
    columns = min(_half_side(width, ratio), width // 2) + 1
    band = torch.outer(row_in, column_in[:columns])
    mirrored = torch.outer(row_mirror_in, column_mirror_in[:columns])
    share = (band + mirrored) / 2
    edges = () if by_row else {0, width // 2}
    paired = tuple(c for c in edges if c < columns and 2 * c % width == 0)
    is_sent = share > 0
    is_sent[height // 2 + 1 :, list(paired)] = False
    sent = is_sent.flatten().nonzero().squeeze(1)
    real = _mirrors_itself(sizes, axes)[:, :columns].flatten()[sent].nonzero().squeeze(1)
    return _LowBand(columns, sent.to(device), share.flatten()[sent].to(device), real.to(device), paired)


def _mirrors_itself(sizes: Sequence[int], axes: tuple[int, ...]) -> Tensor:
    """Return (h, w), true where the frequency u = -u: the spectrum of real numbers is real there."""
    height, width = (
        2 * torch.arange(size) % size == 0 if axis in axes else torch.ones(size, dtype=torch.bool)
        for axis, size in zip((-2, -1), sizes, strict=True)
    )
    return torch.outer(height, width)


def _inside(size: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Return, per frequency f = 0 ... size-1, whether f and whether -f lies in the half-open band."""
    frequency = torch.arange(size)
    half = _half_side(size, ratio)
    # Half-open: from -half to half - 1. In the shifted spectrum, frequency 0 is at size // 2.
    inside = (frequency + size // 2) % size
    inside = (inside >= size // 2 - half) & (inside < size // 2 + half)
    return inside.float(), inside[(-frequency) % size].float()


def _sent_layout(
    state: Tensors,
    ratio: float,
    local_keys: Collection[str],
    head_keys: Collection[str] = (),
    phases: bool = False,
) -> dict[str, Tensor]:
    """Return tensors with the names and shapes of those that a site sends at this ratio."""
    layout = {}
    for key, tensor in state.items():
        match treatment(key, tensor, local_keys, head_keys):
            case "fourier" | "rows" as kind:
                layout[key] = _low_band(tensor, ratio, _AXES[kind]).sent
                if phases:
                    layout[_phase_key(key)] = layout[key]
            case "mean":
                layout[key] = tensor
    return layout


def mean_of_amplitudes(shares: Sequence[Tensors]) -> dict[str, Tensor]:
    """Return the mean over clients of what they sent: all that the server computes in either split form."""
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
