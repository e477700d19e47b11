"""Encoders of image files and clips for tables: a model in this process, or one on a server."""

import collections
import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from keras_ssl.evaluation.extract import traced
from keras_ssl.ops import decode, images
from keras_ssl.serving.client.protocol import pinned

THREADS = 8  # decode files while the model runs
AHEAD = 2  # batches of files that are decoded ahead


class LocalEncoder:
    """Encodes with a model in this process.

    Args:
        encoder: keras.Model from (B, H, W, 3) pixels to (B, D) features.
        batch_size: int, images per batch.

    Attributes:
        size: (H, W) in pixels.
    """

    def __init__(self, encoder, batch_size=64):
        self.size, self._batch_size = encoder.input_shape[1:3], batch_size
        self._features = traced(encoder, tf.TensorSpec((None, *self.size, 3), tf.uint8))
        height, width = self.size

        @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
        def pixels(encoded):
            return images.resize(decode.decode(encoded), height, width)

        self._pixels = pixels

    def files(self, items):
        """Encodes image files.

        Args:
            items: iterable of (row, bytes of a file), which is read only as far ahead as needed.

        Yields:
            (row, (D,) float32 array), or (row, str) with the reason why the file cannot be read; in order.

        Raises:
            tf.errors.ResourceExhaustedError: there is not enough memory for the pixels of a file.
        """

        def decoded(item):
            try:
                return item[0], self._pixels(item[1]).numpy()
            except tf.errors.ResourceExhaustedError:
                raise  # the file may be intact
            except tf.errors.OpError as error:
                return item[0], reason(error)

        with ThreadPoolExecutor(THREADS) as pool:
            for batch in _batches(
                _ahead(pool, decoded, items, AHEAD * self._batch_size), self._batch_size
            ):
                good = [pixels for _, pixels in batch if not isinstance(pixels, str)]
                vectors = iter(self._features(np.stack(good)).numpy() if good else ())
                for row, pixels in batch:
                    yield row, pixels if isinstance(pixels, str) else next(vectors)

    def clips(self, items):
        """Encodes the frames of clips: yields (row, (T, D) array) for items (row, (T, H, W, 3) uint8)."""
        for batch in _batches(items, self._batch_size):
            frames = np.stack([frames for _, frames in batch])
            vectors = self._features(frames.reshape(-1, *frames.shape[2:])).numpy()
            rows = [row for row, _ in batch]
            yield from zip(rows, vectors.reshape(*frames.shape[:2], -1), strict=True)


class ServedEncoder:
    """Encodes with one version of a model on a server: the version of the first response, or that of `pin`.

    Args:
        client: FeatureClient.

    Attributes:
        version: int, or None before the first response.
    """

    def __init__(self, client):
        self._client, self.version = client, None

    def pin(self, version):
        """Requests only this version from now on."""
        self.version, self._client = version, pinned(self._client, version)

    @property
    def size(self):
        """(H, W) in pixels, requested from the server."""
        return self._client.input_size()

    def files(self, items):
        """As `LocalEncoder.files`."""
        waiting, results = (
            collections.deque(),
            collections.deque(),
        )  # rows and bytes; vectors or reasons

        def contents():
            for item in items:
                waiting.append(item)
                yield item[1]

        source = contents()
        while self.version is None:  # one by one, until a response contains the version
            content = next(source, None)
            if content is None:
                break
            results.extend(self._requested([content]))
            while results:
                yield waiting.popleft()[0], results.popleft()
        while True:
            try:
                for response in self._responses("encoded", source):
                    for vector in response:
                        yield waiting.popleft()[0], vector
                return
            except ValueError as error:
                if getattr(error, "code", None) != "INVALID_ARGUMENT":
                    raise
            # Finds the unreadable file among those that the client has read.
            found = self._requested([content for _, content in waiting])
            for result in found:
                yield waiting.popleft()[0], result

    def clips(self, items):
        """As `LocalEncoder.clips`."""
        rows, done = collections.deque(), []

        def frames():
            for row, clip in items:
                rows.append((row, len(clip)))
                yield from clip

        source = frames()
        if self.version is None:
            first = next(source, None)
            if first is None:
                return
            done.extend(*self._responses(None, [first]))
        for response in itertools.chain([[]], self._responses(None, source)):
            done.extend(response)
            while rows and len(done) >= rows[0][1]:
                row, length = rows.popleft()
                yield row, np.stack(done[:length])
                del done[:length]

    def _requested(self, contents):
        """Returns a vector or a reason for each file; halves batches until unreadable files are alone."""
        try:
            return list(itertools.chain(*self._responses("encoded", contents)))
        except ValueError as error:
            if getattr(error, "code", None) != "INVALID_ARGUMENT":
                raise
            if len(contents) == 1:
                return [reason(error)]
        half = len(contents) // 2
        return self._requested(contents[:half]) + self._requested(contents[half:])

    def _responses(self, signature, contents):
        """Yields the features of each response; the very first response determines the version."""
        try:
            for response in self._client._responses(signature, contents):
                if response.version is None or self.version not in (None, response.version):
                    raise RuntimeError(
                        f"server {self._client.address!r} responded with version {response.version} of "
                        f"{self._client.model!r}, not with version {self.version}: features of two "
                        "versions would be mixed"
                    )
                if self.version is None:
                    self.pin(response.version)
                yield response.outputs["features"]
        except ValueError as error:
            if getattr(error, "code", None) != "NOT_FOUND" or self.version is None:
                raise
            raise ValueError(
                f"{error}; the table has features of version {self.version}: serve that, or compute "
                "another table"
            ) from None


def reason(error):
    """Returns what TensorFlow or a server reports about an unreadable file, without traceback and graph."""
    text = str(error).split("\n\t [[")[0].strip().rpartition("\n")[2]
    text = re.sub(r"^server '.*?', model '.*?': |^\{\{.*?\}\}\s*|\s*\[Op:.*", "", text)
    found = re.search(r"assertion failed: \[(.*)\]", text)
    return (found[1] if found else text).strip() or type(error).__name__


def _ahead(pool, function, items, number):
    """Yields function(item) in order, computed by the threads of a pool for `number` items ahead."""
    running = collections.deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > number:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _batches(items, size):
    """Yields lists of `size` items, the last one shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch
