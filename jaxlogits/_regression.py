"""The logit link: log-odds that are linear in the features, fitted by maximum likelihood."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from jaxlogits import _checks
from jaxlogits._design import Design, class_design, yes_no_design
from jaxlogits._likelihood import RowTerms, Terms, class_terms, likelihood, product, yes_no_terms
from jaxlogits._newton import minimize, solve
from jaxlogits._typing import Array, ArrayLike


class LogisticFit(NamedTuple):
    """A fitted regression of log-odds on P features, of yes against no or of K classes.

    Attributes:
        coefficients: [P], or [P, K - 1] for the log-odds of the classes 1 to K - 1 against class 0.
        covariance: of their estimates, [P, P] or [P, K - 1, P, K - 1]: the inverse of the Hessian.
            NaN where the data are separated.
        log_likelihood: of the labels, without the penalty.
        deviance: twice what the log likelihood is below that of probabilities equal to the labels.
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
        weights: [N], at least 0, how often each row counts; None for once.
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

    Accuracy: float64 1e-8 of statsmodels' coefficients, standard errors and log likelihood.
    Transforms: all; derivatives in arrays and l2 by the implicit function theorem, to any order.

    Example:
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
        >>> jl.fit_logistic(x, jnp.array([1, 2, 3, 1]), trials=jnp.full(4, 4)).coefficients.round(4)
        Array([-0.5108,  0.5108], dtype=float32)
    """
    design, ways = yes_no_design(features, labels, weights, offset, trials)
    problem = _Problem(design, _as_l2(l2, design.features), jnp.ones([1, 1], design.features.dtype))
    fit = _fit(yes_no_terms, problem, max_steps, tolerance)
    uncertainty = jnp.sum(design.weights * (entr(design.labels) + entr(1 - design.labels)))
    return fit._replace(
        coefficients=fit.coefficients[:, 0],
        covariance=fit.covariance[:, 0, :, 0],
        log_likelihood=fit.log_likelihood + ways,
        deviance=fit.deviance - 2 * uncertainty,
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
    metric = jnp.eye(num_classes - 1, dtype=design.features.dtype) - 1 / num_classes
    problem = _Problem(design, _as_l2(l2, design.features), metric)
    return _fit(class_terms, problem, max_steps, tolerance)


class _Problem(NamedTuple):
    """What is minimised; the penalty of a kernel B [J, P] is sum_p l2_p (B' metric B)_pp / 2."""

    design: Design
    l2: Array | None  # [P]
    metric: Array  # [J, J]


def _fit(
    row_terms: RowTerms, problem: _Problem, max_steps: int, tolerance: ArrayLike | None
) -> LogisticFit:
    """The fit, with coefficients [P, J], and the log likelihood and deviance of class labels."""
    x, num_outputs = problem.design.features, len(problem.metric)
    num_features, dtype = x.shape[1], x.dtype
    evaluate = functools.partial(_evaluate, row_terms)
    start = jnp.zeros([num_outputs * num_features], dtype)
    default = jnp.sqrt(jnp.finfo(dtype).eps)
    goal = default if tolerance is None else _checks.as_option("tolerance", tolerance, dtype)
    minimum = minimize(evaluate, start, problem, max_steps=max_steps, tolerance=goal)
    _checks.check_values(
        "features must be finite, and no column a combination of others,",
        x,
        jnp.all(jnp.isfinite(minimum.point)),
    )

    value, gradient, hessian = evaluate(problem, minimum.point)
    kernel = minimum.point.reshape(num_outputs, num_features)
    log_likelihood = _penalty(problem, kernel)[0] - value
    covariance = solve(hessian, jnp.eye(len(start), dtype=dtype))
    separated = _is_flat(problem, minimum.converged, gradient, covariance)
    covariance = jnp.where(separated, jnp.nan, covariance)
    by_class = covariance.reshape(num_outputs, num_features, num_outputs, num_features)
    return LogisticFit(
        kernel.T,
        by_class.transpose(1, 0, 3, 2),
        log_likelihood,
        -2 * log_likelihood,
        minimum.converged & ~separated,
        minimum.steps,
        separated,
    )


def _evaluate(row_terms: RowTerms, problem: _Problem, point: Array) -> Terms:
    """What is minimised, its gradient and its Hessian at the kernel [J P]."""
    size = len(point)
    kernel = point.reshape(len(problem.metric), -1)
    terms = likelihood(row_terms, problem.design, kernel)
    if problem.l2 is not None:
        terms = jax.tree.map(jnp.add, terms, _penalty(problem, kernel))
    value, gradient, hessian = terms
    return value, gradient.reshape(size), hessian.reshape(size, size)


def _penalty(problem: _Problem, kernel: Array) -> Terms:
    """The penalty with its gradient [J, P] and its Hessian [J, P, J, P]."""
    l2 = jnp.zeros_like(kernel[0]) if problem.l2 is None else problem.l2
    gradient = product(problem.metric, kernel) * l2[None]
    hessian = problem.metric[:, None, :, None] * jnp.diag(l2)[None, :, None, :]
    return jnp.sum(kernel * gradient) / 2, gradient, hessian


def _as_l2(value: ArrayLike, features: Array) -> Array | None:
    """The penalty of each feature, or None where it is switched off in Python."""
    if _checks.is_zero(value):
        return None
    array = _checks.as_real("l2", value).astype(features.dtype)
    _checks.check_values("l2 must be at least 0", array, array >= 0)
    array = jnp.where(array >= 0, array, jnp.nan)
    return _checks.broadcast_to("l2", array, features.shape[1:])


def _is_flat(problem: _Problem, converged: Array, gradient: Array, covariance: Array) -> Array:
    """Whether Newton's step would still change log-odds where the likelihood has stopped to.

    Far out along a separating direction both gradient and Hessian fall like exp(-log-odds), and the
    step between them stays a change of 1 in the log-odds, until the Hessian is singular.
    """
    singular = jnp.any(jnp.isnan(covariance)) & jnp.all(jnp.isfinite(gradient))
    step = product(covariance, gradient).reshape(len(problem.metric), -1)
    moves = jnp.abs(product(step, problem.design.features.T))
    counted = jnp.where(problem.design.weights > 0, jnp.max(moves, axis=0), 0)
    return singular | (converged & (jnp.max(counted, initial=0) > 0.5))
