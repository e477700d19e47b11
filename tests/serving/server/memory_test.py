"""When memory is short, and when it is returned to the operating system."""

import pytest

from keras_ssl.serving.server import memory

MIB = 2**20


@pytest.fixture
def resident(monkeypatch):
    """A list with the resident memory, and the number of trims."""
    state = [500 * MIB, 0]
    monkeypatch.setattr(memory, "resident", lambda: state[0])
    monkeypatch.setattr(memory, "trim", lambda: state.__setitem__(1, state[1] + 1))
    return state


def test_memory_is_short_when_it_grows_while_messages_are_slow(resident):
    watched = memory.Memory()
    resident[0] = 2000 * MIB  # a model was loaded
    for _ in range(memory.CALM):
        watched.is_short(slow=False)
    assert not watched.is_short(slow=True)
    resident[0] += memory.MAX_GROWTH + MIB
    assert watched.is_short(slow=True)


def test_memory_that_has_grown_is_trimmed_once(resident):
    watched = memory.Memory()
    resident[0] = 520 * MIB
    watched.settle()
    assert resident[1] == 0
    resident[0] = 600 * MIB
    for _ in range(5):
        watched.settle()
    assert resident[1] == 1  # what is left is in use


def test_trim_returns_at_once():
    memory.trim()
    assert memory.resident() > 0
