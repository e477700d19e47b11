"""A short form of tools/soak_power.py, and that its disk loses what was not synced."""

import random
import shutil

import power_disk
import pytest
import soak_power


@pytest.mark.skipif(not shutil.which("strace"), reason="strace records the system calls")
def test_power_failures_of_a_file_and_an_export():
    figures = soak_power.soak(50, ["file", "export"])
    assert [cuts for cuts, _, _ in figures.values()] == [25, 25]
    assert all(acknowledged > 0 for _, acknowledged, _ in figures.values())
    assert all(states > 4 for _, _, states in figures.values())


def hexadecimal(text):
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


@pytest.mark.parametrize("synced", [(), ("file",), ("folder",), ("file", "folder")])
def test_what_was_not_synced_may_be_lost(tmp_path, synced):
    (tmp_path / "kind").mkdir()
    draft, path, folder = (hexadecimal(f"{tmp_path}/kind{name}") for name in ("/.new-a", "/a", ""))
    seen = set()
    for seed in range(300):
        disk = power_disk.Disk(tmp_path)
        disk.call("openat", "AT_FDCWD, x, O_WRONLY|O_CREAT", [draft], f"3<{draft}>")
        disk.call("write", f"3<{draft}>, x, 9", [hexadecimal("long text")], "9")
        if "file" in synced:
            disk.call("fsync", f"3<{draft}>", [], "0")
        disk.call("rename", "x, y", [draft, path], "0")
        if "folder" in synced:
            disk.call("fsync", f"4<{folder}>", [], "0")
        seen.add(disk.left(random.Random(seed)).get("kind/a"))
    assert b"long text" in seen
    assert (None in seen) == ("folder" not in synced)
    assert (len(seen - {None}) > 3) == ("file" not in synced)


def test_a_record_with_interrupted_calls(tmp_path):
    (tmp_path / "calls").write_text(
        '7  openat(AT_FDCWD, "\\x61", O_RDONLY) = -1 ENOENT (No such file or directory)\n'
        '7  write(3<\\x61>, "\\x62", 1 <unfinished ...>\n'
        "8  fsync(4<\\x63>)  = 0\n"
        "7  <... write resumed>) = 1\n"
        "7  +++ exited with 0 +++\n"
    )
    assert list(power_disk.recorded(tmp_path / "calls")) == [
        ("fsync", "4<\\x63>", [], "0"),
        ("write", '3<\\x61>, "\\x62", 1 ', ["\\x62"], "1"),
    ]
