"""Streams: read-ahead, cancellation, and errors of the images themselves."""

import asyncio
import contextlib
import itertools

import numpy as np
import pytest

import keras_ssl as kssl


def test_images_are_read_at_most_one_request_ahead_of_the_window(fake_server):
    taken = []

    def images():
        for i in itertools.count():
            taken.append(i)
            yield b"%d" % i

    with fake_server().client(batch_size=3, window=2) as client:
        stream = client.stream(images())
        assert not taken
        for given in range(50):
            np.testing.assert_array_equal(next(stream), [given, -given])
            assert len(taken) - given <= (2 + 1) * 3
        stream.close()


def test_the_async_client_reads_no_further_ahead_and_accepts_async_iterables(fake_server):
    taken = []

    async def images():
        for i in itertools.count():
            taken.append(i)
            yield b"%d" % i

    async def main(port):
        async with kssl.AsyncFeatureClient(
            f"localhost:{port}", "m", batch_size=3, window=2
        ) as client:
            async with contextlib.aclosing(client.stream(images())) as stream:
                given = 0
                async for vector in stream:
                    np.testing.assert_array_equal(vector, [given, -given])
                    given += 1
                    assert len(taken) - given <= (2 + 1) * 3
                    if given == 50:
                        break
            return await client.features([b"7"])

    with fake_server().served() as port:
        np.testing.assert_array_equal(asyncio.run(main(port)), [[7, -7]])


def test_closing_a_stream_cancels_the_requests_in_flight(fake_server, stalling, encoded, wait_for):
    fake = fake_server(stalling)
    with fake.client(batch_size=2, window=3) as client:
        stream = client.stream(encoded(40))
        next(stream)
        wait_for(lambda: fake.active == 3)
        stream.close()
        wait_for(lambda: fake.active == 0)
        assert sum(map(len, fake.requests)) == 8
        np.testing.assert_array_equal(client.features([b"100"]), [[100, -100]])

    async def asynchronous(port):
        tasks = asyncio.all_tasks()
        async with kssl.AsyncFeatureClient(
            f"localhost:{port}", "m", batch_size=2, window=3
        ) as client:
            async with contextlib.aclosing(client.stream(encoded(40))) as stream:
                await anext(stream)
                await asyncio.to_thread(wait_for, lambda: fake.active == 3)
            await asyncio.to_thread(wait_for, lambda: fake.active == 0)
            assert asyncio.all_tasks() == tasks
            return await client.features([b"100"])

    with fake.served() as port:
        np.testing.assert_array_equal(
            asyncio.run(asyncio.wait_for(asynchronous(port), 15)), [[100, -100]]
        )


def test_exceptions_of_the_images_are_propagated(fake_server, stalling, encoded, wait_for):
    def images():
        yield from encoded(8)
        raise KeyError("no more")

    fake = fake_server(stalling)
    with fake.client(batch_size=2, window=9) as client:
        with pytest.raises(KeyError, match="no more"):
            list(client.stream(images()))
        wait_for(lambda: fake.active == 0)
        np.testing.assert_array_equal(client.features([b"100"]), [[100, -100]])

    async def asynchronous(port):
        tasks = asyncio.all_tasks()
        async with kssl.AsyncFeatureClient(
            f"localhost:{port}", "m", batch_size=2, window=9
        ) as client:
            with pytest.raises(KeyError, match="no more"):
                await client.features(images())
            assert asyncio.all_tasks() == tasks
            return await client.features([b"100"])

    with fake.served() as port:
        np.testing.assert_array_equal(
            asyncio.run(asyncio.wait_for(asynchronous(port), 15)), [[100, -100]]
        )


def test_a_stream_of_no_images_is_empty():
    with kssl.FeatureClient("localhost:1", "m") as client:
        assert list(client.stream(iter(()))) == []
