"""The kernel of the binary focal loss.

Let N be the cross entropy, N' and N'' its derivatives in x, and u = 1 - p_t the probability that
isn't given to the label. The loss and all of its derivatives are sums of terms
N**i N'**j N''**k log(u)**l u**e. Where u is small, so are N, N' and N'', and their ratios to u
are known: no order divides by a number that may have underflowed.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.elementary import exp, log, log1p
from jaxlogits._src.base.products import product, spread, times, weigh
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.log_odds import sigmoid, softplus
from jaxlogits._src.losses.bernoulli import binary_nll, nll_by_label


@jax.custom_jvp
def balanced(loss: Array, y: Array, alpha: Array) -> Array:
    """The loss times alpha y + (1 - alpha) (1 - y); what weighs 0 may be infinite."""
    return product(_balance(y, alpha), loss)


def _balance(y: Array, alpha: Array) -> Array:
    return alpha * y + (1.0 - alpha) * (1.0 - y)


derivatives(
    balanced,
    lambda dloss, _, __, y, alpha: times(_balance(y, alpha), dloss),
    lambda dy, _, loss, __, alpha: times(weigh(2.0 * alpha - 1.0, loss), dy),
    lambda dalpha, _, loss, y, __: times(weigh(2.0 * y - 1.0, loss), dalpha),
)


class _Powers(NamedTuple):
    """How often a factor is in a term."""

    nll: int = 0  # of N, N' and N''
    slope: int = 0
    curve: int = 0
    log: int = 0  # of u
    all: int = 0  # of u beyond gamma, N, N' and N'' together

    @property
    def of_u(self) -> int:
        return self.all - self.nll - self.slope - self.curve


@checkpointed
def binary_focal(x: Array, y: Array, gamma: Array) -> Array:
    """Cross entropy times u**gamma."""
    return _term(x, y, gamma, _Powers(nll=1, all=1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _term(x: Array, y: Array, gamma: Array, n: _Powers) -> Array:
    """N**n.nll N'**n.slope N''**n.curve log(u)**n.log u**(gamma + n.of_u)."""
    p, q = sigmoid(x), sigmoid(-x)
    u = y * q + (1.0 - y) * p
    log_u = _log_missed(x, y, u)
    total = gamma + min(n.all, 0)
    # Where u underflows, its logarithm doesn't.
    small = jnp.where(total == 0, 1.0, exp(total * log_u))
    power = jnp.where(u == 0, small, jnp.power(u, total))
    nll, slope, curve = binary_nll(x, y, None, None), (1.0 - y) * p - y * q, p * q
    soft, safe = (y > 0) & (y < 1), jnp.where(u == 0, 1.0, u)
    relative = (
        jnp.where(u == 0, 1.0, nll / safe),
        jnp.where(soft, slope / safe, 1.0 - 2.0 * y),
        jnp.where(soft, curve / safe, (1.0 - y) * q + y * p),
    )
    factors = [
        number if position < n.all else ratio
        for position, (number, ratio) in enumerate(
            [(nll, relative[0])] * n.nll
            + [(slope, relative[1])] * n.slope
            + [(curve, relative[2])] * n.curve
        )
    ]
    return product(power, *factors, *[log_u] * n.log)


def _log_missed(x: Array, y: Array, u: Array) -> Array:
    """log(u), to its last digits where u is close to 0 or to 1."""
    hard = -softplus(jnp.where(y == 1, x, -x))
    given = y * sigmoid(x) + (1.0 - y) * sigmoid(-x)
    soft = jnp.where(u < 0.5, log(u), log1p(-given))
    return jnp.where((y == 0) | (y == 1), hard, soft)


def _term_by_logit(dx: Array, value: Array, x: Array, y: Array, gamma: Array, n: _Powers) -> Array:
    more = n._replace(curve=n.curve + 1)
    sign = 1.0 - 2.0 * y  # u' is sign * N''
    slopes = [weigh(sign, weigh(gamma + n.of_u, _term(x, y, gamma, more)))]
    if n.log:
        slopes.append(weigh(n.log * sign, _term(x, y, gamma, more._replace(log=n.log - 1))))
    if n.nll:
        slopes.append(_term(x, y, gamma, n._replace(nll=0, slope=1)))
    if n.slope:
        slopes.append(_term(x, y, gamma, more._replace(slope=0)))
    if n.curve:
        slopes.append(weigh(n.curve * (sigmoid(-x) - sigmoid(x)), value))
    return spread(dx, *slopes)


def _term_by_label(dy: Array, _: Array, x: Array, y: Array, gamma: Array, n: _Powers) -> Array:
    less = n._replace(all=n.all - 1)
    rise = sigmoid(-x) - sigmoid(x)  # of u
    slopes = [weigh(rise, weigh(gamma + n.of_u, _term(x, y, gamma, less)))]
    if n.log:
        slopes.append(weigh(n.log * rise, _term(x, y, gamma, less._replace(log=n.log - 1))))
    if n.nll:
        slopes.append(
            weigh(_term(x, y, gamma, less._replace(nll=0)), nll_by_label(x, y, None, None))
        )
    if n.slope:
        slopes.append(-_term(x, y, gamma, less._replace(slope=0)))
    return spread(dy, *slopes)


def _term_by_gamma(dgamma: Array, _: Array, x: Array, y: Array, gamma: Array, n: _Powers) -> Array:
    return times(_term(x, y, gamma, n._replace(log=n.log + 1)), dgamma)


derivatives(_term, _term_by_logit, _term_by_label, _term_by_gamma)
