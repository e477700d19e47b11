"""Checks the images that a caller passes, and groups them into requests."""

from pathlib import Path

import numpy as np

MAX_BYTES = 3 * 2**20  # of images in one request, since gRPC's default limit for a message is 4 MiB


class RequestBatcher:
    """Groups images into requests as they arrive.

    A request is emitted as soon as it is full, so that no image is read before it is needed.

    Args:
        client: ClientBase, which builds the requests.
        signature: name of the signature; None chooses between "encoded" and "serving_default" by the
            type of the first image.
    """

    def __init__(self, client, signature):
        self._client, self._signature = client, signature
        self._contents, self._bytes = [], 0

    def add(self, image):
        """Adds an image and yields the requests that are full now, at most two."""
        if self._signature is None:
            self._signature = "encoded" if _is_file(image) else "serving_default"
        if self._signature == "encoded":
            content = _read_encoded(image)
            length = len(content)
        else:
            content = _check_pixels(image)
            length = content.nbytes
        if self._bytes + length > MAX_BYTES:
            yield from self.flush()
        self._contents.append(content)
        self._bytes += length
        if len(self._contents) == self._client.batch_size:
            yield from self.flush()

    def flush(self):
        """Yields the request for the remaining images, if there are any."""
        if self._contents:
            contents, self._contents, self._bytes = self._contents, [], 0
            yield self._client._build_request(self._signature, contents)


def check_iterable(images):
    """Returns `images`; raises ValueError for a single image or for anything not iterable."""
    if isinstance(images, str | bytes | Path):
        raise ValueError(
            "images must be a sequence or generator of images, got a single "
            f"{type(images).__name__}; wrap it in a list"
        )
    if not (hasattr(images, "__iter__") or hasattr(images, "__aiter__")):
        raise ValueError(
            f"images must be a sequence or generator of images, got {type(images).__name__}"
        )
    return images


def _is_file(image):
    return isinstance(image, str | bytes | Path)


def _read_encoded(image):
    """Returns the encoded bytes of an image that is given as a path or as bytes."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    raise ValueError(
        "images must be all arrays or all file paths and encoded bytes; the first is a file, and "
        f"another is of type {type(image).__name__}"
    )


def _check_pixels(image):
    """Returns an image as a C-contiguous (H, W, 3) uint8 array."""
    if _is_file(image):
        raise ValueError(
            "images must be (H, W, 3) uint8 arrays here, got a file or bytes; only features and "
            "stream accept files, and then every image must be one"
        )
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(
            "images must be (H, W, 3) uint8 arrays, file paths or encoded bytes, got "
            f"{image.dtype} of shape {image.shape}"
        )
    return np.ascontiguousarray(image)
