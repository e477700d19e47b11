"""Who is next, where clients wait for a thread."""

import threading

import pytest

from keras_ssl.serving.server.turns import Turns


@pytest.fixture
def turns():
    """`turns(threads)`: creates Turns."""
    made = []

    def create(threads):
        made.append(Turns(threads, "test"))
        return made[-1]

    yield create
    for one in made:
        one.close()


def test_clients_take_turns_however_much_one_of_them_submits(turns):
    go_on, started, ran = threading.Event(), threading.Event(), []
    one = turns(1)
    first = one.submit("a", lambda: started.set() or go_on.wait(10))
    assert started.wait(10)
    rest = [one.submit(client, ran.append, f"{client}{i}") for client in "ab" for i in range(3)]
    rest.append(one.submit("c", ran.append, "c0"))
    go_on.set()
    for future in (first, *rest):
        future.result(10)
    assert ran == ["a0", "b0", "c0", "a1", "b1", "a2", "b2"]


@pytest.mark.parametrize(("threads", "alone", "second"), [(1, 1, 0), (2, 1, 1), (8, 4, 2)])
def test_one_client_leaves_threads_for_others(turns, wait_for, threads, alone, second):
    go_on, running = threading.Event(), []
    pool = turns(threads)

    def run(client):
        running.append(client)
        go_on.wait(10)

    waiting = [pool.submit("a", run, "a") for _ in range(20)]
    wait_for(lambda: len(running) == alone)
    waiting += [pool.submit("b", run, "b") for _ in range(20)]
    wait_for(lambda: len(running) == alone + second)
    assert not any(future.done() for future in waiting)
    go_on.set()
    for future in waiting:
        future.result(10)
    assert sorted(running) == ["a"] * 20 + ["b"] * 20


def test_errors_are_those_of_the_function(turns):
    pool = turns(2)
    with pytest.raises(ZeroDivisionError):
        pool.submit("a", divmod, 1, 0).result(10)
    assert pool.submit("a", divmod, 7, 3).result(10) == (2, 1)


def test_what_is_cancelled_or_waits_at_the_end_does_not_run(turns):
    go_on, started, ran = threading.Event(), threading.Event(), []
    pool = turns(1)
    first = pool.submit("a", lambda: started.set() or go_on.wait(10))
    assert started.wait(10)
    cancelled = pool.submit("a", ran.append, "cancelled")
    assert cancelled.cancel()
    later = pool.submit("a", ran.append, "later")
    go_on.set()
    later.result(10)
    assert first.result(10)
    go_on.clear()
    started.clear()
    last = pool.submit("a", lambda: started.set() or go_on.wait(10))
    assert started.wait(10)
    pool.submit("a", ran.append, "closed")
    pool.close()
    go_on.set()
    last.result(10)
    assert ran == ["later"]
    with pytest.raises(RuntimeError, match="after the end"):
        pool.submit("a", ran.append, "late")


def test_what_waits_for_threads_is_bounded(turns):
    """Clients that always wait: a thread would never come to an end."""
    pool, number, longest, done = turns(2), [0], [0], threading.Event()

    def again(client):
        number[0] += 1
        longest[0] = max(longest[0], pool._threads._work_queue.qsize())
        if number[0] < 2000:
            pool.submit(client, again, client)
        else:
            done.set()

    for client in "abab":
        pool.submit(client, again, client)
    assert done.wait(20)
    assert longest[0] <= 2


def test_no_thread_idles_while_a_function_may_run(turns, wait_for):
    """When c0 ends, clients a and d have 2 each, c 1, and 3 threads are free."""
    pool, running = turns(8), []
    ends = {f"{client}{i}": threading.Event() for client in "acd" for i in range(4)}

    def run(name):
        running.append(name)
        ends[name].wait(10)
        running.remove(name)

    names = ["a0", "a1", "c0", "c1", "d0", "d1"]
    for name in names:
        pool.submit(name[0], run, name)
    wait_for(lambda: sorted(running) == names)
    for name in ("a2", "a3", "c2", "c3"):
        pool.submit(name[0], run, name)
    wait_for(lambda: len(running) == 6)
    ends["c0"].set()
    wait_for(lambda: len(running) == 7)
    assert sorted(running) == ["a0", "a1", "a2", "c1", "c2", "d0", "d1"]
    for end in ends.values():
        end.set()


def test_threads_are_free_again_if_a_future_cannot_be_set(turns):
    pool, broken, made = turns(1), [], threading.Event()
    broken.append(pool.submit("a", lambda: made.wait(10) and broken[0].set_result(1)))
    made.set()
    assert broken[0].result(10) == 1
    assert pool.submit("a", divmod, 7, 3).result(10) == (2, 1)
