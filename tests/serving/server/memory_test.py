"""When memory is short, and when it is returned to the operating system."""

import gc
import shutil
import time
import types
import weakref

import pytest
from tensorflow_serving.apis import model_pb2

from keras_ssl.serving.server import memory
from keras_ssl.serving.server.configs import config_of
from keras_ssl.serving.server.models import Models

MIB = 2**20


@pytest.fixture
def resident(monkeypatch):
    """A list with the resident memory, and the number of trims."""
    state = [500 * MIB, 0]
    monkeypatch.setattr(memory, "resident", lambda: state[0])
    monkeypatch.setattr(memory, "trim", lambda: state.__setitem__(1, state[1] + 1))
    return state


@pytest.fixture
def clock(monkeypatch):
    """A list with the time."""
    state = [0.0]
    monkeypatch.setattr(memory, "time", types.SimpleNamespace(monotonic=lambda: state[0]))
    return state


def times_of_trims(watched, resident, clock, seconds, busy):
    """Settles once per second; returns when the memory was trimmed."""
    times = []
    for clock[0] in range(seconds):
        before = resident[1]
        watched.settle(busy)
        if resident[1] > before:
            times.append(clock[0])
    return times


def test_memory_is_short_when_it_grows_while_messages_are_slow(resident):
    watched = memory.Memory()
    resident[0] = 2000 * MIB  # a model was loaded
    for _ in range(memory.CALM):
        watched.is_short(slow=False)
    assert not watched.is_short(slow=True)
    resident[0] += memory.MAX_GROWTH + MIB
    assert watched.is_short(slow=True)


def test_a_loaded_model_does_not_count_while_a_message_is_always_slow(resident, monkeypatch):
    monkeypatch.setattr(gc, "freeze", gc.collect)
    watched, heap = memory.Memory(), memory.Heap()
    assert not watched.is_short(slow=True)
    resident[0] += memory.MAX_GROWTH + MIB
    assert watched.is_short(slow=True)
    heap.collect()
    assert not watched.is_short(slow=True)
    resident[0] += memory.MAX_GROWTH + MIB
    assert watched.is_short(slow=True)
    heap.close()


def test_memory_that_has_grown_is_trimmed_once(resident):
    watched = memory.Memory()
    resident[0] = 520 * MIB
    watched.settle(busy=False)
    assert resident[1] == 0
    resident[0] = 600 * MIB
    for _ in range(5):
        watched.settle(busy=False)
    assert resident[1] == 1  # what is left is in use


def test_memory_that_a_trim_did_not_free_is_trimmed_again_later(resident, clock):
    watched = memory.Memory()
    resident[0] = 600 * MIB
    trims = times_of_trims(watched, resident, clock, 1500, busy=False)
    assert trims == [0, 11, 32, 73, 154, 315, 636, 957, 1278]
    resident[0] = 650 * MIB  # more, so soon
    watched.settle(busy=False)
    assert resident[1] == 10
    resident[0] = 510 * MIB  # this time it has helped
    for clock[0] in range(1600, 3000):
        watched.settle(busy=False)
    assert resident[1] == 10
    resident[0] = 540 * MIB
    watched.settle(busy=False)
    assert resident[1] == 11


def test_a_server_that_is_always_busy_is_trimmed_but_less_often(resident, clock):
    watched = memory.Memory()
    resident[0] = 600 * MIB
    trims = times_of_trims(watched, resident, clock, 200, busy=True)
    assert trims == [0, 31, 62, 93, 124, 155, 186]
    clock[0] = 200
    watched.settle(busy=False)  # trims that freed nothing while it was busy do not delay this one
    assert resident[1] == len(trims) + 1


def test_there_is_a_pause_after_a_trim(monkeypatch, wait_for):
    trims = []
    wait_for(lambda: not memory._trimming.locked())
    monkeypatch.setattr(memory, "_trim_heap", trims.append)
    for _ in range(20):
        memory.trim()
        time.sleep(0.01)
    assert trims == [0]
    wait_for(lambda: not memory._trimming.locked())
    memory._trim_now()
    assert trims == [0, 0]


def test_a_trim_collects_garbage_if_models_are_exempt(monkeypatch, wait_for):
    wait_for(lambda: not memory._trimming.locked())
    monkeypatch.setattr(memory, "TRIM_PAUSE", 0)
    assert gc.get_freeze_count()
    node = Node()
    gone = weakref.ref(node)
    del node
    memory._trim_now()
    assert gone() is None


def test_trim_returns_at_once():
    memory.trim()
    assert memory.resident() > 0


class Node:
    """An object in a cycle, as graphs have them."""

    def __init__(self):
        self.me = self


@pytest.fixture
def unfrozen():
    """The tests keep what is there from garbage collection, as `Heap` does."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


def test_what_lives_long_is_kept_from_garbage_collection_and_freed_all_the_same(unfrozen):
    heap, node = memory.Heap(), Node()
    heap.collect()
    assert gc.get_freeze_count() > 10_000
    gone = weakref.ref(node)
    del node
    gc.collect()
    assert gone() is not None
    heap.collect()
    assert gone() is None
    heap.close()
    assert gc.get_freeze_count() == 0


def test_models_are_kept_from_garbage_collection_until_they_are_unloaded(
    unfrozen, counter, tmp_path
):
    folder, spec = tmp_path / "counter", model_pb2.ModelSpec(name="counter")
    shutil.copytree(counter / "1", folder / "1")
    models = Models(config_of({"counter": folder}))
    assert gc.get_freeze_count() > 10_000
    with models.lease(spec) as (version, servable):
        assert version == 1
        late = weakref.ref(servable.session.graph)
        shutil.copytree(counter / "2", folder / "2")
        models.update()  # while a request runs
        assert models.versions("counter") == [2]
        assert gc.get_freeze_count() == 0
    del servable
    models.update()
    assert late() is None
    assert gc.get_freeze_count() > 10_000
    models.close()
    assert gc.get_freeze_count() == 0


def test_a_program_that_freezes_its_objects_is_left_alone():
    number = gc.get_freeze_count()
    assert number
    heap = memory.Heap()
    heap.collect()
    heap.close()
    assert abs(gc.get_freeze_count() - number) < 1000  # those that were freed since
