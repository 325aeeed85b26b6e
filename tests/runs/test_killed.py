"""Runs that are killed, stopped, or run out of disk: what they leave, and that nothing is lost."""

import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from prrfl import cli
from prrfl.models import NETWORKS
from prrfl.runs.folder import RunFolder
from prrfl.storage.records import read_records
from prrfl.storage.tensor_files import read_tensors
from tests.forked import ForkedCommands
from tests.networks import tiny
from tests.runs.test_resume import files_of
from tests.sites_on_disk import write_layout

ROUNDS = 4
SMALL = ["--image-size", "32", "--epochs", "2", "--batch", "8", "--threads", "1", "--precision", "float32"]
TINY = [*SMALL, "--network", "tiny"]
EVENTS = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("data"))


def command(arguments, folder, kill_at, counted):
    """Run a command in this process, which kills itself at an access to its run folder."""
    seen = 0

    def look(event, args):
        nonlocal seen
        if event in EVENTS and str(args[0]).startswith(str(folder)):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    NETWORKS.builtin = {**NETWORKS.builtin, "tiny": tiny}
    sys.argv = ["prrfl", *map(str, arguments)]
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        sys.addaudithook(look)
        code = cli.guarded(cli.app)
    counted.value = seen
    sys.exit(code)


@pytest.fixture(scope="module")
def start():
    """Start commands in processes of their own, all forked from one that has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prrfl.runs.run", "prrfl.cli", "prrfl.runs.report", __name__])

    def begin(*arguments, folder, kill_at=0):
        counted = context.Value("i", 0)
        process = context.Process(target=command, args=(arguments, folder, kill_at, counted))
        process.start()
        return process, counted

    return begin


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_kills_at_random_points_change_no_bit(start, data, tmp_path, workers):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--data", data, *TINY, "--rounds", ROUNDS, "--workers", workers]
    begun = time.monotonic()
    undisturbed, counted = start("train", *flags, "--out", whole, folder=whole)
    undisturbed.join()
    assert undisturbed.exitcode == 0
    a_round = (time.monotonic() - begun) / (ROUNDS + 1), counted.value // ROUNDS
    draw = random.Random(workers)
    kills = 0
    while kills < 10:
        again = (
            ["resume", killed] if (killed / "config.toml").is_file() else ["train", *flags, "--out", killed]
        )
        # Half of them in the midst of writing, half anywhere.
        at = draw.randint(1, 2 * a_round[1]) if kills % 2 else 0
        process, _ = start(*again, folder=killed, kill_at=at)
        if not at:
            process.join(draw.uniform(0, 2 * a_round[0]))
            process.kill()
        process.join()
        if process.exitcode == 0:  # it came to its end before: once more from the beginning
            assert files_of(killed) == files_of(whole)
            shutil.rmtree(killed)
            continue
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    process, _ = start("resume", killed, folder=killed)
    process.join()
    assert process.exitcode == 0
    assert files_of(killed) == files_of(whole)
    assert not list(killed.rglob(".*")), "something half-written is left"


def wait_for(there, process):
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_a_run_is_told_how_to_go_on(data, tmp_path, number):
    out = tmp_path / "a run"
    flags = ["--data", data, *TINY, "--rounds", 999, "--workers", 2, "--out", out]
    with (tmp_path / "stderr").open("w+") as stderr:
        command = [sys.executable, "-m", "prrfl", "train", *map(str, flags)]
        process = ForkedCommands.Popen(command, stderr=stderr)
        wait_for(lambda: RunFolder(out).rounds_done > 1, process)
        os.kill(process.pid, number)
        process.wait()
        stderr.seek(0)
        err = stderr.read()
    assert process.returncode == 128 + number
    done = RunFolder(out).rounds_done
    assert err == f"stopped; {done} of 999 rounds are saved; continue with `prrfl resume '{out}'`\n"
    assert not list(out.rglob(".*"))


IN_SMALL_ROOM = """
import subprocess, sys
from prrfl import cli

def prrfl(*arguments):
    sys.argv = ["prrfl", *arguments]
    print("code", cli.guarded(cli.app), flush=True)

def sh(*words):
    subprocess.run(words, check=True)

kept, *flags = sys.argv[1:]
prrfl("train", *flags)
sh("mkdir", "-p", kept)
sh("cp", "-r", "/mnt/r", f"{kept}/full")
sh("mount", "-o", "remount,ro", "/mnt")
prrfl("resume", "/mnt/r")
sh("mount", "-o", "remount,rw,size=900m", "/mnt")
prrfl("resume", "/mnt/r")
sh("cp", "-r", "/mnt/r", f"{kept}/end")
"""


def in_small_room(megabytes, script):
    """Run a script that has a disk of so many megabytes at ``/mnt``; skip where that is not allowed."""
    mount = f"mount -t tmpfs -o size={megabytes}m tmpfs /mnt && "
    allowed = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} true"], capture_output=True, check=False
    )
    if allowed.returncode != 0:
        pytest.skip("disks cannot be made here: unshare or mount is not allowed")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount + script], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_one_lose_nothing(data, tmp_path, prrfl, undrawn):
    flags = ["--data", data, *SMALL, "--rounds", 3, "--workers", 1]
    kept = tmp_path / "kept"
    command = [sys.executable, "-c", IN_SMALL_ROOM, kept, *flags, "--out", "/mnt/r"]
    # What a run of one round takes is less than 90 MB, two rounds' states and networks are more.
    done = in_small_room(90, shlex.join(map(str, command)))
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == [
        "code 2",
        "code 2",
        "code 0",
    ]
    full, read_only = (line for line in done.stderr.splitlines() if line.startswith("error"))
    assert "No space left on device" in full
    assert "Read-only file system" in read_only
    assert "Traceback" not in done.stderr
    assert read_records(kept / "full/metrics.jsonl")
    for path in (kept / "full").rglob("*.safetensors"):
        read_tensors(path)
    assert prrfl("train", *flags, "--out", tmp_path / "w")[0] == 0
    assert files_of(kept / "end") == files_of(tmp_path / "w")
