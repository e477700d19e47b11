import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keras_ssl.ops import random

WORD = st.integers(0, 2**64 - 1)
# All random numbers follow from fixed seeds, so that a test that passes once always passes.
LIKELY = 1e-4  # smallest p-value


def seeds(number, epoch=3):
    return tf.stack(
        [tf.fill((number,), tf.constant(epoch, tf.int64)), tf.range(number, dtype=tf.int64)], 1
    )


def assert_uniform(values, bins=64):
    """Chi-square test with both tails, since frequencies that are too equal are suspicious too."""
    counts, _ = np.histogram(np.ravel(values), bins, (0, 1))
    assert LIKELY < stats.chisquare(counts).pvalue < 1 - LIKELY


def assert_independent(streams, bins=8):
    """Chi-square test on each pair of rows, and the linear correlation."""
    size = streams.shape[1]
    places = (streams * bins).astype(int)
    pairs = list(itertools.combinations(range(len(streams)), 2))
    for i, j in pairs:
        table = np.bincount(places[i] * bins + places[j], minlength=bins**2)
        assert stats.chisquare(table).pvalue > LIKELY / len(pairs), (i, j)
    correlation = np.corrcoef(streams)[tuple(np.transpose(pairs))]
    assert np.abs(correlation).max() < 5 / size**0.5


def cipher(key, counter):
    """Threefry-2x64-20 on Python's integers, written from the paper's figure."""
    whole = 2**64
    keys = [*key, key[0] ^ key[1] ^ 0x1BD11BDAA9FC1A22]
    x, y = ((c + k) % whole for c, k in zip(counter, key, strict=True))
    for i in range(20):
        turn = [16, 42, 12, 31, 16, 32, 24, 21][i % 8]
        x = (x + y) % whole
        y = ((y << turn) % whole | y >> (64 - turn)) ^ x
        if (i + 1) % 4 == 0:
            step = (i + 1) // 4
            x = (x + keys[step % 3]) % whole
            y = (y + keys[(step + 1) % 3] + step) % whole
    return x, y


def encrypt(key, counter):
    words = [tf.constant(word, tf.uint64) for word in (*key, *counter)]
    return tuple(int(word) for word in random.threefry(words[:2], words[2:]))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0), (0, 0), (0xC2B6E3A8C2C69865, 0x6F81ED42F350084D)),
        ((2**64 - 1,) * 2, (2**64 - 1,) * 2, (0xE02CB7C4D95D277A, 0xD06633D0893B8B68)),
        (
            (0x243F6A8885A308D3, 0x13198A2E03707344),
            (0xA4093822299F31D0, 0x082EFA98EC4E6C89),
            (0x263C7D30BB0F0AF1, 0x56BE8361D3311526),
        ),
    ],
)
def test_threefry_gives_the_known_answers_of_random123(counter, key, expected):
    assert encrypt(key, counter) == expected
    assert cipher(key, counter) == expected


@given(st.tuples(WORD, WORD), st.tuples(WORD, WORD))
@settings(max_examples=50, deadline=None)
def test_threefry_equals_python_integers(key, counter):
    assert encrypt(key, counter) == cipher(key, counter)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=20, deadline=None)
def test_uniform_takes_24_bits_of_the_words(epoch, image):
    key = (epoch % 2**64, image % 2**64)
    words = [word for block in range(2) for word in cipher(key, (block, random.UNIFORM))]
    halves = [half for word in words for half in (word >> 32, word % 2**32)]
    expected = [(half >> 8) / 2**24 for half in halves]
    np.testing.assert_array_equal(random.uniform([[epoch, image]], 7)[0], expected[:7])


DRAWS = {
    "split": lambda seed: tf.stack(random.split(seed, 3), 1),
    "uniform": lambda seed: random.uniform(seed, 9),
    "normal": lambda seed: random.normal(seed, 9),
    "integer": lambda seed: random.integer(seed, 1000),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_numbers_follow_from_the_images_own_seed(kind):
    together = DRAWS[kind](seeds(40)).numpy()
    for part in (slice(7, 8), slice(39, 20, -3)):
        np.testing.assert_array_equal(DRAWS[kind](seeds(40)[part]), together[part])
    assert len(np.unique(together, axis=0)) == 40 or kind == "integer"


@pytest.mark.parametrize("kind", DRAWS)
def test_numbers_are_the_same_eagerly_in_a_dataset_and_under_xla(kind):
    eager = DRAWS[kind](seeds(64)).numpy()
    data = tf.data.Dataset.from_tensor_slices(seeds(64)).batch(16).map(DRAWS[kind], 2)
    compiled = tf.function(DRAWS[kind], jit_compile=True)(seeds(64))
    graph = tf.function(DRAWS[kind], input_signature=[tf.TensorSpec((None, 2), tf.int64)])
    for other in (np.concatenate(list(data.as_numpy_iterator())), compiled, graph(seeds(64))):
        np.testing.assert_array_equal(other, eager)


@pytest.mark.parametrize("kind", ["uniform", "normal", "split"])
def test_more_numbers_leave_the_first_ones_as_they_are(kind):
    draw = getattr(random, kind)
    few, many = np.array(draw(seeds(5), 3)), np.array(draw(seeds(5), 10))
    np.testing.assert_array_equal(few, many[:3] if kind == "split" else many[:, :3])


@pytest.mark.parametrize(
    "values",
    [
        lambda: random.uniform(seeds(50_000), 1),
        lambda: random.uniform(seeds(50_000), 8)[:, 7],
        lambda: random.uniform(seeds(1), 50_000),
        lambda: random.uniform(tf.reverse(seeds(50_000), [1]), 1),  # one image in many epochs
        lambda: random.uniform(seeds(50_000) * 2**40, 1),
        lambda: random.uniform(tf.fill((1, 2), tf.constant(-(2**63), tf.int64)), 50_000),
        lambda: random.uniform(random.split(seeds(50_000), 2)[1], 1),
    ],
)
def test_uniform_is_uniform(values):
    values = values().numpy()
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() < 1
    assert_uniform(values)
    assert_uniform(values * 2**12 % 1)  # the lower bits too


def test_one_bit_of_the_seed_changes_half_of_the_bits():
    base = np.random.default_rng(0).integers(-(2**63), 2**63, (50, 1, 2))
    bits = np.left_shift(np.int64(1), np.arange(64))
    change = np.concatenate([np.stack([bits, 0 * bits], 1), np.stack([0 * bits, bits], 1)])

    def words(seed):
        drawn = tf.stack(random.split(seed.reshape(-1, 2), 1), 1).numpy()
        return np.unpackbits(drawn.view(np.uint8).reshape(-1, 16), axis=1)

    flipped = words(base ^ change) != np.repeat(words(base), 128, axis=0)
    flipped = flipped.reshape(50, 128, 128)  # base, bit of the seed, bit of the output
    # Standard deviations of means of 6400 coins and of 50.
    assert np.abs(flipped.mean((0, 1)) - 0.5).max() < 5 * 0.5 / 6400**0.5
    assert np.abs(flipped.mean((0, 2)) - 0.5).max() < 5 * 0.5 / 6400**0.5
    assert np.abs(flipped.mean(0) - 0.5).max() < 6 * 0.5 / 50**0.5


def test_neighboring_images_epochs_and_places_are_independent():
    near = [random.uniform(seeds(20_001, epoch), 1)[:, 0].numpy() for epoch in (0, 1, 2)]
    shifted = [near[0][:-1], near[0][1:], near[1][:-1], near[1][1:], near[2][:-1]]
    assert_independent(np.array(shifted))
    assert_independent(random.uniform(seeds(20_000), 9).numpy().T)


def test_split_streams_are_independent_of_one_another_and_of_their_parents():
    parent = seeds(20_000)
    children = random.split(parent, 3)
    grandchildren = [seed for child in children[:2] for seed in random.split(child, 2)]
    swapped = random.split(tf.reverse(parent, [1]), 1)
    streams = [random.uniform(seed, 2) for seed in [parent, *children, *grandchildren, *swapped]]
    assert_independent(np.concatenate(streams, 1).T)


def test_split_seeds_are_all_different():
    level = [seeds(1000), seeds(1000, epoch=4)]
    everything = list(level)
    for _ in range(3):
        level = [child for seed in level for child in random.split(seed, 3)]
        everything += level
    everything = np.concatenate(everything)
    assert len(np.unique(everything, axis=0)) == len(everything)
    assert len(np.unique(everything[2000:, 0])) == len(everything) - 2000


def test_purposes_are_independent():
    one = seeds(20_000)
    split = random.split(one, 1)[0].numpy().view(np.uint64)[:, 0] / 2.0**64
    normal = stats.norm.cdf(random.normal(one, 1)[:, 0])
    integer = random.integer(one, 2**30).numpy() / 2.0**30
    assert_independent(np.stack([random.uniform(one, 1)[:, 0], split, normal, integer]))


def test_normal_is_normal():
    values = random.normal(seeds(20_000), 3).numpy()
    assert values.dtype == np.float32
    assert np.isfinite(random.normal(seeds(1), 200_001)).all()
    assert stats.kstest(values.ravel(), "norm").pvalue > LIKELY
    assert_uniform(stats.norm.cdf(values))
    assert_independent(stats.norm.cdf(values.T))  # both of one pair, and of two pairs
    assert_independent(stats.chi2.cdf(values.T**2, 1))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 1000, 2**31 - 1])
def test_integer_is_uniform(n):
    values = random.integer(seeds(50_000), n).numpy()
    assert values.dtype == np.int32
    assert values.min() >= 0
    assert values.max() < n
    if n <= 1000:
        assert n == 1 or stats.chisquare(np.bincount(values, minlength=n)).pvalue > LIKELY
    else:
        assert_uniform(values / n)


def test_integer_takes_one_limit_per_image():
    limits = tf.constant([1, 5, 2000])
    values = random.integer(seeds(3), limits).numpy()
    expected = [random.integer(seeds(3), n)[i] for i, n in enumerate([1, 5, 2000])]
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random.uniform(seeds(2), 0), "number.*0"),
        (lambda: random.uniform(seeds(2), 2.5), "number.*2.5"),
        (lambda: random.normal(seeds(2), -1), "number.*-1"),
        (lambda: random.split(seeds(2), 0), "n must.*0"),
        (lambda: random.integer(seeds(2), 2**31), "n must.*2147483648"),
        (lambda: random.uniform(seeds(2)[:, :1], 1), r"seed.*\(2, 1\)"),
        (lambda: random.uniform(seeds(2)[0], 1), r"seed.*\(2,\)"),
        (lambda: random.split(tf.zeros((2, 2)), 1), "seed.*float32"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_uniform_depends_only_on_the_seed():
    seeds = tf.constant([[3, 5], [3, 6], [4, 5]], tf.int64)
    numbers = random.uniform(seeds, 50).numpy()
    np.testing.assert_array_equal(random.uniform(seeds[1:2], 50)[0], numbers[1])
    assert len(np.unique(numbers)) == 150
    assert ((numbers >= 0) & (numbers < 1)).all()
