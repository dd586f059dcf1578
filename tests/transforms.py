"""One function under every transform, against one exact value, gradient and Hessian.

A ``Case`` is a function of arrays, its arguments, and an oracle: the same function of numpy arrays
of ``mpf``, written for one example. The arguments share a leading dimension, over which the oracle
is mapped; options are passed as arguments too, one for each example, so that they are vmapped and
differentiated like everything else.

Differentiable arguments are joined to one vector, and results to one number by fixed weights, so
that the gradient and the Hessian are single arrays whatever the function is. Results of -inf, which
masked classes have, count nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import row_oracles as ro
from interpret import interpreted
from jax import export, lax
from jax.flatten_util import ravel_pytree

Array = jax.Array
Results = dict[str, Array]


class Case(NamedTuple):
    name: str  # the public function's
    fn: Callable[..., Array]  # of the arguments of one example
    oracle: Callable[..., Any]
    args: tuple[np.ndarray, ...]  # [N, ...], one row for each example

    @property
    def differentiable(self) -> tuple[int, ...]:
        return tuple(i for i, arg in enumerate(self.args) if arg.dtype == np.float32)

    def batch(self, *args: Array) -> Array:
        return jax.vmap(self.fn)(*args)


class Exact(NamedTuple):
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray


def exact(case: Case) -> Exact:
    """The oracle's value [N, ...], and the gradient [D] and Hessian [D, D] of its sum."""
    args = [ro.exact(arg) for arg in case.args]
    parts = [args[i] for i in case.differentiable]
    splits = np.cumsum([part.size for part in parts])[:-1]

    def number(point: Any) -> Any:
        moved = dict(zip(case.differentiable, np.split(point, splits), strict=True))
        value = ro.of_rows(
            case.oracle,
            *(np.reshape(moved.get(i, arg), np.shape(arg)) for i, arg in enumerate(args)),
        )
        counted = np.where(value == -ro.mp.inf, 0, value)
        return np.sum(counted * ro.exact(result_weights(value.shape[1:])))

    point = np.concatenate([np.ravel(part) for part in parts])
    value = ro.of_rows(case.oracle, *args)
    derivatives = ro.gradient(number, point), ro.hessian(number, point)
    return Exact(*(array.astype(float) for array in (value, *derivatives)))


def result_weights(shape: tuple[int, ...]) -> np.ndarray:
    """Weights that tell the results of one example apart."""
    return (1 + np.arange(np.prod(shape, dtype=int)) / 4).reshape(shape).astype(np.float32)


class Joined(NamedTuple):
    """A case as a function of one vector."""

    point: Array
    value: Callable[[Array], Array]
    number: Callable[[Array], Array]


def joined(case: Case) -> Joined:
    point, restore = ravel_pytree([jnp.asarray(case.args[i]) for i in case.differentiable])

    def value(point: Array) -> Array:
        args = list(map(jnp.asarray, case.args))
        for i, arg in zip(case.differentiable, restore(point), strict=True):
            args[i] = arg
        return case.batch(*args)

    def number(point: Array) -> Array:
        result = value(point)
        counted = jnp.where(result == -jnp.inf, 0.0, result)
        return jnp.sum(counted * jnp.broadcast_to(result_weights(result.shape[1:]), result.shape))

    # A transform of jit, which has what it is made of traced once.
    return Joined(point, jax.jit(value), jax.jit(number))


# The transforms, by what they should give.

Named = dict[str, Callable[[], Array]]

# An older jax differs in how these are traced; the others are made of them, and CI has no time to
# compile every function in each of them twice.
FOR_OLDER = {
    *("call", "checkpoint", "scan", "linearize", "vmap"),
    *("grad", "jacfwd", "linear_transpose", "grad of scan"),
    *("forward over reverse", "reverse over reverse"),
}
IS_OLDER = jax.version.__version_info__ < (0, 10)


def _results(named: Named) -> Results:
    return {k: result() for k, result in named.items() if not IS_OLDER or k in FOR_OLDER}


def values(f: Joined) -> Results:
    return _results(
        {
            "call": lambda: f.value(f.point),
            "checkpoint": lambda: jax.checkpoint(f.value)(f.point),
            "scan": lambda: lax.scan(lambda _, x: (None, f.value(x)), None, f.point[None])[1][0],
            "cond": lambda: lax.cond(f.point[0] > -1e3, f.value, lambda x: 0 * f.value(x), f.point),
            "while": lambda: _in_while(f),
            "jvp": lambda: jax.jvp(f.value, [f.point], [f.point])[0],
            "linearize": lambda: jax.linearize(f.value, f.point)[0],
            "vjp": lambda: jax.vjp(f.value, f.point)[0],
            "vmap": lambda: jax.vmap(f.value)(jnp.stack([f.point, f.point]))[0],
        }
    )


def _in_while(f: Joined) -> Array:
    def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return carry[0] + 1, f.value(f.point)

    start = (jnp.int32(0), jnp.zeros_like(f.value(f.point)))
    return lax.while_loop(lambda carry: carry[0] < 1, body, start)[1]


def gradients(f: Joined) -> Results:
    basis = jnp.eye(f.point.size, dtype=f.point.dtype)
    one, twice = f.point[None], jnp.stack([f.point, f.point])
    pushed = jax.linearize(f.number, f.point)[1]

    def in_scan(_: None, x: Array) -> tuple[None, Array]:
        return None, jax.grad(f.number)(x)

    def transposed() -> Array:
        return jax.linear_transpose(pushed, f.point)(jnp.ones([], f.point.dtype))[0]

    return _results(
        {
            "grad": lambda: jax.grad(f.number)(f.point),
            "value_and_grad": lambda: jax.value_and_grad(f.number)(f.point)[1],
            "jacfwd": lambda: jax.jacfwd(f.number)(f.point),
            "jacrev": lambda: jax.jacrev(f.number)(f.point),
            "jvp": lambda: jax.vmap(lambda e: jax.jvp(f.number, [f.point], [e])[1])(basis),
            "linearize": lambda: jax.vmap(pushed)(basis),
            "linear_transpose": transposed,
            "grad of checkpoint": lambda: jax.grad(jax.checkpoint(f.number))(f.point),
            "grad of scan": lambda: jax.grad(lambda x: _in_scan(f, x))(f.point),
            "jvp of scan": lambda: jax.jacfwd(lambda x: _in_scan(f, x))(f.point),
            "grad in scan": lambda: lax.scan(in_scan, None, one)[1][0],
            "vmap of grad": lambda: jax.vmap(jax.grad(f.number))(twice)[1],
        }
    )


def _in_scan(f: Joined, x: Array) -> Array:
    """The number, as the carry of a scan whose second step adds nothing."""

    def step(carry: Array, scale: Array) -> tuple[Array, None]:
        return carry + scale * f.number(x), None

    return lax.scan(step, jnp.zeros([], x.dtype), jnp.array([1, 0], x.dtype))[0]


def hessians(f: Joined) -> Results:
    return _results(
        {
            "forward over reverse": lambda: jax.hessian(f.number)(f.point),
            "reverse over reverse": lambda: jax.jacrev(jax.jacrev(f.number))(f.point),
            "reverse over forward": lambda: jax.jacrev(jax.jacfwd(f.number))(f.point),
            "forward over forward": lambda: jax.jacfwd(jax.jacfwd(f.number))(f.point),
        }
    )


def of_each_order(f: Joined, *groups: Callable[[Joined], Results]) -> list[Results]:
    """The groups' transforms, by default values, gradients and Hessians, run with numpy.

    With all three, what XLA makes of the three is among them.
    """
    made = groups or (values, gradients, hessians)
    results = interpreted(lambda x: [group(f._replace(point=x)) for group in made])(f.point)
    if not groups:
        compiled = jax.jit(lambda x: (f.value(x), jax.grad(f.number)(x), jax.hessian(f.number)(x)))
        for of_order, result in zip(results, compiled(f.point), strict=True):
            of_order["compiled"] = result
    return results


def few_of_each(f: Joined) -> tuple[Results, Results, Results]:
    """Values, gradients and Hessians for functions that take long to compile, in both modes."""

    def scanned(x: Array) -> Array:
        return lax.scan(lambda _, x: (None, jax.checkpoint(f.value)(x)), None, x[None])[1][0]

    return jax.jit(
        lambda x: (
            {"scan of checkpoint": scanned(x)},
            {"grad": jax.grad(f.number)(x)},
            {"forward over reverse": jax.hessian(f.number)(x)},
        )
    )(f.point)


def vmapped(case: Case) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """vmap over each argument alone, the others shared, and a loop that does the same."""
    one = interpreted(case.fn)
    for i, arg in enumerate(case.args):
        shared = [jnp.asarray(other[0]) for other in case.args]
        axes = [0 if j == i else None for j in range(len(shared))]
        together = interpreted(jax.vmap(case.fn, in_axes=axes))
        one_by_one = [one(*shared[:i], jnp.asarray(x), *shared[i + 1 :]) for x in arg]
        yield together(*shared[:i], jnp.asarray(arg), *shared[i + 1 :]), np.stack(one_by_one)


def exported(case: Case) -> Results:
    """The value after serialisation, with a symbolic number of examples."""
    (rows,) = export.symbolic_shape("rows")
    symbolic = [jax.ShapeDtypeStruct((rows, *arg.shape[1:]), arg.dtype) for arg in case.args]
    return {"symbolic": _reloaded(case.batch, symbolic).call(*case.args)}


def exported_gradient(f: Joined) -> Array:
    """The gradient of a function that was exported with its derivative."""
    reloaded = _reloaded(f.number, [jax.ShapeDtypeStruct(f.point.shape, f.point.dtype)])
    return jax.grad(reloaded.call)(f.point)


def _reloaded(fn: Callable[..., Array], specs: list[Any]) -> Any:
    whole = export.export(jax.jit(fn))(*specs)
    return export.deserialize(whole.serialize(vjp_order=1))
