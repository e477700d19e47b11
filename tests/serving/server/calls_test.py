"""Which streams and calls end when there are too many of them."""

import pytest

from keras_ssl.serving.server import calls, rpc


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
    opened("ipv4:10.0.0.2:1")  # a health check, for example: it is open all the same
    assert [one._core.cancelled for one in working] == [False, False, False]
    working[1].respond(b"")
    opened("ipv4:10.0.0.2:1")
    assert [one._core.cancelled for one in working] == [False, True, False]


def test_the_next_connection_loses_a_call_if_the_largest_has_none_that_may_end(opened, monkeypatch):
    monkeypatch.setattr(calls, "MAX_CALLS", 5)
    working = [opened("ipv4:10.0.0.1:1") for _ in range(3)]
    slow = [opened("ipv4:10.0.0.2:1") for _ in range(2)]
    for one in slow:
        one.receive(None)
    opened("ipv4:10.0.0.3:1")
    assert [bool(one.answered) for one in (*working, *slow)] == [False] * 3 + [True, False]


def test_streams_of_a_network_count_as_those_of_one_address(opened, monkeypatch):
    monkeypatch.setattr(calls, "MAX_STREAMS", 4)
    other = opened("ipv4:10.0.0.2:1", streams=True)
    many = [opened(f"ipv6:%5B2001:db8::{i}%5D:1", streams=True) for i in range(1, 5)]
    assert [bool(one.answered) for one in (other, *many)] == [False, True] + [False] * 3


def test_a_call_that_was_dropped_is_cancelled_when_its_client_does_not_even_read_that(opened):
    call = opened("ipv4:10.0.0.1:1")
    call.receive(None)
    opened.calls.sweep(call.waiting + calls.MESSAGE_SECONDS + 1)
    assert call.answered
    assert not call._core.cancelled
    opened.calls.sweep(call.answered + 1)
    assert call._core.cancelled
