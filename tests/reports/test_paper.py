"""Tables and figures for a paper: what the command writes, and that it can go to print as it is."""

import re
import shutil
import subprocess
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from prrfl import cli
from prrfl.reports import comparison, documents, latex, paper, paper_figures
from prrfl.reports.styles import PALETTE
from prrfl.runs.compare import read_runs
from prrfl.runs.folder import RunFolder
from prrfl.runs.scorers import read_scorers
from tests.forked import fork_runs
from tests.reports.test_comparison import run
from tests.sites_on_disk import write_layout

CLASSES = ("nv", "bkl", "mel")
PDFLATEX = shutil.which("pdflatex")
needs_latex = pytest.mark.skipif(
    PDFLATEX is None or shutil.which("kpsewhich") is None,
    reason="no pdflatex here (Debian: apt install texlive-latex-recommended)",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison of two methods with two seeds."""
    data = write_layout(tmp_path_factory.mktemp("data"), other=9)
    out = tmp_path_factory.mktemp("runs") / "c"
    arguments = ["compare", "--methods", "prrfl,fedavg", "--seeds", "0,1", "--data", data, "--out", out]
    arguments += ["--image-size", 32, "--rounds", 1, "--epochs", 1, "--network", "tiny"]
    (out.parent / "own.py").write_text("def surest(labels, probabilities):\n    return probabilities.max()\n")
    arguments += ["--scorers", f"{out.parent / 'own.py'}:surest"]
    with pytest.MonkeyPatch.context() as patch:
        fork_runs(patch)
        patch.setattr("prrfl.runs.report.draw_retrogress", lambda *_: None)
        patch.setattr("prrfl.runs.compare.tabulate", lambda *_: [])
        patch.setattr("prrfl.cli.comparing.print_comparison", lambda *_: None)
        patch.setattr("sys.argv", ["prrfl", *map(str, arguments)])
        assert cli.guarded(cli.app) == 0
    return out


@pytest.fixture(scope="module")
def printed(folder):
    """What the command writes for that comparison, and says."""
    out = folder / "print"
    arguments = ["report", folder, "--for", "paper", "--methods", "fedavg,prrfl"]
    arguments += ["--metrics", "auc,recall_mel", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["prrfl", *map(str, arguments)])
        assert cli.guarded(cli.app) == 0
    return out


@pytest.fixture
def unsaved(monkeypatch):
    """Names of the figures, which are not written: that takes longer than the rest."""
    names = []
    monkeypatch.setattr("prrfl.runs.paper.save_for_print", lambda _, path: names.append(path.name))
    return names


def body(text, label):
    """Return the rows of the table with a label, as cells without what only aligns them."""
    table = text[text.index(rf"\label{{{label}}}") :].partition(r"\end{table}")[0]
    rows = [line.removesuffix(r" \\") for line in table.splitlines() if line.endswith(r"\\")]
    plain = [re.sub(r"\\phantom\{[^}]*\}|\\multicolumn\{\d\}\{c\}|\\textbf|[{}]", "", row) for row in rows]
    return [[cell.strip() for cell in row.split(" & ")] for row in plain]


def test_a_comparison_becomes_tables_and_figures_in_print_quality(printed):
    out = printed
    names = ["forest", "sites", "retrogress", "reliability"]
    expected = {f"{name}.{kind}" for name in names for kind in ("pdf", "svg", "png")}
    assert {path.name for path in out.iterdir()} == expected | {"table.tex", "table.md", "figures.tex"}
    text = (out / "table.tex").read_text()
    rows = body(text, "tab:scores")
    assert rows[:2] == [["", "AUC", "Recall mel"], ["Method", "mean of sites", "$-$ prrfl", "mean of sites"]]
    assert [row[0] for row in rows[2:]] == ["fedavg", "prrfl", "majority class"]
    assert body(text, "tab:sites")[0] == ["", "AUC", "Recall mel"]
    assert "18 test images of 3 classes at 2 sites (clientA 9, clientB 9), 2 seeds" in text
    assert "methods" not in text  # all are shown
    for name in names:
        pdf = (out / f"{name}.pdf").read_bytes()
        assert b"/FontFile2" in pdf  # TrueType, embedded
        assert b"/Type3" not in pdf
        assert "<text" not in (out / f"{name}.svg").read_text()
        with Image.open(out / f"{name}.png") as picture:
            assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert picture.width in (3.3 * 300, 6.9 * 300)
        assert rf"{{{name}.pdf}}" in (out / "figures.tex").read_text()
        assert f"]({name}.png)" in (out / "table.md").read_text()


def test_a_run_becomes_a_table_by_site(folder, prrfl, unsaved):
    one = folder / "runs/prrfl-seed1"
    assert prrfl("report", one, "--for", "paper")[0] == 0
    text = (one / "paper/table.tex").read_text()
    best = RunFolder(one).summary()["best"]
    rows = {row[0]: row for row in body(text, "tab:sites")[2:]}
    for site, scores in {**best["sites"], "mean": best["mean"]}.items():
        assert rows[site][1].startswith(f"{100 * scores['macro_f1']:.1f}")
        assert rows[site][3].startswith(f"{100 * scores['auc']:.1f}")
    assert "1 seed, with 95\\% intervals over test images" in text
    assert unsaved == ["sites", "retrogress", "reliability"]


def test_methods_that_are_not_shown_are_counted(folder, tmp_path, prrfl, caplog, unsaved):
    arguments = ["--for", "paper", "--methods", "fedavg", "--metrics", "balanced_accuracy", "--out", tmp_path]
    assert prrfl("report", folder, *arguments)[0] == 0
    assert "shown, and compared with each other, are 1 of 2 methods" in (tmp_path / "table.md").read_text()
    assert unsaved == ["forest", "sites", "reliability"]
    assert "no figure of retrogress: communications are measured in f1 and auc" in caplog.text


def test_all_measures_of_a_comparison_can_be_chosen(folder, tmp_path, prrfl, unsaved):
    metrics = "f1,worst_f1,spread_f1,accuracy,surest"
    assert prrfl("report", folder, "--for", "paper", "--metrics", metrics, "--out", tmp_path)[0] == 0
    text = (tmp_path / "table.md").read_text()
    tables = [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    heads, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables[0]]
    assert heads == [
        *("Method", "Macro-F1, mean of sites", "Macro-F1, − prrfl", "Macro-F1, worst site"),
        *("Macro-F1, spread of sites", "Accuracy, mean of sites", "surest, mean of sites"),
    ]
    rows = comparison.compare(read_runs(folder)[0], "prrfl", further=read_scorers(folder))
    for row, line in zip(rows, lines, strict=True):
        for cell, name in zip(line[3:], ("worst_f1", "spread_f1", "accuracy"), strict=False):
            assert cell.startswith(f"{100 * row.scores[name]['mean'].mean:.1f}")
        e = row.scores["surest"]["mean"]
        shown = [float(number.replace("−", "-")) for number in re.findall(r"−?[\d.]+", line[6])]
        assert shown == pytest.approx([e.mean, *(e.interval or e.images or ())], abs=5e-4)
    assert "mean of sites in percent (surest as a plain number)" in text
    assert "Worst site: lowest score of a site; spread: highest less lowest." in text
    assert "Macro-F1, clientA" in tables[1][0]
    assert "spread" not in tables[1][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "f2"], "--metrics: unknown metric 'f2'; choose among f1, auc, accuracy, balanced"),
        (["--metrics", "f1,f1"], "--metrics: 'f1' is given twice"),
        (["--methods", "ida"], "has no finished run of method 'ida'; choose among prrfl, fedavg"),
        (["--data", "."], "--data is for the page of a run, and has no effect with --for paper"),
        ([], "--metrics has no effect without --for paper"),
    ],
)
def test_errors_name_the_flag_and_write_nothing(folder, tmp_path, prrfl, arguments, message):
    given = ["--for", "paper", *arguments] if arguments else ["--metrics", "f1"]
    code, _, err = prrfl("report", folder, *given, "--out", tmp_path / "out")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_unfinished_or_has_no_methods_is_refused(folder, tmp_path, prrfl):
    one = folder / "runs/prrfl-seed0"
    assert "--methods is for comparisons" in prrfl("report", one, "--for", "paper", "--methods", "prrfl")[2]
    said = "--metrics: worst_f1 is for comparisons; the table of a run shows every site"
    assert said in prrfl("report", one, "--for", "paper", "--metrics", "worst_f1")[2]
    shutil.copytree(one, tmp_path / "one")
    (tmp_path / "one/summary.json").unlink()
    code, _, err = prrfl("report", tmp_path / "one", "--for", "paper")
    assert code == 2
    assert "a paper needs a finished run, so complete it with `prrfl resume" in err


def many(count=10, sites=2, seeds=3):
    """Return rows of methods, the reference first and the worst one last, and what was tested."""
    names = ["prrfl", "prrfl:transfer=off+aggregation=mean", *(f"method-{k}" for k in range(2, count))]
    skills = np.linspace(4, 0, count) ** 0.5
    runs = [
        run(name, seed, skill) for name, skill in zip(names, skills, strict=True) for seed in range(seeds)
    ]
    if sites > 2:
        more = {f"site {k}": "ab"[k % 2] for k in range(sites)}
        runs = [
            replace(
                one,
                predictions={site: one.predictions[like] for site, like in more.items()},
                training=dict.fromkeys(more, (30, 5, 5)),
            )
            for one in runs
        ]
    rows = comparison.compare(runs, "prrfl", margin=0.02, draws=100)
    images = dict.fromkeys(runs[0].predictions, 33)
    return rows, paper.Subject(images, CLASSES, seeds=seeds, groups=False, generated=True, of=count)


def test_marks_are_those_of_the_comparison_and_the_caption_explains_just_them():
    rows, subject = many(3, seeds=5)
    metrics = [paper.metrics_of(CLASSES)["f1"]]
    table, _ = paper.comparison_tables(rows, metrics, subject)
    scores, gaps = (column.entries for column in table.columns)
    assert [e.bold for e in scores] == ["f1" in row.best for row in rows]
    assert any(e.bold for e in scores)
    for row, score, gap in zip(rows, scores, gaps, strict=True):
        assert ("†" in score.marks) == ("f1" in row.untold and "f1" not in row.best)
        assert ("*" in gap.marks) == (row.p.get("f1", 1) < 0.05)
        if "f1" in row.tests:
            assert gap.ends == row.tests["f1"].interval
    shown = "".join(e.marks for e in (*scores, *gaps))
    for mark, words in (("†", "†: not told apart"), ("*", "*: p < 0.05"), ("‡", "‡: equal to it within 2")):
        assert (words in table.caption) == (mark in shown)
    assert "*" in shown
    assert "Bold: best mean" in table.caption
    text = paper.table_to_latex(table)
    mean = f"{100 * rows[0].f1['mean'].mean:.1f}"
    assert rf"\textbf{{{mean}}}" in text
    assert f"**{mean}**" in paper.table_to_markdown(table)


def test_numbers_stand_below_each_other():
    entries = [
        paper.Number(0.0412, (-0.1, 0.095)),
        paper.Number(-0.123, (-0.2, 0.301), marks="*"),
        paper.Number(-0.0001),
        paper.Number(None),
    ]
    table = paper.PaperTable("tab:x", "c", "x", "abcd", [paper.Column("Macro-F1", "−", entries)])
    lines = paper.table_to_markdown(table).splitlines()[4:]
    space = paper.FIGURE_SPACE
    cells = [line.split(" | ")[1].removesuffix(" |") for line in lines]
    assert cells[0] == f"{space * 2}4.1 [−10.0, {space}9.5]{space}"
    assert cells[1] == r"−12.3 [−20.0, 30.1]\*"
    assert cells[2] == f"{space * 2}0.0{space * len(' [−20.0, 30.1]*')}"
    assert cells[3].strip(space) == "–"
    assert r"$-$12.3 [$-$20.0, 30.1]*" in paper.table_to_latex(table)


@needs_latex
def test_latex_takes_all_and_no_line_is_wider_than_the_text(printed, tmp_path):
    shutil.copytree(printed, tmp_path, dirs_exist_ok=True)
    rows, subject = many(sites=7)
    known = paper.metrics_of(CLASSES)
    metrics = [known[name] for name in ("f1", "auc", "recall_mel", "sensitivity_mel")]
    tables = paper.comparison_tables(rows, metrics, subject) + paper.run_tables(rows[-2:], metrics, subject)
    (tmp_path / "many.tex").write_text("\n".join(map(paper.table_to_latex, tables)))
    (tmp_path / "all.tex").write_text(documents.to_latex(rows, ("nv", "b_k&l", "mel")))
    inputs = [rf"\input{{{name}}}\clearpage" for name in ("table", "figures", "many", "all")]
    preamble = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "paper.tex").write_text("\n".join([preamble, *inputs, r"\end{document}"]))
    done = subprocess.run(
        [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert "Overfull \\hbox" not in log
    assert "Float too large" not in log


def test_columns_that_do_not_fit_are_below_and_none_is_lost():
    assert latex.panels([100, 100, 100], 100) == [[0, 1], [2]]
    assert latex.panels([100, 900, 100], 100) == [[0], [1], [2]]
    rows, subject = many(sites=7)
    metrics = list(paper.metrics_of(CLASSES).values())
    for table in paper.comparison_tables(rows, metrics, subject):
        found = [line for line in paper.table_to_latex(table).splitlines() if line.startswith("method-2 &")]
        assert sum(line.count(" & ") for line in found) == len(table.columns)
        assert len(found) > 1


def test_ten_methods_have_a_panel_each_and_position_tells_them_apart():
    rows, _ = many()
    names = [row.method for row in rows]
    panels = [paper_figures.Dots("", "F1 (%)", [row.f1[site] for row in rows]) for site in ("a", "b", "mean")]
    figure = paper_figures.dots_figure(names, panels, 3, "prrfl")
    assert figure.get_figwidth() == paper_figures.DOUBLE
    left, _, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == names
    assert left.get_xlim() == right.get_xlim()  # one measure has one scale
    low, high = rows[1].f1["mean"].interval
    drawn = [list(line.get_xdata()) for line in right.lines if list(line.get_ydata()) == [1, 1]]
    assert pytest.approx([100 * low, 100 * high]) in drawn
    assert len(drawn) == 2  # the other one is over images alone
    assert [paper_figures.columns_for(count) for count in (1, 2, 5, 6, 7, 10, 11)] == [1, 2, 5, 3, 4, 5, 4]


def lab(rgb):
    """Return CIELAB of linear RGB."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750]]
    to_xyz += [[0.0193339, 0.1191920, 0.9503041]]
    t = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


DEUTERANOPIA = [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.01182, 0.04294, 0.968881],
]
PROTANOPIA = [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
]


@pytest.mark.parametrize("seen", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["all", "no green", "no red"])
def test_colours_are_told_apart_with_any_colour_vision(seen):
    """Matrices of Machado, Oliveira and Fernandes (2009), for linear RGB and full severity."""

    def linear(colour):
        c = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)

    colours = [lab(np.array(seen) @ linear(colour)) for colour in PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in combinations(colours, 2)) > 14
    assert all(np.linalg.norm(c - lab(np.ones(3))) > 30 for c in colours)  # visible on white
