"""The logit link: log-odds that are linear in the features, fitted by maximum likelihood."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike
from jaxlogits._src.base.elementary import log
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.mesh.explicit import with_whole_arrays
from jaxlogits._src.regression.coordinates import unit_of
from jaxlogits._src.regression.counts import excess_loss, log_likelihood, with_derivative_of
from jaxlogits._src.regression.design import Design, Model, binary_design, class_design
from jaxlogits._src.regression.likelihood import (
    RowTerms,
    binary_terms,
    class_terms,
    far_moves,
    prepared,
)
from jaxlogits._src.regression.newton import product
from jaxlogits._src.regression.null import constant_of, null_model
from jaxlogits._src.regression.problem import (
    Problem,
    as_l2,
    evaluate,
    find_minimum,
    inverse_hessian,
    step_lengths,
)


class LogisticFit(NamedTuple):
    """A fitted logistic or multinomial regression on P features.

    Attributes:
        coefficients: [P], or [P, K - 1] for the log-odds of classes 1 to K - 1 against class 0.
        covariance: [P, P] or [P, K - 1, P, K - 1], the inverse Hessian; NaN for separated data.
        log_likelihood: of the labels, without the penalty ``l2``.
        null_log_likelihood: that of an intercept alone, with the same offset, weights and trials;
            with ``firth`` of what comes nearest to one, if the features have no intercept.
        deviance: twice the difference to the log likelihood of probabilities equal to the labels,
            at least 0. Its derivative in a label of 0 or 1 is infinite (1e28 or more).
        num_rows: how many rows count, having a weight above 0.
        total_weight: the sum of their weights, which is N where a weight repeats a row.
        has_intercept: whether a combination of the features is constant over those rows, as a
            column of ones is, so that the null model is a special case.
        firth: whether it has Firth's penalty. If so, both log likelihoods are penalized, and the
            null model has the information of all features.
        converged: whether this is the maximum, to the tolerance.
        steps: how many Hessians were computed.
        separated: whether there is no maximum, because the likelihood keeps growing as coefficients
            go to infinity; beyond these ones it hardly changes.
    """

    coefficients: Array
    covariance: Array
    log_likelihood: Array
    null_log_likelihood: Array
    deviance: Array
    num_rows: Array
    total_weight: Array
    has_intercept: Array
    firth: Array
    converged: Array
    steps: Array
    separated: Array


@program(
    "firth",
    l2=Option(Range(0), off=(0,)),
    max_steps=Option(Range(1), integer=True),
    tolerance=Option(Range(0)),
)
@with_whole_arrays
def fit_logistic(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    trials: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
    firth: bool = False,
    max_steps: int = 100,
    tolerance: ArrayLike | None = None,
) -> LogisticFit:
    """Logistic regression: the maximum-likelihood coefficients b of the log-odds x @ b.

    Minimises -sum_n w_n (y_n log p_n + (1 - y_n) log(1 - p_n)) + l2 |b|**2 / 2, p = sigmoid(x @ b).

    Args:
        features: floating-point [N, P]; for an intercept, include a column of ones.
        labels: [N]: 0 or 1, booleans, probabilities, or counts of successes out of ``trials``.
        weights: [N], at least 0, how often each row counts; rows of weight 0 may hold anything.
        offset: [N], a known part of the log-odds.
        trials: [N], the numbers of trials if labels are counts.
        l2: penalty, a scalar or one per feature, such as 0 for an intercept. The covariance is then
            that of the posterior under a normal prior with variance 1 / l2.
        firth: True for Firth's penalty, -log det(information) / 2, finite for separated data.
        max_steps: the most evaluations of the likelihood.
        tolerance: length of the last step, in standard errors; None for the square root of epsilon.

    Returns:
        A ``LogisticFit`` in the dtype of ``features``, float32 or wider. NaN for collinear columns
        without a penalty, which ``checked`` reports; ``separated`` is True for separated data.
    Accuracy: float64 1e-8 of statsmodels' coefficients, standard errors and log likelihood; float32
        1e-4 of a standard error, also for columns far from 0 beside a constant.

    Example:
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
        >>> jl.fit_logistic(x, jnp.array([1, 2, 3, 1]), trials=jnp.full(4, 4)).coefficients.round(4)
        Array([-0.5108,  0.5108], dtype=float32)
    """
    design, counts = binary_design(features, labels, weights, offset, trials)
    metric = jnp.ones([1, 1], design.rows.features.dtype)
    found = _fit(binary_terms, design, l2, metric, firth, max_steps, tolerance)
    least = jnp.sum(design.rows.weights * _entropy(design.rows.labels))
    unit, (at_fit, at_null) = found.unit, found.priors
    loss, excess = unit * found.model.loss, unit * excess_loss(found.model, counts)
    # Both are accurate as they are computed, and differentiate as what they mean.
    deviance = with_derivative_of(2 * excess, 2 * (loss - least))
    fit = found.fit._replace(
        coefficients=found.fit.coefficients[:, 0],
        covariance=found.fit.covariance[:, 0, :, 0],
        deviance=deviance,
    )
    if trials is None:
        return fit
    of_null, excess_of_null = unit * found.null.loss, unit * excess_loss(found.null, counts)
    return fit._replace(
        log_likelihood=log_likelihood(counts, loss, excess) + at_fit,
        null_log_likelihood=log_likelihood(counts, of_null, excess_of_null) + at_null,
        total_weight=jnp.sum(jnp.where(counts.trials > 0, counts.weights, 0)),
    )


def _entropy(shares: Array) -> Array:
    """-sum p log p of shares of label 1 [N], or of 1 and 0 [N, 2]."""
    shares = shares if shares.ndim == 2 else jnp.stack([shares, 1 - shares], axis=1)
    inside = shares > 0
    p = jnp.where(inside, shares, 1)
    # At 0 the slope is infinite; as 1e28 or so it is 0 where it is multiplied by 0, for what else
    # is differentiated together with it.
    steep = float(jnp.finfo(p.dtype).max) ** 0.75
    edge = jnp.where(inside, 0, steep * (shares - lax.stop_gradient(shares)))
    return jnp.sum(edge - p * log(p), axis=1)


@checks.whole("num_classes")
@program(
    "num_classes",
    "firth",
    l2=Option(Range(0), off=(0,)),
    max_steps=Option(Range(1), integer=True),
    tolerance=Option(Range(0)),
)
@with_whole_arrays
def fit_multinomial(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
    firth: bool = False,
    max_steps: int = 100,
    tolerance: ArrayLike | None = None,
) -> LogisticFit:
    """Multinomial logistic regression: the coefficients B of the log-odds against class 0.

    Minimises -sum_n w_n log p_n[y_n] + penalty, p_n = softmax([0, x_n @ B]). The penalty is l2 / 2
    times the squared coefficients of all K classes less their mean, so it treats classes alike.

    Args:
        features: floating-point [N, P]; for an intercept, include a column of ones.
        labels: integers [N] in [0, K).
        num_classes: K, at least 2.
        offset: [N, K - 1], a known part of the log-odds.
        weights, l2, firth, max_steps, tolerance: as for ``fit_logistic``.

    Returns:
        A ``LogisticFit`` as from ``fit_logistic``; a class without a row makes the data separated.
    Accuracy: float64 1e-8 of statsmodels' coefficients, standard errors and log likelihood.

    Example:
        >>> fit = jl.fit_multinomial(jnp.ones([4, 1]), jnp.array([0, 1, 2, 2]), 3)
        >>> jnp.exp(fit.coefficients).round(4)
        Array([[1., 2.]], dtype=float32)
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    design = class_design(features, labels, num_classes, weights, offset)
    metric = jnp.eye(num_classes - 1, dtype=design.rows.features.dtype) - 1 / num_classes
    return _fit(class_terms, design, l2, metric, firth, max_steps, tolerance).fit


class _Found(NamedTuple):
    """A fit, with coefficients [P, J], and what it comes from."""

    fit: LogisticFit
    model: Model
    null: Model
    priors: tuple[ArrayLike, ArrayLike]  # the log densities of Firth's prior at both
    unit: Array  # of the models' weights


def _fit(
    row_terms: RowTerms,
    design: Design,
    l2: ArrayLike,
    metric: Array,
    firth: bool,
    max_steps: int,
    tolerance: ArrayLike | None,
) -> _Found:
    if not isinstance(firth, bool | np.bool_):
        raise TypeError(f"firth must be True or False, got {firth!r}")
    rows, penalty = design.rows, as_l2(l2, design.rows.features)
    num_features, num_outputs = rows.features.shape[1], len(metric)
    # Weights of 1e-9 are unit weights and a factor that belongs to the sums and the covariance.
    unit = unit_of(rows.weights)
    design = design._replace(rows=rows._replace(weights=rows.weights / unit))
    design = prepared(design, num_outputs)
    problem = Problem(
        design,
        None if penalty is None else penalty / unit,
        metric,
        design.coordinates.matrix(),
        1 / unit if firth else None,
    )
    length = step_lengths(tolerance, design.rows, linear=firth)
    most = checks.as_count_option("max_steps", max_steps)
    minimum = find_minimum(row_terms, problem, most, length)
    total = jnp.sum(minimum.point)
    rule = "features must be finite, and no column a combination of others"
    checks.check_values(rule, total, jnp.isfinite(total))
    loss, _, hessian = evaluate(row_terms, problem, minimum.point)
    covariance, singular = inverse_hessian(problem, hessian)
    # Far out along a separating direction both gradient and Hessian fall like exp(-log-odds), and
    # the step between them stays a change of 1 in the log-odds, until the Hessian is singular.
    kernel, last = (x.reshape(num_outputs, num_features) for x in (minimum.point, minimum.last))
    moved, mostly = far_moves(row_terms, *lax.stop_gradient((design, kernel, last)))
    free = minimum.converged & (minimum.last @ product(hessian, minimum.last) <= length.coarse**2)
    # Or until it is for the search, by a hair that rounding may put on either side.
    stuck = ~minimum.converged & (minimum.steps < most)
    separated = moved & (singular | (free & mostly) | stuck) & (not firth)
    constant, has_intercept = constant_of(design)
    null, priors = null_model(row_terms, problem, minimum.point, constant, unit)
    fit = LogisticFit(
        coefficients=product(problem.matrix, kernel.T),
        covariance=jnp.where(separated, jnp.nan, covariance / unit),
        log_likelihood=-unit * loss + priors[0],
        null_log_likelihood=-unit * null.loss + priors[1],
        deviance=2 * unit * loss,
        num_rows=jnp.sum(rows.weights > 0, dtype=jnp.int32),
        total_weight=jnp.sum(rows.weights),
        has_intercept=has_intercept,
        firth=jnp.full([], firth),
        converged=minimum.converged & ~separated,
        steps=minimum.steps,
        separated=separated,
    )
    return _Found(fit, Model(design, kernel, loss), null, priors, unit)
