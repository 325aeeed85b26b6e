"""What is sent between real sites: what is accepted is an order or answer, and an invalid key is refused."""

import json
from dataclasses import fields
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("flwr")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from prrfl.errors import LONGEST
from prrfl.flower.federation import Federation
from prrfl.flower.messages import STEPS, Answer, Order, from_records, to_records
from prrfl.flower.secure_sum import Identity, check_part, masked, own_seed, read_cohort, read_roster, unmasked
from prrfl.flower.server.admission import check_share, parse_records
from prrfl.flower.server.masked_round import parse_key, parse_seed
from prrfl.flower.server.transport import Refusal, Transport
from prrfl.types import Share
from tests.flower import grid  # noqa: F401 - as Flower's processes, which make messages
from tests.fuzz.cases import cases, tried
from tests.fuzz.mutators import changes, files
from tests.sites import tiny_network

WEIGHTS = tiny_network().state_dict()
ANSWER = Answer("e", "north", 1, records="{}", share=WEIGHTS, weight=2.0, key="{}")
ORDER = Order("receive", "e", "north", 1, "{}", "0.1.0", mean=WEIGHTS)
LAYOUTS = st.sampled_from(
    [
        "[]",
        "{}",
        "null",
        "[" * 100_000,
        '[["a", "float32", [2]]]',
        '[["a", "float32", [-1]]]',
        '[["a", "float32", [1e3]]]',
        '[["a", "float32", [4294967296, 4294967296]]]',
        '[["a", "float32", [99999999999999999999, 0]]]',
        '[["a", ["float32"], [1]]]',
        '[["a", "object", [1]]]',
        '[["a", "float32", ["x"]]]',
        '[["a", "float32", [1]], ["a", "float32", [1]]]',
        '[[1, "float32", [1]]]',
        '[["a", "float32"]]',
        '[["a", "float64", [1]]]',
    ]
)
PLAIN = st.one_of(
    st.text(max_size=5),
    st.integers(-(2**62), 2**62),
    st.floats(),
    st.booleans(),
    st.binary(max_size=4),
    st.just([1, 2]),
)


def npy(array):
    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


ARRAYS = st.sampled_from(
    [
        np.zeros(0, np.float32),
        np.zeros(3, np.float32),
        np.zeros((2, 3), np.float32),
        np.zeros((), np.float32),
        np.zeros(3, np.float64),
        np.zeros(3, "c16"),
        np.zeros(3, "S2"),
        np.zeros(3, "M8[s]"),
        np.zeros(3, ">f4"),
        np.zeros(3, "u2"),
        np.zeros(3, "u1,u1"),
    ]
)


def assert_like(value, kind):
    assert isinstance(value, kind)
    for one in fields(kind):
        part = getattr(value, one.name)
        if one.name in ("share", "mean"):
            assert all(isinstance(key, str) and isinstance(t, torch.Tensor) for key, t in part.items())
    assert isinstance(value.round, int)
    assert isinstance(value.site, str)
    if kind is Order:
        assert value.step in STEPS
    again = from_records(kind, to_records(value))
    assert to_records(again).config_records["plain"] == to_records(value).config_records["plain"] or (
        kind is Answer and value.weight != value.weight
    )


def odd_records(data, kind):
    """Return the records of a message in which one or two parts are odd."""
    whole = to_records(ANSWER if kind is Answer else ORDER)
    plain = dict(whole.config_records["plain"])
    arrays = dict(whole.array_records["arrays"])
    for _ in range(data.draw(st.integers(1, 2))):
        match data.draw(st.sampled_from(["plain", "layout", "array", "bytes", "less", "more"])):
            case "plain":
                plain[data.draw(st.sampled_from(sorted(plain)))] = data.draw(PLAIN)
            case "layout":
                key = "mean.layout" if kind is Order else "share.layout"
                old = data.draw(changes)(str(plain.get(key, "")).encode()).decode("utf-8", "replace")
                plain[key] = data.draw(LAYOUTS | st.just(old))
            case "array":
                arrays[data.draw(st.sampled_from(sorted(arrays)))] = Array(data.draw(ARRAYS))
            case "bytes":
                key = data.draw(st.sampled_from(sorted(whole.array_records["arrays"])))
                old = whole.array_records["arrays"][key]
                arrays[key] = Array(
                    dtype=data.draw(st.sampled_from([old.dtype, "float64", ""])),
                    shape=old.shape,
                    stype=data.draw(st.sampled_from([old.stype, "pickle"])),
                    data=data.draw(changes)(npy(old.numpy())),
                )
            case "less":
                (plain if data.draw(st.booleans()) else arrays).popitem()
            case "more":
                arrays["share.int8"] = Array(np.zeros(3, np.int8))
        if not plain or not arrays:
            break
    return RecordDict({"plain": ConfigRecord(plain), "arrays": ArrayRecord(arrays)})


@cases(300)
@given(data=st.data(), kind=st.sampled_from([Order, Answer]))
def test_a_message_with_odd_parts(data, kind):
    records = odd_records(data, kind)
    value = tried(lambda: from_records(kind, records), f"invalid {kind.__name__.lower()}")
    if not isinstance(value, str):
        assert_like(value, kind)


class OneReply:
    """A grid with one node, whose reply is always the same."""

    def __init__(self, content):
        self.content = content
        self.metadata = None

    def get_nodes(self):
        return [NodeInfo(node_id=1, name="north", last_activated_at="once")]

    def push_messages(self, _):
        return ["message"]

    def pull_messages(self, _):
        return [self]

    def has_error(self):
        return False


READERS = {
    "train": lambda answer: check_share(answer, Share(WEIGHTS, 2.0)),
    "share": lambda answer: check_part(answer.share, SHARE.tensors, "north"),
    "reveal": parse_seed,
    "receive": lambda answer: parse_records(answer.records, [], 3, 3),
    "keep": parse_key,
}


@cases(300)
@given(data=st.data(), step=st.sampled_from(sorted(READERS)))
def test_whatever_a_site_answers_is_its_own_refusal_or_valid(data, step):
    federation = Federation("e", {}, ("north", "south"), 2, 0.0, False)
    transport = Transport(OneReply(odd_records(data, Answer)), federation)
    ((name, taken),) = transport.ask(step, 1, ["north"], READERS[step])
    assert name == "north"
    if isinstance(taken, Refusal):
        assert taken.reason
        assert len(taken.reason) <= LONGEST
        assert taken.reason.isprintable()


def test_records_of_something_else():
    for records in (
        RecordDict(),
        RecordDict({"plain": ArrayRecord({})}),
        RecordDict({"plain": ConfigRecord()}),
    ):
        assert isinstance(tried(lambda records=records: from_records(Order, records), "invalid order"), str)


def identities(count=3):
    keys = {f"s{k}": Ed25519PrivateKey.generate() for k in range(count)}
    roster = {name: key.public_key() for name, key in keys.items()}
    return [Identity(name, "e", roster, key, X25519PrivateKey.generate()) for name, key in keys.items()]


SITES = identities()
COHORT = [site.signed_key() for site in SITES]
SHARE = Share({"a": torch.tensor([1.0, 2.0])})


def signed(site, key):
    """Return a key that a site signed, whatever its bytes are."""
    statement = json.dumps(["prrfl secure sum key", "e", site.site, key.hex(), ""]).encode()
    return {"site": site.site, "key": key.hex(), "mean": "", "signature": site.signing.sign(statement).hex()}


@cases(150)
@given(data=st.data())
def test_a_cohort_that_is_changed(data):
    text = data.draw(changes)(json.dumps(COHORT).encode()).decode("utf-8", "replace")

    def part():
        return masked(SHARE, SITES[0], read_cohort(text, "s0"), 0)

    sums = tried(part, "site s0")
    if not isinstance(sums, str):
        assert [sorted(one.items()) for one in json.loads(text)] == [
            sorted(one.items()) for one in COHORT
        ] or (
            # Hexadecimal digits may be written large, and a field that nobody reads may be there.
            {one["site"] for one in json.loads(text)} == {"s0", "s1", "s2"}
        )
        assert sums.shape == (3,)


@pytest.mark.parametrize(
    "cohort",
    [
        [],
        [1, 2, 3],
        ["s0", "s1", "s2"],
        [None],
        [*COHORT, COHORT[0]],
        COHORT[:2],
        COHORT[1:],
        [*COHORT[:2], {"site": "s2"}],
        [*COHORT[:2], {"site": ["s2"], "key": "00", "signature": "00"}],
        [*COHORT[:2], {"site": "s2", "key": 5, "signature": None}],
        # A key of small order gives the same secret with everybody: the cipher's library refuses it.
        [*COHORT[:2], signed(SITES[2], bytes(32))],
        [*COHORT[:2], signed(SITES[2], b"\1" + bytes(31))],
        [*COHORT[:2], signed(SITES[2], b"short")],
    ],
)
def test_a_cohort_with_odd_keys(cohort):
    line = tried(lambda: masked(SHARE, SITES[0], cohort, 0), "site s0")
    assert isinstance(line, str)


@pytest.mark.parametrize("text", ["", "{}", "null", "[" * 100_000, "[1]", '"x"', "9" * 5000, "\0"])
def test_what_is_no_cohort(text):
    assert "has no valid cohort" in tried(lambda: read_cohort(text, "s0"), "site s0")


@cases(60)
@given(data=st.data())
def test_masks_that_stay_in_a_sum_are_seen(data):
    parts = [torch.from_numpy(masked(SHARE, site, COHORT, 0)) for site in SITES]
    seeds = [own_seed(SHARE, site, COHORT, 0) for site in SITES]
    spoilt = data.draw(st.integers(0, 2))
    parts[spoilt] = parts[spoilt] ^ 2 ** data.draw(st.integers(20, 62))
    assert not abs(unmasked(parts, seeds, SHARE.tensors).weight - 3) < 1e-6


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"masked": torch.zeros(3)},
        {"masked": torch.zeros(2, dtype=torch.int64)},
        {"masked": torch.zeros(3, 1, dtype=torch.int64)},
        {"masked": torch.zeros(3, dtype=torch.int64), "more": torch.zeros(1)},
    ],
)
def test_a_part_of_a_sum_that_is_none(part):
    assert isinstance(tried(lambda: check_part(part, SHARE.tensors, "site s1"), "site s1"), str)


@cases(120)
@given(mutation=files, which=st.sampled_from(["roster.txt", "sign.key", "sum.key"]))
def test_broken_files_of_keys(mutation, which, certs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("roster.txt", "sign.key"):
        (folder / name).write_bytes((certs / name).read_bytes())
    (folder / "sum.key").write_bytes(X25519PrivateKey.generate().private_bytes_raw())
    mutation(folder / which)

    def load():
        roster = read_roster(folder / "roster.txt")
        return Identity.load("north", "e", folder / "sign.key", roster, folder / "sum.key")

    identity = tried(load, folder / which, "signing key", "the roster")
    if not isinstance(identity, str):
        assert isinstance(identity.private.public_key(), X25519PublicKey)
        assert identity.signing.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


ODD_NAMES = ["../x", "..", "a/b", "a b", "#a", "a\nb", "\0", "x" * 300, "\x1b[2J", "\udcff"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_name_that_no_site_can_have(name, tmp_path):
    from prrfl.flower.certs import make_certs
    from prrfl.flower.federation import federate

    names = ["north", name, "south"]
    for call in (
        lambda: make_certs(tmp_path / "certs", names, ["localhost"]),
        lambda: federate(tmp_path / "run", {}, names),
    ):
        assert "invalid site name" in tried(call)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("host", "days"), [("exämple.org", 365), ("a\nb", 10**9), ("localhost", 0)])
def test_hosts_and_days_that_no_certificate_can_have(host, days, tmp_path):
    from prrfl.flower.certs import make_certs

    line = tried(lambda: make_certs(tmp_path / "certs", ["north"], [host], days))
    assert "host" in line or "days" in line
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    from prrfl.flower.certs import make_certs

    folder = tmp_path_factory.mktemp("certs") / "certs"
    make_certs(folder, ["north", "south", "east"], ["localhost"])
    return folder / "sites" / "north"
