"""A federation is followed at its server and at each of its sites."""

from contextlib import contextmanager

from prrfl.flower.site import orders
from prrfl.live.following import follow
from prrfl.runs.position import SitePosition
from tests.flower.grid import grid_of, run


def test_server_and_site_are_followed(data, tmp_path, monkeypatch):
    seen = []

    @contextmanager
    def reporting(folder, position):
        seen.append((folder.path.parent.name, position().done))
        yield
        seen.append((folder.path.parent.name, position()))

    monkeypatch.setattr(orders, "reporting", reporting)
    run(grid_of(data, tmp_path), tmp_path / "run")
    before, after, *_ = seen
    assert before == ("clientA", 0)
    assert after[1].sites == {"clientA": SitePosition("trained", 1, 0, 9)}
    assert [name for name, _ in seen] == [f"client{letter}" for letter in "AABBCC"] * 2

    server, (site,) = follow(tmp_path / "run"), [p.parent for p in tmp_path.glob("clientB/*/settings.json")]
    state = server.state()
    assert (state["kind"], state["status"]) == ("federation", "finished")
    assert [row["name"] for row in state["rows"]] == ["clientA", "clientB", "clientC"]
    assert [step["command"].split()[1] for step in state["next"]] == ["report"]

    own = follow(site)
    state = own.state()
    assert (state["kind"], state["status"], state["says"]) == ("site", "finished", "finished: 2 rounds")
    (panel,) = own.curves()["panels"]
    of_server = next(p for p in server.curves()["panels"] if p["title"] == "clientB")
    # A site keeps three steps: here the mean of the first round, and all of the second.
    assert panel["title"] == "clientB"
    test = {line["name"]: line["points"] for line in panel["lines"]}["test"]
    assert test == {line["name"]: line["points"] for line in of_server["lines"]}["test"][-len(test) :]
    assert len(test) == 4
    assert "evaluate" in state["next"][0]["command"]
