"""Random numbers per image, which follow from the image's own seed and do not depend on its batch.

TensorFlow's stateless generators take one seed per call; one call per image (`tf.map_fn`) costs more than
most augmentations. Here the counter-based generator Threefry-2x64 encrypts (index, purpose) with the image's
seed as the key, by integer additions, shifts and exclusive ors. Their kernels overflow in the same way on
CPU, on GPU and under XLA, so the bits are the same everywhere.

Numbers drawn for different purposes (`split`, `uniform`, `normal`, `integer`) from one seed are
independent. Two draws by the same function from one seed give the same numbers, so split the seed first.

Reference: Salmon, Moraes, Dror & Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

import math

import numpy as np
import tensorflow as tf

ROUNDS = 20  # 13 pass the tests of BigCrush, 20 is the authors' default
ROTATIONS = (16, 42, 12, 31, 16, 32, 24, 21)
PARITY = 0x1BD11BDAA9FC1A22  # from Skein 1.3's key schedule, as in Threefry
SPLIT, UNIFORM, NORMAL, INTEGER = range(4)  # purposes: the second half of the counter


def split(seed, n):
    """Derives independent seeds from each image's seed, one per random stream.

    Args:
        seed: (B, 2) int64 tensor, one seed per image.
        n: int, the number of seeds.

    Returns:
        List of n (B, 2) int64 tensors. The first ones do not depend on n.

    Raises:
        ValueError: `seed` is not (B, 2) or not integer, or n < 1.

    Example:
        >>> crop, color = split(tf.constant([[0, 1], [0, 2]], tf.int64), 2)
        >>> crop.shape, color.shape
        (TensorShape([2, 2]), TensorShape([2, 2]))
    """
    words = tf.bitcast(tf.stack(_words(seed, _positive("n", n), SPLIT), axis=-1), tf.int64)
    return tf.unstack(words, axis=1)


def uniform(seed, number):
    """Draws numbers from the uniform distribution on [0, 1), multiples of 2^-24.

    Args:
        seed: (B, 2) int64 tensor, one seed per image.
        number: int, numbers per image.

    Returns:
        (B, number) float32 tensor, bit for bit the same on every device. The first ones do not depend
        on `number`.

    Raises:
        ValueError: `seed` is not (B, 2) or not integer, or number < 1.

    Example:
        >>> uniform(tf.constant([[0, 1], [0, 2]], tf.int64), 3).shape
        TensorShape([2, 3])
    """
    return _uniform(seed, _positive("number", number), UNIFORM)


def normal(seed, number):
    """Draws numbers from the standard normal distribution (Box-Muller transform).

    Args:
        seed: (B, 2) int64 tensor, one seed per image.
        number: int, numbers per image.

    Returns:
        (B, number) float32 tensor, within +-5.8. The first ones do not depend on `number`.

    Raises:
        ValueError: `seed` is not (B, 2) or not integer, or number < 1.

    Example:
        >>> normal(tf.constant([[0, 1], [0, 2]], tf.int64), 3).shape
        TensorShape([2, 3])
    """
    pairs = (_positive("number", number) + 1) // 2
    pair = tf.reshape(_uniform(seed, 2 * pairs, NORMAL), [-1, pairs, 2])
    # In float64, since TensorFlow rounds the last digit of a logarithm or cosine differently at the end of a
    # vector (so it depends on the batch) and on each device; rounding to float32 removes the difference.
    pair = tf.cast(pair, tf.float64)
    radius = tf.sqrt(-2 * tf.math.log(1 - pair[..., 0]))  # 1 - u is never 0
    angle = 2 * math.pi * pair[..., 1]
    values = tf.stack([radius * tf.cos(angle), radius * tf.sin(angle)], axis=-1)
    return tf.cast(tf.reshape(values, [-1, 2 * pairs])[:, :number], tf.float32)


def integer(seed, n):
    """Draws one integer per image, uniform on 0..n-1.

    Args:
        seed: (B, 2) int64 tensor, one seed per image.
        n: int, or integer tensor of shape () or (B,): one limit per image, as for clips of different
            lengths; 1 to 2^31 - 1. A tensor's values are not checked.

    Returns:
        (B,) int32 tensor, bit for bit the same on every device. The probabilities of two values differ by
        at most a fraction of n / 2^32.

    Raises:
        ValueError: `seed` is not (B, 2) or not integer, or n is an int outside 1..2^31 - 1.

    Example:
        >>> integer(tf.constant([[0, 1], [0, 2]], tf.int64), 6).shape
        TensorShape([2])
    """
    if not tf.is_tensor(n) and not isinstance(n, np.ndarray):
        n = _positive("n", n)
    word, _ = _words(seed, 1, INTEGER)
    # The upper 32 bits as a fraction of 2^32, times n, in integer arithmetic.
    return tf.cast(_right(_right(word[:, 0], 32) * tf.cast(n, tf.uint64), 32), tf.int32)


def _uniform(seed, number, purpose):
    first, second = _words(seed, -(-number // 4), purpose)
    mask = tf.constant(2**24 - 1, tf.uint64)
    bits = [part for word in (first, second) for part in (_right(word, 40), _right(word, 8) & mask)]
    # Through int32, whose conversion is fast; 24 bits are exact in float32.
    values = tf.cast(tf.cast(tf.stack(bits, axis=-1), tf.int32), tf.float32) * 2.0**-24
    return tf.reshape(values, [-1, values.shape[1] * 4])[:, :number]


def _words(seed, blocks, purpose):
    """Encrypts the counters (0..blocks-1, purpose): two (B, blocks) uint64 tensors."""
    seed = tf.convert_to_tensor(seed)
    if not seed.dtype.is_integer or not seed.shape.is_compatible_with([None, 2]):
        raise ValueError(
            f"seed must be a (B, 2) int64 tensor, one seed per image, got {seed.dtype.name} of shape "
            f"{seed.shape}; make it with tf.stack([epoch_seed, image_id], axis=1)"
        )
    key = tf.bitcast(tf.cast(seed, tf.int64), tf.uint64)
    counter = tf.constant(np.arange(blocks, dtype=np.uint64)[None])
    return threefry((key[:, :1], key[:, 1:]), (counter, tf.constant(purpose, tf.uint64)))


@tf.function(autograph=False, reduce_retracing=True)  # its 500 operations are traced only once
def threefry(key, counter):
    """Encrypts a counter with the Threefry-2x64 block cipher.

    Args:
        key, counter: pairs of uint64 tensors. The shapes of these four tensors must be broadcastable.

    Returns:
        Pair of uint64 tensors.

    Example:
        >>> zero = tf.constant(0, tf.uint64)
        >>> [hex(word) for word in threefry((zero, zero), (zero, zero))]
        ['0xc2b6e3a8c2c69865', '0x6f81ed42f350084d']
    """
    keys = (*key, key[0] ^ key[1] ^ tf.constant(PARITY, tf.uint64))
    first, second = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(ROUNDS):
        turn = ROTATIONS[i % 8]
        first += second
        second = first ^ (_left(second, turn) | _right(second, 64 - turn))
        if i % 4 == 3:
            step = i // 4 + 1
            first += keys[step % 3]
            second += keys[(step + 1) % 3] + tf.constant(step, tf.uint64)
    return first, second


def _left(words, bits):
    return tf.bitwise.left_shift(words, tf.constant(bits, tf.uint64))


def _right(words, bits):
    return tf.bitwise.right_shift(words, tf.constant(bits, tf.uint64))


def _positive(name, value):
    if not isinstance(value, (int, np.integer)) or not 1 <= value < 2**31:
        raise ValueError(f"{name} must be an int in 1..{2**31 - 1}, got {value!r}")
    return int(value)
