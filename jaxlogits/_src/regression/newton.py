"""Newton's method for a smooth convex function, differentiable where it ends.

One evaluation gives gradient and Hessian together, and one step is one evaluation: a trial that
goes too far is halved in the next step, so that there is a single loop, which ``vmap`` runs for
many problems at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.elementary import log1p
from jaxlogits._src.base.varying import vary, varying_axes

Evaluate = Callable[[Any, Array], tuple[Array, Array, Array]]


class Minimum(NamedTuple):
    """Where the search ended."""

    point: Array  # [P]; NaN if the Hessian at the start is singular or anything there isn't finite
    converged: Array  # whether the last step was shorter than the tolerance
    steps: Array  # evaluations
    last: Array  # [P], the last step that was longer than ``coarse``, 0 if there was none


def minimize(
    evaluate: Evaluate,
    start: Array,
    args: Any,
    *,
    max_steps: int | Array,
    tolerance: Array | float,
    coarse: Array | float = 0.0,
    exact: Evaluate | None = None,
) -> Minimum:
    """The minimum of a convex function of a vector [P].

    ``evaluate(args, point)`` returns the value, the gradient [P] and the Hessian [P, P]; the value
    isn't used, and so not computed. All that it reads has to be in ``args``, a pytree, with respect
    to which the point is differentiated by the implicit function theorem: in both modes, to any
    order, without the steps.

    ``tolerance`` is a length in the Hessian's own metric, sqrt(d H d), of which 1 is a standard
    error if the value is a negative log-likelihood. The last step is shorter than that, and as the
    error is squared by each, it leaves one of about ``tolerance**2``. ``coarse`` is a length in the
    same metric, for ``last``. Where the Hessian is another one than that of the function, such as
    its expectation, ``exact`` has its own, for derivatives, and each step leaves a share of the
    error.
    """
    # A scan's or while loop's carry may not begin to vary over a mesh on the way.
    start = vary(start, varying_axes(*jax.tree.leaves(args)))
    goal, slow = (jnp.asarray(length, start.dtype) ** 2 for length in (tolerance, coarse))
    found = _search(evaluate, *lax.stop_gradient((start, args, goal, slow)), max_steps)
    return found._replace(point=_with_implicit_derivative(exact or evaluate, found.point, args))


class _State(NamedTuple):
    point: Array
    direction: Array  # Newton's step from there
    decrement: Array  # its squared length, minus the slope along it; NaN if there is none
    scale: Array  # the share of it that is tried next
    steps: Array
    last: Array


def _search(
    evaluate: Evaluate, start: Array, args: Any, goal: Array, coarse: Array, max_steps: int | Array
) -> Minimum:
    """Steps until their squared length is at most ``goal``."""

    def unfinished(state: _State) -> Array:
        return (state.steps < max_steps) & (state.decrement > goal)

    def step(state: _State) -> _State:
        move = state.scale * state.direction
        trial = state.point + move
        _, gradient, hessian = evaluate(args, trial)
        direction = -solve(hessian, gradient)
        # A slope that rises at most to half of what it fell by at first: then the value is lower,
        # unless the third derivative changes its sign on the way, and never by less than a quarter
        # of what the slope promised. Values themselves are blind near the minimum, by rounding. A
        # comparison with NaN is false, which shortens the step; the first trial is the start.
        is_start = state.steps == 0
        accepted = (gradient @ state.direction <= state.decrement / 2) | is_start
        last = jnp.where((state.decrement > coarse) & ~is_start, move, state.last)
        one = jnp.ones_like(state.scale)
        found = _State(trial, direction, -gradient @ direction, one, state.steps, last)
        shorter = state._replace(scale=_shorter(state))
        chosen = (jnp.where(accepted, a, b) for a, b in zip(found, shorter, strict=True))
        return _State(*chosen)._replace(steps=state.steps + 1)

    one, zero = jnp.ones_like(start, shape=[]), jnp.zeros_like(start)
    nothing = _State(start, zero, goal + one, one, jnp.zeros([], jnp.int32), zero)
    end = lax.while_loop(unfinished, step, vary(nothing, varying_axes(start)))
    converged = end.decrement <= goal
    hopeless = jnp.isnan(end.decrement) & (end.steps == 1)
    point = end.point + jnp.where(converged, end.direction, 0)
    return Minimum(jnp.where(hopeless, jnp.nan, point), converged, end.steps, end.last)


def _shorter(state: _State) -> Array:
    """Half of a step, or less if it is long.

    Where log-odds are so large that nothing but rounding is left of the curvature, a step may be
    1e20 long. If it changes them by at most R, a share log(1 + R) / R never goes too far (Sun and
    Tran-Dinh, Generalized self-concordant functions, 2019); features are of size 1.
    """
    reach = jnp.maximum(2 * jnp.sum(jnp.abs(state.direction)), 1)
    return jnp.minimum(state.scale / 2, log1p(reach) / reach)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_implicit_derivative(evaluate: Evaluate, point: Array, args: Any) -> Array:  # noqa: ARG001
    """The point that was found, which is differentiated as a function of ``args``."""
    return point


@_with_implicit_derivative.defjvp
def _implicit_jvp(
    evaluate: Evaluate, primals: tuple[Array, Any], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    # gradient(args, point(args)) = 0, and hence H dpoint = -(its tangent at a fixed point). All
    # arguments go through one jvp, which ``derivatives`` would split.
    (found, args), (_, tangent) = primals, tangents
    point = _with_implicit_derivative(evaluate, found, args)

    def gradient_and_hessian(args: Any) -> tuple[Array, Array]:
        return evaluate(args, point)[1:]

    _, moved, hessian = jax.jvp(gradient_and_hessian, (args,), (tangent,), has_aux=True)
    return point, -solve(hessian, moved)


def product(a: Array, b: Array) -> Array:
    """The matrix product, in full precision on accelerators too, where a float32 one has less."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def solve(hessian: Array, right: Array) -> Array:
    """hessian^-1 right, for right [P] or [P, M]; NaN if the Hessian is singular.

    Singular to working precision: where nothing but rounding is left of a column after those before
    it are taken out. Scaling the diagonal to 1 first makes that a question of angles, not of units.
    """
    size = hessian.shape[0]
    is_known = isinstance(size, int)
    if is_known and size == 0:
        return right
    scale = 1 / jnp.sqrt(jnp.diagonal(hessian))
    rows = scale.reshape([size] + [1] * (right.ndim - 1))
    method = _eliminate if is_known and size <= _FEW else _factorize
    solution, left_over = method(hessian * scale[:, None] * scale[None, :], rows * right)
    regular = left_over > jnp.asarray(4 * size, hessian.dtype) * jnp.finfo(hessian.dtype).eps
    # A factor, not a select: what the backward pass keeps has no NaN where all is well.
    return rows * solution * jnp.where(regular, 1.0, jnp.nan).astype(solution.dtype)


# Up to here, elimination in plain arithmetic takes half the time of LAPACK in a vmap on CPU, or
# less: 50 and 220 us against 220 and 410 for a thousand systems of 4 and 8 in float32.
_FEW = 8


def _eliminate(matrix: Array, right: Array) -> tuple[Array, Array]:
    """The solution by Gauss and Jordan, and the least that was left over of a column."""
    solution = right.reshape(len(matrix), -1)
    left_over = []
    for j, unit in enumerate(jnp.eye(len(matrix), dtype=matrix.dtype)):
        left_over.append(matrix[j, j])
        factors = ((matrix[:, j] - unit) / matrix[j, j])[:, None]
        # Apart from each other, so that the solution is linear in the right side for autodiff.
        solution -= factors * solution[j][None, :]
        matrix -= factors * matrix[j][None, :]
        # Each step reads all that the last one wrote, and would make it anew for each reader.
        solution, matrix = xla.one_array(solution), xla.one_array(matrix)
    return solution.reshape(right.shape), jnp.min(jnp.stack(left_over))


def _factorize(matrix: Array, right: Array) -> tuple[Array, Array]:
    """The same by Cholesky's factor, whose diagonal has the square roots of what was left over."""
    lower = jnp.linalg.cholesky(matrix)
    return cho_solve((lower, True), right), jnp.min(jnp.diagonal(lower) ** 2)
