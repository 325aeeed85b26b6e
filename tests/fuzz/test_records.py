"""What a run wrote: records, predictions, summary. What is accepted can be summed up, drawn and printed."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prrfl.algorithms import FedAvg
from prrfl.engine import InProcess, run_rounds
from prrfl.reports.meter import measure
from prrfl.reports.summary import summarise
from prrfl.storage.records import (
    append_records,
    from_line,
    parse_summary,
    predictions_to_csv,
    read_predictions,
    read_records,
    to_line,
)
from prrfl.training import Recipe
from prrfl.types import ExchangeRecord, Predictions
from tests.fuzz.cases import cases, tried
from tests.fuzz.mutators import CELLS, changes, files
from tests.sites import tiny_network, tiny_sites

CLASSES = ("a", "b, c", "d")


@pytest.fixture(scope="module")
def records():
    network = tiny_network()
    engine = InProcess(FedAvg(), tiny_sites(2, 9), Recipe(network, batch=8))
    return list(run_rounds(FedAvg(), engine, rounds=2, epochs=1, network=network))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("records") / "metrics.jsonl"


def assert_sane(found, path):
    ends = [record.round for record in found if isinstance(record, ExchangeRecord)]
    assert ends == list(range(len(ends)))
    if ends:
        summary = json.dumps(summarise(found), allow_nan=False).encode()
        assert parse_summary(summary)["rounds"] == len(ends)
        assert measure(found)
    path.unlink()
    append_records(path, found)
    assert read_records(path) == found


@cases(250)
@given(change=changes)
def test_records_of_changed_bytes(change, records, path):
    path.write_bytes(change("".join(map(to_line, records)).encode()))
    found = tried(lambda: read_records(path), path)
    if not isinstance(found, str):
        assert_sane(found, path)


@cases(200)
@given(data=st.data())
def test_records_that_lack_lines_or_have_them_twice_or_elsewhere(data, records, path):
    lines = list(map(to_line, records))
    where = st.integers(0, len(lines) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        match data.draw(st.sampled_from(["drop", "double", "move"])):
            case "drop":
                del lines[data.draw(where) % len(lines)]
            case "double":
                lines.insert(data.draw(where), lines[data.draw(where) % len(lines)])
            case "move":
                lines.insert(data.draw(where), lines.pop(data.draw(where) % len(lines)))
    path.write_text("".join(lines))
    found = tried(lambda: read_records(path), f"{path}:")
    if not isinstance(found, str):
        assert_sane(found, path)


NUMBERS = st.sampled_from(
    ["NaN", "Infinity", "-1", "1e999", "2", "-0.5", "10" * 30, "9" * 5000, '"x"', "null", "[]", "true", "1.5"]
)


@cases(200)
@given(data=st.data())
def test_a_record_with_an_odd_number(data, records):
    line = to_line(data.draw(st.sampled_from(records)))
    spans = [(a, b) for a, b in _numbers(line)]
    start, end = data.draw(st.sampled_from(spans))
    odd = line[:start] + data.draw(NUMBERS) + line[end:]
    record = tried(lambda: from_line(odd), kind=ValueError)
    if isinstance(record, str):
        return
    json.loads(to_line(record))  # which takes no NaN
    assert record.round >= 0


def _numbers(line):
    """Yield where the numbers of a line of JSON stand."""
    start = None
    for index, char in enumerate(line):
        inside = char in "0123456789.-+e" and (start is not None or char not in "+e.")
        if inside and start is None:
            start = index
        if not inside and start is not None:
            if line[start - 1] in " [" and line[start:index][-1].isdigit():
                yield start, index
            start = None


@cases(100)
@given(mutation=files)
def test_a_broken_file_of_records(mutation, records, tmp_path_factory):
    path = tmp_path_factory.mktemp("broken") / "metrics.jsonl"
    append_records(path, records)
    mutation(path)
    found = tried(lambda: read_records(path), path)
    if not isinstance(found, str):
        assert_sane(found, path)


def predictions(records):
    site = tiny_sites(1)[0].test
    values = [[0.5, 0.25, 0.25]] * len(site)
    return Predictions(tuple(f"im,{k}" for k in range(len(site))), site.labels, torch.tensor(values).double())


@cases(150)
@given(change=changes)
def test_predictions_of_changed_bytes(change, records, path):
    path.write_bytes(change(predictions_to_csv(predictions(records), CLASSES).encode()))
    assert_predictions(path)


@cases(150)
@given(data=st.data())
def test_predictions_with_an_odd_cell(data, records, path):
    lines = predictions_to_csv(predictions(records), ("a", "b", "d")).splitlines()
    row = data.draw(st.integers(0, len(lines) - 1))
    cells = lines[row].split(",")
    cells[data.draw(st.integers(0, len(cells) - 1))] = data.draw(CELLS | NUMBERS)
    lines[row] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    assert_predictions(path, ("a", "b", "d"))


def assert_predictions(path, classes=CLASSES):
    found = tried(lambda: read_predictions(path, classes), path)
    if not isinstance(found, str):
        n = len(found.ids)
        assert n > 0
        assert found.labels.shape == (n,)
        assert 0 <= found.labels.min() <= found.labels.max() < 3
        assert found.probabilities.shape == (n, 3)
        assert (found.probabilities >= 0).all()
        assert (found.probabilities <= 1).all()


@cases(250)
@given(change=changes)
def test_a_summary_of_changed_bytes(change, records):
    whole = json.dumps({**summarise(records), "seconds": 3.0}, indent=2).encode()
    summary = tried(lambda: parse_summary(change(whole)), kind=ValueError)
    if isinstance(summary, str):
        return
    for which in ("last", "best"):
        for scores in summary[which]["sites"].values():
            assert 0 <= scores["macro_f1"] <= 1
    json.dumps(summary, allow_nan=False)
