"""Program that removes what a Ray cluster of this machine leaves behind when the command is killed.

    python ray_cleanup.py FOLDER DRIVER < PIPE

It waits until the other end of the pipe is closed, which the kernel does even for a killed process. Then it
kills the processes that have files in FOLDER open, except DRIVER (two of Ray's processes outlive a killed
driver), and removes FOLDER.
"""

import contextlib
import os
import shutil
import signal
import sys
import time


def users(folder):
    """Returns the ids of the processes that have files in a folder open; on Linux only."""
    start, found = os.path.join(folder, ""), set()
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError, ValueError):  # not a process, or another user's
            files = f"/proc/{int(name)}/fd"
            for file in os.listdir(files):
                if os.readlink(f"{files}/{file}").startswith(start):
                    found.add(int(name))
                    break
    return found


def main():
    folder, driver = sys.argv[1], int(sys.argv[2])
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
    ):  # for all processes of a service or job
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    for _ in range(50):
        running = users(folder) - {driver}
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        if not running and not os.path.exists(folder):  # running processes may write again
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main()
