"""Rigid motion of a camera: rotation matrices, quaternions, and the relative pose of two cameras.

A motion (..., 6) is the pose of the second camera in the coordinates of the first one: translation (x right,
y down, z forward), then rotation as a rotation vector (axis times angle, radians). A point with the
coordinates X in the second camera has the coordinates R X + translation in the first one. Everything is
computed in float64. Entries that depend on NaN are NaN.
"""

import tensorflow as tf

SMALL = 1e-8  # radians; below, sin(angle) / angle is 1 in float64


def rotation_matrix(vector):
    """Computes rotation matrices of rotation vectors, by Rodrigues' formula.

    Args:
        vector: (..., 3) float tensor, axis times angle in radians.

    Returns:
        (..., 3, 3) float64 tensor.

    Example:
        >>> rotation_matrix([0.0, 0.0, 3.141592653589793 / 2]).numpy().round().astype(int).tolist()
        [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    """
    vector = _float64(vector)
    angle = tf.norm(vector, axis=-1)[..., None, None]
    safe = tf.maximum(angle, SMALL)
    x, y, z = tf.unstack(vector, axis=-1)
    zero = tf.zeros_like(x)
    cross = _matrix([[zero, -z, y], [z, zero, -x], [-y, x, zero]])
    first = tf.sin(safe) / safe
    # 1 - cos(angle), without cancellation at small angles.
    second = 2 * (tf.sin(safe / 2) / safe) ** 2
    return tf.eye(3, dtype=tf.float64) + first * cross + second * tf.matmul(cross, cross)


def rotation_vector(matrix):
    """Computes rotation vectors of rotation matrices: the inverse of `rotation_matrix`.

    Args:
        matrix: (..., 3, 3) float tensor.

    Returns:
        (..., 3) float64 tensor, of length 0 to pi. At pi, both directions of the axis are the same rotation,
        and one of them is returned.

    Example:
        >>> rotation_vector([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).numpy().round(4).tolist()
        [0.0, 0.0, 1.5708]
    """
    m = _float64(matrix)
    trace = tf.linalg.trace(m)
    a, b, c = (m[..., i, i] for i in range(3))
    # 4 q q^T of the unit quaternion q = (x, y, z, w); the longest row is q up to its length and sign. A
    # fixed row would vanish for some rotations.
    xy, xz, yz = (m[..., i, j] + m[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2)))
    xw, yw, zw = (m[..., i, j] - m[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0)))
    outer = _matrix(
        [
            [1 + a - b - c, xy, xz, xw],
            [xy, 1 - a + b - c, yz, yw],
            [xz, yz, 1 - a - b + c, zw],
            [xw, yw, zw, 1 + trace],
        ]
    )
    longest = tf.argmax(tf.linalg.diag_part(outer), axis=-1)
    q = tf.gather(outer, longest, axis=-2, batch_dims=outer.shape.rank - 2)
    q = tf.where(q[..., 3:] < 0, -q, q)  # the angle is at most pi
    sine, cosine = tf.norm(q[..., :3], axis=-1, keepdims=True), q[..., 3:]
    angle = 2 * tf.atan2(sine, cosine)
    scale = tf.where(sine > SMALL * cosine, angle / tf.maximum(sine, 1e-300), 2 / cosine)
    return scale * q[..., :3]


def quaternion_matrix(quaternion):
    """Computes rotation matrices of quaternions.

    Args:
        quaternion: (..., 4) float tensor, (x, y, z, w) of any length except 0, as in the files of TUM RGB-D.

    Returns:
        (..., 3, 3) float64 tensor; NaN for a quaternion of length 0.

    Example:
        >>> quaternion_matrix([0.0, 0.0, 1.0, 1.0]).numpy().round().astype(int).tolist()
        [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    """
    q = _float64(quaternion)
    x, y, z, w = tf.unstack(q / tf.norm(q, axis=-1, keepdims=True), axis=-1)
    return _matrix(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def relative(first, second):
    """Computes the motion from one camera to another from their poses in the world.

    Args:
        first, second: (..., 3, 4) float tensors, rotation matrix and position: a point that a camera sees at
            X is at R X + position in the world.

    Returns:
        (..., 6) float64 tensor, the motion.

    Example:
        >>> world = tf.eye(3, 4)
        >>> relative(world, world + [[0.0, 0.0, 0.0, 2.0]]).numpy().tolist()
        [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]
    """
    first, second = _float64(first), _float64(second)
    back = tf.linalg.matrix_transpose(first[..., :3])
    translation = tf.linalg.matvec(back, second[..., 3] - first[..., 3])
    rotation = rotation_vector(tf.matmul(back, second[..., :3]))
    return tf.concat([translation, rotation], axis=-1)


def compose(first, second):
    """Computes the motion from frame 0 to frame 2 from the motions from frame 0 to 1 and from 1 to 2.

    Args:
        first, second: (..., 6) float tensors.

    Returns:
        (..., 6) float64 tensor.

    Example:
        >>> step = tf.constant([1.0, 0.0, 0.0, 0.0, 0.0, 3.141592653589793 / 4])  # to the right, and turn
        >>> compose(step, step).numpy().round(2).tolist()
        [1.71, 0.71, 0.0, 0.0, 0.0, 1.57]
    """
    first, second = _float64(first), _float64(second)
    turn = rotation_matrix(first[..., 3:])
    translation = first[..., :3] + tf.linalg.matvec(turn, second[..., :3])
    rotation = rotation_vector(tf.matmul(turn, rotation_matrix(second[..., 3:])))
    return tf.concat([translation, rotation], axis=-1)


def inverse(motion):
    """Computes the motion in the other direction: -R^T translation, and the inverse rotation.

    Args:
        motion: (..., 6) float tensor.

    Returns:
        (..., 6) float64 tensor.

    Example:
        >>> inverse(tf.constant([1.0, 2.0, 3.0, 0.0, 0.0, 3.141592653589793 / 2])).numpy().round(2).tolist()
        [-2.0, 1.0, -3.0, -0.0, -0.0, -1.57]
    """
    motion = _float64(motion)
    turn = rotation_matrix(motion[..., 3:])
    translation = -tf.linalg.matvec(turn, motion[..., :3], transpose_a=True)
    return tf.concat([translation, -motion[..., 3:]], axis=-1)


def _float64(x):
    return tf.cast(tf.convert_to_tensor(x), tf.float64)


def _matrix(rows):
    return tf.stack([tf.stack(row, axis=-1) for row in rows], axis=-2)
