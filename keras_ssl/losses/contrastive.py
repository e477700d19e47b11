"""Contrastive losses: the cross-entropy of finding the other views of an image in the batch."""

import keras
import tensorflow as tf

from keras_ssl.arguments import check_not_negative, check_positive
from keras_ssl.training import distribute


def similarities(queries, keys):
    """Computes cosine similarities of the views of each image with the views of all images of the batch.

    Args:
        queries: (B, V, D) float tensor, the embeddings of V views of each image.
        keys: (B, V, D) float tensor of the same views, often `queries` itself.

    Returns:
        (similarity, own, itself): a (B, V, N, V) float32 tensor over the keys of all N images of all
        replicas, with gradient; (B, N) bool, whether the image is the same; (B, V, N, V) bool, whether the
        view of that image is the same, too.

    Example:
        >>> similarity, own, itself = similarities(tf.eye(2)[:, None], tf.eye(2)[:, None])
        >>> similarity[:, 0, :, 0].numpy().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    queries, keys = (tf.math.l2_normalize(tf.cast(z, tf.float32), axis=-1) for z in (queries, keys))
    everyone = distribute.all_gather(keys)
    (number, views), (total, others, width) = (
        tf.unstack(tf.shape(queries)[:2]),
        tf.unstack(tf.shape(everyone)),
    )
    flat = tf.reshape(queries, [-1, width]), tf.reshape(everyone, [-1, width])
    similarity = tf.reshape(tf.matmul(*flat, transpose_b=True), [number, views, total, others])
    own = own_rows(queries, everyone)
    same_view = tf.eye(queries.shape[1], dtype=tf.bool)
    return similarity, own, own[:, None, :, None] & same_view[None, :, None, :]


def own_rows(tensor, everyone):
    """Finds each row of this replica among the rows of all replicas.

    Args:
        tensor: (B, ...) tensor, the rows of this replica.
        everyone: (N, ...) tensor, `distribute.all_gather(tensor)`.

    Returns:
        (B, N) bool tensor, whether both are the same image.

    Example:
        >>> own_rows(tf.zeros(2), tf.zeros(2)).numpy().tolist()
        [[True, False], [False, True]]
    """
    rows = distribute.first_row(tensor) + tf.range(tf.shape(tensor)[0])
    return rows[:, None] == tf.range(tf.shape(everyone)[0])


@keras.saving.register_keras_serializable(package="keras_ssl")
class NTXent(keras.losses.Loss):
    """Computes the normalized temperature-scaled cross-entropy of finding the other view (SimCLR's loss).

    Each view of an image has the other views of the image as positives, and all views of all other images
    of the batch, over all replicas, as negatives.

    Args:
        temperature: float, divides the cosine similarities.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: not used. y_pred: (B, V, D) embeddings of V views, 2 or more, which are normalized here. The
        loss: (B,) float32, the mean over the views, as in the paper; the authors' code computes twice that
        value.

    Raises:
        ValueError: `temperature` is not positive, or `y_pred` is not (B, V, D) with V of at least 2.

    Reference: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML
    2020, equation 1.

    Example:
        >>> round(float(NTXent()([0] * 4, tf.ones((4, 2, 3)))), 4)                 # ln 7
        1.9459
    """

    def __init__(self, temperature=0.5, **kwargs):
        super().__init__(**kwargs)
        self.temperature = check_positive("temperature", temperature)

    def call(self, y_true, y_pred):
        check_views(y_pred)
        similarity, own, itself = similarities(y_pred, y_pred)
        return _cross_entropy(similarity / self.temperature, own, itself)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable(package="keras_ssl")
class SupervisedContrastive(keras.losses.Loss):
    """Computes the supervised contrastive loss: the positives of a view are all views of its class.

    Args:
        temperature: float, divides the cosine similarities.
        mean: "outside" for the mean over the positives of the logarithms (L_out of the paper), or "inside"
            for the logarithm of the mean (L_in), which is smaller and trains worse.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: (B,) or (B, 1) integers, the classes, below 2**24, since Keras casts them to float32. y_pred:
        (B, V, D) embeddings of V views, 2 or more, which are normalized here. The loss: (B,) float32, the
        mean over the views. This is the loss of the paper; the authors' code multiplies it by temperature /
        0.07, and Google's code by the temperature.

    Raises:
        ValueError: `temperature` is not positive, `mean` is unknown, or `y_pred` is not (B, V, D) with V of
            at least 2.

    Reference: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equations 2 and 3.

    Example:
        >>> round(float(SupervisedContrastive()([0, 0, 1, 1], tf.ones((4, 2, 3)))), 4)  # ln 7
        1.9459
    """

    def __init__(self, temperature=0.1, mean="outside", **kwargs):
        super().__init__(**kwargs)
        if mean not in ("outside", "inside"):
            raise ValueError(f'mean must be "outside" or "inside" the logarithm, got {mean!r}')
        self.temperature, self.mean = check_positive("temperature", temperature), mean

    def call(self, y_true, y_pred):
        check_views(y_pred)
        similarity, _, itself = similarities(y_pred, y_pred)
        labels = tf.reshape(y_true, [-1])
        same = labels[:, None] == distribute.all_gather(labels)
        return _cross_entropy(similarity / self.temperature, same, itself, self.mean == "inside")

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature, "mean": self.mean}


@keras.saving.register_keras_serializable(package="keras_ssl")
class InfoNCE(keras.losses.Loss):
    """Computes the cross-entropy of finding the positive key of a query among negative keys (MoCo's loss).

    Args:
        temperature: float, divides the similarities.
        weights: sequence of Q floats, of the queries of an image, whose losses are added; or None to keep
            them apart.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: not used. y_pred: (B, ..., 1 + K) similarities of each query with its positive, in column 0,
        and with K negatives; (B, Q, 1 + K) with weights. The loss: (B, ...) float32, or (B,) with weights.

    Raises:
        ValueError: `temperature` is not positive, a weight is negative, or `y_pred` has not as many queries
            as there are weights.

    Reference: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020,
    equation 1; van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018.

    Example:
        >>> round(float(InfoNCE(0.5)([0], [[1.0, 0.0, 0.0]])), 4)             # -ln(e^2 / (e^2 + 2))
        0.2395
    """

    def __init__(self, temperature=0.07, weights=None, **kwargs):
        super().__init__(**kwargs)
        self.temperature = check_positive("temperature", temperature)
        self.weights = _checked(weights)

    def call(self, y_true, y_pred):
        logits = tf.cast(y_pred, tf.float32) / self.temperature
        # Not log(sum(exp)) of all columns, which loses the digits of a small loss.
        loss = tf.nn.softplus(tf.reduce_logsumexp(logits[..., 1:], axis=-1) - logits[..., 0])
        return _weighted(loss, self.weights)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature, "weights": self.weights}


@keras.saving.register_keras_serializable(package="keras_ssl")
class NCE(keras.losses.Loss):
    """Computes the loss of noise-contrastive estimation: a logistic regression of data against noise.

    Each negative is a separate event, so the loss is a sum over all of them: ln(1 + m) + m ln(1 + 1 / m) if
    data and m negatives have the same probability. `InfoNCE(temperature=1.0)` computes the softmax loss of
    the same log-odds.

    Args:
        weights: sequence of Q floats, of the queries of an image, whose losses are added; or None to keep
            them apart.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: not used. y_pred: (B, Q, 1 + m) log-odds of Q queries, of the positive in column 0 and of m
        negatives, as `layers.MemoryBank` computes them. The loss: (B,) float32, or (B, Q) without weights.

    Raises:
        ValueError: a weight is negative, or `y_pred` has not as many queries as there are weights.

    Reference: Gutmann & Hyvarinen, "Noise-Contrastive Estimation", AISTATS 2010; Wu et al.,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, equation 8.

    Example:
        >>> odds = tf.fill((1, 1, 4097), -tf.math.log(4096.0))             # P(i) = 1 / N for all
        >>> round(float(NCE()([0], odds)), 3)
        9.318
    """

    def __init__(self, weights=None, **kwargs):
        super().__init__(**kwargs)
        self.weights = _checked(weights)

    def call(self, y_true, y_pred):
        odds = tf.cast(y_pred, tf.float32)
        loss = tf.nn.softplus(-odds[..., 0]) + tf.reduce_sum(tf.nn.softplus(odds[..., 1:]), axis=-1)
        return _weighted(loss, self.weights)

    def get_config(self):
        return {**super().get_config(), "weights": self.weights}


def _checked(weights):
    if weights is None:
        return None
    if not isinstance(weights, (list, tuple)):
        raise ValueError(f"weights must be a list of numbers, one per query, got {weights!r}")
    return [check_not_negative("weights", weight) for weight in weights]


def _weighted(loss, weights):
    """Adds the weighted (B, Q) losses of the queries of each image; None for the weights keeps them apart."""
    if weights is None:
        return loss
    if loss.shape[1:] != (len(weights),):
        raise ValueError(
            f"weights must be one number per query, got {weights} for losses of shape {loss.shape}"
        )
    return tf.reduce_sum(loss * tf.constant(weights, tf.float32), axis=1)


def _cross_entropy(logits, same, itself, inside=False):
    """Computes the loss of each image, given which images are its positives.

    Args:
        logits: (B, V, N, V) float32.
        same: (B, N) bool, whether image n is a positive of the query's image.
        itself: (B, V, N, V) bool, whether the key is the query: neither positive nor negative.
        inside: bool, whether the mean over the positives is inside the logarithm.

    Returns:
        (B,) float32, the mean over the queries of each image.
    """
    shape = tf.concat([tf.shape(logits)[:2], [-1]], axis=0)
    positive = tf.reshape(same[:, None, :, None] & ~itself, shape)
    logits = tf.reshape(tf.where(itself, -float("inf"), logits), shape)
    total = tf.reduce_logsumexp(logits, axis=-1)
    number = tf.reduce_sum(tf.cast(positive, tf.float32), axis=-1)
    if inside:
        chosen = tf.reduce_logsumexp(tf.where(positive, logits, -float("inf")), axis=-1)
        return tf.reduce_mean(total - chosen + tf.math.log(number), axis=1)
    chosen = tf.reduce_sum(tf.where(positive, logits, 0.0), axis=-1)
    return tf.reduce_mean(total - chosen / number, axis=1)


def check_views(embeddings, exactly=None):
    """Raises ValueError unless `embeddings` are (B, V, D) with `exactly` this many views, or two or more."""
    shape = embeddings.shape
    views = shape[1] if len(shape) == 3 else None
    if views is None or views < 2 or (exactly and views != exactly):
        number = f"{exactly}" if exactly else "at least two"
        raise ValueError(
            f"y_pred must be embeddings (B, V, D) of {number} views of each image, got shape {shape}"
        )
