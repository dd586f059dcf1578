"""The rows that a regression reads: features, labels, weights and offsets, checked."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import describe
from jaxlogits._src.base.dtypes import Array, ArrayLike, widen
from jaxlogits._src.regression.coordinates import Coordinates, coordinates
from jaxlogits._src.regression.newton import product

ONE_FOR_EACH = "one entry for each row of features,"


class Rows(NamedTuple):
    """N rows for a regression with J log-odds each; what is wrong with one makes its weight NaN.

    A row of weight 0 doesn't count, whatever else is in it.
    """

    features: Array  # [N, P]
    level: Array  # [N], their combination that is about 1, NaN if one of them isn't finite
    labels: Array  # [N], shares of label 1 or class indices, or [N, 2], shares of 1 and 0
    weights: Array  # [N], at least 0
    offset: Array | None  # [N, J]
    centred: Array | None = None  # [N, P], the features in the coordinates, where they are kept


class Design(NamedTuple):
    """Rows, and the coordinates in which they are fitted."""

    rows: Rows
    coordinates: Coordinates


class Model(NamedTuple):
    """A regression of a design."""

    design: Design
    kernel: Array  # [J, P], in the design's coordinates
    loss: Array  # the negative log likelihood there


class Counts(NamedTuple):
    """Successes and trials; [N] each."""

    successes: Array
    trials: Array
    weights: Array  # of the rows


def binary_design(
    features: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None,
    offset: ArrayLike | None,
    trials: ArrayLike | None,
) -> tuple[Design, Counts]:
    """Rows whose labels are probabilities, and the counts that they come from, of 1 by default."""
    x = _as_features(features)
    y, w = _as_rows("labels", labels, x), _as_weights(weights, x)
    n = jnp.ones_like(y) if trials is None else _as_rows("trials", trials, x)
    checks.check_weights("trials", jnp.where(w == 0, 1, n))
    valid = (y >= 0) & (y <= n) & (n < jnp.inf)
    rule = f"labels must be in [0, {1 if trials is None else 'trials'}]"
    checks.check_values(rule, y, valid | (w == 0))
    w = jnp.where(valid | (w == 0), w, jnp.nan)
    y, n = jnp.where(valid, y, 0), jnp.where(valid, n, 1)
    counts = Counts(y, n, w)
    if trials is not None:
        # Of 9,999,997 out of 10,000,000, the share of failures isn't 1 - share in float32.
        y, w = jnp.stack([y, n - y], axis=1) / jnp.where(n > 0, n, 1)[:, None], w * n
    known = None if offset is None else _as_rows("offset", offset, x)[:, None]
    return _design(x, y, w, known), counts


def class_design(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    weights: ArrayLike | None,
    offset: ArrayLike | None,
) -> Design:
    """Rows whose labels are class indices."""
    x, w = _as_features(features), None
    y = checks.as_integer("labels", labels)
    checks.require_shape("labels", y, x.shape[:1], ONE_FOR_EACH)
    checks.require_index_dtype("labels", y, num_classes)
    w = _as_weights(weights, x)
    valid = (y >= 0) & (y <= num_classes - 1)  # num_classes may not fit the dtype
    checks.check_values(f"labels must be in [0, {num_classes})", y, valid | (w == 0))
    known = None
    if offset is not None:
        known = widen(checks.as_real("offset", offset), x.dtype)
        checks.require_shape("offset", known, (len(x), num_classes - 1), "rows of log-odds,")
    w = jnp.where(valid | (w == 0), w, jnp.nan)
    return _design(x, jnp.where(valid, y, 0), w, known)


def _design(features: Array, labels: Array, weights: Array, offset: Array | None) -> Design:
    """The coordinates, and the rows with what isn't finite taken out."""
    valid = jnp.isfinite(features) | (weights == 0)[:, None]
    checks.check_values("features must be finite", features, valid, of_rows=1)
    found = coordinates(*lax.stop_gradient((features, weights > 0)))
    level = product(features, found.level)  # 0 times what isn't finite is NaN
    finite = jnp.isfinite(level)
    if offset is not None:
        valid = jnp.isfinite(offset) | (weights == 0)[:, None]
        checks.check_values("offset must be finite", offset, valid, of_rows=1)
        known = jnp.all(jnp.isfinite(offset), axis=1)
        offset = jnp.where(known[:, None], offset, 0)
        finite &= known
    weights = jnp.where(finite | (weights == 0), weights, jnp.nan)
    return Design(Rows(features, level, labels, weights, offset), found)


def finite_features(rows: Rows) -> Array:
    """The features [N, P]; 0 where a row has some that aren't finite."""
    return jnp.where(jnp.isfinite(rows.level)[:, None], rows.features, 0)


def centred(rows: Rows, coordinates: Coordinates) -> Array:
    """The finite features in the coordinates."""
    if rows.centred is not None:
        return rows.centred
    level = jnp.where(jnp.isfinite(rows.level), rows.level, 0)
    left = finite_features(rows) - level[:, None] * coordinates.centre[None, :]
    return left * coordinates.scale[None, :]


def _as_features(value: ArrayLike) -> Array:
    array = checks.as_floating("features", value)
    if array.ndim != 2:
        raise ValueError(f"features must be rows [N,P], got {describe(array)}")
    return widen(array)


def _as_rows(name: str, value: ArrayLike, features: Array) -> Array:
    """One real number for each row, in the dtype of the features."""
    array = checks.as_real(name, value)
    checks.require_shape(name, array, features.shape[:1], ONE_FOR_EACH)
    return widen(array, features.dtype)


def _as_weights(value: ArrayLike | None, features: Array) -> Array:
    if value is None:
        return jnp.ones(features.shape[:1], features.dtype)
    array = _as_rows("weights", value, features)
    checks.check_weights("weights", array)
    return jnp.where((array >= 0) & (array < jnp.inf), array, jnp.nan)
