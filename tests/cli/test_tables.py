"""Tables on narrow screens and in files: every number is complete."""

import pytest
from rich.console import Console
from rich.table import Table

from prrfl.cli import screen

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc", "a-class-with-a-very-long-name")


def filled(columns, names=1, name="clientA"):
    table = Table(title="Scores")
    for index, head in enumerate(columns):
        table.add_column(head, justify="left" if index < names else "right")
    for row in range(3):
        numbers = [f"{10 + row}.{10 + k}\n{row}–{k + 10}" for k in range(len(columns) - names)]
        table.add_row(*[f"{name}{row}"] * names, *numbers)
    return table


@pytest.mark.parametrize("width", [30, 40, 80, 200])
@pytest.mark.parametrize("names", [1, 2])
def test_no_digit_and_no_name_is_lost(monkeypatch, capsys, width, names):
    monkeypatch.setattr(screen, "console", Console(width=width, markup=False, emoji=False))
    heads = [*("site", "split")[:names], "macro-F1", "AUC", *(f"recall {c}" for c in CLASSES), "ECE"]
    screen.print_table(filled(heads, names), names)
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(len(line) <= width for line in out.splitlines())
    for row in range(3):
        for k in range(len(heads) - names):
            assert f" {10 + row}.{10 + k} " in out
            assert f" {row}–{k + 10} " in out
    for word in CLASSES[:-1]:
        assert word in out
    assert out.count("Scores, continued") == (0 if width == 200 else out.count("┏") - 1)


def test_a_table_that_fits_is_one(monkeypatch, capsys):
    monkeypatch.setattr(screen, "console", Console(width=80))
    screen.print_table(filled(["site", "macro-F1", "AUC"]))
    assert capsys.readouterr().out.count("┏") == 1


def test_a_name_of_any_length_leaves_room_for_the_numbers(monkeypatch, capsys):
    monkeypatch.setattr(screen, "console", Console(width=40))
    screen.print_table(filled(["site", "macro-F1", "AUC"], name="x" * 100))
    out = capsys.readouterr().out
    assert " 10.10 " in out
    assert out.count("x") == 300 * out.count("┏")


def test_a_sentence_is_wrapped_instead_of_split_off(monkeypatch, capsys):
    monkeypatch.setattr(screen, "console", Console(width=60))
    table = Table(title="t")
    for name in ("field", "what it is", "bytes"):
        table.add_column(name, justify="right" if name == "bytes" else "left")
    table.add_row("records", "losses and scores of the networks of the site; no images or names", "1,234,567")
    screen.print_table(table)
    out = capsys.readouterr().out
    assert out.count("┏") == 1
    assert "1,234,567" in out
