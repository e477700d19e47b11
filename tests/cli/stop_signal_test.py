"""SIGTERM to a process that serves, in whichever thread it arrives."""

import signal
import subprocess
import sys

import pytest

# As in the console script, TensorFlow is not imported.
COMMAND = "import sys; sys.argv[0] = 'keras-ssl'\n"
# The thread `taker` gets the signal while the main thread waits.
TAKEN = """
import signal, threading, time
from keras_ssl.cli.stop_signal import StopSignal

stop = StopSignal()
assert not stop.wait(0.01)
main = threading.main_thread().ident

def taker():
    time.sleep(0.5)
    signal.pthread_kill({thread}, signal.{name})
    time.sleep(60)

threading.Thread(target=taker, daemon=True).start()
assert stop.wait({seconds})
assert stop.wait(), "it is forgotten"
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("thread", ["main", "threading.get_ident()"])
@pytest.mark.parametrize("seconds", ["", "20"])
def test_any_thread_may_get_the_signal(name, thread, seconds):
    program = COMMAND + TAKEN.format(name=name, thread=thread, seconds=seconds)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_the_signal_before_the_wait():
    program = COMMAND + (
        "import os, signal; from keras_ssl.cli.stop_signal import StopSignal; stop = StopSignal()\n"
        f"for _ in range(1000): os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
        "assert stop.wait(0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
