"""The rows that a regression reads: features, labels, weights and offsets, checked."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.special import gammaln

from jaxlogits import _checks
from jaxlogits._blocks import describe
from jaxlogits._precision import widen
from jaxlogits._typing import Array, ArrayLike

ONE_FOR_EACH = "one entry for each row of features,"


class Design(NamedTuple):
    """N rows for a regression with J log-odds each; a bad value is NaN."""

    features: Array  # [N, P]
    labels: Array  # [N], probabilities or class indices
    weights: Array  # [N]
    offset: Array | None  # [N, J]


def yes_no_design(
    features: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None,
    offset: ArrayLike | None,
    trials: ArrayLike | None,
) -> tuple[Design, Array]:
    """Rows whose labels are probabilities, and the log of the ways in which counts can come."""
    x = _as_features(features)
    y, w = _as_rows("labels", labels, x), _as_weights(weights, x)
    ways = jnp.zeros([], x.dtype)
    if trials is None:
        _checks.check_values("labels must be in [0, 1]", y, (y >= 0) & (y <= 1))
    else:
        n = _as_rows("trials", trials, x)
        _checks.check_values("labels must be in [0, trials]", y, (y >= 0) & (y <= n))
        ways = jnp.sum(w * (gammaln(n + 1) - gammaln(y + 1) - gammaln(n - y + 1)))
        y, w = jnp.where(n > 0, y / jnp.where(n > 0, n, 1), y), w * n
    y = jnp.where((y >= 0) & (y <= 1), y, jnp.nan)
    known = None if offset is None else _as_rows("offset", offset, x)[:, None]
    return Design(x, y, w, known), ways


def class_design(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    weights: ArrayLike | None,
    offset: ArrayLike | None,
) -> Design:
    """Rows whose labels are class indices; the likelihood makes those of no class NaN."""
    x = _as_features(features)
    y = _checks.as_integer("labels", labels)
    _checks.require_shape("labels", y, x.shape[:1], ONE_FOR_EACH)
    _checks.require_index_dtype("labels", y, num_classes)
    valid = (y >= 0) & (y <= num_classes - 1)  # num_classes may not fit the dtype
    _checks.check_values(f"labels must be in [0, {num_classes})", y, valid)
    known = None
    if offset is not None:
        known = _checks.as_real("offset", offset).astype(x.dtype)
        _checks.require_shape("offset", known, (len(x), num_classes - 1), "rows of log-odds,")
    return Design(x, y, _as_weights(weights, x), known)


def _as_features(value: ArrayLike) -> Array:
    array = _checks.as_floating("features", value)
    if array.ndim != 2:
        raise ValueError(f"features must be rows [N,P], got {describe(array)}")
    return widen(array)


def _as_rows(name: str, value: ArrayLike, features: Array) -> Array:
    """One real number for each row, in the dtype of the features."""
    array = _checks.as_real(name, value)
    _checks.require_shape(name, array, features.shape[:1], ONE_FOR_EACH)
    return array.astype(features.dtype)


def _as_weights(value: ArrayLike | None, features: Array) -> Array:
    if value is None:
        return jnp.ones(features.shape[:1], features.dtype)
    array = _as_rows("weights", value, features)
    _checks.check_values("weights must be at least 0", array, array >= 0)
    return jnp.where(array >= 0, array, jnp.nan)
