"""PFA with phases: the authors' numbers, and the two forms compared with each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prrfl import pfa
from prrfl.errors import ConfigError, ParticipationError, StateMismatchError
from tests.paper.test_pfa import shapes
from tests.reference import VECTORS


def split_form(states, ratio, local_keys=(), head_keys=()):
    shares = [pfa.low_band_spectra(state, ratio, local_keys, head_keys) for state in states]
    mean = pfa.mean_of_amplitudes(shares)
    return [pfa.rebuild_with_phases(state, mean, ratio, local_keys, head_keys) for state in states]


forms = pytest.mark.parametrize("form", [pfa.phase_averaging_aggregation, split_form])


@forms
@pytest.mark.parametrize(("kind", "head_keys", "count"), [("out", (), 36), ("rows", ("weight",), 14)])
def test_both_forms_agree_with_the_authors_code(form, kind, head_keys, count):
    # No result of a matrix at ratio 1 is stored, nor of one head: see the README of the vectors.
    vectors = np.load(VECTORS / "pfa_phases.npz")
    outputs = [name for name in vectors.files if name.startswith(kind)]
    assert len(outputs) == count
    for name in outputs:
        _, i, j = name.split("_")
        states = [{"weight": torch.from_numpy(weight)} for weight in vectors[f"in_{i}"]]
        results = form(states, float(vectors["rates"][int(j)]), head_keys=head_keys)
        for result, wanted in zip(results, vectors[name], strict=True):
            np.testing.assert_allclose(result["weight"].numpy(), wanted, rtol=0, atol=1e-5, err_msg=name)


@settings(max_examples=200, deadline=None)
@given(
    shape=shapes,
    ratio=st.one_of(st.floats(0, 1), st.just(1.0)),
    clients=st.integers(1, 6),
    rows=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_split_form_equals_server_form(shape, ratio, clients, rows, seed):
    draw = torch.Generator().manual_seed(seed)
    states = [{"w": torch.randn(shape, generator=draw, dtype=torch.float64)} for _ in range(clients)]
    head = ("w",) if rows else ()
    for ours, server in zip(
        split_form(states, ratio, head_keys=head),
        pfa.phase_averaging_aggregation(states, ratio, head_keys=head),
        strict=True,
    ):
        torch.testing.assert_close(ours["w"], server["w"], rtol=1e-10, atol=1e-10)


@forms
@pytest.mark.parametrize(("negative", "factor"), [(1, math.sqrt(0.5)), (2, 0), (3, -math.sqrt(0.5)), (4, -1)])
def test_signs_of_a_sum_become_a_rotation(form, negative, factor):
    # The matrix of ones has the spectrum 4 at frequency 0 and zeros elsewhere. Its angle is pi at the
    # clients whose weights are negative: pi/4 is the mean if that is one of four. Only the cosine counts.
    states = [{"w": torch.full((2, 2), -2.0 if k < negative else 2.0)} for k in range(4)]
    for result in form(states, 1.0):
        torch.testing.assert_close(result["w"], torch.full((2, 2), 2.0 * factor), rtol=0, atol=1e-6)


@forms
def test_each_row_of_the_head_has_its_own_sum(form):
    # The first row is negative at one of two clients: its mean angle is pi/2 and it vanishes. The second row
    # is positive at both. A transform of the whole matrix would mix the two.
    states = [{"w": torch.tensor([[-1.0] * 4, [1.0] * 4])}, {"w": torch.tensor([[1.0] * 4, [3.0] * 4])}]
    for result in form(states, 0.5, head_keys=("w",)):
        torch.testing.assert_close(result["w"], torch.tensor([[0.0] * 4, [2.0] * 4]), rtol=0, atol=1e-6)


def test_a_real_bin_has_angle_zero_or_pi_whatever_its_rounding():
    # With an even number of columns the highest frequency is real too. Here it is -4 or 4.
    alternating = torch.tensor([[-1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
    for weight, angle in ((alternating, math.pi), (-alternating, 0.0)):
        share = pfa.low_band_spectra({"w": weight}, 1.0, head_keys=("w",))
        assert share["w"].tolist() == pytest.approx([0, 0, 4])
        assert share["w.phase"].tolist() == pytest.approx([0, 0, angle])


@forms
@pytest.mark.parametrize(("shape", "axis", "head_keys"), [((20, 4), 0, ()), ((3, 20), 1, ("w",))])
def test_rounding_does_not_choose_the_sign_of_pi(form, shape, axis, head_keys):
    # The highest frequency of 20 is the alternating sum. FFTs give it a tiny imaginary part of either sign.
    signs = 1 - 2 * (torch.arange(20) % 2)
    signs = signs[:, None] if axis == 0 else signs
    summed = (0, 1) if axis == 0 else 1
    for seed in range(10):
        draw = torch.Generator().manual_seed(seed)
        states = [{"w": torch.randn(shape, generator=draw, dtype=torch.float64)} for _ in range(4)]
        own = torch.stack([(signs * state["w"]).sum(summed) for state in states])
        wanted = own.abs().mean(0) * torch.cos(math.pi * (own < 0).double().mean(0))
        for result in form(states, 1.0, head_keys=head_keys):
            torch.testing.assert_close((signs * result["w"]).sum(summed), wanted, rtol=0, atol=1e-10)


def test_no_zero_of_a_spectrum_has_the_angle_pi():
    # Which zeros are negative depends on the library of the FFT.
    zeros = torch.tensor([complex(real, imag) for real in (0.0, -0.0) for imag in (0.0, -0.0)])
    assert pfa._phase(zeros, real=torch.tensor([], dtype=torch.long)).tolist() == [0, 0, 0, 0]


@forms
@pytest.mark.parametrize("head_keys", [(), ("w",)])
def test_zeros_of_either_sign_have_angle_zero(form, head_keys):
    ones, zeros = torch.ones(4, 6), torch.zeros(4, 6)
    for nothing in (zeros, -zeros):
        for result in form([{"w": ones}, {"w": nothing}], 0.8, head_keys=head_keys):
            torch.testing.assert_close(result["w"], ones / 2)


def test_what_is_sent_by_name():
    state = {
        "conv": torch.randn(4, 3, 3, 3),
        "head": torch.randn(3, 64),
        "head_bias": torch.randn(3),
        "bn": torch.randn(4),
        "count": torch.tensor(7),
    }
    share = pfa.low_band_spectra(state, 0.7, {"bn"}, {"head", "head_bias"})
    assert list(share) == ["conv", "conv.phase", "head", "head.phase", "head_bias"]
    assert share["conv"].shape == share["conv.phase"].shape
    # 64 columns at 0.7: frequencies -22 to 21, of which the half with 0 to 22 is sent, for each row.
    assert share["head"].shape == share["head.phase"].shape == (3 * 23,)


@forms
def test_treatments_and_untouched_inputs(form):
    def draw(bias, norm, count):
        return {
            "conv": torch.randn(4, 3, 3, 3),
            "head": torch.randn(3, 8),
            "head_bias": torch.tensor(bias),
            "bn": torch.tensor([norm]),
            "count": torch.tensor(count),
        }

    states = [draw([1.0, 2.0], 5.0, 7), draw([3.0, 4.0], 9.0, 3)]
    before = [{key: tensor.clone() for key, tensor in state.items()} for state in states]
    first, second = form(states, 0.7, {"bn"}, {"head", "head_bias"})
    assert list(first) == list(second) == list(states[0])
    assert first["head_bias"].tolist() == second["head_bias"].tolist() == [2.0, 3.0]
    assert (first["bn"].item(), second["bn"].item()) == (5.0, 9.0)
    assert (first["count"].item(), second["count"].item()) == (7, 3)
    as_matrix = form(states, 0.7, {"bn"})[0]
    torch.testing.assert_close(first["conv"], as_matrix["conv"])
    assert not torch.allclose(first["head"], as_matrix["head"])
    for state, old in zip(states, before, strict=True):
        assert all(torch.equal(state[key], old[key]) for key in old)


def test_the_low_band_becomes_common_and_the_high_band_stays():
    states = [{"w": torch.randn(9, 11, dtype=torch.float64)} for _ in range(3)]
    results = split_form(states, 0.6)
    spectra = [torch.fft.fft2(result["w"]) for result in results]
    own = torch.fft.fft2(states[0]["w"])
    inside, outside = (slice(0, 2), slice(0, 3)), (slice(3, 7), slice(4, 8))
    torch.testing.assert_close(spectra[0][inside], spectra[1][inside])
    torch.testing.assert_close(spectra[0][outside], own[outside])
    assert not torch.allclose(spectra[0][inside], own[inside])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_shares_of_less_precision_change_the_result_by_their_rounding(dtype):
    states = [{"w": torch.randn(8, 3, 3, 3)} for _ in range(3)]
    shares = [pfa.low_band_spectra(state, 0.9) for state in states]
    mean = pfa.mean_of_amplitudes([{key: t.to(dtype) for key, t in share.items()} for share in shares])
    assert {tensor.dtype for tensor in mean.values()} == {dtype}
    for state, exact in zip(states, pfa.phase_averaging_aggregation(states, 0.9), strict=True):
        result = pfa.rebuild_with_phases(state, mean, 0.9)["w"]
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, exact["w"], rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_bytes_sent_are_twice_those_of_amplitudes():
    state = {"w": torch.randn(256, 256, 3, 3)}
    for ratio, limit in ((0.7, 0.5), (0.95, 0.903)):
        share = pfa.low_band_spectra(state, ratio)
        numbers = sum(tensor.numel() for tensor in share.values())
        assert numbers == 2 * pfa.low_band_amplitudes(state, ratio)["w"].numel()
        assert 0.9 * ratio**2 < numbers / state["w"].numel() < limit


def test_errors_name_the_cause():
    with pytest.raises(ParticipationError):
        pfa.phase_averaging_aggregation([], 0.5)
    with pytest.raises(ConfigError, match=r"1\.5"):
        pfa.low_band_spectra({"w": torch.ones(2, 2)}, 1.5)
    with pytest.raises(StateMismatchError, match=r"client 1.*'w'"):
        pfa.phase_averaging_aggregation([{"w": torch.ones(2, 2)}, {"w": torch.ones(3, 2)}], 0.5)
    state = {"w": torch.ones(4, 4)}
    with pytest.raises(StateMismatchError, match=r"lacks tensor 'w\.phase'"):
        pfa.rebuild_with_phases(state, pfa.low_band_amplitudes(state, 0.9), 0.9)
    with pytest.raises(StateMismatchError, match=r"'w'"):
        pfa.rebuild_with_phases(state, pfa.low_band_spectra(state, 0.3), 0.9)
