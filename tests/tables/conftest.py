"""Tables of ready-made vectors, and an encoder without a network."""

import io

import numpy as np
import pytest
from PIL import Image

from keras_ssl.tables.identity import Identity
from keras_ssl.tables.store import FeatureTable


class ThumbnailEncoder:
    """Encodes an image as its 12 x 12 thumbnail without the mean; remembers which rows it was given."""

    version = None

    def __init__(self):
        self.encoded = []

    def files(self, items):
        for row, content in items:
            if isinstance(row, dict):  # not a query
                self.encoded.append(row["path"].rpartition("/")[2])
            try:
                image = Image.open(io.BytesIO(content)).convert("RGB")
            except OSError:
                yield row, "no image"
                continue
            pixels = np.asarray(image.resize((12, 12), Image.Resampling.BOX), np.float32)
            yield row, (pixels - pixels.mean()).ravel()

    def clips(self, items):
        for row, frames in items:
            self.encoded.append((row["path"].rpartition("/")[2], round(row["time"], 2)))
            yield row, frames.reshape(len(frames), -1)[:, :5].astype(np.float32)


@pytest.fixture
def encoder():
    return ThumbnailEncoder()


@pytest.fixture
def identity():
    return Identity("rotation_photos", 1, "ab12")


@pytest.fixture
def write_table(tmp_path, identity):
    """`write_table(vectors)`: a FeatureTable whose row i is "/photos/<i>.jpg", with one unreadable file."""

    def write(vectors, name="features.lance", **columns):
        table = FeatureTable.create(tmp_path / name, identity, vectors.shape[1])
        rows = [
            {"id": i, "path": f"/photos/{i}.jpg", "vector": vector}
            for i, vector in enumerate(vectors)
        ]
        for column, values in columns.items():
            for row, value in zip(rows, values, strict=True):
                row[column] = value
        table.add([{"id": len(rows), "path": "/photos/damaged.jpg", "reason": "no image"}, *rows])
        return table

    return write


@pytest.fixture(scope="session")
def smooth_image():
    """`smooth_image(seed, height, width)`: a PIL image of random colors that change slowly."""

    def draw(seed, height=90, width=120):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return draw
