"""New lines of a file that another process appends to."""

from prrfl.storage.tail import Tail


def test_only_whole_and_new_lines_are_read(tmp_path):
    path, tail = tmp_path / "log.txt", Tail(tmp_path / "log.txt")
    assert not tail.restarted()
    assert tail.lines() == []
    path.write_bytes(b"one\ntw")
    assert not tail.restarted()
    assert tail.lines() == [b"one"]
    with path.open("ab") as file:
        file.write(b"o\nthree\n")
    assert not tail.restarted()
    assert tail.lines() == [b"two", b"three"]
    path.write_bytes(b"four\n")
    assert tail.restarted()
    assert tail.lines() == [b"four"]
    # Of a long file its end is enough.
    path.write_bytes(b"0123456789\n" * 10)
    end = Tail(path, most=22)
    end.restarted()
    assert end.lines() == [b"0123456789"] * 2
    path.rename(tmp_path / "moved")
    assert not end.restarted()
    assert end.lines() == []


def test_a_file_is_followed_from_its_present_end(tmp_path):
    path, absent = tmp_path / "log.txt", Tail.from_end(tmp_path / "absent.txt")
    path.write_bytes(b"before\n")
    present = Tail.from_end(path)
    assert absent.texts() == present.texts() == []
    for tail, name in ((present, "log.txt"), (absent, "absent.txt")):
        with (tmp_path / name).open("ab") as file:
            file.write(b"new \xff\npart")
        assert tail.texts() == ["new \ufffd"]
