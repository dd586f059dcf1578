"""Standard errors that hold where the model doesn't: the sandwich estimators."""

import jax
import jax.numpy as jnp

from jaxlogits import _checks
from jaxlogits._design import ONE_FOR_EACH, class_design, yes_no_design
from jaxlogits._inference import covariance_matrix, require_fit
from jaxlogits._likelihood import class_terms, log_odds_of, product, yes_no_terms
from jaxlogits._regression import LogisticFit
from jaxlogits._typing import Array, ArrayLike


def robust_covariance(
    fit: LogisticFit,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    trials: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    correction: bool = True,
) -> Array:
    """Covariance of the coefficients that needs no true model, C (sum_n s_n s_n') C.

    C is the fit's covariance and s_n the gradient of row n's log likelihood. With clusters, the
    gradients are first added up within each, as their rows may depend on each other.

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``.
        features: [N, P], as they were fitted.
        labels: [N], as they were fitted.
        weights: [N], as they were fitted; they weigh the gradients.
        offset: as it was fitted.
        trials: as they were fitted.
        clusters: integer [N], which cluster each row belongs to; None for each to its own.
        correction: whether to multiply by N / (N - P), HC1 instead of HC0, or with G clusters by
            G / (G - 1) (N - 1) / (N - P), P counting all coefficients.

    Returns:
        The shape of the fit's covariance; ``fit._replace(covariance=...)`` gives the standard
        errors, tests and intervals that belong to it.

    Raises:
        TypeError: for anything but a fit, or arrays of another dtype.
        ValueError: for a wrong shape.

    Accuracy: float64 1e-8 of statsmodels' standard errors.
    Transforms: all, to any order.

    Example:
        >>> x, y = jnp.ones([4, 1]), jnp.array([0, 1, 1, 1])
        >>> fit = jax.jit(jl.fit_logistic)(x, y)
        >>> print(f"{jl.robust_covariance(fit, x, y, correction=False)[0, 0]:.4f}")
        1.3333
    """
    require_fit(fit)
    scores = _scores(fit, features, labels, weights, offset, trials)
    influences = product(scores, covariance_matrix(fit))
    num_rows, size = influences.shape
    factor = jnp.asarray(num_rows / (num_rows - size) if correction else 1.0, influences.dtype)
    if clusters is not None:
        influences, count = _sum_clusters(influences, clusters)
        if correction:
            factor *= count / (count - 1) * ((num_rows - 1) / num_rows)
    return (factor * product(influences.T, influences)).reshape(fit.covariance.shape)


def _sum_clusters(rows: Array, clusters: ArrayLike) -> tuple[Array, Array]:
    """The rows added up within clusters, whatever their names, and how many there are."""
    members = _checks.as_integer("clusters", clusters)
    _checks.require_shape("clusters", members, rows.shape[:1], ONE_FOR_EACH)
    names, index = jnp.unique(members, return_inverse=True, size=len(rows))
    count = jnp.max(index, initial=-1) + 1
    return jax.ops.segment_sum(rows, index, len(names)), count.astype(rows.dtype)


def _scores(
    fit: LogisticFit,
    features: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None,
    offset: ArrayLike | None,
    trials: ArrayLike | None,
) -> Array:
    """The gradient of each row's loss in the coefficients, [N, P J]."""
    if fit.coefficients.ndim == 1:
        design, _ = yes_no_design(features, labels, weights, offset, trials)
        row_terms = yes_no_terms
    else:
        if trials is not None:
            raise ValueError("trials must be None for a fit of classes")
        num_classes = fit.coefficients.shape[1] + 1
        design = class_design(features, labels, num_classes, weights, offset)
        row_terms = class_terms
    _, residuals, _ = row_terms(
        log_odds_of(design, jnp.atleast_2d(fit.coefficients.T)), design.labels
    )
    weighted = residuals * design.weights[None]
    scores = design.features[:, :, None] * weighted.T[:, None, :]
    return scores.reshape(len(scores), -1)
