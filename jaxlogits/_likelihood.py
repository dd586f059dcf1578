"""The negative log-likelihood of linear log-odds, with gradient and Hessian, in blocks of rows.

A kernel [J, P] gives each row of features [P] J log-odds: one for yes against no, or those of the
classes 1 to J against class 0. Here rows come last, ``[J, C]``: where many kernels share their
features, vmap makes one matrix product of it, without a transpose.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._design import Design
from jaxlogits._log_odds import sigmoid
from jaxlogits._mesh import zeros
from jaxlogits._rows import log_softmax_rows, softmax_complement_rows, softmax_rows
from jaxlogits._typing import Array

Terms = tuple[Array, Array, Array]
RowTerms = Callable[[Array, Array], Terms]


def yes_no_terms(log_odds: Array, labels: Array) -> Terms:
    """Losses [C], their gradients [1, C] and Hessians [1, 1, C] in the log-odds [1, C].

    All from sigmoid(-|x|), which keeps its digits where 1 - p has none.
    """
    x, y = log_odds[0], labels
    likely = x > 0
    below = jnp.where(likely, -x, x)
    small = sigmoid(below)
    losses = jnp.where(likely, (1 - y) * x, -y * x) - jnp.log1p(-small)
    residuals = jnp.where(likely, (1 - y) - small, small - y)
    return losses, residuals[None], (small * (1 - small))[None, None]


def class_terms(log_odds: Array, labels: Array) -> Terms:
    """Losses [C], their gradients [J, C] and Hessians [J, J, C] in the log-odds [J, C]."""
    z = jnp.pad(log_odds, ((1, 0), (0, 0))).T
    nan = jnp.asarray(jnp.nan, z.dtype)
    is_label = labels[:, None] == jnp.arange(z.shape[1], dtype=labels.dtype)[None, :]
    known = jnp.any(is_label, axis=1)
    log_p, p, rest = (
        log_softmax_rows(z, nan, None),
        softmax_rows(z, nan, None),
        softmax_complement_rows(z, nan, None),
    )
    losses = jnp.where(known, -jnp.sum(jnp.where(is_label, log_p, 0), axis=1), nan)
    residuals = jnp.where(known[:, None], jnp.where(is_label, -rest, p), nan)[:, 1:].T
    p, rest = p[:, 1:].T, rest[:, 1:].T
    same = jnp.eye(len(p), dtype=bool)[:, :, None]
    return losses, residuals, jnp.where(same, (p * rest)[:, None], -p[:, None] * p[None, :])


def product(a: Array, b: Array) -> Array:
    """The matrix product, in full precision on accelerators too, where a float32 one has less."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def log_odds_of(design: Design, kernel: Array) -> Array:
    """Log-odds [J, N] of the rows."""
    log_odds = product(kernel, design.features.T)
    return log_odds if design.offset is None else log_odds + design.offset.T


# A block's largest array takes 512 KiB of float32, which stays in the cache of a core.
_BLOCK_SIZE = 2**17
# Below this the products of all pairs of features are one array, which many fits share.
_FEW_PRODUCTS = 2**19


def likelihood(row_terms: RowTerms, design: Design, kernel: Array) -> Terms:
    """Its negative logarithm, the gradient [J, P] and the Hessian [J, P, J, P]."""
    num_rows, num_features = design.features.shape
    num_outputs = len(kernel)
    few = num_rows * num_features**2 <= _FEW_PRODUCTS
    add_up = _with_products if few else _with_scaled
    size = _BLOCK_SIZE // (num_features * num_outputs**2)
    num_blocks = 1 if few else _num_blocks(num_rows, max(size, 256))

    def terms(block: Design) -> Terms:
        losses, residuals, curvature = row_terms(log_odds_of(block, kernel), block.labels)
        w = block.weights
        gradient = product(residuals * w[None], block.features)
        return product(losses, w), gradient, add_up(curvature * w[None, None], block.features)

    return _sum_blocks(terms, design, num_blocks)


def _with_products(curvature: Array, features: Array) -> Array:
    """sum_c curvature[i, j, c] features[c, p] features[c, q], by the products of the features."""
    (rows, p), j = features.shape, len(curvature)
    products = (features[:, :, None] * features[:, None, :]).reshape(rows, p * p)
    hessian = product(curvature.reshape(j * j, rows), products)
    return hessian.reshape(j, j, p, p).transpose(0, 2, 1, 3)


def _with_scaled(curvature: Array, features: Array) -> Array:
    """The same by one matrix product of scaled features with features."""
    (rows, p), j = features.shape, len(curvature)
    scaled = curvature[:, :, None, :] * features.T[None, None]
    hessian = product(scaled.reshape(j * j * p, rows), features)
    return hessian.reshape(j, j, p, p).transpose(0, 2, 1, 3)


def _num_blocks(num_rows: int, size: int) -> int:
    """At least as many as it takes, and such that few rows are left over."""
    fewest = max(-(-num_rows // size), 1)
    return min(range(fewest, 2 * fewest), key=lambda blocks: num_rows % blocks)


def _sum_blocks(terms: Callable[[Design], Terms], design: Design, num_blocks: int) -> Terms:
    """The terms of all rows; blocks are computed again where they are differentiated."""
    if num_blocks == 1:
        return terms(design)
    size, left_over = divmod(len(design.features), num_blocks)
    cut = size * num_blocks

    def add(total: Terms, block: Design) -> tuple[Terms, None]:
        return jax.tree.map(jnp.add, total, terms(block)), None

    blocks = jax.tree.map(lambda x: x[:cut].reshape(num_blocks, size, *x.shape[1:]), design)
    types = jax.eval_shape(terms, jax.tree.map(lambda x: x[0], blocks))
    like = jax.tree.leaves(design)
    nothing = jax.tree.map(lambda t: zeros(t.shape, t.dtype, *like), types)
    total, _ = lax.scan(jax.checkpoint(add, prevent_cse=False), nothing, blocks)
    return add(total, jax.tree.map(lambda x: x[cut:], design))[0] if left_over else total
