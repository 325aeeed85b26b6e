"""One way of running rounds, in a process of its own, since how memory and cores are used is part of it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PAPER = "paper form"


class Contender:
    """A process that runs one round whenever it is asked to."""

    def __init__(self, name: str, folder: Path, size: int, rounds: int, epochs: int, threads: int) -> None:
        """Start it: ``paper form``, or ``prrfl`` and a precision."""
        command = [sys.executable, "-m", "benchmarks.contender", name, folder, size, rounds, epochs, threads]
        self._process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._name, self._asks, self._answers = name, self._process.stdin, self._process.stdout

    def round(self) -> None:
        """Run the next round."""
        self._asks.write("\n")
        self._asks.flush()
        if not self._answers.readline():
            raise RuntimeError(f"{self._name} ended before its time")

    def close(self) -> None:
        """End the process."""
        self._asks.close()
        self._process.wait()


def paper_form(folder: Path, size: int, rounds: int, epochs: int, threads: int) -> Iterator[object]:
    """Run the plain form with threads."""
    import torch

    from benchmarks.paper_form import PaperForm, Plan
    from benchmarks.workload import paper_recipe
    from prrfl.data.layout import CLASSES
    from prrfl.data.sources import read_entries

    torch.set_num_threads(threads)
    entries = [e for e in read_entries(folder, image_size=size, classes=CLASSES) if e.path.is_file()]
    yield from PaperForm(entries, Plan(paper_recipe(), size, rounds, epochs)).rounds()


@contextmanager
def package(folder: Path, size: int, rounds: int, epochs: int, precision: str) -> Iterator[Iterator[object]]:
    """Run the package as its users do, with the workers and threads that it picks."""
    from prrfl.config import load_config
    from prrfl.engine import run_rounds
    from prrfl.runs.run import open_engine
    from prrfl.runs.setup import Run, load_data, resolved
    from prrfl.types import ExchangeRecord

    flags = {"data": folder, "image_size": size, "rounds": rounds, "epochs": epochs, "precision": precision}
    config = load_config(None, {**flags, "allow_missing": True})
    sites = load_data(config)
    run = Run.of(resolved(config, len(sites)))
    with (
        TemporaryDirectory() as scratch,
        open_engine(run, sites, Path(scratch)) as engine,
    ):
        records = run_rounds(run.method, engine, rounds=rounds, epochs=epochs, network=run.recipe.network)
        yield (record for record in records if isinstance(record, ExchangeRecord))


def serve(rounds: Iterator[object]) -> None:
    """Run a round for every line of standard input, and say when it is over."""
    for _ in sys.stdin:
        next(rounds)
        print("done", flush=True)


def main() -> None:
    """Be the contender that the arguments name."""
    name, folder, *numbers = sys.argv[1:]
    size, rounds, epochs, threads = map(int, numbers)
    if name == PAPER:
        serve(paper_form(Path(folder), size, rounds, epochs, threads))
        return
    with package(Path(folder), size, rounds, epochs, name.split()[-1]) as steps:
        serve(steps)


if __name__ == "__main__":
    main()
