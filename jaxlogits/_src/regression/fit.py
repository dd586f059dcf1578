"""The logit link: log-odds that are linear in the features, fitted by maximum likelihood."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, widen
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.regression.coordinates import power_of_two
from jaxlogits._src.regression.counts import likeliest
from jaxlogits._src.regression.design import Counts, Design, class_design, yes_no_design
from jaxlogits._src.regression.likelihood import (
    RowTerms,
    Terms,
    class_terms,
    first_step,
    likelihood,
    num_moved,
    prepared,
    yes_no_terms,
)
from jaxlogits._src.regression.newton import Minimum, minimize, product, solve


class LogisticFit(NamedTuple):
    """A fitted regression of log-odds on P features, of yes against no or of K classes.

    Attributes:
        coefficients: [P], or [P, K - 1] for the log-odds of the classes 1 to K - 1 against class 0.
        covariance: of their estimates, [P, P] or [P, K - 1, P, K - 1]: the inverse of the Hessian.
            NaN where the data are separated.
        log_likelihood: of the labels, without the penalty.
        deviance: twice what the log likelihood is below that of probabilities equal to the labels;
            at least 0. Its slope in a label of 0 or 1 is infinite: a number of 1e28 or more.
        converged: whether this is the maximum, to the tolerance.
        steps: how often the Hessian was computed to get there.
        separated: whether there is no maximum, as the likelihood keeps growing along a direction
            in which the coefficients go to infinity; those given are where it stopped to matter.
    """

    coefficients: Array
    covariance: Array
    log_likelihood: Array
    deviance: Array
    converged: Array
    steps: Array
    separated: Array


@program(
    l2=Option(Range(0), off=(0,)),
    max_steps=Option(Range(1), integer=True),
    tolerance=Option(Range(0)),
)
def fit_logistic(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    trials: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
    max_steps: int = 100,
    tolerance: ArrayLike | None = None,
) -> LogisticFit:
    """Logistic regression: the coefficients b of log-odds x @ b that make the labels likeliest.

    Minimises -sum_n w_n (y_n log p_n + (1 - y_n) log(1 - p_n)) + l2 |b|**2 / 2, p = sigmoid(x @ b).

    Args:
        features: floating-point [N, P]. No intercept is added: give it as a column of ones.
        labels: [N] in [0, 1], yes or no or a probability; with ``trials`` how many of them said
            yes. Outside the fit is NaN.
        weights: [N], at least 0, how often each row counts, None for once; 0 leaves it unread.
        offset: [N], a part of the log-odds that is known.
        trials: [N], for labels that are counts.
        l2: penalty, a scalar or one for each feature, 0 for an intercept. The covariance is then
            that of the posterior under a normal prior with variance 1 / l2.
        max_steps: the most evaluations of the likelihood.
        tolerance: length of the last step, in standard errors; its square is about the error left.
            None for the square root of the spacing at 1.

    Returns:
        A ``LogisticFit`` in the dtype of ``features``, float32 or wider. Collinear columns
        without a penalty make it NaN; of separated data ``separated`` is True.

    Raises:
        TypeError: for features that aren't floating point.
        ValueError: for a wrong shape; inside ``checked``, for bad values and collinear columns.

    Accuracy: float64 1e-8 of statsmodels' coefficients, standard errors and log likelihood; float32
        1e-4 of a standard error, also of columns far from 0 beside a constant. With counts of 1e7
        the log likelihood is right to 1e-5, the deviance to 2e-4, by the rounding of log-odds.
    Transforms: all; derivatives in arrays and l2 by the implicit function theorem, to any order.

    Example:
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
        >>> jl.fit_logistic(x, jnp.array([1, 2, 3, 1]), trials=jnp.full(4, 4)).coefficients.round(4)
        Array([-0.5108,  0.5108], dtype=float32)
    """
    design, counts = yes_no_design(features, labels, weights, offset, trials)
    metric = jnp.ones([1, 1], design.rows.features.dtype)
    found = _fit(yes_no_terms, design, l2, metric, max_steps, tolerance)
    loss, least = found.losses[0], jnp.sum(design.rows.weights * _entropy(design.rows.labels))
    # Both are accurate as they are computed, and differentiate as what they mean.
    deviance = _with_derivative_of(2 * found.losses[1], 2 * (loss - least))
    log_likelihood = -loss
    if counts is not None:
        at_best = jnp.sum(counts.weights * likeliest(counts.yes, counts.trials))
        ways = jnp.sum(counts.weights * _log_ways(counts))
        log_likelihood = _with_derivative_of(at_best - found.losses[1], ways - loss)
    return found.fit._replace(
        coefficients=found.fit.coefficients[:, 0],
        covariance=found.fit.covariance[:, 0, :, 0],
        log_likelihood=log_likelihood,
        deviance=deviance,
    )


def _with_derivative_of(value: Array, number: Array) -> Array:
    """The value, with the derivatives of a number that is the same but for rounding."""
    return lax.stop_gradient(value) + (number - lax.stop_gradient(number))


def _entropy(shares: Array) -> Array:
    """-sum p log p of shares of yes [N], or of yes and no [N, 2]."""
    shares = shares if shares.ndim == 2 else jnp.stack([shares, 1 - shares], axis=1)
    inside = shares > 0
    p = jnp.where(inside, shares, 1)
    # At 0 the slope is infinite; as 1e28 or so it is 0 where it is multiplied by 0, for what else
    # is differentiated together with it.
    steep = float(jnp.finfo(p.dtype).max) ** 0.75
    edge = jnp.where(inside, 0, steep * (shares - lax.stop_gradient(shares)))
    return jnp.sum(edge - p * jnp.log(p), axis=1)


def _log_ways(counts: Counts) -> Array:
    """The log of the ways in which counts can come about, for its derivatives."""
    yes, n = counts.yes, counts.trials
    return gammaln(n + 1) - gammaln(yes + 1) - gammaln(n - yes + 1)


@checks.whole("num_classes")
@program(
    "num_classes",
    l2=Option(Range(0), off=(0,)),
    max_steps=Option(Range(1), integer=True),
    tolerance=Option(Range(0)),
)
def fit_multinomial(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
    max_steps: int = 100,
    tolerance: ArrayLike | None = None,
) -> LogisticFit:
    """Multinomial regression: coefficients B [P, K - 1] of the log-odds of classes against class 0.

    Minimises -sum_n w_n log p_n[y_n] + penalty, p_n = softmax([0, x_n @ B]). The penalty is
    l2 / 2 times the squares of the coefficients of all K classes less their mean, so that it is the
    same whichever class is the first.

    Args:
        features: floating-point [N, P]. No intercept is added: give it as a column of ones.
        labels: integer [N], class indices. One outside [0, K) makes the fit NaN.
        num_classes: K, at least 2.
        weights: [N], at least 0, how often each row counts, such as counts of equal rows.
        offset: [N, K - 1], a part of the log-odds that is known.
        l2: penalty, a scalar or one for each feature, as for ``fit_logistic``.
        max_steps: as for ``fit_logistic``.
        tolerance: as for ``fit_logistic``.

    Returns:
        A ``LogisticFit`` in the dtype of ``features``, float32 or wider, as of ``fit_logistic``. A
        class without a row makes the data separated.

    Raises:
        TypeError: for features that aren't floating point or labels that aren't integers.
        ValueError: for a wrong shape; inside ``checked``, for bad values and collinear columns.

    Accuracy: float64 1e-8 of statsmodels' coefficients, standard errors and log likelihood.
    Transforms: all; derivatives in arrays and l2 by the implicit function theorem, to any order.

    Example:
        >>> fit = jl.fit_multinomial(jnp.ones([4, 1]), jnp.array([0, 1, 2, 2]), 3)
        >>> jnp.exp(fit.coefficients).round(4)
        Array([[1., 2.]], dtype=float32)
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    design = class_design(features, labels, num_classes, weights, offset)
    metric = jnp.eye(num_classes - 1, dtype=design.rows.features.dtype) - 1 / num_classes
    fit, _ = _fit(class_terms, design, l2, metric, max_steps, tolerance)
    return fit


class _Problem(NamedTuple):
    """What is minimised; the penalty of a kernel B [J, P] is sum_p l2_p (B' metric B)_pp / 2."""

    design: Design
    l2: Array | None  # [P]
    metric: Array  # [J, J]
    matrix: Array  # [P, P], from the coordinates of the design to those of the kernel


class _Found(NamedTuple):
    """A fit, with coefficients [P, J] and the first loss as its log likelihood; and all losses."""

    fit: LogisticFit
    losses: Array  # [L]


def _fit(
    row_terms: RowTerms,
    design: Design,
    l2: ArrayLike,
    metric: Array,
    max_steps: int,
    tolerance: ArrayLike | None,
) -> _Found:
    rows, penalty = design.rows, _as_l2(l2, design.rows.features)
    num_features, num_outputs, dtype = rows.features.shape[1], len(metric), metric.dtype
    # Weights of 1e-9 are unit weights and a factor that belongs to the sums and the covariance.
    unit = lax.stop_gradient(power_of_two(jnp.max(rows.weights, initial=0)))
    design = design._replace(rows=rows._replace(weights=rows.weights / unit))
    design = prepared(design, num_outputs)
    penalty = None if penalty is None else penalty / unit
    problem = _Problem(design, penalty, metric, design.coordinates.matrix())
    eps = jnp.finfo(dtype).eps
    goal = jnp.sqrt(eps) if tolerance is None else checks.as_option("tolerance", tolerance, dtype)
    # Above the rounding of a gradient that adds up so many rows.
    coarse = jnp.sqrt(jnp.maximum(goal**1.5, 16 * eps * jnp.sqrt(jnp.sum(design.rows.weights))))
    minimum = _minimize(row_terms, problem, max_steps, goal, coarse)
    total = jnp.sum(minimum.point)
    rule = "features must be finite, and no column a combination of others"
    checks.check_values(rule, total, jnp.isfinite(total))

    losses, _, hessian = _evaluate(row_terms, problem, minimum.point)
    covariance = solve(hessian, jnp.eye(len(hessian), dtype=dtype))
    # Far out along a separating direction both gradient and Hessian fall like exp(-log-odds), and
    # the step between them stays a change of 1 in the log-odds, until the Hessian is singular.
    moved = num_moved(design, minimum.last.reshape(num_outputs, num_features)) > 0
    singular = jnp.any(jnp.isnan(covariance)) & jnp.all(jnp.isfinite(hessian))
    free = minimum.converged & (minimum.last @ product(hessian, minimum.last) <= coarse**2)
    separated = moved & (singular | free)
    covariance = jnp.where(separated, jnp.nan, covariance) / unit
    by_class = covariance.reshape(num_outputs, num_features, num_outputs, num_features)
    half = jnp.tensordot(problem.matrix, by_class, (1, 1), precision=lax.Precision.HIGHEST)
    full = jnp.tensordot(half, problem.matrix, (3, 1), precision=lax.Precision.HIGHEST)
    losses = losses * unit
    fit = LogisticFit(
        product(problem.matrix, minimum.point.reshape(num_outputs, num_features).T),
        full.transpose(0, 1, 3, 2),
        -losses[0],
        2 * losses[0],
        minimum.converged & ~separated,
        minimum.steps,
        separated,
    )
    return _Found(fit, losses)


def _minimize(
    row_terms: RowTerms, problem: _Problem, max_steps: int, tolerance: Array, coarse: Array
) -> Minimum:
    """The minimum, from that of a parabola that touches the likelihood where log-odds are 0."""
    gradient, hessian = first_step(row_terms, problem.design, len(problem.metric))
    if problem.l2 is not None:
        hessian += _penalty(problem, jnp.zeros_like(gradient))[1]
    size, steps = gradient.size, checks.as_integer("max_steps", max_steps)
    found = minimize(
        functools.partial(_evaluate, row_terms),
        lax.stop_gradient(-solve(hessian.reshape(size, size), gradient.reshape(size))),
        problem,
        max_steps=checks.as_option("max_steps", steps, jnp.dtype(jnp.int32)) - 1,
        tolerance=tolerance,
        coarse=coarse,
    )
    return found._replace(steps=found.steps + 1)


def _evaluate(row_terms: RowTerms, problem: _Problem, point: Array) -> Terms:
    """The losses, and the gradient and the Hessian of what is minimised, at the kernel [J P]."""
    size = len(point)
    kernel = point.reshape(len(problem.metric), -1)
    losses, gradient, hessian = likelihood(row_terms, problem.design, kernel)
    if problem.l2 is not None:
        pull, stiffness = _penalty(problem, kernel)
        gradient, hessian = gradient + pull, hessian + stiffness
    return losses, gradient.reshape(size), hessian.reshape(size, size)


def _penalty(problem: _Problem, kernel: Array) -> tuple[Array, Array]:
    """The gradient [J, P] and the Hessian [J, P, J, P] of the penalty."""
    l2 = jnp.zeros_like(kernel[0]) if problem.l2 is None else problem.l2
    square = product(problem.matrix.T * l2[None, :], problem.matrix)
    gradient = product(problem.metric, product(kernel, square))
    return gradient, problem.metric[:, None, :, None] * square[None, :, None, :]


def _as_l2(value: ArrayLike, features: Array) -> Array | None:
    """The penalty of each feature, or None where it is switched off in Python."""
    if checks.is_zero(value):
        return None
    array = widen(checks.as_real("l2", value), features.dtype)
    checks.check_values("l2 must be at least 0", array, array >= 0, "for feature")
    array = jnp.where(array >= 0, array, jnp.nan)
    return checks.broadcast_to("l2", array, features.shape[1:])
