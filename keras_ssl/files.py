"""Atomic writing of files, and lists of names for messages."""

import contextlib
import os


@contextlib.contextmanager
def complete(path):
    """Yields a hidden path to write to, which replaces `path` once it is completely on the disk.

    If writing is interrupted, `path` keeps its content, and the partial file is removed unless the process
    is killed.

    Args:
        path: str or pathlib.Path of a file.

    Yields:
        str, a path in the same folder with the same suffix.

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
    try:
        yield draft
        sync(draft)
        os.replace(draft, path)
        sync(folder or ".")  # so that the new name survives a power failure, too
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def sync(path):
    """Waits until a file, or the list of names in a folder, is on the disk.

    Args:
        path: str or pathlib.Path.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
