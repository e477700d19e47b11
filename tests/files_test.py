import errno
import fcntl
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from keras_ssl import files


def test_replaces_once_complete(tmp_path):
    path = tmp_path / "a.keras"
    path.write_text("old")
    with files.complete(path) as draft:
        assert draft.endswith(".keras")
        Path(draft).write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.keras"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("old")

    def fill():
        with files.complete(path) as draft:
            Path(draft).write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.npz"]


def test_a_killed_process_leaves_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    program = textwrap.dedent(
        """
        import os, sys
        sys.argv[0] = "keras-ssl"  # which imports no TensorFlow
        from keras_ssl import files
        with files.complete("a.txt") as draft:
            open(draft, "w").write("half")
            os.kill(os.getpid(), 9)
        """
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path).returncode == -9
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_relative_path_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with files.complete("a") as draft:
        Path(draft).write_text("x")
    assert Path("a").read_text() == "x"


def test_two_processes_write_the_same_path_one_after_the_other(tmp_path):
    """Neither fails, and the file never mixes the two."""
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        letter, sys.argv[0] = sys.argv[1], "keras-ssl"  # which imports no TensorFlow
        from keras_ssl import files
        print(input(), flush=True)
        for _ in range(8):
            with files.complete("a.txt") as draft:
                Path(draft).write_text(letter * 5000)
        """
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": tmp_path}
    writers = [subprocess.Popen([sys.executable, "-c", program, name], **pipes) for name in "xy"]
    for writer in writers:
        writer.stdin.write(b"start\n")
        writer.stdin.flush()
        writer.stdout.readline()
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "a.txt").exists():
            seen.add((tmp_path / "a.txt").read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"x" * 5000, "y" * 5000}
    assert os.listdir(tmp_path) == ["a.txt"]
    for writer in writers:
        writer.communicate()


def test_names_are_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    calls = []
    for name, function in (("sync", files.sync), ("replace", os.replace)):
        module = files if name == "sync" else os

        def record(path, *arguments, name=name, function=function):
            calls.append((name, os.path.basename(path)))
            return function(path, *arguments)

        monkeypatch.setattr(module, name, record)
    created = files.make_folder(tmp_path / "a" / "b")
    assert created == [tmp_path / "a" / "b", tmp_path / "a"]
    assert set(calls) == {("sync", "a"), ("sync", tmp_path.name)}
    calls.clear()
    assert files.make_folder(tmp_path / "a" / "b") == []
    with files.complete(tmp_path / "a" / "b" / "c.txt") as draft:
        Path(draft).write_text("x")
    assert calls == [("sync", ".new-c.txt"), ("replace", ".new-c.txt"), ("sync", "b")]
    with pytest.raises(FileExistsError):
        files.make_folder(tmp_path / "a" / "b" / "c.txt")


def test_a_lock_ends_with_its_process(tmp_path):
    program = textwrap.dedent(
        """
        import sys, time
        sys.argv[0] = "keras-ssl"  # which imports no TensorFlow
        from keras_ssl import files
        with files.locked("lock", "folder x"):
            print("held", flush=True)
            time.sleep(60)
        """
    )
    path, subject = tmp_path / "lock", "folder x"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        message = rf"^folder x is used by another run \(process {holder.pid} on .+\): wait until"
        with pytest.raises(ValueError, match=message), files.locked(path, subject):
            pass
        assert path.exists()
        holder.kill()
    assert path.exists()  # and locks nothing
    with files.locked(path, subject):
        assert f"process {os.getpid()} on" in path.read_text()
        with pytest.raises(ValueError, match="is used by another"), files.locked(path, subject):
            pass
    assert not path.exists()


def test_file_systems_without_locks(tmp_path, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with files.complete(tmp_path / "a") as draft, files.locked(tmp_path / "lock", "folder x"):
        Path(draft).write_text("x")
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("number", "most", "expected"), [(1, 2, "0"), (2, 2, "0, 1"), (4, 2, "0, 1 and 2 more")]
)
def test_listed(number, most, expected):
    assert files.listed([str(i) for i in range(number)], most) == expected
