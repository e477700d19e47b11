"""Sinkhorn's algorithm as a layer: balanced assignments of a batch to clusters."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.arguments import check_integer
from keras_ssl.training import distribute


@keras.saving.register_keras_serializable(package="keras_ssl")
class Sinkhorn(keras.layers.Layer):
    """Computes the entropic optimal transport plan of a batch of scores, for given marginals.

    Finds Q >= 0 with the given row and column sums that maximizes sum(Q * scores) + entropy(Q) / lam,
    by Sinkhorn's algorithm in the log domain, a compiled `tf.function` with a single loop. It does not
    underflow at any temperature, can be exported in a SavedModel, and computes in float32 even in mixed
    precision. For a whole data set use `keras_ssl.transport.sinkhorn`, which is many times faster on
    large matrices.

    Under a strategy, the plan is computed for the batch of all replicas: the scores are gathered, and each
    replica keeps its rows. (Under MirroredStrategy, sums cannot be all-reduced inside a compiled loop.)

    Args:
        lam: float, inverse temperature.
        tolerance: float, the error at which to stop: the sum over the columns of |sum - marginal|, as a
            fraction of the mass. The row sums are exact.
        max_iterations: int. If the error is still larger then, a warning is printed, except under XLA,
            which cannot print: use `report` there.
        differentiable: bool, whether gradients flow through the iterations; by default the plan is a
            constant, as a target should be. XLA reserves memory for all `max_iterations`, two (B, K) tensors
            each: use a lower number under XLA.
        report: bool, whether to return a dict of `plan`, `iterations` and `error` instead of the plan.
        **kwargs: passed to keras.layers.Layer.

    Call arguments:
        scores: (B, K) float tensor.
        rows: (B,) positive marginals, by default 1 / B each. Under a strategy, those of this replica.
        columns: (K,) positive marginals with the same sum (over all replicas), by default 1 / K each. In a
            graph only constants are checked; wrong sums of other tensors give the warning of
            `max_iterations`.

    Returns:
        (B, K) float32 tensor.

    Raises:
        ValueError: `scores` is not (B, K); `lam` or `tolerance` is not positive; `max_iterations` is not a
            positive integer; `rows` or `columns` has the wrong length or is not positive, or they differ in
            their sum.

    Reference: Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013.

    Example:
        >>> plan = Sinkhorn(lam=1.0)(tf.random.normal((6, 3)))
        >>> tf.reduce_sum(plan, 0).numpy().round(3).tolist()
        [0.3330000042915344, 0.3330000042915344, 0.3330000042915344]
    """

    def __init__(
        self,
        lam=25.0,
        tolerance=1e-4,
        max_iterations=1000,
        differentiable=False,
        report=False,
        **kwargs,
    ):
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        for name, value in (("lam", lam), ("tolerance", tolerance)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        check_integer("max_iterations", max_iterations, minimum=1)
        self.lam, self.tolerance = float(lam), float(tolerance)
        self.max_iterations = max_iterations
        self.differentiable, self.report = differentiable, report

    def build(self, shape):
        if len(shape) != 2:
            raise ValueError(f"scores must be (B, K), got {tuple(shape)}")

    def call(self, scores, rows=None, columns=None):
        scores = tf.cast(scores, tf.float32)
        _check_marginals(scores, rows, columns)
        batch, number = tf.shape(scores)[0], tf.shape(scores)[1]
        first = distribute.first_row(scores)
        scores = distribute.all_gather(scores)
        rows = None if rows is None else distribute.all_gather(rows)
        _check_sums(rows, columns)
        total = tf.shape(scores)[0]
        if rows is None:
            rows = tf.fill([total], 1 / tf.cast(total, tf.float32))
        if columns is None:
            columns = tf.fill([number], 1 / tf.cast(number, tf.float32))
        plan, iterations, error = _balance(
            scores, tf.cast(rows, tf.float32), tf.cast(columns, tf.float32), tf.constant(self.lam),
            tf.constant(self.tolerance), self.max_iterations, not _under_xla(),
        )  # fmt: skip
        plan = plan[first : first + batch]
        if not self.differentiable:
            plan = tf.stop_gradient(plan)
        if self.report:
            return {"plan": plan, "iterations": iterations, "error": error}
        return plan

    def compute_output_shape(self, shape, *args):
        return {"plan": shape, "iterations": (), "error": ()} if self.report else shape

    def compute_output_spec(self, scores, rows=None, columns=None):
        _check_marginals(scores, rows, columns)
        if rows is None:  # else those of one replica
            _check_sums(rows, columns)
        plan = keras.KerasTensor(scores.shape, "float32")
        if not self.report:
            return plan
        return {
            "plan": plan,
            "iterations": keras.KerasTensor((), "int32"),
            "error": keras.KerasTensor((), "float32"),
        }

    def get_config(self):
        names = ("lam", "tolerance", "max_iterations", "differentiable", "report")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _constant(marginal):
    """Returns the value of a marginal as an array if it is known before a graph runs, otherwise None."""
    if isinstance(marginal, list | tuple):
        marginal = tf.convert_to_tensor(marginal)
    return tf.get_static_value(marginal) if isinstance(marginal, tf.Tensor) else None


def _check_marginals(scores, rows, columns):
    marginals = {"rows": rows, "columns": columns}
    for (name, marginal), length in zip(marginals.items(), scores.shape, strict=True):
        if marginal is None:
            continue
        value = _constant(marginal)
        shape = getattr(marginal, "shape", np.shape(value))
        if not tf.TensorShape([length]).is_compatible_with(shape):
            raise ValueError(f"{name} must be ({length},), got shape {tuple(shape)}")
        # Otherwise the plan would be NaN.
        if value is not None and not ((value > 0) & np.isfinite(value)).all():
            least, most = value.min(), value.max()
            raise ValueError(f"{name} must be positive and finite, got {least} to {most}")


def _check_sums(rows, columns):
    """Checks that a plan with both sums exists; otherwise the iterations would not converge."""
    values = [np.ones(1) if m is None else _constant(m) for m in (rows, columns)]
    if any(value is None for value in values):
        return
    sums = [float(np.sum(value, dtype=np.float64)) for value in values]
    if not math.isclose(*sums, rel_tol=1e-3):
        raise ValueError(
            "rows and columns must have the same sum (1 for the one that is not given), got "
            f"{sums[0]:g} and {sums[1]:g}"
        )


@tf.function(autograph=False, reduce_retracing=True)
def _balance(scores, rows, columns, lam, tolerance, max_iterations, warns):
    logits = lam * scores
    log_rows, log_columns = tf.math.log(rows)[:, None], tf.math.log(columns)[None]

    def step(iteration, potentials, sums, error):
        # The softmax makes the row sums exact; the potentials of the columns are updated by the error of
        # the column sums.
        log_plan = log_rows + tf.nn.log_softmax(logits + potentials, axis=1)
        sums = tf.reduce_logsumexp(log_plan, axis=0, keepdims=True)
        error = tf.reduce_sum(tf.abs(tf.exp(sums) - columns)) / tf.reduce_sum(columns)
        return iteration + 1, potentials + log_columns - sums, sums, error

    zeros = tf.zeros_like(log_columns)
    iterations, potentials, sums, error = tf.while_loop(
        lambda iteration, potentials, sums, error: error > tolerance,
        step,
        (tf.constant(0), zeros, zeros, tf.constant(float("inf"))),
        maximum_iterations=max_iterations,
    )
    potentials -= (
        log_columns - sums
    )  # undo the last update, since `error` belongs to the previous potentials
    plan = rows[:, None] * tf.nn.softmax(logits + potentials, axis=1)
    if not warns:
        return plan, iterations, error
    converged = tf.cond(
        error > tolerance,
        lambda: tf.print(
            "Sinkhorn stopped after", iterations, "iterations with an error of", error,
            "more than the tolerance of", tolerance,
        ),
        tf.no_op,
    )  # fmt: skip
    with tf.control_dependencies([converged]):
        return tf.identity(plan), iterations, error


def _under_xla():
    # Printing has no XLA kernel, and TensorFlow has no public function that asks for XLA.
    from tensorflow.python.ops import control_flow_util

    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
