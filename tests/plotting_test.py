import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import keras_ssl as kssl
from keras_ssl import plotting


def test_grid_draws_every_image_in_its_place():
    colors = np.array(
        [
            [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 0, 255]],
            [[255, 255, 0], [0, 255, 255], [9, 9, 9], [99, 9, 9]],
        ]
    )
    rows = [
        [(np.tile(color, (4, 6, 1)).astype("uint8"), "caption") for color in line]
        for line in colors
    ]
    figure = plotting.grid(rows, title="title")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].reshape(-1, 3)
    for color in colors.reshape(-1, 3):
        assert (drawn == color).all(axis=1).sum() > 1000
    axes = figure.axes[0]
    boxes = [image.get_extent() for image in axes.images]  # left, right, bottom, top
    assert boxes[1][0] > boxes[0][1]  # the second lies right of the first
    assert boxes[4][3] > boxes[0][2]  # the second row below the first
    widths = {round((b[1] - b[0]) / (b[2] - b[3]), 6) for b in boxes}
    assert widths == {1.5}  # 4 x 6 pixels keep their aspect ratio
    assert len(axes.texts) == 8


def test_grid_takes_gray_and_refuses_nothing():
    assert plotting.grid([[(np.zeros((4, 4, 1)), "gray")]]).axes[0].images[0].get_array().shape == (
        4,
        4,
        3,
    )
    for rows in ([], [[]]):
        with pytest.raises(ValueError, match="rows"):
            plotting.grid(rows)


def test_single_images_stand_side_by_side():
    rows = [[(np.zeros((8, 8, 3)), str(i))] for i in range(8)]
    texts = plotting.grid(rows).axes[0].texts
    assert [text.get_text() for text in texts] == [str(i) for i in range(8)]
    assert [text.get_position()[0] for text in texts] == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 0.5, 1.5]


@pytest.mark.parametrize("sides", ["ab", "abc"])
def test_short_rows_stand_side_by_side_too(sides):
    rows = [[(np.zeros((8, 8, 3)), f"{i}{side}") for side in sides] for i in range(4)]
    texts = plotting.grid(rows).axes[0].texts
    assert [t.get_text() for t in texts] == [f"{i}{side}" for i in range(4) for side in sides]
    assert [t.get_position()[0] for t in texts] == [k % 6 + 0.5 for k in range(4 * len(sides))]


def test_print_table_aligns_columns(capsys):
    plotting.print_table([("a", "long name", "b"), ("longer", "c", "")])
    assert capsys.readouterr().out == "a       long name  b\nlonger  c\n"


def test_all_columns_of_a_clip_are_drawn_in_colors():
    row = next(kssl.data.scenes(1, 24, frames=2, moving=1.0).as_numpy_iterator())
    drawn = dict((caption, pixels) for pixels, caption in plotting.columns(row))
    assert set(drawn) == set(row) - {"id", "intrinsics", "motion", "frames"}
    for pixels in drawn.values():
        assert pixels.shape == (24, 24, 3)
        assert pixels.min() >= 0
        assert pixels.max() <= 255.001
    sky = np.isnan(row["depth"][..., 0])
    assert sky.any()
    assert (drawn["depth"][sky] == 0).all()
    ground = (row["classes"][..., 0] == 1) & (row["contours"][..., 0] == 0)
    assert (np.diff(drawn["normals"][ground], axis=0) < 1e-3).all()  # one color: it is a plane


def test_without_flow_nothing_is_colored():
    row = {"flow": np.zeros((4, 4, 2), np.float32)}
    ((pixels, caption),) = plotting.columns(row)
    assert caption == "flow"
    assert (pixels == 255).all()
