"""Probabilities of classes that stand first, [K, C].

A regression has a few classes and many rows: along rows, a processor computes many at once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.elementary import exp, log1p


class Shares(NamedTuple):
    """Of each class, [K, C]."""

    losses: Array  # -log p
    probs: Array  # p
    rest: Array  # 1 - p, with all its digits


def shares(z: Array) -> Shares:
    """What softmax gives to log-odds [K, C].

    Relative to the likeliest class, m. Where that is likelier than all others together, 1 - p is
    their sum, from which nothing of it has been added and subtracted.
    """
    gaps = z - lax.stop_gradient(jnp.max(z, axis=0))[None]
    odds = exp(gaps)
    is_below = gaps < 0
    others = jnp.sum(jnp.where(is_below, odds, 0), axis=0)
    top = jnp.sum(jnp.where(is_below, 0, odds), axis=0)  # 1, or more where some are as likely
    total = top + others
    rest = jnp.where(2 * odds > total[None], others[None], total[None] - odds)
    inverse = (1 / total)[None]
    losses = log1p(top - 1 + others)[None] - gaps
    return Shares(losses, odds * inverse, rest * inverse)
