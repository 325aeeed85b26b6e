"""A run in Weights & Biases' offline format, in the folder ``wandb`` of its run."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from prrfl.reports.tracking.base import Results, Tracked


class WandB:
    """Writes offline files; see :class:`prrfl.reports.tracking.Tracker`.

    Nothing is sent: ``wandb sync`` does that, at the user's command. ``WANDB_PROJECT`` names the project.
    Needs the package wandb: ``pip install 'prrfl[wandb]'``.
    """

    rounds = 0
    """Every process of a run writes all of its rounds, under one id: an offline file cannot be continued."""

    def __init__(self, run: Tracked) -> None:
        """Begin an offline file, and remove those that earlier processes of the run began."""
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        folder = run.folder.absolute() / "wandb"
        folder.mkdir(exist_ok=True)
        earlier = sorted(folder.glob("offline-run-*"))
        self._run = wandb.init(
            id=earlier[-1].name.rpartition("-")[2] if earlier else uuid4().hex[:8],
            name=run.name,
            project=os.environ.get("WANDB_PROJECT", "prrfl"),
            tags=[f"{name}: {value}"[:64] for name, value in run.tags.items()],
            config={**run.settings, **{f"tag.{name}": value for name, value in run.tags.items()}},
            reinit="create_new",
            settings=wandb.Settings(
                mode="offline",
                root_dir=str(folder.parent),
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        for old in earlier:
            if old != Path(self._run.dir).parent:
                shutil.rmtree(old)
        self._last = 0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log a round."""
        self._last = step
        self._run.log(dict(values), step=step)

    def close(self, results: Results | None) -> None:
        """Add figures and networks, and end the file. Networks are not copied until they are synchronised."""
        import wandb

        if results is None:
            self._run.finish(exit_code=1)
            return
        self._run.log({path.stem: wandb.Image(str(path)) for path in results.figures}, step=self._last)
        if results.networks:
            networks = wandb.Artifact(f"networks-{self._run.id}", type="model")
            for name, path in results.networks.items():
                networks.add_file(str(path), name=name, policy="immutable")
            self._run.log_artifact(networks)
        self._run.finish()
