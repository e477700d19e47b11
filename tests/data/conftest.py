"""A folder of image files of many kinds."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """Class folders with images of many formats and sizes."""
    rng = np.random.default_rng(0)

    def save(name, mode="RGB", size=(20, 30), **arguments):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).convert(mode).save(
            path, **arguments
        )

    save("cat/a.JPG", size=(300, 200))
    save("cat/deep/er/b.jpeg", "CMYK")
    save("cat/gray.png", "L")
    save("dog/one.png", size=(1, 1))
    save("dog/alpha.png", "RGBA")
    save("dog/p.gif", "P")
    save("eel/x.bmp")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(
        tmp_path / "eel/16.png"
    )
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path
