"""Files and folders that are whole or absent."""

import os
import signal
import stat

import pytest

from prrfl.storage.atomic import (
    commit_step,
    only_for_this_user,
    remove,
    remove_partial,
    replace_folder,
    replacing,
    write_text,
)

PATTERN = "step-[0-9][0-9]"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def commit(folder, number, keep=2, text="new"):
    with commit_step(folder / f"step-{number:02d}", PATTERN, keep) as step:
        write_text(step / "a.txt", text)


def fail_within(writing):
    """Write a file by a block that ends with an exception."""
    with writing as temporary:
        write_text(temporary / "a.txt" if temporary.is_dir() else temporary, "half")
        raise ZeroDivisionError


def killed(write):
    """Run a function in a process of its own, which kills itself; return once it is dead."""
    if not (child := os.fork()):
        write()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_within(replacing(path))
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_appears_whole(tmp_path):
    with replace_folder(tmp_path / "deep/out") as temporary:
        write_text(temporary / "below/a.txt", "text")
        assert not (tmp_path / "deep/out").exists()
    assert (tmp_path / "deep/out/below/a.txt").read_text() == "text"
    assert names(tmp_path / "deep") == ["out"]
    (tmp_path / "made").mkdir()
    assert (tmp_path / "deep/out").stat().st_mode == (tmp_path / "made").stat().st_mode


def test_what_is_only_for_this_user_has_no_mode_for_others(tmp_path):
    with only_for_this_user():
        write_text(tmp_path / "deep/secret", "text")
        commit(tmp_path / "deep", 1)
    write_text(tmp_path / "open", "text")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes.pop("open") & 0o044 or modes
    assert modes == {"deep": 0o700, "secret": 0o600, "step-01": 0o700, "a.txt": 0o600}


def test_a_folder_stays_absent_after_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_within(replace_folder(tmp_path / "out"))
    assert not names(tmp_path)


def test_an_empty_folder_is_replaced_also_by_the_name_of_the_current_one(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with replace_folder(type(tmp_path)()) as temporary:
        write_text(temporary / "a.txt", "text")
    assert names(tmp_path / "out") == ["a.txt"]


def test_nothing_is_overwritten(tmp_path):
    write_text(tmp_path / "out/mine.txt", "mine")
    for path in (tmp_path / "out", tmp_path / "out/mine.txt"):
        with pytest.raises(FileExistsError, match="not an empty folder"), replace_folder(path):
            pytest.fail("the block must not run")
    assert names(tmp_path / "out") == ["mine.txt"]


def test_the_first_of_two_writers_wins(tmp_path):
    def race():
        with replace_folder(tmp_path / "out") as slow:
            write_text(slow / "a.txt", "slow")
            with replace_folder(tmp_path / "out") as fast:
                write_text(fast / "a.txt", "fast")

    with pytest.raises(OSError, match="not empty"):
        race()
    assert (tmp_path / "out/a.txt").read_text() == "fast"
    assert names(tmp_path) == ["out"]


def test_steps_are_pruned_to_the_last_ones(tmp_path):
    for number in range(5):
        commit(tmp_path, number, keep=2)
        assert names(tmp_path) == [f"step-{n:02d}" for n in range(max(0, number - 1), number + 1)]


def test_a_step_that_is_committed_again_replaces_itself_and_ends_later_ones(tmp_path):
    for number in range(4):
        commit(tmp_path, number, keep=3, text="old")
    commit(tmp_path, 2, keep=3)
    assert names(tmp_path) == ["step-01", "step-02"]
    assert (tmp_path / "step-01/a.txt").read_text() == "old"
    assert (tmp_path / "step-02/a.txt").read_text() == "new"


def test_what_else_lies_beside_the_steps_stays(tmp_path):
    (tmp_path / "step-00 (copy)").mkdir()
    (tmp_path / "step-09").write_text("a file of this name is not a step")
    for number in range(3):
        commit(tmp_path, number, keep=1)
    assert names(tmp_path) == ["step-00 (copy)", "step-02", "step-09"]


def test_a_step_that_fails_leaves_the_one_before(tmp_path):
    commit(tmp_path, 0)
    commit(tmp_path, 1, text="old")
    with pytest.raises(ZeroDivisionError):
        fail_within(commit_step(tmp_path / "step-01", PATTERN, 2))
    assert names(tmp_path) == ["step-00", "step-01"]
    assert (tmp_path / "step-01/a.txt").read_text() == "old"


def test_the_next_commit_removes_what_a_killed_one_left(tmp_path):
    def write():
        with commit_step(tmp_path / "step-01", PATTERN, 2) as step:
            write_text(step / "a.txt", "half")
            os.kill(os.getpid(), signal.SIGKILL)

    commit(tmp_path, 0)
    killed(write)
    assert names(tmp_path) == [".step-01", "step-00"]
    commit(tmp_path, 2)
    assert names(tmp_path) == ["step-00", "step-02"]


def test_partial_files_and_folders_of_killed_processes_are_removed(tmp_path):
    def write():
        with replacing(tmp_path / "a.txt"), replace_folder(tmp_path / "below/out") as temporary:
            write_text(temporary / "a.txt", "half")
            os.kill(os.getpid(), signal.SIGKILL)

    killed(write)
    assert len(names(tmp_path)) == 2
    remove_partial(tmp_path)
    assert names(tmp_path) == ["below"]
    assert not names(tmp_path / "below")


def test_removing_a_link_leaves_what_it_points_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    remove(tmp_path / "absent")
    assert names(tmp_path) == ["folder"]
