"""Pictures do not depend on the user's Matplotlib: its settings, fonts and backend."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import pytest
import torch

from prrfl.reports import plotting
from prrfl.reports.calibration import draw_reliability
from prrfl.reports.retrogress import draw_retrogress
from prrfl.types import Predictions
from tests.reports.test_retrogress import history

DRAW = """
from pathlib import Path
from prrfl.reports.retrogress import draw_retrogress
from tests.reports.test_retrogress import history
draw_retrogress(history(["a", "b"]), Path({path!r}), 2)
"""


def drawn_by_process(path, cwd, **environment):
    done = subprocess.run(
        [sys.executable, "-c", DRAW.format(path=str(path))],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return path.read_bytes()


def test_a_picture_does_not_follow_the_environment(tmp_path):
    draw_retrogress(history(["a", "b"]), tmp_path / "plain.png", 2)
    expected = (tmp_path / "plain.png").read_bytes()
    (tmp_path / "own").mkdir()
    (tmp_path / "own/matplotlibrc").write_text(
        "backend: module://nowhere\nfont.family: Times New Roman\ntext.usetex: True\naxes.facecolor: red\n"
        "no.such.key: 1\nfigure.dpi: many\n"
    )
    found = drawn_by_process(tmp_path / "own.png", tmp_path / "own", MPLBACKEND="no-such-backend")
    assert found == expected


@pytest.mark.parametrize(
    "own",
    [{"axes.facecolor": "red"}, {"font.family": "No Such Font"}, {"text.usetex": True}, {"font.size": 30}],
)
def test_a_picture_does_not_follow_settings_made_before(own, tmp_path):
    draw_retrogress(history(["a"]), tmp_path / "plain.png", 2)
    with matplotlib.rc_context(own):
        draw_retrogress(history(["a"]), tmp_path / "own.png", 2)
        assert all(matplotlib.rcParams[key] != matplotlib.rcParamsDefault[key] for key in own)
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_signs_that_no_font_has_are_named_in_one_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(plotting.font_manager.fontManager, "ttflist", [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_retrogress(history(["北京", "上海"]), tmp_path / "r.png", 2)
    assert len(caplog.records) == 1
    assert "r.png: no installed font has the characters 上京北海" in caplog.text


def test_a_font_that_has_the_signs_is_used(tmp_path, monkeypatch, caplog):
    known = plotting.font_manager.fontManager.ttflist
    fonts = [one for one in known if one.name in ("cmsy10", "STIXGeneral")]
    monkeypatch.setattr(plotting.font_manager.fontManager, "ttflist", fonts)
    signs = {"DejaVu Sans": frozenset(map(chr, range(128)))}
    real = plotting._signs_of
    monkeypatch.setattr(plotting, "_signs_of", lambda font: signs.get(font) or real(font))
    figure = plotting.Figure()
    text = figure.text(0, 0, "α")
    plotting.fit_fonts(figure, "r.png")
    assert text.get_fontfamily() == ["DejaVu Sans", "STIXGeneral"]
    assert not caplog.records


@pytest.mark.parametrize("name", ["$a$b^{", "a_b$", "_x", "%", "北京"])
def test_names_are_drawn_as_they_are(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_retrogress(history([name, "b"]), tmp_path / "r.png", 2)


def predictions(labels):
    probabilities = torch.softmax(torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(1)), 1)
    return Predictions(tuple(map(str, range(len(labels)))), torch.tensor(labels), probabilities)


def test_a_test_set_of_one_class_has_a_diagram_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_reliability([("as it is", predictions([1, 1, 1]))], "a")
