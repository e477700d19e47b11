import numpy as np

import keras_ssl as kssl
from keras_ssl.data.renderer import pictures


def test_all_columns_of_a_clip_are_drawn_in_colors():
    row = next(kssl.data.scenes(1, 24, frames=2, moving=1.0).as_numpy_iterator())
    drawn = dict((caption, pixels) for pixels, caption in pictures.columns(row))
    assert set(drawn) == set(row) - {"id", "intrinsics", "motion", "frames"}
    for pixels in drawn.values():
        assert pixels.shape == (24, 24, 3) and pixels.min() >= 0 and pixels.max() <= 255.001
    sky = np.isnan(row["depth"][..., 0])
    assert sky.any() and (drawn["depth"][sky] == 0).all()
    ground = (row["classes"][..., 0] == 1) & (row["contours"][..., 0] == 0)
    assert (np.diff(drawn["normals"][ground], axis=0) < 1e-3).all()  # one color: it is a plane


def test_without_flow_nothing_is_colored():
    row = {"flow": np.zeros((4, 4, 2), np.float32)}
    ((pixels, caption),) = pictures.columns(row)
    assert caption == "flow" and (pixels == 255).all()
