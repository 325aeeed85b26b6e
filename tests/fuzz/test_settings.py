"""Settings: what is accepted comes back the same from the file that a run keeps, else its key is named."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prrfl.config import TrainConfig, load_config
from prrfl.errors import ConfigError
from tests.fuzz.cases import cases, tried
from tests.fuzz.mutators import changes, encodings, structures

WHOLE = load_config(None, {"data": "some/where", "device": "cpu"}).to_toml()
KEYS = sorted(TrainConfig.model_fields)
VALUES = st.one_of(
    st.sampled_from(
        [
            "inf",
            "-inf",
            "nan",
            "1e400",
            "1e-400",
            "0",
            "-1",
            "1e18",
            "10000000000000000000000",
            "9" * 5000,
            "0x" + "F" * 5000,
            "true",
            '""',
            '"\\u0000"',
            '"a\\u0000b"',
            '"a\\nb,c"',
            '"\\U0001F600,é"',
            '"\\u007F,x"',
            "[]",
            "[[]]",
            "{}",
            "{a = 1}",
            '["a", "b"]',
            '["a\\nb", "c"]',
            '"/' + "n" * 5000 + '"',
            '"' + ",".join(map(str, range(2500))) + '"',
            '"' + "\\u0001" * 1000 + '"',
            '[" ", "x"]',
            "2026-01-01",
            "12:00:00",
            '"cuda:99999999999999999999"',
            '"meta"',
            '"cpu:7"',
            '"²"',
            '"prrfl\\u0000"',
            "[" * 50 + "]" * 50,
        ]
    ),
    st.integers().map(str),
    st.floats().map(lambda x: repr(x) if math.isfinite(x) else "nan"),
    st.text(
        st.characters(codec="utf-8", exclude_characters='"\\', exclude_categories=["Cc"]), max_size=8
    ).map(lambda text: f'"{text}"'),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("settings") / "c.toml"


def assert_comes_back(config, path):
    for key, value in config.model_dump().items():
        assert not isinstance(value, float) or math.isfinite(value), key
    copy = path.with_name("copy.toml")
    copy.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(copy, {}) == config
    assert config.algorithm()


@cases(250)
@given(change=changes, encode=encodings)
def test_a_file_of_changed_bytes(change, encode, path):
    path.write_bytes(change(encode(WHOLE)))
    config = tried(lambda: load_config(path, {}), path)
    if not isinstance(config, str):
        assert_comes_back(config, path)


@cases(350)
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_a_file_with_an_odd_value(key, value, path):
    path.write_text(f"{key} = {value}\n", encoding="utf-8")
    config = tried(lambda: load_config(path, {}), f"{path}: key '{key}'", f"{path} is not TOML")
    if not isinstance(config, str):
        assert_comes_back(config, path)


@cases(100)
@given(
    key=st.sampled_from(KEYS),
    value=st.one_of(
        st.none(),
        st.text(max_size=20),
        st.floats(),
        st.integers(),
        st.just(10**5000),
        st.just("x" * 10**6),
        st.just("a\0b"),
        st.just("\udcff"),
    ),
)
def test_an_odd_flag(key, value, path):
    config = tried(lambda: load_config(None, {key: value}), f"--{key.replace('_', '-')}")
    if not isinstance(config, str):
        assert_comes_back(config, path)


@pytest.mark.parametrize(
    "value",
    ["\udcff", "a\0b", "x" * 10**6, 10**5000, float("nan")],
    ids=["surrogate", "NUL", "long", "digits", "nan"],
)
@pytest.mark.parametrize("key", KEYS)
def test_a_flag_that_no_file_can_keep(key, value, path):
    line = tried(lambda: load_config(None, {key: value}), f"--{key.replace('_', '-')}")
    assert isinstance(line, str)


@cases(10)
@given(mutation=structures)
def test_what_is_no_file(mutation, tmp_path_factory):
    path = tmp_path_factory.mktemp("structure") / "c.toml"
    path.write_text(WHOLE)
    mutation(path)
    config = tried(lambda: load_config(path, {}), path)
    assert isinstance(config, str) or path.read_bytes() == b""


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000 + "]" * 100_000,
        ".".join("a" * 8000) + " = 1",
        "\n".join(f"[a.{'b.' * k}c]" for k in range(120)),
        "rounds = " + "9" * 16_000,
        "seed = 0x" + "F" * 16_000,
        "x = '" + "y" * 10**7 + "'",
    ],
    ids=["deep", "dotted", "tables", "digits", "hexadecimal", "large"],
)
def test_toml_that_asks_for_too_much(text, path):
    path.write_text(text)
    assert isinstance(tried(lambda: load_config(path, {}), path), str)


@pytest.mark.parametrize(
    "key", ["rounds", "epochs", "images", "sites", "workers", "threads", "batch", "seed"]
)
def test_absurd_counts_are_refused(key, tmp_path, prrfl):
    code, _, err = prrfl("train", f"--{key}", 10**18 if key != "seed" else 2**63, "--out", tmp_path / "run")
    assert code == 2
    assert err.startswith(f"error: --{key}: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_would_fill_the_disk_is_refused(tmp_path, prrfl):
    code, _, err = prrfl(
        "generate", tmp_path / "g", "--sites", 1000, "--images", 100_000, "--image-size", 1024
    )
    assert code == 2
    assert "GiB" in err
    assert not any(tmp_path.iterdir())


def test_names_of_classes_stay_on_their_line():
    with pytest.raises(ConfigError, match="without line breaks"):
        load_config(None, {"classes": "a\nb,c"})
