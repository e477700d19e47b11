"""Files that appear whole or not at all, and names of many files in one sentence."""

import contextlib
import os


@contextlib.contextmanager
def complete(path):
    """Yields a hidden path to write to, which replaces `path` once all of it is on the disk.

    Whatever interrupts the writing, `path` holds what it held before, and nothing half-written remains
    unless the process is killed.

    Args:
        path: str or pathlib.Path of a file.

    Yields:
        str, a path in the same folder with the same ending.

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
        _sync(draft)
        os.replace(draft, path)
        _sync(folder or ".")  # the name too must survive a loss of power
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def listed(names, most=10):
    """Joins names for a message, the first few of them.

    Args:
        names: list of str.
        most: int, names to print.

    Returns:
        str.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    rest = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {rest} more" if rest > 0 else "")
