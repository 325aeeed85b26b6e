"""What travels between server and sites: the documented fields, and no others."""

import dataclasses

import pytest

from prrfl.flower.messages import Answer, Order, from_records
from prrfl.flower.wire import measure_wire
from prrfl.models import build_network
from prrfl.pfa import low_band_amplitudes
from prrfl.tensors import norm_keys
from tests.flower.grid import grid_of, run
from tests.networks import FEATURES


def test_only_the_documented_fields_leave_a_site(data, tmp_path):
    seen = []

    def look(order, reply):
        seen.append((order, reply.content))
        return reply

    run(grid_of(data, tmp_path, spoil=look), tmp_path / "run", rounds=1)
    images = {path.stem for path in data.rglob("*.png")}
    for order, content in seen:
        assert set(content) == {"plain", "arrays"}
        assert set(content["plain"]) == {
            *("experiment", "site", "round", "error", "records", "share.layout", "weight", "key", "seed")
        }
        text = " ".join(map(str, content["plain"].values()))
        assert not any(name in text for name in images), "an image's name left the site"
        answer = from_records(Answer, content)
        if order.step == "train":
            # Low-band amplitudes of the deputy: less than a tenth of both networks.
            assert set(content["arrays"]) == {"share.float32"}
            assert all(array.stype == "numpy.ndarray" for array in content["arrays"].values())
            assert sum(t.numel() for t in answer.share.values()) > 0
        else:
            assert not answer.share


@pytest.mark.parametrize(("network", "secure"), [("vgg16_slim", False), ("tiny", True)])
def test_inspect_lists_every_field_of_both_messages(prrfl, network, secure):
    flags = ["--network", network, *(["--secure"] if secure else [])]
    code, out, err = prrfl("inspect", "--wire", *flags)
    assert (code, err) == (0, "")
    items = measure_wire({"network": network}, secure)
    fields = {f.name for kind in (Order, Answer) for f in dataclasses.fields(kind)}
    assert {item.name.partition(".")[0] for item in items} <= fields
    sent = {(i.step, i.name): i.bytes for i in items if i.to == "server" and i.name.startswith("share.")}
    # Numbers in the deputy's low-band amplitudes in the first round; 0.244 of the weights of VGG16-slim.
    module = build_network(network)
    amplitudes = low_band_amplitudes(module.state_dict(), 0.7, norm_keys(module))
    plain = sum(tensor.numel() for tensor in amplitudes.values())
    assert network == "tiny" or plain == 579_857
    if secure:
        assert {key: size for key, size in sent.items() if "layout" not in key[1]} == {
            ("share", "share.int64"): 8 * (plain + 1)
        }
    else:
        assert sent["train", "share.float32"] == 4 * plain
    for item in items:
        assert item.name in out
        assert f"{item.bytes:,}" in out or item.name == "settings"  # the command sends more settings


@pytest.mark.parametrize("secure", [False, True])
def test_class_counts_and_prototypes_are_listed(secure):
    settings = {"network": "tiny", "method": "prrfl-imbalance", "prototypes": "per-round"}
    items = measure_wire(settings, secure)
    sent = {(i.step, i.name): i.bytes for i in items if i.to == "server" and i.name.startswith("share.")}
    told = {i.step for i in items if i.to == "site" and i.name == "class_counts"}
    assert told == {"train", "receive", "keep"} | ({"share", "reveal"} if secure else set())
    if secure:
        assert ("count", "key") in {(i.step, i.name) for i in items}
        assert ("count", "share.float64") not in sent
    else:
        assert sent["count", "share.float64"] == 3 * 8
        # Means and squares of the features, and which classes there are.
        assert sent["train", "share.float64"] == (2 * 3 * FEATURES + 3) * 8
