"""A run in MLflow: on the server that the user names, or in a database in the run's folder."""

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prrfl.reports.tracking.base import Results, Tracked
from prrfl.storage.atomic import write_json
from prrfl.storage.reading import parse_json, read_text

DONE = "round"
"""Metric that is written last in each round: its step is the number of complete rounds there."""

METRICS_PER_REQUEST = 1000
PARAMETERS_PER_REQUEST = 100
"""The limits of MLflow's interface."""

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What is set unless the user has: a server that is gone should not hold up training for the ten minutes of
MLflow's own defaults, and the screen is prrfl's."""


class MLflow:
    """Logs a run in MLflow; see :class:`prrfl.reports.tracking.Tracker`.

    ``MLFLOW_TRACKING_URI`` names the server or database, ``MLFLOW_EXPERIMENT_NAME`` the experiment. Without
    the former nothing leaves the machine: ``mlflow/mlflow.db`` in the run's folder is the database.
    Needs MLflow: ``pip install 'prrfl[mlflow]'``.
    """

    def __init__(self, run: Tracked) -> None:
        """Open the run in MLflow: the one that an earlier process of this run began there, or a new one."""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports every table that it creates
        folder = run.folder.absolute() / "mlflow"
        folder.mkdir(exist_ok=True)
        given = os.environ.get("MLFLOW_TRACKING_URI")
        store = given or f"sqlite:///{folder / 'mlflow.db'}"
        self._client = MlflowClient(store)
        note = folder / "run.json"
        place = re.sub(r"//[^/@]*@", "//", store)  # without a password
        self._run = _begun(note, place)
        self.rounds = 0
        if self._run:
            history = self._client.get_metric_history(self._run, DONE)
            self.rounds = max((metric.step for metric in history), default=0)
            self._client.update_run(self._run, status="RUNNING")
        else:
            artifacts = None if given else (folder / "artifacts").as_uri()
            self._run = _new_run(self._client, run, artifacts)
            write_json(note, {"store": place, "run": self._run})

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log a round."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(_key(name), value, now, step) for name, value in {**values, DONE: step}.items()]
        for k in range(0, len(metrics), METRICS_PER_REQUEST):
            self._client.log_batch(self._run, metrics=metrics[k : k + METRICS_PER_REQUEST])
        self.rounds = step

    def close(self, results: Results | None) -> None:
        """Upload figures and networks, and end the run."""
        if results is None:
            self._client.set_terminated(self._run, "KILLED")
            return
        for path in results.figures:
            self._client.log_artifact(self._run, str(path), "figures")
        for name, path in results.networks.items():
            self._client.log_artifact(self._run, str(path), f"networks/{Path(name).parent}")
        self._client.set_terminated(self._run)


def _begun(note: Path, place: str) -> str:
    """Return the id of the run that was begun in a store; empty without one."""
    if not note.is_file():
        return ""
    written = parse_json(read_text(note))
    return str(written["run"]) if written["store"] == place else ""


def _new_run(client: Any, run: Tracked, artifacts: str | None) -> str:
    from mlflow.entities import Param

    made = client.create_run(_experiment(client, artifacts), run_name=run.name, tags=dict(run.tags))
    identity = str(made.info.run_id)
    parameters = [Param(name, str(value)) for name, value in run.settings.items()]
    for k in range(0, len(parameters), PARAMETERS_PER_REQUEST):
        client.log_batch(identity, params=parameters[k : k + PARAMETERS_PER_REQUEST])
    return identity


def _experiment(client: Any, artifacts: str | None) -> str:
    """Return the id of the experiment, which is created unless it is there."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "prrfl")
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:  # another run was faster
        return str(client.get_experiment_by_name(name).experiment_id)


def _key(name: str) -> str:
    """Return a name with only the characters that MLflow allows; names that differ stay different."""
    return re.sub(r"[^\w.\- /]", lambda found: f":{ord(found[0]):x}", name)
