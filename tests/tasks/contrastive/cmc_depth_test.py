import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.ops import depth
from keras_ssl.tasks.contrastive import cmc_depth

SIDE = 8


@pytest.fixture(scope="module")
def halves():
    return kssl.encoders.color_halves((SIDE, SIDE, 3), width=4, blocks=(1,))


@pytest.fixture(scope="module")
def columns():
    """Six images with another value in each pixel; some depths and normals are unknown."""
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(6, SIDE, SIDE, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    distance = rng.uniform(1, 50, (6, SIDE, SIDE, 1))
    distance[:, 0], normals[:, 0] = np.nan, np.nan
    return {
        "image": rng.integers(0, 256, (6, SIDE, SIDE, 3), np.uint8),
        "depth": distance.astype(np.float32),
        "normals": normals.astype(np.float32),
        "id": np.arange(6),
    }


def make(encoder, **arguments):
    arguments = {"num_images": 8, "negatives": 5, "dimensions": 6, **arguments}
    return kssl.tasks.CMCDepth(encoder, **arguments)


@pytest.fixture(scope="module")
def task(halves):
    return make(halves, momentum=0.25)


@pytest.fixture(scope="module")
def batch(task, columns):
    return task.pretext(columns, tf.constant([[3, k] for k in range(6)], tf.int64))


def test_views_are_shifted_and_mirrored_alike(task, columns, batch):
    x, y = batch
    np.testing.assert_array_equal(y, range(6))
    pixels = {
        "depth": depth.to_image(columns["depth"], 0.5, 100.0).numpy(),
        "normals": np.nan_to_num(np.round(127.5 * (columns["normals"] + 1))),
        "image": columns["image"].astype(np.float32),
    }
    pixels["mirrored"] = np.nan_to_num(np.round(127.5 * (columns["normals"] * [-1, 1, 1] + 1)))
    seen = set()
    for k in range(6):
        found = np.stack([x[name][k] for name in ("image", "depth", "normals")])
        for mirrored in (False, True):
            views = [
                pixels["image"],
                pixels["depth"],
                pixels["mirrored" if mirrored else "normals"],
            ]
            views = np.stack([v[k][:, :: -1 if mirrored else 1] for v in views])
            for dy, dx in np.ndindex(3, 3):  # by up to a pixel, of eight
                inside = views[:, max(0, dy - 1) : SIDE + dy - 1, max(0, dx - 1) : SIDE + dx - 1]
                height, width = inside.shape[1:3]
                top, left = max(0, 1 - dy), max(0, 1 - dx)
                if (abs(found[:, top : top + height, left : left + width] - inside) < 1).all():
                    seen.add((k, mirrored, dy, dx))
    assert len(seen) == len({k for k, *_ in seen}) == 6
    assert len({tuple(rest) for _, *rest in seen}) > 3
    assert {mirrored for _, mirrored, *_ in seen} == {False, True}


def normalized(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def test_the_lightness_is_compared_with_each_other_view(halves, batch):
    task, (x, y) = make(halves, momentum=0.25), batch
    ids, before = x["id"].numpy(), [bank.read(np.arange(bank.size)).numpy() for bank in task.banks]
    networks = task.depth_encoder, task.normals_encoder
    features = [
        *np.split(halves(x["image"], training=True).numpy(), 2, axis=1),
        *(
            e(x[name], training=True).numpy()
            for e, name in zip(networks, cmc_depth.VIEWS[2:], strict=True)
        ),
    ]
    found = task(x, training=True).numpy()
    assert found.shape == (6, 6, 6)
    embedded = [normalized(head(z).numpy()) for head, z in zip(task.heads, features, strict=True)]
    pairs = [(0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0)]  # whose embedding, whose bank
    constants, own_scores = [], []
    for query, (own, other) in enumerate(pairs):
        drawn = tf.random.stateless_uniform((5,), (other, 0), maxval=8, dtype=tf.int32).numpy()
        rows = np.concatenate(
            [before[other][ids][:, None], before[other][drawn][None].repeat(6, 0)], axis=1
        )
        scores = np.einsum("bd,bkd->bk", embedded[own], rows) / 0.07
        mask = np.pad(drawn[None] == ids[:, None], ((0, 0), (1, 0)))
        difference = np.where(mask, 0, found[:, query] - scores)
        constants.append(difference[~mask].mean())
        own_scores.append(scores.astype(np.float64))
        np.testing.assert_allclose(difference[~mask], constants[-1], atol=2e-3)
        np.testing.assert_array_equal(found[:, query][mask], -1e9)
    # -ln(m Z / N), which all three queries of the bank of the lightness have in common.
    normalizers = [np.exp(scores).mean() for scores in (*own_scores[:3], own_scores[3:])]
    expected = -np.log(5) - np.log([*normalizers, normalizers[3], normalizers[3]])
    np.testing.assert_allclose(constants, expected, atol=2e-3)
    for bank, old, new in zip(task.banks, before, embedded, strict=True):
        np.testing.assert_allclose(
            bank.rows.numpy()[ids], normalized(0.25 * old[ids] + 0.75 * new), atol=1e-4
        )
    assert len({bank.rows.numpy().tobytes() for bank in task.banks}) == 4
    positive = found[..., :1].astype(np.float64)
    expected = np.log(np.exp(found - positive).sum(-1)).sum(1)
    np.testing.assert_allclose(task.default_loss().call(y, found), expected, rtol=1e-4)


def test_other_encoders_have_their_own_weights(task, halves):
    assert task.depth_encoder is not halves
    assert task.depth_encoder is not task.normals_encoder
    weights = [e.get_weights()[0] for e in (halves, task.depth_encoder, task.normals_encoder)]
    assert not np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[1], weights[2])
    given = kssl.encoders.resnet((SIDE, SIDE, 3), width=2, blocks=(1,))
    task = make(halves, normals_encoder=given)
    assert task.normals_encoder is given
    assert task.depth_encoder.name == halves.name


def test_both_halves_of_other_encoders_see_a_gray_map(task, halves):
    """The half for colors saw nothing of it, so that half of the depth encoder was constant."""
    dark, bright = tf.fill((1, SIDE, SIDE, 3), 20.0), tf.fill((1, SIDE, SIDE, 3), 200.0)

    def changes(encoder):
        difference = abs(encoder(bright) - encoder(dark)).numpy()
        return [half.max() > 1e-3 for half in np.split(difference, 2, axis=-1)]

    assert changes(halves) == [True, False]
    assert changes(task.depth_encoder) == changes(task.normals_encoder) == [True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 1}, "num_images must be an integer"),
        ({"near": 5.0, "far": 2.0}, "near must be less than far, got 5.0 and 2.0"),
        ({"negatives": 0}, "negatives must be an integer"),
        ({"temperature": 0}, "temperature must be a positive number"),
        ({"momentum": 1.5}, "momentum must be"),
        ({"dimensions": 0}, "dimensions must be an integer"),
        ({"seed": -1}, "seed must be an integer .* of at least 0, got -1"),
        ({"storage": "float64"}, "storage must be one of"),
    ],
)
def test_invalid_arguments(halves, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(halves, **arguments)


def test_refuses_encoders_and_data(task, halves, columns):
    one = kssl.encoders.resnet((SIDE, SIDE, 3), width=2, blocks=(1,))
    with pytest.raises(ValueError, match="'resnet' has no two halves, of lightness and of colors"):
        make(one)
    wide = kssl.encoders.resnet((SIDE, 2 * SIDE, 3), width=2, blocks=(1,))
    for name in ("depth_encoder", "normals_encoder"):
        message = rf"{name} must take \(8, 8, 3\) as the encoder does, got \(8, 16, 3\)"
        with pytest.raises(ValueError, match=message):
            make(halves, **{name: wide})
    with pytest.raises(ValueError, match="normals_encoder must differ, got one network twice"):
        make(halves, depth_encoder=halves)
    given = {name: np.tile(columns[name], (2, 1, 1, 1)) for name in ("image", "depth", "normals")}
    images = kssl.data.from_array(given.pop("image"), **given)
    with pytest.raises(ValueError, match="images are 12, more than the num_images=8"):
        task.dataset(images, 4)


def test_preview_shows_all_views(task, batch):
    x, y = ({k: v.numpy() for k, v in batch[0].items()}, batch[1].numpy())
    row = task.preview(x, y)[2]
    assert [caption for _, caption in row] == list(cmc_depth.VIEWS)
    np.testing.assert_array_equal(row[2][0], x["depth"][2])
    np.testing.assert_array_equal(row[3][0], x["normals"][2])
    odds = np.arange(6 * 6 * 6, dtype=np.float32).reshape(6, 6, 6)
    captions = [caption for _, caption in task.preview(x, y, odds)[2]]
    assert captions == [
        "lightness", "colors, log-odds 72.0", "depth, log-odds 78.0", "normals, log-odds 84.0"
    ]  # fmt: skip
