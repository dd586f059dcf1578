"""Speculative decoding: drafts of a small model, accepted or replaced as the target model requires.

A draft x from q is accepted with probability min(1, p(x) / q(x)). If it isn't, a class is drawn
from what p has more than q, max(p - q, 0), which makes up exactly what is missing. Both come from
one array, log q - log p, whose digits don't cancel where the two models agree.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, AxisName, wide_dtype, widen
from jaxlogits._src.base.elementary import exp, expm1, log, log1p
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.decoding.gumbel import as_key, cooled_rows, draw
from jaxlogits._src.log_odds import log1mexp
from jaxlogits._src.mesh.explicit import with_whole_arrays
from jaxlogits._src.mesh.reductions import class_indices, num_classes, row_any, row_sum
from jaxlogits._src.rows.rows import rows_of
from jaxlogits._src.rows.softmax import first_max, log_softmax_rows


@program("axis_name", temperature=Option(Range(0)))
@with_whole_arrays
def speculative_sample(
    key: ArrayLike,
    draft_classes: ArrayLike,
    draft_logits: ArrayLike,
    target_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    axis_name: AxisName = None,
) -> tuple[Array, Array]:
    """Speculative decoding: draw classes from the target model with the help of a draft model.

    Draft x is accepted with probability min(1, p(x) / q(x)). The first that isn't is replaced by a
    class from max(p - q, 0); if all are accepted, one from the target's last row is added.

    Args:
        key: from ``jax.random``, not the one that the drafts were drawn with.
        draft_classes: x, integers ``[S]`` from softmax(draft_logits / temperature). For -1 (no
            draft), or if q(x) = 0, a class is drawn from p.
        draft_logits: ``[S, K]``, for q, after all shaping, as the drafts were drawn from them. For
            drafts without a model, such as an n-gram's, 0 at the class and -inf elsewhere.
        target_logits: ``[S + 1, K]``, for p, after the target's shaping; one row per position.
        temperature: T, at least 0, for both. 0 is greedy.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.

    Returns:
        int32 classes ``[S + 1]`` (the accepted drafts, one more class, then -1) and the number of
        accepted drafts. The last class is -1 if its row has no class, NaN or several +inf.
    Accuracy: probabilities to a relative 1e-5, also where p and q differ by 1e-6.
    Reference: Leviathan et al., Fast Inference via Speculative Decoding (2023), algorithm 1.

    Example:
        >>> p, q = jnp.zeros([3, 4]), jnp.zeros([2, 4])
        >>> jl.speculative_sample(jax.random.key(0), jnp.array([3, 1]), q, p)[1]
        Array(2, dtype=int32)
    """
    drafts, q, p = _checked(draft_classes, draft_logits, target_logits, axis_name)
    scale = checks.as_option("temperature", temperature, p.dtype)
    to_accept, to_draw = jax.random.split(as_key(key))
    models = _compare(p, q, scale, axis_name)
    accepted, is_draft = _accept(to_accept, drafts, models, scale == 0, axis_name)
    count = jnp.sum(jnp.cumprod(accepted.astype(jnp.int32)))
    # By rounding there may be nothing that q has less of.
    is_full = ~row_any(~(models.missing == -jnp.inf), axis_name)
    rest = jnp.where(is_draft[:, None] & ~is_full, models.missing, models.log_p[:-1])
    more = draw(to_draw, jnp.concatenate([rest, models.log_p[-1:]])[count], axis_name)
    places = jnp.arange(drafts.shape[0] + 1)
    padded = jnp.concatenate([drafts.astype(jnp.int32), jnp.full([1], -1, jnp.int32)])
    return jnp.where(places < count, padded, jnp.where(places == count, more, -1)), count


class _Models(NamedTuple):
    """What the two say of each place and class."""

    log_p: Array  # [S + 1, K]
    log_ratio: Array  # [S, K], log q - log p
    missing: Array  # [S, K], the logarithm of max(p - q, 0)


def _checked(
    draft_classes: ArrayLike, draft_logits: ArrayLike, target_logits: ArrayLike, axis_name: AxisName
) -> tuple[Array, Array, Array]:
    """The arrays, the logits of both in one wide dtype and those of no draft as zeros."""
    drafts = checks.as_integer("draft_classes", draft_classes)
    if drafts.ndim != 1:
        rule = f"be those of one request, [S], got {checks.describe(drafts)}"
        raise ValueError(f"draft_classes must {rule}: use jax.vmap for several")
    p = checks.as_floating("target_logits", target_logits)
    q = checks.as_floating("draft_logits", draft_logits)
    steps = drafts.shape[0]
    if p.ndim != 2 or p.shape[0] != steps + 1:
        rule = f"have one row per draft and one more, [{steps + 1},K]"
        raise ValueError(f"target_logits must {rule}, got {checks.describe(p)}")
    checks.require_shape("draft_logits", q, (steps, p.shape[1]), "one row per draft,")
    checks.require_classes("target_logits", p, (1,))
    count = num_classes(p.shape, axis_name)
    checks.require_index_dtype("draft_classes", drafts, count)
    is_some = (drafts >= 0) & (drafts <= count - 1)
    rule = f"draft_classes must be in [-1, {count})"
    checks.check_values(rule, drafts, is_some | (drafts == -1))
    dtype = wide_dtype(p, q)
    p, q = (lax.stop_gradient(widen(z, dtype)) for z in (p, q))
    return drafts, jnp.where(is_some[:, None], q, 0.0), p


def _compare(p: Array, q: Array, scale: Array, axis_name: AxisName) -> _Models:
    """What two models say, from their logits; at a temperature of 0 of the target alone."""
    rows_p = rows_of(p, -1, None, axis_name, name="target_logits")
    rows_q = rows_of(q, -1, None, axis_name, name="draft_logits")
    log_p = log_softmax_rows(cooled_rows(rows_p, scale), axis_name)
    log_q = log_softmax_rows(cooled_rows(rows_q, scale), axis_name)
    ratio = _log_ratio(_Pair(p[:-1], q, log_p[:-1], log_q), scale, axis_name)
    is_less = ratio < 0
    left = log_p[:-1] + log1mexp(jnp.where(is_less, -ratio, 1.0))
    missing = jnp.where(is_less, left, jnp.where(jnp.isnan(ratio), ratio, -jnp.inf))
    return _Models(log_p, ratio, missing)


class _Pair(NamedTuple):
    """Logits and log probabilities of both models, ``[S, K]``."""

    z_p: Array
    z_q: Array
    log_p: Array
    log_q: Array


def _log_ratio(of: _Pair, scale: Array, axis_name: AxisName) -> Array:
    """log q - log p: -inf where q is 0, else +inf where p is.

    The plain difference has the rounding errors of its terms. Where the two are close, the
    difference d of the logits has all of its digits, and log q - log p is
    d - log(1 + sum_k p_k (exp(d_k) - 1)), with d less that of the likeliest class.
    """
    zero_p, zero_q = of.log_p == -jnp.inf, of.log_q == -jnp.inf
    likeliest = first_max(jnp.where(zero_q, -jnp.inf, of.log_p), axis_name)
    d = jnp.where(zero_p | zero_q | (of.z_p == of.z_q), 0.0, of.z_q - of.z_p)
    d = (d - row_sum(jnp.where(likeliest, d, 0.0), axis_name)) / jnp.where(scale == 0, 1.0, scale)
    is_close = (jnp.abs(d) < 0.5) & ~zero_p & ~zero_q
    # p exp(d) of the others is q up to one factor, that of the likeliest class.
    factor = row_sum(jnp.where(likeliest, of.log_p - of.log_q, 0.0), axis_name)
    p = exp(of.log_p)
    others = exp(of.log_q + factor) - p
    excess = row_sum(jnp.where(is_close, p * expm1(jnp.where(is_close, d, 0.0)), others), axis_name)
    plain = of.log_q - jnp.where(zero_p, 0.0, of.log_p)
    is_near = is_close & (jnp.abs(excess) < 0.5)
    ratio = jnp.where(is_near, d - log1p(jnp.where(is_near, excess, 0.0)), plain)
    return jnp.where(zero_p & ~zero_q, jnp.inf, ratio)


def _accept(
    key: Array, drafts: Array, models: _Models, is_greedy: Array, axis_name: AxisName
) -> tuple[Array, Array]:
    """Which drafts are accepted ``[S]``, and which can be drafts of q at all."""
    hit = class_indices(models.log_ratio.shape, drafts.dtype, axis_name) == drafts[:, None]
    is_class = row_any(hit, axis_name)[:, 0]
    ratio = row_sum(jnp.where(hit, models.log_ratio, 0.0), axis_name)[:, 0]
    log_p = row_sum(jnp.where(hit, models.log_p[:-1], 0.0), axis_name)[:, 0]
    is_draft = is_class & (ratio != -jnp.inf) & ~is_greedy
    # u < p / q of a uniform number u. Its -log(-log u), Gumbel noise, has digits at both ends.
    noise = jax.random.gumbel(key, ratio.shape, ratio.dtype, mode="high")
    is_more = ratio > 0
    accepted = (ratio <= 0) | (is_more & (noise < -log(jnp.where(is_more, ratio, 1.0))))
    greedy = is_class & (log_p == 0.0)
    return jnp.where(is_greedy, greedy, accepted & is_draft), is_draft
