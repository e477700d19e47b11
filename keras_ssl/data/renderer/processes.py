"""Renders scenes in several processes, since NumPy's short operations in threads wait for Python's lock."""

import os
import queue
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

MOST = 8  # processes
QUIET_SECONDS, MAX_QUIET_SECONDS = 0.5, 10.0  # `close` waits for a pause of requests; maximum
FOLDER = Path(__file__).parent
# The packages without their __init__, which imports TensorFlow: 3 s and 400 MB for each process.
PACKAGES = {
    "keras_ssl": str(FOLDER.parents[1]),
    "keras_ssl.data": str(FOLDER.parent),
    "keras_ssl.data.renderer": str(FOLDER),
}
PROGRAM = """
import sys, types
sys.path[:] = {path}
for name, folder in {packages}.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from keras_ssl.data.renderer import scene
scene.serve(int(sys.argv[1]))
"""


class Processes:
    """As many processes as there are cores, at most 8, which start when they are needed.

    They end when this process ends for any reason, since their pipes are closed then.

    Example:
        >>> processes = Processes()
        >>> arguments = {"objects": (4, 10), "moving": 0.3, "exposure": 0.0, "noise": 0.0}
        >>> processes.scene(number=0, seed=0, size=32, frames=1, **arguments)["depth"].shape
        (32, 32, 1)
    """

    def __init__(self):
        self._number, self._closed = min(os.cpu_count() or 1, MOST), False
        self._asked = 0.0  # time of the last request
        self._idle = queue.LifoQueue()  # (process, pipe), and None for those that are not started
        for _ in range(self._number):
            self._idle.put(None)

    def scene(self, **arguments):
        """Renders a scene as `scene.scene` does; several threads may call it at once.

        Raises:
            RuntimeError: the process has ended without a result, twice, or this program ends.
        """
        for _ in range(2):
            process, found = self._idle.get(), None
            self._asked = time.monotonic()
            try:
                if self._closed:
                    raise RuntimeError("no scene is rendered any more: the program ends")
                process = process or _start()
                process[1].send(arguments)
                found = process[1].recv()
            except (EOFError, OSError):
                process = process and _end(*process)
            finally:
                self._idle.put(process)
            if found is not None:
                return found
        raise RuntimeError("a process that renders scenes was killed: is there enough memory?")

    def close(self):
        """Ends the processes after the scenes that they are rendering; no further scenes are rendered.

        It returns when no scene has been requested for half a second: tf.data continues to request scenes
        until its buffers are full of errors, and its threads cannot return once Python ends.
        """
        self._closed, end = True, time.monotonic() + MAX_QUIET_SECONDS
        for process in [self._idle.get() for _ in range(self._number)]:
            if process is not None:
                _end(*process)
            self._idle.put(None)
        while time.monotonic() < min(self._asked + QUIET_SECONDS, end):
            time.sleep(QUIET_SECONDS / 10)


def _start():
    ours, theirs = Pipe()
    with theirs:
        program = PROGRAM.format(path=sys.path, packages=PACKAGES)
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(theirs.fileno())], pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
    return process, ours


def _end(process, pipe):
    pipe.close()
    process.kill()
    process.wait()
