"""A child process with a checked heap, which runs operations that may crash it, for `soak_shapes.py`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

SECONDS = 120  # for one case; a case that takes longer is considered hung
# Environment of a process whose heap is checked.
CHECKED_HEAP = {
    "LD_PRELOAD": "libc_malloc_debug.so.0",  # ignored if it is not installed
    "MALLOC_CHECK_": "3",
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",  # otherwise most memory does not come from malloc
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class Child:
    """A process with a checked heap that runs cases, any of which may crash it.

    Args:
        threads: int, threads that run one operation.
    """

    def __init__(self, threads):
        self.threads, self.errors = threads, tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {**os.environ, **CHECKED_HEAP}
        command = [sys.executable, str(Path(__file__).with_name("shape_ops.py")), str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, **pipes, text=True, env=environment)

    def run(self, case):
        """Runs one case.

        Returns:
            list of str, the errors; a single str, the cause, if the process crashed.
        """
        timer, last = threading.Timer(SECONDS, self.process.kill), "at the start"
        timer.start()
        try:
            self.process.stdin.write(json.dumps(case) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                word, _, rest = line.strip().partition(" ")
                if word == "done":
                    return json.loads(rest)
                last = f"in {rest}" if word == "run" else last
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        code = self.process.wait()
        self.errors.seek(0)
        # The lines that TensorFlow logs at its start begin with the level, I0000 or E0000.
        lines = ["", *self.errors.read().splitlines()]
        lines = [line for line in lines if line[1:5] != "0000" and "absl::" not in line]
        self.close()
        how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += f" (out of memory, or still running after {SECONDS} s)"
        return f"crashed {last}: {how} {lines[-1][:200]}"

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()
