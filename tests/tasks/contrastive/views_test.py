import numpy as np

from keras_ssl.tasks.contrastive import views


def test_preview_shows_both_views_and_their_similarity():
    x = np.arange(2 * 2 * 4 * 4 * 3).reshape(2, 2, 4, 4, 3)
    rows = views.preview(x, views.cosine(np.eye(2), np.array([[2.0, 0.0], [1.0, 1.0]])))
    assert [[caption for _, caption in row] for row in rows] == [
        ["view 1", "view 2, similarity 1.00"], ["view 1", "view 2, similarity 0.71"]
    ]  # fmt: skip
    np.testing.assert_array_equal(rows[1][1][0], x[1, 1])
