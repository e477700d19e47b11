"""Multinomial logistic regression, fast enough for thousands of features per image."""

import numpy as np
import tensorflow as tf

# L-BFGS stops if an iteration reduces the loss by less than this fraction. With 1e-7, which takes twice as
# many iterations, the accuracy on 9,216 features of CIFAR-10 differs by less than 0.1 %.
LOSS_TOLERANCE = 1e-6


def fit(features, labels, l2, max_iterations=300, start=None):
    """Fits logistic regression by L-BFGS, in float32 with the loss summed in float64.

    Args:
        features: (N, D) float32 array, standardized.
        labels: (N,) integer array, 0 to K - 1.
        l2: float, weight of half the squared norm of the coefficients, relative to the summed loss.
        max_iterations: int.
        start: (D + 1, K) float array, such as the result for another `l2`; zeros by default.

    Returns:
        (D + 1, K) float64 array: the coefficients, and the intercepts in the last row.

    Reference: Byrd et al., "A Limited Memory Algorithm for Bound Constrained Optimization", SIAM Journal on
    Scientific Computing 1995.

    Example:
        >>> weights = fit(np.array([[-1.0], [1.0]], np.float32), np.array([0, 1]), l2=1.0)
        >>> (scores(weights, np.array([[0.5]], np.float32)).argmax(1)).tolist()
        [1]
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    x, y = tf.constant(features), tf.constant(labels, tf.int32)
    shape = features.shape[1] + 1, int(labels.max()) + 1

    def objective(flat):
        weights = tf.constant(flat.reshape(shape), tf.float32)
        loss, gradient = _objective(x, y, weights, tf.constant(l2, tf.float32))
        return float(loss), gradient.numpy().astype(np.float64).ravel()

    options = {"maxiter": max_iterations, "maxfun": 10 * max_iterations, "ftol": LOSS_TOLERANCE}
    start = np.zeros(shape) if start is None else start
    # The threads of L-BFGS' vector products wait in busy loops: with two other programs on two cores a fit
    # took 29 s instead of 2. TensorFlow computes the matrix products with its own threads.
    with threadpool_limits(1, "blas"):
        found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(shape)


def scores(weights, features):
    """Computes the logits of all classes.

    Args:
        weights: (D + 1, K) array that `fit` returned.
        features: (M, D) float32 array, standardized like those of `fit`.

    Returns:
        (M, K) float32 array.

    Example:
        >>> scores(np.array([[2.0], [1.0]]), np.array([[3.0]], np.float32)).tolist()
        [[7.0]]
    """
    weights = tf.constant(weights, tf.float32)
    return (tf.matmul(features, weights[:-1]) + weights[-1]).numpy()


def standardize(train, *others):
    """Standardizes features in place: mean 0 and standard deviation 1 over the training part.

    Args:
        train: (N, D) float32 array, from which means and standard deviations are computed.
        *others: (M, D) float32 arrays, such as the features of the test set.

    Example:
        >>> x, y = np.array([[1.0], [3.0]], np.float32), np.array([[5.0]], np.float32)
        >>> standardize(x, y)
        >>> x.tolist(), y.tolist()
        ([[-1.0], [1.0]], [[3.0]])
    """
    mean = train.mean(0, dtype=np.float64).astype(np.float32)
    train -= mean
    std = np.sqrt(np.square(train).mean(0, dtype=np.float64)).astype(np.float32)
    # The standard deviation of a constant feature consists only of rounding errors.
    std[std <= 10 * np.finfo(np.float32).eps * np.abs(mean)] = 1
    train /= std
    for features in others:
        features -= mean
        features /= std


@tf.function(
    input_signature=[
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec([], tf.float32),
    ]
)
def _objective(x, y, weights, l2):
    """Returns the loss and its gradient, both divided by the number of images."""
    number = tf.shape(x)[0]
    log_p = tf.nn.log_softmax(tf.matmul(x, weights[:-1]) + weights[-1])
    picked = tf.gather(log_p, y, batch_dims=1)
    squares = tf.reduce_sum(tf.square(tf.cast(weights[:-1], tf.float64)))
    loss = tf.cast(l2, tf.float64) / 2 * squares - tf.reduce_sum(tf.cast(picked, tf.float64))
    residual = tf.exp(log_p) - tf.one_hot(y, tf.shape(weights)[1])
    gradient = tf.concat(
        [
            tf.matmul(x, residual, transpose_a=True) + l2 * weights[:-1],
            tf.reduce_sum(residual, axis=0, keepdims=True),
        ],
        axis=0,
    )
    return loss / tf.cast(number, tf.float64), gradient / tf.cast(number, tf.float32)
