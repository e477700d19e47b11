"""Which streams and calls end when there are too many of them."""

import pytest

from keras_ssl.serving.server import calls, rpc
from keras_ssl.serving.server.errors import StatusError


class Core:
    """A call of gRPC that records what ends it."""

    def __init__(self, peer):
        self._peer, self.batches, self.cancelled = peer, 0, False

    def peer(self):
        return self._peer.encode()

    def start_server_batch(self, operations, tag):
        self.batches += 1

    def cancel(self, code, message):
        self.cancelled = True


@pytest.fixture
def opened():
    """`opened(peer, streams=False)`: adds a call to `opened.calls`, and returns it."""

    def add(peer, streams=False):
        call = calls.Call(Core(peer), 1e12, rpc.Method(None, streams=streams))
        add.calls.add(call)
        return call

    add.calls = calls.Calls()
    return add


def test_the_address_with_the_most_streams_loses_its_oldest(opened, monkeypatch):
    monkeypatch.setattr(calls, "MAX_STREAMS", 5)
    other = opened("ipv4:10.0.0.2:1", streams=True)
    many = [opened(f"ipv4:10.0.0.1:{port}", streams=True) for port in range(5)]
    assert [bool(one.answered) for one in (other, *many)] == [False, True] + [False] * 4
    opened("ipv4:10.0.0.3:1", streams=True)
    assert [bool(one.answered) for one in (other, *many)] == [False, True, True] + [False] * 3


def test_calls_that_are_worked_on_do_not_end(opened, monkeypatch):
    monkeypatch.setattr(calls, "MAX_CALLS", 3)
    working = [opened("ipv4:10.0.0.1:1") for _ in range(3)]
    with pytest.raises(StatusError, match="3 calls are open already"):
        opened("ipv4:10.0.0.2:1")
    working[1].respond(b"")
    opened("ipv4:10.0.0.2:1")
    assert [one._core.cancelled for one in working] == [False, True, False]


def test_a_call_that_was_dropped_is_cancelled_when_its_client_does_not_even_read_that(opened):
    call = opened("ipv4:10.0.0.1:1")
    call.receive(None)
    opened.calls.sweep(call.waiting + calls.MESSAGE_SECONDS + 1)
    assert call.answered
    assert not call._core.cancelled
    opened.calls.sweep(call.answered + 1)
    assert call._core.cancelled
