"""Atomic, synced writing of files, folders, locks; and lists of names for messages."""

import contextlib
import fcntl
import hashlib
import os
import socket
from pathlib import Path


@contextlib.contextmanager
def complete(path):
    """Yields a hidden path to write to, which replaces `path` once it is completely on the disk.

    If writing is interrupted, `path` keeps its content, and the partial file is removed unless the process
    is killed. If two processes write the same path, one waits for the other.

    Args:
        path: str or pathlib.Path of a file.

    Yields:
        str, a path in the same folder with the same suffix, of an empty file.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "notes.txt")
        >>> with complete(path) as draft:
        ...     _ = pathlib.Path(draft).write_text("done")
        >>> path.read_text()
        'done'
    """
    folder, name = os.path.split(os.fspath(path))
    draft = os.path.join(folder, f".new-{name}")
    handle = _open_locked(draft, fcntl.LOCK_EX)
    try:
        os.ftruncate(handle, 0)  # removes what a killed process has left
        yield draft
        sync(draft)
        os.replace(draft, path)
        sync(folder or ".")  # so that the new name survives a power failure, too
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path, subject):
    """Holds a lock file, which no other process can hold until this one releases it or dies.

    The kernel releases the lock of a process that dies, so the file that it leaves behind locks nothing. On a
    file system without locks this function has no effect.

    Args:
        path: str or pathlib.Path of the lock file, in an existing folder; removed at the end.
        subject: str, what the lock protects; the error begins with it.

    Raises:
        ValueError: another process holds the lock.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with locked(f"{folder}/.lock", f"folder {folder}"):
        ...     os.listdir(folder)
        ['.lock']
    """
    try:
        handle = _open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = ""  # if it has just started or ended
        with contextlib.suppress(FileNotFoundError):
            owner = Path(path).read_text()
        raise ValueError(
            f"{subject} is used by another run{owner and f' ({owner})'}: wait until it ends, or give another"
        ) from None
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(handle)


def _open_locked(path, operation):
    """Opens a file that is locked and still has this name, and returns its descriptor."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, operation)
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:
            return handle  # the file system has no locks
        # The previous holder of the lock may have renamed or removed the file.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                return handle
        os.close(handle)


def make_folder(path):
    """Creates a folder and its parents, and waits until their names are on the disk.

    Args:
        path: str or pathlib.Path.

    Returns:
        list of pathlib.Path, the folders that did not exist before, the innermost first.

    Raises:
        FileExistsError: `path` is a file.

    Example:
        >>> import tempfile
        >>> [folder.name for folder in make_folder(f"{tempfile.mkdtemp()}/models/rotation")]
        ['rotation', 'models']
    """
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)
    return missing


def sync(path):
    """Flushes a file, or the entries of a folder, to the disk (fsync).

    Args:
        path: str or pathlib.Path.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(*paths):
    """Computes the SHA-256 of the concatenation of files, without reading whole files into memory.

    Args:
        *paths: str or pathlib.Path.

    Returns:
        str, 64 hexadecimal digits.

    Example:
        >>> sha256()[:8]
        'e3b0c442'
    """
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def listed(names, most=10):
    """Joins the first few of many names for a message.

    Args:
        names: list of str.
        most: int, maximum number of names to include.

    Returns:
        str.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    rest = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {rest} more" if rest > 0 else "")
