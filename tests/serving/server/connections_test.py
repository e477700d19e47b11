"""Which connections are closed when there are too many, or when they are too slow."""

import os
import resource

import pytest

from keras_ssl.serving.server import connections
from keras_ssl.serving.server.connections import Connections, Phase
from keras_ssl.serving.server.errors import StatusError


class Connection:
    def __init__(self, address="a", phase=Phase.IDLE, since=0.0):
        self.address, self.phase, self.since, self.held = address, phase, since, 0
        self.status, self.size, self.closing = None, 0, False

    def is_closing(self):
        return self.closing

    def unread(self):
        return self.size

    def reject(self, status, message):
        self.status = status


def test_the_client_with_the_most_connections_loses_the_least_valuable_one():
    places = Connections(4, 3, 1000)
    working = Connection("a", Phase.WORKING, 1.0)
    body, head, idle = (Connection("a", p, 2.0) for p in (Phase.BODY, Phase.HEAD, Phase.IDLE))
    for one in (working, body, Connection("b")):
        places.add(one)
    places.add(head)
    assert len(list(places)) == 4
    places.add(Connection("c", since=3.0))  # the fifth
    assert (working.status, body.status, head.status) == (None, None, 503)
    places.add(idle)
    assert body.status == 503  # not the new one, though that is idle
    assert len(list(places)) == 4


def test_a_client_with_too_many_connections_loses_its_own_oldest():
    places = Connections(100, 2, 1000)
    others = [Connection("b", since=-1.0) for _ in range(2)]
    mine = [Connection("a", since=float(i)) for i in range(4)]
    for one in (*others, *mine):
        places.add(one)
    assert [one.status for one in mine] == [503, 503, None, None]
    assert [one.status for one in others] == [None, None]


def test_a_new_connection_is_rejected_if_all_others_are_working():
    places = Connections(2, 2, 1000)
    working = [Connection("a", Phase.WORKING) for _ in range(2)]
    new = Connection("b")
    for one in (*working, new):
        places.add(one)
    assert [one.status for one in (*working, new)] == [None, None, 503]
    places.remove(new)  # again, when it is lost
    assert len(list(places)) == 2


@pytest.mark.parametrize("largest", [2, 1])
def test_others_that_idle_are_closed_if_the_largest_client_is_working(largest):
    """With one connection each, too: the working one came first."""
    places = Connections(4, 4, 1000)
    working = [Connection("a", Phase.WORKING) for _ in range(largest)]
    idle = [Connection(f"b{i}", since=2.0 - i) for i in range(4 - largest)]
    for one in (*working, *idle):
        places.add(one)
    new = Connection("c", since=9.0)
    places.add(new)
    assert [one.status for one in (*working, *idle[:-1], new)] == [None] * 4
    assert idle[-1].status == 503


def test_a_client_whose_connections_all_work_does_not_close_those_of_smaller_ones():
    places = Connections(3, 3, 1000)
    idle, new = Connection("b"), Connection("a")
    for one in (Connection("a", Phase.WORKING), Connection("a", Phase.WORKING), idle, new):
        places.add(one)
    assert (idle.status, new.status) == (None, 503)


def test_the_next_client_makes_room_for_a_body_if_the_largest_is_working():
    places = Connections(100, 100, 100)
    working, slow = Connection("a", Phase.WORKING), Connection("b", Phase.BODY)
    small, new = Connection("d", Phase.BODY), Connection("c", Phase.BODY)
    for one, size in ((working, 50), (slow, 30), (small, 10)):
        places.add(one)
        places.hold(one, size)
    places.add(new)
    places.hold(new, 20)
    assert [one.status for one in (working, slow, small, new)] == [None, 503, None, None]
    with pytest.raises(StatusError, match="in flight already"):  # not at the cost of a smaller one
        places.hold(new, 21)
    assert small.status is None


def test_responses_that_are_not_read_share_memory(monkeypatch):
    monkeypatch.setattr(connections, "MAX_UNREAD", 100)
    places = Connections(100, 100, 100)
    slow = [Connection("a", Phase.SENDING, since=float(i)) for i in range(3)]
    other = Connection("b", Phase.SENDING, since=-1.0)
    for one, size in zip((*slow, other), (20, 30, 30, 40), strict=True):
        places.add(one)
        one.size = size
        places.limit_unread()
    assert [one.status for one in (*slow, other)] == [503, None, None, None]
    other.size = 41
    places.limit_unread()
    assert [one.status for one in (*slow, other)] == [503, 503, None, None]
    other.size = 1000
    places.limit_unread()  # the largest goes, and the last one stays
    assert [one.status for one in (*slow, other)] == [503, 503, None, 503]
    slow[2].size = 1000
    places.limit_unread()
    assert slow[2].status is None


def test_bodies_share_memory():
    places = Connections(100, 100, 100)
    slow = [Connection("a", Phase.BODY, since=float(i)) for i in range(3)]
    fast = Connection("b", Phase.BODY, since=9.0)
    for one in (*slow, fast):
        places.add(one)
    for one in slow:
        places.hold(one, 20)  # the third is more than half
    assert [one.status for one in slow] == [503, None, None]
    places.hold(fast, 50)
    assert [one.status for one in slow] == [503, None, None]
    places.hold(slow[2], 10)
    assert [one.status for one in slow] == [503, None, None]
    with pytest.raises(StatusError, match="in flight already; retry later"):
        places.hold(fast, 1)
    places.release(fast)
    assert fast.held == 0
    fast.phase = slow[1].phase = Phase.WORKING
    with pytest.raises(StatusError, match="in flight already"):
        places.hold(slow[2], 21)
    for one in (*slow, fast):
        places.release(one)
        places.remove(one)
    assert places._held == 0
    assert not places._bytes
    assert not places._by_address


def test_slow_connections_are_closed():
    places = Connections(100, 100, 100)
    ages = {Phase.IDLE: 31, Phase.HEAD: 11, Phase.BODY: 31, Phase.SENDING: 31, Phase.WORKING: 999}
    late = [Connection("a", phase, 1000.0 - age) for phase, age in ages.items()]
    punctual = [Connection("a", phase, 1000.0 - age + 2) for phase, age in ages.items()]
    for one in (*late, *punctual):
        places.add(one)
    places.close_late(1000.0)
    assert [one.status for one in late] == [408, 408, 408, 408, None]
    assert {one.status for one in punctual} == {None}
    assert len(list(places)) == 6


def test_closing_connections_are_closed_in_time_whatever_their_phase():
    places = Connections(100, 100, 100)
    made = [Connection("a", phase, since=2015.0) for phase in Phase for _ in range(2)]
    for one in made:
        places.add(one)
    closing = made[::2]
    for one in closing:
        one.closing = True
    places.close_late(1990.0)
    places.close_late(1990.0 + connections.CLOSING_SECONDS)
    assert {one.status for one in made} == {None}
    places.close_late(1991.0 + connections.CLOSING_SECONDS)
    assert {one for one in made if one.status} == set(closing)
    assert set(places) == set(made) - set(closing)
    assert not places._closing


def test_connections_get_half_of_the_descriptors(monkeypatch):
    for limit, expected in ((400, 134), (10, connections.MIN_CONNECTIONS), (2**40, 2048)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        monkeypatch.setattr(os, "listdir", lambda _: ["fd"] * 100)
        assert connections.available_connections() == expected
