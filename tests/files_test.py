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


@pytest.mark.parametrize(
    ("number", "most", "expected"), [(1, 2, "0"), (2, 2, "0, 1"), (4, 2, "0, 1 and 2 more")]
)
def test_listed(number, most, expected):
    assert files.listed([str(i) for i in range(number)], most) == expected
