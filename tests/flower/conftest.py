"""What the tests of federations share: data and keys."""

import pytest

from prrfl.flower.certs import make_certs
from prrfl.flower.server import transport
from tests.flower.grid import NAMES, grid_of, networks, run
from tests.sites_on_disk import write_layout


@pytest.fixture(autouse=True, scope="package")
def quick():
    """Check for answers without a pause, and draw nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "POLL", 0.01)
        patch.setattr("prrfl.runs.report.draw_retrogress", lambda *_: None)
        yield


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("shared sites"), sites=3)


@pytest.fixture(scope="package")
def four(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("shared four sites"), sites=4)


@pytest.fixture(scope="package")
def certs(tmp_path_factory):
    """The folders of each site's keys, with a fourth site that most tests leave out."""
    folder = tmp_path_factory.mktemp("shared keys") / "certs"
    make_certs(folder, [*NAMES, "clientD"], ["localhost"])
    return folder / "sites"


@pytest.fixture(scope="package")
def undisturbed(data, tmp_path_factory):
    """The records and the networks of a run in which nothing goes wrong."""
    home = tmp_path_factory.mktemp("shared undisturbed")
    records = run(grid_of(data, home), home / "run")
    return records, networks(home)
