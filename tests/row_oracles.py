"""What rows of classes and yes/no losses are, in 150 digits: the formulas as textbooks write them.

Arguments are numpy arrays of ``mpf`` (see ``exact``), one row ``[K]`` for the functions of classes
and one number for the binary losses; nothing here knows how the library computes anything. The
losses down to 1e-87 that the tests look at leave 60 digits after every cancellation. Arrays stand
before numbers: an ``mpf`` prints an array to its right, before it leaves the operation to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import mpmath
import numpy as np

mp = mpmath.MPContext()
mp.dps = 150
exp = np.frompyfunc(mp.exp, 1, 1)
log = np.frompyfunc(mp.log, 1, 1)

Oracle = Callable[..., Any]


def exact(array: Any) -> Any:
    """The numbers of a floating-point array, unrounded; other arrays as numpy has them."""
    array = np.asarray(array)
    if array.dtype == object or array.dtype.kind in "biu":
        return array[()]
    return np.frompyfunc(mp.mpf, 1, 1)(array.astype(np.float64))


# Rows [K]; ``where`` cuts the classes that don't count.


def logsumexp(z: Any, where: Any = True) -> Any:
    return log(np.sum(exp(z[_kept(z, where)])))


def log_softmax(z: Any, where: Any = True) -> Any:
    return _filled(z - logsumexp(z, where), where, -mp.inf)


def softmax(z: Any, where: Any = True) -> Any:
    return _filled(exp(z - logsumexp(z, where)), where, mp.zero)


def class_log_odds(z: Any, where: Any = True) -> Any:
    """log p_i / (1 - p_i), where p_i / (1 - p_i) is exp(z_i) over the others' sum."""
    e = exp(z)
    return _filled(z - log(-(e - np.sum(e[_kept(z, where)]))), where, -mp.inf)


def cross_entropy(
    z: Any,
    targets: Any,
    where: Any = True,
    label_smoothing: Any = 0,
    class_weights: Any = 1,
    z_loss: Any = 0,
) -> Any:
    """-sum_k w_k t_k log p_k + z_loss * lse**2, over the classes that ``where`` leaves."""
    kept = _kept(z, where)
    weights = np.broadcast_to(class_weights, z.shape)[kept]
    smooth = targets[kept] * (1 - label_smoothing) + label_smoothing / mp.mpf(int(kept.sum()))
    lse = logsumexp(z, where)
    return z_loss * lse**2 - np.sum(weights * smooth * (z[kept] - lse))


def integer_cross_entropy(z: Any, label: int, *args: Any, **options: Any) -> Any:
    return cross_entropy(z, one_hot(label, z.size), *args, **options)


def focal(z: Any, label: int, where: Any = True, gamma: Any = 2) -> Any:
    p = softmax(z, where)[label]
    return -((1 - p) ** gamma) * log(p)


def poly(z: Any, targets: Any, where: Any = True, epsilon: Any = 2) -> Any:
    missed = np.sum((targets * (1 - softmax(z, where)))[_kept(z, where)])
    return cross_entropy(z, targets, where) + epsilon * missed


def one_hot(label: int, num_classes: int) -> Any:
    return np.array([mp.one if k == label else mp.zero for k in range(num_classes)], dtype=object)


def _kept(z: Any, where: Any) -> Any:
    return np.broadcast_to(where, z.shape)


def _filled(row: Any, where: Any, fill: Any) -> Any:
    return np.where(_kept(row, where), row, fill)


# One yes or no.


def sigmoid(x: Any) -> Any:
    return 1 / (1 + exp(-x))


def binary_cross_entropy(x: Any, y: Any, pos_weight: Any = 1, label_smoothing: Any = 0) -> Any:
    y = (1 - label_smoothing) * y + label_smoothing / mp.mpf(2)
    return -pos_weight * y * log(sigmoid(x)) - (1 - y) * log(sigmoid(-x))


def binary_focal(x: Any, y: Any, gamma: Any = 2, alpha: Any = None) -> Any:
    p, q = sigmoid(x), sigmoid(-x)
    weight = 1 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
    return weight * (y * q + (1 - y) * p) ** gamma * -(y * log(p) + (1 - y) * log(q))


# Batches and derivatives.


def of_rows(oracle: Oracle, *args: Any, **options: Any) -> Any:
    """The oracle of each row: ``args`` share a leading dimension, ``options`` go to all rows."""
    rows = zip(*map(exact, args), strict=True)
    options = {name: exact(option) for name, option in options.items()}
    return np.array([oracle(*row, **options) for row in rows], dtype=object)


def derivative(fn: Oracle, point: Any, orders: Sequence[int]) -> Any:
    """One partial derivative of a function of a vector; mpmath raises its precision for it."""
    point = exact(point)
    return mp.diff(lambda *x: fn(np.array(x, dtype=object)), tuple(point), tuple(orders))


def gradient(fn: Oracle, point: Any) -> Any:
    """[D] partial derivatives of a number."""
    unit = np.eye(len(point), dtype=int).tolist()
    return np.array([derivative(fn, point, orders) for orders in unit], dtype=object)


def hessian(fn: Oracle, point: Any) -> Any:
    """[D, D] second derivatives of a number."""
    unit = np.eye(len(point), dtype=int)
    result = np.empty((len(point), len(point)), dtype=object)
    for i in range(len(point)):
        for j in range(i + 1):
            result[i, j] = derivative(fn, point, (unit[i] + unit[j]).tolist())
            result[j, i] = result[i, j]
    return result


def along(fn: Oracle, point: Any, direction: Any, order: int) -> Any:
    """The ``order``-th derivative of each result of ``fn`` along a direction."""
    point, direction = exact(point), exact(direction)
    size = np.size(fn(point))

    def component(t: Any, k: int) -> Any:
        return np.reshape(fn(point + t * direction), -1)[k]

    results = [mp.diff(lambda t, k=k: component(t, k), 0, order) for k in range(size)]
    return np.array(results, dtype=object)


# How far a result is from the exact one.


def ulps(got: Any, want: Any, floor: float = 0.0) -> float:
    """The largest error in units of the last place of the exact result, or of ``floor`` if larger.

    Subnormal numbers may be flushed to 0: a result below the smallest normal number is free.
    """
    info = jnp.finfo(got.dtype)
    got, want = np.ravel(np.asarray(got)), np.ravel(want)
    pairs = zip(got.tolist(), want, strict=True)
    return max((_ulps(one, exact_one, floor, info) for one, exact_one in pairs), default=0.0)


def _ulps(got: float, want: Any, floor: float, info: Any) -> float:
    if not (np.isfinite(got) and mp.isfinite(want)):
        return 0.0 if np.array_equal(got, float(want), equal_nan=True) else np.inf
    tiny = float(info.tiny)
    if max(abs(got), abs(want)) <= tiny:
        return 0.0
    spacing = mp.ldexp(float(info.eps), mp.mag(max(abs(want), floor, tiny)) - 1)
    return float(abs(got - want) / spacing)


# Rows that the tests share. All are multiples of 1/64 below 128, so that every gap between them is
# exact in float32 and errors are those of the functions alone.

# exp(-84) leaves a factor of 28 above the smallest normal float32, which derivatives use up.
GAPS = [0, 1, 15, 17, 20, 40, 84]
# One class ahead, first or later; two ahead; two nearly tied behind.
GAP_ROWS = np.array(
    [row for g in GAPS for row in ([g, 0, 0], [0, g, 0], [g, g, 0], [0, -g, 0.25 - g])], np.float32
)


def random_rows(num_rows: int, num_classes: int, spread: float = 10.0) -> Any:
    """Normal logits, rounded to multiples of 1/64."""
    rng = np.random.default_rng([num_rows, num_classes])
    rows = rng.normal(scale=spread, size=[num_rows, num_classes])
    return (np.round(rows * 64) / 64).astype(np.float32)


ROWS = {
    "gaps": GAP_ROWS,
    **{
        f"{k} classes": random_rows(n, k)
        for n, k in [(2, 1), (20, 2), (20, 10), (8, 64), (2, 1000)]
    },
}
