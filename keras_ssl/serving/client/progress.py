"""Progress bar of the clients."""

import contextlib
import itertools
import sys
import time

import click


@contextlib.contextmanager
def progress_bar(images, enabled, label="features"):
    """Shows a progress bar with images per second on stderr.

    Args:
        images: iterable of images; its length, if it has one, is the length of the bar.
        enabled: bool. If False, or if stderr is not a terminal, nothing is shown.
        label: str in front of the bar.

    Yields:
        function to call with the number of images that have been processed since the last call.
    """
    if not (enabled and sys.stderr.isatty()):
        yield lambda count: None
        return
    # For a bar of unknown length click needs an iterable without a length.
    length = {"length": len(images)} if hasattr(images, "__len__") else {}
    start = time.monotonic()
    with click.progressbar(
        **(length or {"iterable": itertools.count()}), label=label, file=sys.stderr, show_pos=True,
        item_show_func=lambda rate: None if rate is None else f"{rate:,.0f} images/s",
    ) as bar:  # fmt: skip

        def advance(count):
            elapsed = max(time.monotonic() - start, 1e-9)
            bar.update(count, (bar.pos + count) / elapsed)

        yield advance
