"""Lower bounds of mutual information, as functions of the scores that a critic gives to pairs.

All bounds take `scores`, a (K, K) matrix of the scores of K samples (x_i, y_i) of the joint distribution:
`scores[i, j]` is the critic's f(x_j, y_i). Row i compares one y with all x, column j one x with all y. The
pairs on the diagonal are drawn together; the K (K - 1) pairs off the diagonal are independent, and stand for
the product of the marginals. A critic that is larger on the diagonal has learned what x and y share.

The bounds are in nats and are maximized: minimize `-bound(scores)`. They all return a float32 scalar, which
is an estimate: InfoNCE is never above log(K), however large the mutual information is, while the variance of
Donsker-Varadhan, NWJ and TUBA grows exponentially with it (Song & Ermon, section 4).
docs/mutual_information.md explains how this relates to self-supervised learning.

Reference: Poole, Ozair, van den Oord, Alemi & Tucker, "On Variational Bounds of Mutual Information", ICML
2019; Song & Ermon, "Understanding the Limitations of Variational Mutual Information Estimators", ICLR 2020.
"""

import math

import tensorflow as tf

from keras_ssl.arguments import check_positive, is_number

MAX_EXPONENT = 30.0  # exp(30) = 1e13, whose square is a finite float32, which Adam needs


def info_nce(scores):
    """Computes InfoNCE: log(K) minus the cross-entropy of finding in each row the x that belongs to y.

    It has low variance, but is at most log(K): a batch of 64 cannot show more than 4.16 nats.

    Args:
        scores: (K, K) float tensor, f(x_j, y_i) in row i and column j.

    Returns:
        float32 scalar in nats, 0 for a constant critic.

    Raises:
        ValueError: `scores` is not square, or K is less than 2.

    Reference: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018; Poole
    et al., section 2.3.

    Example:
        >>> round(float(info_nce(100 * tf.eye(4))), 4)                                # log(4)
        1.3863
    """
    scores, number = _checked(scores)
    negative = tf.reduce_logsumexp(_off_diagonal(scores), axis=1)
    # Not log(sum(exp)) of the whole row, which loses the digits of a small loss, and may exceed log(K).
    return tf.math.log(number) - tf.reduce_mean(tf.nn.softplus(negative - _diagonal(scores)))


def donsker_varadhan(scores):
    """Computes the Donsker-Varadhan bound: mean joint score minus log-mean-exp of the independent ones.

    In batches it is biased: the logarithm of a mean of few samples is too small, so that the estimate can
    exceed the mutual information.

    Args:
        scores: (K, K) float tensor, f(x_j, y_i) in row i and column j.

    Returns:
        float32 scalar in nats, 0 for a constant critic; adding a constant to all scores changes nothing.

    Raises:
        ValueError: `scores` is not square, or K is less than 2.

    Reference: Belghazi et al., "Mutual Information Neural Estimation", ICML 2018, which corrects the
    gradient by a moving average; Poole et al., section 2.2.

    Example:
        >>> float(donsker_varadhan(2 * tf.eye(4) + 5))
        2.0
    """
    scores, _ = _checked(scores)
    return tf.reduce_mean(_diagonal(scores)) - _log_mean_exp(scores)


def nwj(scores):
    """Computes the bound of Nguyen, Wainwright & Jordan, also called f-GAN KL and MINE-f: TUBA with a = e.

    It is not biased, but its variance is as large as exp(I) for a mutual information of I.

    Args:
        scores: (K, K) float tensor, f(x_j, y_i) in row i and column j.

    Returns:
        float32 scalar in nats, 0 for scores that are all 1. The best critic is 1 + log(p(y | x) / p(y)).

    Raises:
        ValueError: `scores` is not square, or K is less than 2.

    Reference: Nguyen et al., "Estimating Divergence Functionals and the Likelihood Ratio by Convex Risk
    Minimization", IEEE Transactions on Information Theory 2010; Poole et al., section 2.2.

    Example:
        >>> float(nwj(tf.ones((4, 4)) + 2 * tf.eye(4)))
        2.0
    """
    return tuba(scores, 1.0)


def tuba(scores, log_baseline):
    """Computes the tractable unnormalized bound of Barber & Agakov, with a baseline a(y).

    It is a bound for any baseline, and tight for the best critic if a(y) is the mean of exp(f(x, y)) over x.

    Args:
        scores: (K, K) float tensor, f(x_j, y_i) in row i and column j.
        log_baseline: log a(y_i), (K,) float tensor or a number; often the output of a network.

    Returns:
        float32 scalar in nats. Above exponents of 30, the exponential is continued by a straight line, so
        that the value and its gradient are finite.

    Raises:
        ValueError: `scores` is not square, K is less than 2, or `log_baseline` has another shape.

    Reference: Barber & Agakov, "The IM Algorithm", NeurIPS 2003; Poole et al., section 2.2.

    Example:
        >>> float(tuba(tf.eye(4), tf.zeros(4)))
        1.0
    """
    scores, _ = _checked(scores)
    log_baseline = _checked_baseline(log_baseline, scores)
    return _tuba(_diagonal(scores) - log_baseline, scores - log_baseline[:, None])


def jensen_shannon(scores):
    """Computes the NWJ bound of a critic that is trained by the Jensen-Shannon divergence.

    The value is `nwj(scores + 1)`. The gradient is the gradient of mean(-softplus(-joint)) -
    mean(softplus(independent)), whose variance is small and whose best critic is log(p(y | x) / p(y)).

    Args:
        scores: (K, K) float tensor, f(x_j, y_i) in row i and column j.

    Returns:
        float32 scalar in nats, 0 for scores that are all 0.

    Raises:
        ValueError: `scores` is not square, or K is less than 2.

    Reference: Nowozin et al., "f-GAN", NeurIPS 2016; Hjelm et al., "Learning Deep Representations by Mutual
    Information Estimation and Maximization", ICLR 2019; Poole et al., whose notebook has the
    value of `nwj(scores)`: for the best critic that is 1/e below the mutual information.

    Example:
        >>> float(jensen_shannon(2 * tf.eye(4)))
        2.0
    """
    scores, _ = _checked(scores)
    return _trained_by_jensen_shannon(scores, nwj(scores + 1))


def interpolated(scores, alpha, log_baseline=1.0):
    """Computes I_alpha, between InfoNCE for alpha -> 1 and TUBA for alpha -> 0.

    The baseline is alpha m(y) + (1 - alpha) a(y), where m(y) is the mean of exp(f(x, y)) over K - 1 of the
    samples and a(y) the given baseline. In the limit of alpha = 1 it is InfoNCE of K - 1 samples, averaged
    over the sample that is left out, and at most log(K - 1). In the limit of alpha = 0 it is `tuba`, or `nwj`
    with the default baseline. In between, no estimate is above 1 + log((K - 1) / alpha): a small alpha has a
    larger limit, and a larger variance. (The docstring in the authors' notebook exchanges the limits.)

    Args:
        scores: (K, K) float tensor, f(x_j, y_i) in row i and column j.
        alpha: float between 0 and 1, both excluded.
        log_baseline: log a(y_i), (K,) float tensor or a number.

    Returns:
        float32 scalar in nats.

    Raises:
        ValueError: `scores` is not square, K is less than 2, `alpha` is not in (0, 1), or `log_baseline` has
            another shape.

    Reference: Poole et al., section 2.4.

    Example:
        >>> float(interpolated(tf.ones((4, 4)), alpha=0.5))                  # m(y) = a(y) = e
        0.0
    """
    scores, number = _checked(scores)
    log_baseline = _checked_baseline(log_baseline, scores)
    if not is_number(alpha) or not 0 < alpha < 1:
        raise ValueError(
            f"alpha must be in (0, 1), got {alpha!r}: info_nce and tuba are the bounds in the limits"
        )
    left_out = _log_sum_exp_without_each(scores) - tf.math.log(number - 1)
    log_alpha, log_rest = math.log(alpha), math.log1p(-alpha)
    baseline = tf.math.softplus(log_alpha + left_out - (log_rest + log_baseline[:, None]))
    baseline += log_rest + log_baseline[:, None]
    # The joint pair (x_i, y_i) gets a baseline without one of the other x. An independent pair (x_j, y_i)
    # gets a baseline without x_i.
    joint = _diagonal(scores)[:, None] - baseline
    off_diagonal = tf.reduce_sum(joint) - tf.reduce_sum(_diagonal(joint))
    return _tuba(off_diagonal / (number * (number - 1)), scores - _diagonal(baseline)[:, None])


def smile(scores, clip=5.0):
    """Computes SMILE: Donsker-Varadhan with clipped independent scores, of a critic trained as in
    `jensen_shannon`.

    Clipping bounds the variance, at the price of a bias; without it (with a large `clip`) the value equals
    `donsker_varadhan`. It is an estimate, not a bound.

    Args:
        scores: (K, K) float tensor, f(x_j, y_i) in row i and column j.
        clip: float, the tau of the paper: independent scores are clipped to -clip..clip.

    Returns:
        float32 scalar in nats, 0 for a constant critic in -clip..clip.

    Raises:
        ValueError: `scores` is not square, K is less than 2, or `clip` is not positive.

    Reference: Song & Ermon, ICLR 2020, section 5, and the authors' code for the gradient.

    Example:
        >>> float(smile(2 * tf.eye(4)))
        2.0
    """
    scores, _ = _checked(scores)
    clip = check_positive("clip", clip)
    partition = _log_mean_exp(tf.clip_by_value(scores, -clip, clip))
    return _trained_by_jensen_shannon(scores, tf.reduce_mean(_diagonal(scores)) - partition)


def _checked(scores):
    """Returns `scores` as float32, and K as a float32 scalar; raises ValueError if they are not (K, K)."""
    scores = tf.cast(scores, tf.float32)
    sizes = scores.shape.as_list() if scores.shape.rank is not None else [None, None]
    known = [n for n in sizes if n is not None]
    if len(sizes) != 2 or len(set(known)) > 1 or min(known, default=2) < 2:
        raise ValueError(
            f"scores must be a square matrix (K, K) with K of at least 2, got shape {scores.shape}"
        )
    return scores, tf.cast(tf.shape(scores)[0], tf.float32)


def _checked_baseline(log_baseline, scores):
    """Returns (K,) float32, without broadcasting (K, 1), which would mix up rows and columns."""
    log_baseline = tf.cast(log_baseline, tf.float32)
    shape = log_baseline.shape
    if shape.rank != 0 and not shape.is_compatible_with(scores.shape[:1]):
        raise ValueError(
            f"log_baseline must be a number or have the shape {tuple(scores.shape[:1])}, one value per row "
            f"of scores, got shape {shape}"
        )
    return tf.broadcast_to(log_baseline, tf.shape(scores)[:1])


def _diagonal(scores):
    return tf.linalg.diag_part(scores)


def _off_diagonal(scores):
    """Replaces the diagonal by -inf, so that it does not count in a log-sum-exp."""
    return tf.where(tf.eye(tf.shape(scores)[0], dtype=tf.bool), -float("inf"), scores)


def _log_mean_exp(scores):
    """Computes log-mean-exp over the K (K - 1) entries off the diagonal."""
    number = tf.cast(tf.shape(scores)[0], tf.float32)
    return tf.reduce_logsumexp(_off_diagonal(scores)) - tf.math.log(number * (number - 1))


def _log_sum_exp_without_each(scores):
    """Computes log-sum-exp of each row without the entry of each column: (K, K)."""
    largest = tf.one_hot(tf.argmax(scores, axis=1), tf.shape(scores)[1], True, False, dtype=tf.bool)
    without_largest = tf.reduce_logsumexp(tf.where(largest, -float("inf"), scores), axis=1)
    # Subtracting the largest term from the sum would leave rounding errors only; others lose no digits.
    maximum = tf.stop_gradient(tf.reduce_max(scores, axis=1, keepdims=True))
    terms = tf.exp(scores - maximum)
    rest = tf.where(largest, 1.0, tf.reduce_sum(terms, axis=1, keepdims=True) - terms)
    return tf.where(largest, without_largest[:, None], maximum + tf.math.log(rest))


def _tuba(joint, independent):
    """Computes 1 + mean(joint) - mean(exp(independent)), both relative to the logarithm of a baseline."""
    exponent = _log_mean_exp(independent)
    largest = tf.minimum(exponent, MAX_EXPONENT)
    # Beyond the limit, a straight line with the slope at the limit, so that value and gradient are finite.
    mean = tf.exp(largest) * (1 + exponent - largest)
    return 1 + tf.reduce_mean(joint) - mean


def _trained_by_jensen_shannon(scores, value):
    """Returns `value`, with the gradient of the lower bound of the Jensen-Shannon divergence."""
    pairs = tf.cast(tf.size(scores) - tf.shape(scores)[0], tf.float32)
    penalty = tf.nn.softplus(scores)
    independent = (tf.reduce_sum(penalty) - tf.reduce_sum(_diagonal(penalty))) / pairs
    trained = -independent - tf.reduce_mean(tf.nn.softplus(-_diagonal(scores)))
    # In this order: trained + (value - trained) would round a small value next to a large one.
    return tf.stop_gradient(value) + (trained - tf.stop_gradient(trained))
