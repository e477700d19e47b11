"""A measurement of memory."""

import re
from pathlib import Path

import pytest


@pytest.fixture
def peak_bytes():
    """A function that calls a function and returns by how much the memory of this process grew meanwhile."""

    def memory(name):
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    def peak(function):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present memory
        before = memory("VmRSS")
        function()
        return memory("VmHWM") - before

    return peak
