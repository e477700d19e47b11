"""The feature client for asyncio: the same requests, answers and errors, to await."""

import asyncio
import collections
import contextlib
from pathlib import Path

import grpc

from keras_ssl.serving.client.feature_client import progress_bar
from keras_ssl.serving.client.protocol import Batch, ClientBase, Patience, checked, joined


class AsyncFeatureClient(ClientBase):
    """`FeatureClient` to await: arguments, results and errors are the same.

    It belongs to the event loop in which it is used first. Files are read in threads, so that the
    loop goes on. An async context manager: leaving closes the connection.

    Args:
        address, model, version, label, batch_size, timeout, window, retries, credentials: as
            `FeatureClient`.

    Raises:
        ValueError: as `FeatureClient`.

    Example:
        >>> async def main():
        ...     async with AsyncFeatureClient("localhost:8500", "rotation_cifar10") as client:
        ...         return await client.features(["a.jpg", "b.jpg"])
        >>> vectors = asyncio.run(main())                               # doctest: +SKIP
    """

    def _open(self):
        self._channel = self._stub = None  # until there is an event loop, at the first request

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.close()

    async def close(self):
        """Closes the connection."""
        if self._channel is not None:
            await self._channel.close()

    async def features(self, pictures, progress=False):
        """Features of pictures, in their order.

        Args:
            pictures: as `FeatureClient.features`, or an async iterable of such pictures.
            progress: bool, show a bar with pictures per second on stderr, if that is a terminal.

        Returns:
            (N, D) float32 array.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `FeatureClient.features`.
        """
        return (await self._gather(None, pictures, progress))["features"]

    async def stages(self, pictures, progress=False):
        """Features of every stage of the encoder, averaged over the picture.

        Args:
            pictures: (N, H, W, 3) uint8 array of the model's size, or an iterable or async iterable
                of such (H, W, 3) arrays.
            progress: bool, as in `features`.

        Returns:
            dict of (N, c) float32 arrays: `stage1`, ..., and `features`.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `FeatureClient.stages`.
        """
        return await self._gather("stages", pictures, progress)

    async def pretext(self, pictures, progress=False):
        """What the task predicts for pictures: colours, the filled hole, rotation logits, ...

        Args:
            pictures: as in `stages`.
            progress: bool, as in `features`.

        Returns:
            dict of arrays with the picture on axis 0, as `FeatureClient.pretext`.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `FeatureClient.pretext`.
        """
        return await self._gather("pretext", pictures, progress)

    async def stream(self, pictures):
        """Features of pictures without end, one after the other, in their order.

        Of `pictures` at most `window` + 1 requests are read ahead. Where the caller stops early, the
        requests on their way are cancelled once the generator is closed: at once by
        `contextlib.aclosing`, else soon after the last reference to it is gone.

        Args:
            pictures: iterable or async iterable as for `features`, such as a generator; it may be
                empty.

        Yields:
            (D,) float32 array for each picture.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `FeatureClient.stream`; and
                what `pictures` raises itself.

        Example:
            >>> async def main(client, arriving):
            ...     async for vector in client.stream(arriving):
            ...         print(vector.mean())
        """
        async with contextlib.aclosing(self._answers(None, pictures)) as answers:
            async for answer in answers:
                for vector in answer.outputs["features"]:
                    yield vector

    async def _gather(self, signature, pictures, progress):
        parts = []
        with progress_bar(pictures, progress) as came:
            async with contextlib.aclosing(self._answers(signature, pictures)) as answers:
                async for answer in answers:
                    parts.append(answer.outputs)
                    came(answer.number)
        return joined(parts)

    async def _answers(self, signature, pictures):
        """Answers in the order of the pictures, at most `window` requests on their way."""
        calls = collections.deque()
        try:
            async with contextlib.aclosing(self._requests(signature, pictures)) as requests:
                async for request in requests:
                    if len(calls) < self.window:
                        calls.append(asyncio.create_task(self._ask(request)))
                        continue
                    answer = await calls[0]
                    # Sent before the yield: the server works while the caller does.
                    calls.append(asyncio.create_task(self._ask(request)))
                    calls.popleft()
                    yield answer
            while calls:
                answer = await calls[0]
                calls.popleft()
                yield answer
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _requests(self, signature, pictures):
        batch = Batch(self, signature)
        async for picture in _each(checked(pictures)):
            if isinstance(picture, str | Path):
                picture = await asyncio.to_thread(Path(picture).read_bytes)
            for request in batch.add(picture):
                yield request
        for request in batch.rest():
            yield request

    async def _ask(self, request):
        """The answer, asked for again after a wait while the server is unavailable."""
        if self._stub is None:
            self._channel, self._stub = self._connect(grpc.aio)
        patience = Patience(self)
        while True:
            try:
                response = await self._stub.Predict(request, timeout=patience.left())
                return self._answer(request, response)
            except grpc.RpcError as error:
                wait = patience.wait(error.code())
                if wait is None:
                    raise self._failure(error) from None
            await asyncio.sleep(wait)


async def _each(pictures):
    if hasattr(pictures, "__aiter__"):
        async for picture in pictures:
            yield picture
    else:
        for picture in pictures:
            yield picture
