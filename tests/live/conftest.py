"""A run that goes on while a test looks, and a server of its page."""

import threading
from contextlib import closing, contextmanager

import pytest

from prrfl.config import load_config
from prrfl.live.following import Watched, follow
from prrfl.live.serving import PageServer
from prrfl.runs.run import train
from prrfl.runs.setup import load_data
from tests.sites_on_disk import write_layout

SMALL = {
    "image_size": 32,
    "rounds": 3,
    "epochs": 2,
    "batch": 4,
    "network": "tiny",
    "workers": 1,
    "threads": 1,
}


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("shared sites"))


@pytest.fixture
def going(data, tmp_path, undrawn):
    """A run's folder, and the records of the run: taking one lets it go on."""
    settings = load_config(None, {**SMALL, "data": data, "method": "prrfl"})
    folder = tmp_path / "a run"
    with closing(train(settings, load_data(settings), folder)) as records:
        yield folder, records


def until(records, kind):
    """Let a run go on until it has yielded a record of some kind."""
    return next(record for record in records if record.kind == kind)


@contextmanager
def served(folder):
    """Serve a folder's page at a free port; yield the server."""
    with PageServer(0, Watched(follow(folder), folder).to_json) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
