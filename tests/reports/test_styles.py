"""No two methods look alike, and ablations look like their method."""

from prrfl.reports.styles import OTHERS, OURS, Style, of_methods, of_networks


def test_thirteen_methods_can_be_told_apart():
    ablations = [f"prrfl:r1=0.{k}" for k in range(6)]
    methods = ["fedavg", *ablations, "prrfl", "fedbn", "local", "fedprox:mu=0.1", "ida"]
    styles = of_methods(methods, "prrfl")
    assert list(styles) == methods
    assert len(set(styles.values())) == len(methods)
    assert styles["prrfl"] == Style(OURS, width=2.2)
    assert all(styles[name].colour == OURS and styles[name].dashes for name in ablations)
    colours = {styles[name].colour for name in ("fedavg", "fedbn", "local", "fedprox:mu=0.1", "ida")}
    assert len(colours) == 5
    assert OURS not in colours
    assert not any(styles[name].dashes for name in ("fedavg", "fedbn", "local", "ida"))


def test_more_methods_than_colours_are_dashed():
    styles = of_methods([f"m{k}" for k in range(3 * len(OTHERS))] + ["m0:a=1", "m0:a=2", "m1:a=1"], "prrfl")
    assert len(set(styles.values())) == 3 * len(OTHERS) + 3


def test_colours_do_not_depend_on_what_else_is_there():
    assert of_methods(["prrfl", "fedavg"], "prrfl")["prrfl"] == of_methods(["prrfl"], "prrfl")["prrfl"]
    assert of_networks(["personalised", "deputy"])["personalised"].colour == OURS
