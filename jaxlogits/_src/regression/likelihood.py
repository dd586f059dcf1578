"""The negative log-likelihood of linear log-odds, with gradient and Hessian, in blocks of rows.

A kernel [J, P] gives each row of features [P] J log-odds: that of a binary label, or those of the
classes 1 to J against class 0. Here rows come last, ``[J, C]``: where many kernels share their
features, vmap makes one matrix product of it, without a transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import odds, xla
from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.elementary import log1p
from jaxlogits._src.base.rules import keeping_rules
from jaxlogits._src.base.varying import zeros
from jaxlogits._src.regression.classes import shares
from jaxlogits._src.regression.design import Design, Rows, centred
from jaxlogits._src.regression.newton import product

# Losses, gradients and Hessians.
Terms = tuple[Array, Array, Array]
T = TypeVar("T")
RowTerms = Callable[[Array, Array], Terms]


def binary_terms(log_odds: Array, labels: Array) -> Terms:
    """Losses [C], their gradients [1, C] and Hessians [1, 1, C] in the log-odds [1, C].

    All from sigmoid(-|x|), which keeps its digits where 1 - p has none.
    """
    x, (positive, negative) = log_odds[0], (labels, 1 - labels) if labels.ndim == 1 else labels.T
    likely, small = _smaller_prob(x)
    losses = jnp.where(likely, negative * x, -positive * x) - log1p(-small)
    residuals = jnp.where(likely, negative - small, small - positive)
    return losses, residuals[None], (small * (1 - small))[None, None]


def _smaller_prob(x: Array) -> tuple[Array, Array]:
    """Whether label 1 is the likelier one, and the probability of the other, sigmoid(-|x|)."""
    sign = jnp.where(x > 0, 1, -1).astype(x.dtype)
    signed = sign * odds.sigmoid(-(sign * x))  # and not -|x|, which has no derivative at 0
    # For residuals and curvature: their loops end at the division, and each would compute the
    # exponential again, which is a quarter of a float64 bootstrap's time.
    signed = xla.one_array(signed)
    return ~jnp.signbit(signed), jnp.abs(signed)


def class_terms(log_odds: Array, labels: Array) -> Terms:
    """Losses [C], their gradients [J, C] and Hessians [J, J, C] in the log-odds [J, C]."""
    z = jnp.pad(log_odds, ((1, 0), (0, 0)))
    is_label = labels[None] == jnp.arange(len(z), dtype=labels.dtype)[:, None]
    known = jnp.any(is_label, axis=0)
    of_all = shares(z)
    losses = jnp.where(known, jnp.sum(jnp.where(is_label, of_all.losses, 0), axis=0), jnp.nan)
    residuals = jnp.where(is_label, -of_all.rest, of_all.probs)[1:]
    p, rest = of_all.probs[1:], of_all.rest[1:]
    same = jnp.eye(len(p), dtype=bool)[:, :, None]
    curvature = jnp.where(same, (p * rest)[:, None], -p[:, None] * p[None, :])
    return losses, jnp.where(known[None], residuals, jnp.nan), curvature


# A block's largest array takes 512 KiB of float32, which stays in the cache of a core.
_BLOCK_SIZE = 2**17
# Below this the products of all pairs of features are one array, which many fits share.
_FEW_PRODUCTS = 2**19


def total_loss(row_terms: RowTerms, design: Design, kernel: Array) -> Terms:
    """The sum of the losses, its gradient [J, P] and its Hessian [J, P, J, P].

    The kernel [J, P], and so the derivatives, are in the design's coordinates.
    """

    def terms(rows: Rows, features: Array) -> Terms:
        log_odds = product(kernel, features.T)
        log_odds = log_odds if rows.offset is None else log_odds + rows.offset.T
        return row_terms(log_odds, rows.labels)

    return _sum_rows(terms, design, len(kernel))


def first_parabola(row_terms: RowTerms, design: Design, num_outputs: int) -> tuple[Array, Array]:
    """Gradient and Hessian, at a kernel of 0, of a parabola that approximates the likelihood.

    It touches the likelihood where all log-odds, offsets included, are 0. There the labels say
    something about the coefficients; at an offset of 60 alone, they don't.
    """

    def terms(rows: Rows, features: Array) -> Terms:
        nothing = zeros((num_outputs, len(features)), features.dtype, features)
        losses, residuals, curvature = row_terms(nothing, rows.labels)
        if rows.offset is not None:
            residuals += jnp.sum(curvature * rows.offset.T[None], axis=1)
        return losses, residuals, curvature

    return _sum_rows(terms, design, num_outputs)[1:]


def prepared(design: Design, num_outputs: int) -> Design:
    """The design with its features in the coordinates kept, where a block is all rows."""
    if _num_blocks_for(design, num_outputs) > 1:
        return design
    features = centred(design.rows, design.coordinates)
    return design._replace(rows=design.rows._replace(centred=features))


def far_moves(
    row_terms: RowTerms, design: Design, kernel: Array, step: Array
) -> tuple[Array, Array]:
    """Whether a step changes log-odds by more than 1/2, and whether that is most of what it does.

    A step does so along a direction that separates the data, however little it gains. A row far
    out also moves far, by steps that the others determine: it has little of their curvature then.
    """

    def curvatures(rows: Rows, features: Array) -> Array:
        # One product, for which the features are read as they are made.
        log_odds, moves = jnp.split(product(jnp.concatenate([kernel, step]), features.T), 2)
        log_odds = log_odds if rows.offset is None else log_odds + rows.offset.T
        _, _, curvature = row_terms(log_odds, rows.labels)
        own = rows.weights * jnp.sum(moves * jnp.sum(curvature * moves[None], axis=1), axis=0)
        moved = jnp.any(jnp.abs(moves) > 0.5, axis=0) & (rows.weights > 0)
        return jnp.stack(
            [jnp.sum(jnp.where(moved, own, 0)), jnp.sum(own), jnp.sum(moved, dtype=own.dtype)]
        )

    of_moved, of_all, count = sum_rows(curvatures, design, len(step))
    return count > 0, of_moved >= of_all / 2


def sum_rows(fn: Callable[[Rows, Array], T], design: Design, num_outputs: int) -> T:
    """What a function of rows and their features in the coordinates gives, summed in blocks."""
    num_blocks = _num_blocks_for(design, num_outputs)
    return _sum_blocks(
        lambda rows: fn(rows, centred(rows, design.coordinates)), design.rows, num_blocks
    )


def _sum_rows(row_terms: Callable[[Rows, Array], Terms], design: Design, num_outputs: int) -> Terms:
    """The terms of rows with their features, weighted and added up."""
    is_whole = _num_blocks_for(design, num_outputs) == 1
    hessian_of = _hessian_from_products if is_whole else _hessian_from_scaled

    def terms(rows: Rows, features: Array) -> Terms:
        losses, residuals, curvature = row_terms(rows, features)
        w = rows.weights
        gradient = product(residuals * w[None], features)
        return product(losses, w), gradient, hessian_of(curvature * w[None, None], features)

    return sum_rows(terms, design, num_outputs)


def _num_blocks_for(design: Design, num_outputs: int) -> int:
    num_rows, num_features = design.rows.features.shape
    if num_rows * max(num_features, num_outputs) ** 2 <= _FEW_PRODUCTS:
        return 1
    size = _BLOCK_SIZE // (num_features * num_outputs**2)
    return _num_even_blocks(num_rows, max(size, 256))


def _hessian_from_products(curvature: Array, features: Array) -> Array:
    """sum_c curvature[i, j, c] features[c, p] features[c, q], by the products of the features."""
    (rows, p), j = features.shape, len(curvature)
    products = (features[:, :, None] * features[:, None, :]).reshape(rows, p * p)
    hessian = product(curvature.reshape(j * j, rows), products)
    return hessian.reshape(j, j, p, p).transpose(0, 2, 1, 3)


def _hessian_from_scaled(curvature: Array, features: Array) -> Array:
    """The same by one matrix product of scaled features with features."""
    (rows, p), j = features.shape, len(curvature)
    scaled = curvature[:, :, None, :] * features.T[None, None]
    hessian = product(scaled.reshape(j * j * p, rows), features)
    return hessian.reshape(j, j, p, p).transpose(0, 2, 1, 3)


def _num_even_blocks(num_rows: int, size: int) -> int:
    """At least as many as it takes, and such that few rows are left over."""
    fewest = max(-(-num_rows // size), 1)
    return min(range(fewest, 2 * fewest), key=lambda blocks: num_rows % blocks)


def _sum_blocks(terms: Callable[[Rows], T], rows: Rows, num_blocks: int) -> T:
    """The terms of all rows; blocks are computed again where they are differentiated."""
    if num_blocks == 1:
        return terms(rows)
    size, left_over = divmod(len(rows.features), num_blocks)
    cut = size * num_blocks

    def add(total: T, block: Rows) -> tuple[T, None]:
        return jax.tree.map(jnp.add, total, terms(block)), None

    blocks = jax.tree.map(lambda x: x[:cut].reshape(num_blocks, size, *x.shape[1:]), rows)
    types = jax.eval_shape(terms, jax.tree.map(lambda x: x[0], blocks))
    like = jax.tree.leaves(rows)
    nothing = jax.tree.map(lambda t: zeros(t.shape, t.dtype, *like), types)

    def add_up(nothing: T, blocks: Rows) -> T:
        return lax.scan(jax.checkpoint(add, prevent_cse=False), nothing, blocks)[0]

    total = keeping_rules(add_up, nothing, blocks)
    return add(total, jax.tree.map(lambda x: x[cut:], rows))[0] if left_over else total
