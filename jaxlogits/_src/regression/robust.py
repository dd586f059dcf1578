"""Standard errors that hold where the model doesn't: the sandwich estimators."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxlogits._src.base import checks
from jaxlogits._src.base.checked import calling
from jaxlogits._src.base.dtypes import Array, ArrayLike
from jaxlogits._src.base.program import program
from jaxlogits._src.mesh.explicit import with_whole_arrays
from jaxlogits._src.regression.design import (
    ONE_FOR_EACH,
    binary_design,
    class_design,
    finite_features,
)
from jaxlogits._src.regression.fit import LogisticFit
from jaxlogits._src.regression.leverage import corrected_by_leverage, leverages
from jaxlogits._src.regression.likelihood import binary_terms, class_terms
from jaxlogits._src.regression.newton import product
from jaxlogits._src.regression.summary import covariance_matrix, require_fit

WeightKind = Literal["frequency", "sampling"]
Kind = Literal["HC0", "HC1", "HC2", "HC3"]


def robust_covariance(
    fit: LogisticFit,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    trials: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    weight_kind: WeightKind = "frequency",
    kind: Kind = "HC1",
) -> Array:
    """Robust (sandwich) covariance of the coefficients, C (sum_n s_n s_n') C.

    C is the fit's covariance and s_n the gradient of a row's log likelihood, or of a cluster's.

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``.
        features, labels, weights, offset, trials: as fitted. A row's trials are one observation.
        clusters: integers [N], equal for rows that may depend on each other; None for no clusters.
        weight_kind: "frequency" if a weight of 2 is a row given twice, and N the sum of the
            weights; "sampling" if weights multiply the gradients, and N is the number of rows.
        kind: "HC0" as above; "HC1" times N / (N - P), or with G clusters times
            ``G / (G - 1) (N - 1) / (N - P)``, P counting all coefficients. Without clusters, also
            "HC2" and "HC3", which divide rows by 1 - leverage (for classes a matrix) or its square.

    Returns:
        The shape of the fit's covariance, for ``fit._replace(covariance=...)``. NaN for HC1 if N <=
        P or G = 1, and for HC2 and HC3 if a row has leverage 1.
    Accuracy: float64 1e-8 of statsmodels' standard errors.

    Example:
        >>> x, y = jnp.ones([4, 1]), jnp.array([0, 1, 1, 1])
        >>> fit = jax.jit(jl.fit_logistic)(x, y)
        >>> print(f"{jl.robust_covariance(fit, x, y, kind='HC0')[0, 0]:.4f}")
        1.3333
    """
    _require_one_of("weight_kind", weight_kind, get_args(WeightKind))
    _require_one_of("kind", kind, get_args(Kind))
    with calling("robust_covariance"):
        return _robust_covariance(
            fit,
            features,
            labels,
            weights=weights,
            offset=offset,
            trials=trials,
            clusters=_renumbered(clusters),
            weight_kind=weight_kind,
            kind=kind,
        )


@program("weight_kind", "kind")
@with_whole_arrays
def _robust_covariance(
    fit: LogisticFit,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None,
    offset: ArrayLike | None,
    trials: ArrayLike | None,
    clusters: ArrayLike | None,
    weight_kind: WeightKind,
    kind: Kind,
) -> Array:
    require_fit(fit)
    power = {"HC2": 1, "HC3": 2}.get(kind)
    if power is not None and clusters is not None:
        raise ValueError(f'kind must be "HC0" or "HC1" for clusters, got {kind!r}')
    x, residuals, curvature, w = _rows(fit, features, labels, weights, offset, trials)
    covariance, frequency = covariance_matrix(fit), weight_kind == "frequency"
    num_rows = jnp.sum(w if frequency else jnp.where(w > 0, 1, w))
    if power is not None:
        # Of one of a row's repetitions, or of the whole row.
        times = jnp.where(w > 0, 1, w) if frequency else w
        own = times[:, None, None] * leverages(x, curvature, covariance)
        residuals = corrected_by_leverage(residuals, own, power)
    scores = (x[:, :, None] * residuals[:, None, :]).reshape(len(x), fit.coefficients.size)
    influences = product(scores, covariance)
    factor = _ratio(num_rows, num_rows - influences.shape[1])
    if clusters is None:
        # Of equal rows each has its own square, whose number multiplies it once.
        inner = product(influences.T, (w if frequency else w * w)[:, None] * influences)
    else:
        sums, count = _sum_clusters(w[:, None] * influences, w > 0, clusters)
        inner = product(sums.T, sums)
        factor *= _ratio(count, count - 1) / _ratio(num_rows, num_rows - 1)
    inner = factor * inner if kind == "HC1" else inner
    return inner.reshape(fit.covariance.shape)


def _ratio(number: Array, divisor: Array) -> Array:
    """number / divisor, or NaN where that isn't above 0."""
    valid = divisor > 0
    return jnp.where(valid, number / jnp.where(valid, divisor, 1), jnp.nan)


def _sum_clusters(rows: Array, exists: Array, clusters: ArrayLike) -> tuple[Array, Array]:
    """The rows added up within clusters, whatever their names, and how many there are."""
    members = checks.as_integer("clusters", clusters)
    checks.require_shape("clusters", members, rows.shape[:1], ONE_FOR_EACH)
    names, index = jnp.unique(members, return_inverse=True, size=len(rows))
    sizes = jax.ops.segment_sum(exists.astype(jnp.int32), index, len(names))
    count = jnp.sum(sizes > 0, dtype=rows.dtype)
    return jax.ops.segment_sum(rows, index, len(names)), count


def _rows(
    fit: LogisticFit,
    features: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None,
    offset: ArrayLike | None,
    trials: ArrayLike | None,
) -> tuple[Array, Array, Array, Array]:
    """Features [N, P], the loss's gradient [N, J] and Hessian [J, J, N] in log-odds, weights."""
    if fit.coefficients.ndim == 1:
        design, counts = binary_design(features, labels, weights, offset, trials)
        row_terms = binary_terms
    else:
        if trials is not None:
            raise ValueError("trials must be None for a fit of classes")
        num_classes = fit.coefficients.shape[1] + 1
        design, counts = class_design(features, labels, num_classes, weights, offset), None
        row_terms = class_terms
    rows = design.rows
    x = finite_features(rows)
    log_odds = product(jnp.atleast_2d(fit.coefficients.T), x.T)
    log_odds = log_odds if rows.offset is None else log_odds + rows.offset.T
    _, residuals, curvature = row_terms(log_odds, rows.labels)
    w = rows.weights
    if counts is not None:
        residuals, curvature = (
            residuals * counts.trials[None],
            curvature * counts.trials[None, None],
        )
        w = jnp.where(jnp.isnan(w) | (counts.trials == 0), w, counts.weights)
    return x, residuals.T, curvature, w


def _renumbered(clusters: ArrayLike | None) -> ArrayLike | None:
    """Clusters whose labels JAX has no integers for, such as hashes, numbered in order."""
    if isinstance(clusters, jax.Array) or not hasattr(clusters, "__array__"):
        return clusters
    names = np.asarray(clusters)
    limits = np.iinfo(np.int64 if jax.config.jax_enable_x64 else np.int32)
    if names.dtype.kind not in "iu" or names.size == 0:
        return names
    if limits.min <= names.min() and names.max() <= limits.max:
        return names
    return np.unique(names, return_inverse=True)[1].astype(np.int32)


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        *first, last = (f'"{choice}"' for choice in choices)
        known = f"{', '.join(first)} or {last}"
        raise ValueError(f"{name} must be {known}, got {value!r}")
