"""PFA: the authors' numbers, and the two forms held together."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prrfl import pfa
from prrfl.errors import ConfigError, ParticipationError, StateMismatchError
from tests.reference import VECTORS


def split_form(states, ratio, local_keys=()):
    mean = pfa.mean_of_amplitudes([pfa.low_band_amplitudes(s, ratio, local_keys) for s in states])
    return [pfa.rebuild(s, mean, ratio, local_keys) for s in states]


@pytest.mark.parametrize("form", [pfa.progressive_fourier_aggregation, split_form])
def test_both_forms_agree_with_the_authors_code(form):
    vectors = np.load(VECTORS / "pfa.npz")
    inputs = [name for name in vectors.files if name.startswith("in_")]
    assert len(inputs) == 9
    compared = 0
    for name in inputs:
        states = [{"weight": torch.from_numpy(w)} for w in vectors[name]]
        for j, ratio in enumerate(vectors["rates"]):
            out = f"out_{name[3:]}_{j}"
            for result, wanted in zip(form(states, float(ratio)), vectors[out], strict=True):
                np.testing.assert_allclose(
                    result["weight"].numpy(), wanted, atol=1e-5, err_msg=f"{name} at {ratio}"
                )
            compared += 1
    assert compared == 45


shapes = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
)


@settings(max_examples=200, deadline=None)
@given(shape=shapes, ratio=st.floats(0, 1), clients=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_split_form_equals_server_form(shape, ratio, clients, seed):
    draw = torch.Generator().manual_seed(seed)
    states = [{"w": torch.randn(shape, generator=draw, dtype=torch.float64)} for _ in range(clients)]
    for ours, server in zip(
        split_form(states, ratio), pfa.progressive_fourier_aggregation(states, ratio), strict=True
    ):
        torch.testing.assert_close(ours["w"], server["w"], rtol=1e-10, atol=1e-10)


def test_a_zero_weight_takes_phase_zero_in_both_forms():
    states = [{"w": torch.zeros(6, 5, dtype=torch.float64)}, {"w": torch.eye(6, 5, dtype=torch.float64)}]
    for ours, server in zip(
        split_form(states, 0.8), pfa.progressive_fourier_aggregation(states, 0.8), strict=True
    ):
        torch.testing.assert_close(ours["w"], server["w"])
    assert split_form(states, 0.8)[0]["w"].abs().sum() > 0


def test_one_by_one_band_by_hand():
    # 2x2 matrix at ratio 1: the band holds all four frequencies. The spectra are purely real:
    # a: all ones -> F(0,0) = 4, else 0.   b: three times as large -> 12.
    a, b = torch.ones(2, 2), 3 * torch.ones(2, 2)
    first, second = pfa.progressive_fourier_aggregation([{"w": a}, {"w": -b}], 1.0)
    torch.testing.assert_close(first["w"], torch.full((2, 2), 2.0))
    torch.testing.assert_close(second["w"], torch.full((2, 2), -2.0))  # keeps its own phase, pi


def test_treatments_and_untouched_inputs():
    state = {
        "conv": torch.randn(4, 3, 3, 3),
        "bias": torch.tensor([1.0, 2.0]),
        "bn.weight": torch.tensor([5.0]),
        "count": torch.tensor(7),
    }
    other = {
        "conv": torch.randn(4, 3, 3, 3),
        "bias": torch.tensor([3.0, 4.0]),
        "bn.weight": torch.tensor([9.0]),
        "count": torch.tensor(3),
    }
    before = {key: tensor.clone() for key, tensor in state.items()}
    local = {"bn.weight"}
    kinds = {key: pfa.treatment(key, tensor, local) for key, tensor in state.items()}
    assert kinds == {"conv": "fourier", "bias": "mean", "bn.weight": "local", "count": "local"}
    for form in (pfa.progressive_fourier_aggregation, split_form):
        first, second = form([state, other], 0.7, local)
        assert first["bias"].tolist() == second["bias"].tolist() == [2.0, 3.0]
        assert (first["bn.weight"].item(), second["bn.weight"].item()) == (5.0, 9.0)
        assert (first["count"].item(), second["count"].item()) == (7, 3)
        assert not torch.allclose(first["conv"], second["conv"])
    for key, tensor in before.items():
        assert torch.equal(state[key], tensor)


def test_bytes_sent_stay_within_the_half_band():
    weight = torch.randn(256, 256, 3, 3)
    for ratio, limit in ((0.7, 0.25), (0.95, 0.4515)):
        sent = pfa.low_band_amplitudes({"w": weight}, ratio)["w"]
        assert 0.9 * ratio**2 / 2 < sent.numel() / weight.numel() < limit


def test_ratio_schedule():
    assert pfa.low_frequency_ratio(0, 50) == 0.7
    assert pfa.low_frequency_ratio(25, 50) == pytest.approx(0.825)
    assert pfa.low_frequency_ratio(49, 50) == pytest.approx(0.945)
    assert pfa.low_frequency_ratio(1, 4, r0=0.2, r1=1.0) == pytest.approx(0.4)


def test_errors_name_the_cause():
    with pytest.raises(ParticipationError):
        pfa.progressive_fourier_aggregation([], 0.5)
    with pytest.raises(ConfigError, match=r"1\.5"):
        pfa.low_band_amplitudes({"w": torch.ones(2, 2)}, 1.5)
    with pytest.raises(StateMismatchError, match=r"client 1.*'w'"):
        pfa.progressive_fourier_aggregation([{"w": torch.ones(2, 2)}, {"w": torch.ones(3, 2)}], 0.5)
    with pytest.raises(StateMismatchError, match="'w'"):
        pfa.rebuild({"w": torch.ones(4, 4)}, {"w": torch.ones(3)}, 0.9)
