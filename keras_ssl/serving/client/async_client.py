"""The feature client for asyncio."""

import asyncio
import collections
import contextlib
from pathlib import Path

import grpc

from keras_ssl.serving.client.progress import progress_bar
from keras_ssl.serving.client.protocol import ClientBase, concatenate
from keras_ssl.serving.client.request_batcher import RequestBatcher, check_iterable


class AsyncFeatureClient(ClientBase):
    """Requests features as `FeatureClient` does, from an event loop.

    Arguments, results and errors are the same as those of `FeatureClient`. A client belongs to the event loop
    in which it is first used. Files are read in threads, so that the event loop is not blocked. It is an
    async context manager, which closes the connection on exit.

    Args:
        address, model, version, label, batch_size, timeout, window, retries, credentials: as in
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
        self._channel = self._stub = None  # created at the first request, in the event loop

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.close()

    async def close(self):
        """Closes the connection."""
        if self._channel is not None:
            await self._channel.close()

    async def features(self, images, progress=False):
        """Computes the features of images, in the order of the images.

        Args:
            images: as in `FeatureClient.features`, or an async iterable of such images.
            progress: bool, show a progress bar on stderr if that is a terminal.

        Returns:
            (N, D) float32 array.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `FeatureClient.features`.
        """
        return (await self._gather(None, images, progress))["features"]

    async def stages(self, images, progress=False):
        """Computes the features of every stage of the encoder, averaged over the image.

        Args:
            images: as in `FeatureClient.stages`, or an async iterable of such images.
            progress: bool, as in `features`.

        Returns:
            dict of (N, c) float32 arrays: `stage1`, ..., and `features`.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `FeatureClient.stages`.
        """
        return await self._gather("stages", images, progress)

    async def pretext(self, images, progress=False):
        """Computes the task's prediction for images: rotation logits, colors, the filled hole, ...

        Args:
            images: as in `FeatureClient.pretext`, or an async iterable of such images.
            progress: bool, as in `features`.

        Returns:
            dict of arrays with the image on axis 0, as the task's `prediction` returns them.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `FeatureClient.pretext`.
        """
        return await self._gather("pretext", images, progress)

    async def stream(self, images):
        """Computes the features of an unbounded iterable of images, one image after another.

        At most `window` + 1 requests are read ahead. If the caller stops early, the requests in
        flight are cancelled when the generator is closed: immediately with `contextlib.aclosing`,
        otherwise soon after the last reference to the generator is dropped.

        Args:
            images: iterable or async iterable as for `features`, for example a generator; it may be
                empty.

        Yields:
            (D,) float32 array for each image, in order.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `FeatureClient.stream`; and any error
                that iterating over `images` raises.

        Example:
            >>> async def main(client, arriving):
            ...     async for vector in client.stream(arriving):
            ...         print(vector.mean())
        """
        async with contextlib.aclosing(self._responses(None, images)) as responses:
            async for response in responses:
                for vector in response.outputs["features"]:
                    yield vector

    async def _gather(self, signature, images, progress):
        parts = []
        with progress_bar(images, progress) as advance:
            async with contextlib.aclosing(self._responses(signature, images)) as responses:
                async for response in responses:
                    parts.append(response.outputs)
                    advance(response.count)
        return concatenate(parts)

    async def _responses(self, signature, images):
        """Yields responses in the order of the images, with at most `window` requests in flight."""
        calls = collections.deque()
        try:
            async with contextlib.aclosing(self._requests(signature, images)) as requests:
                async for request in requests:
                    if len(calls) < self.window:
                        calls.append(asyncio.create_task(self._call(request)))
                        continue
                    response = await calls[0]
                    # Sent before the yield, so that the server works while the caller does.
                    calls.append(asyncio.create_task(self._call(request)))
                    calls.popleft()
                    yield response
            while calls:
                response = await calls[0]
                calls.popleft()
                yield response
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _requests(self, signature, images):
        batcher = RequestBatcher(self, signature)
        async for image in _iterate(check_iterable(images)):
            if isinstance(image, str | Path):
                image = await asyncio.to_thread(Path(image).read_bytes)
            for request in batcher.add(image):
                yield request
        for request in batcher.flush():
            yield request

    async def _call(self, request):
        """Sends a request, retries it while the server is unavailable, and returns the response."""
        if self._stub is None:
            self._channel, self._stub = self._connect(grpc.aio)
        policy = self._retry_policy()
        while True:
            try:
                response = await self._stub.Predict(request, timeout=policy.remaining())
                return self._parse_response(request, response)
            except grpc.RpcError as error:
                seconds = policy.backoff(error.code())
                if seconds is None:
                    raise self._exception(error) from None
            await asyncio.sleep(seconds)


async def _iterate(images):
    """Iterates over an iterable or an async iterable."""
    if hasattr(images, "__aiter__"):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
