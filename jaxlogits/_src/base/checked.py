"""Look at values: the checks that ``checked`` switches on, and that nothing has otherwise.

A check is a ``jax.debug.callback``, which alone among JAX's effects survives every transform. It
brings the place of the first bad value to the host, where the call that is running collects it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.varying import varying_axes

P = ParamSpec("P")
T = TypeVar("T")


def checked(fn: Callable[P, T]) -> Callable[P, T]:
    """``fn`` with the value checks of this library turned on, for debugging.

    It reports NaN logits, several +inf or only -inf in a row, labels that are no class or a masked
    one, probabilities outside [0, 1], negative weights and traced options out of range. Nothing
    that is masked or not computed is checked; docs/my-loss-is-nan.md says what counts under vmap.

    Args:
        fn: any function; jit, vmap, grad, scan, shard_map and other transforms go inside.

    Returns:
        A function with the arguments and results of ``fn``, which waits for its checks.

    Raises:
        ValueError: for a bad value, with the function, the argument, the rule and the first bad
            row, as the function sees it: within a device's part or a block.
        TypeError: inside a transform, such as ``jit(checked(fn))``: write ``checked(jit(fn))``.

    Example:
        >>> loss = jax.jit(jl.softmax_cross_entropy_with_integer_labels)
        >>> jl.checked(loss)(jnp.zeros([2, 3]), jnp.array([0, 3]))
        Traceback (most recent call last):
        ValueError: softmax_cross_entropy_with_integer_labels: labels must be in [0, 3), got 3
            in row 1
    """

    @wraps(fn)
    def checked_fn(*args: P.args, **kwargs: P.kwargs) -> T:
        if isinstance(jnp.zeros([]), jax.core.Tracer):
            raise TypeError("checked(fn) must be called on values: write checked(jit(fn))")
        with _own_findings() as (slot, findings):
            try:
                with _switch(_State(slot)):
                    result = fn(*args, **kwargs)
            except Exception as error:
                jax.effects_barrier()
                # jax_debug_nans raises one of these where there is NaN.
                if counting := _counting(findings, isinstance(error, FloatingPointError)):
                    raise ValueError(_first(counting)) from error
                raise
            jax.effects_barrier()
            if findings and (counting := _counting(findings, _may_be_nan(result))):
                raise ValueError(_first(counting))
            return result

    return checked_fn


def is_on() -> bool:
    """Whether values are looked at here, for what only a check needs."""
    return _switch.value is not None


def calling(function: str) -> AbstractContextManager[None]:
    """Where a public function runs: what is found there is told of the outermost one."""
    state = _switch.value
    if state is None:
        return _NOTHING
    is_inner = state.function is not None
    called = _State(state.slot, state.function or function, is_inner)
    context: AbstractContextManager[None] = _switch(called)
    return context


def check_values(
    rule: str, array: Array, valid: Array, place: str = "in row", of_rows: int = 0
) -> Array:
    """Report ``rule`` and the first entry of ``array`` that isn't ``valid``; nothing when off.

    Args:
        rule: "{argument} must {rule}".
        array: the values.
        valid: a boolean for each of them.
        place: how a message says where a value is.
        of_rows: how many of the last dimensions are of one row, whose place isn't told.

    Returns:
        The array. Inside ``checked``, where a bad value must not come to nothing, with NaN or an
        integer out of every range for each of them.
    """
    state = _switch.value
    if state is None or array.size == 0:
        return array
    check = _Check(next(_numbers), state, rule, place, of_rows, False)
    axes = {name: lax.axis_index(name) for name in sorted(varying_axes(array, valid))}
    _look(check, lax.stop_gradient(array), valid, axes)
    return jnp.where(valid, array, jnp.asarray(_worst(array.dtype), array.dtype))


def check_no_nan(name: str, array: Array, place: str = "at", of_rows: int = 0) -> None:
    """Report NaN in an argument; nothing, not even the comparison, when off."""
    if is_on():
        check_values(f"{name} must not be NaN", array, ~jnp.isnan(array), place, of_rows)


def check_weights(name: str, array: Array) -> None:
    """Report numbers that rows can't weigh."""
    check_values(f"{name} must be at least 0", array, array >= 0)
    check_values(f"{name} must be finite", array, array != jnp.inf)


# Where checks find the call that they belong to.


class _State(NamedTuple):
    """What is part of jit's cache key, so that a program has its checks, and those of its call.

    A call has a slot of its own while it runs. As the next one takes the same, it runs the same
    programs; calls in other threads have other slots at the same time, and programs of their own.
    """

    slot: int
    function: str | None = None  # the public function that was called
    is_inner: bool = False  # whether it has called another one


class _Check(NamedTuple):
    """What is known of a check before it runs."""

    number: int  # in the order of tracing
    state: _State
    rule: str
    place: str
    of_rows: int
    batched: bool


class _Finding(NamedTuple):
    """A bad value."""

    check: _Check
    device: tuple[int, ...]
    message: str


_NOTHING = nullcontext()
_switch = jax.make_user_context(None)
_numbers = itertools.count()
_lock = threading.Lock()
_findings: dict[int, list[_Finding]] = {}


@contextmanager
def _own_findings() -> Iterator[tuple[int, list[_Finding]]]:
    """The lowest slot that is free, and what checks find for it."""
    findings: list[_Finding] = []
    with _lock:
        slot = next(slot for slot in itertools.count() if slot not in _findings)
        _findings[slot] = findings
    try:
        yield slot, findings
    finally:
        del _findings[slot]


def _counting(findings: list[_Finding], may_be_nan: bool) -> list[_Finding]:
    """Those that can't be of a branch that wasn't taken."""
    return [finding for finding in findings if may_be_nan or not finding.check.batched]


def _first(findings: list[_Finding]) -> str:
    """What to tell of bad values, which may have made others: what comes first in a function.

    Programs say what they find in no particular order.
    """
    outer = [f for f in findings if not f.check.state.is_inner] or findings
    of_one = [f for f in outer if f.check.state == outer[0].check.state]
    return min(of_one, key=lambda finding: (finding.check.number, finding.device)).message


def _may_be_nan(result: Any) -> bool:
    """Whether there is NaN in a result, as far as that can be known."""
    leaves = [x for x in jax.tree.leaves(result) if isinstance(x, jax.Array | np.ndarray | float)]
    numbers = [x for x in leaves if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    try:
        return not numbers or any(bool(jnp.any(jnp.isnan(x))) for x in numbers)
    except jax.errors.ConcretizationTypeError:  # under a vmap around all of it
        return True


# A check in a program.


def _look(check: _Check, array: Array, valid: Array, axes: dict[str, Array]) -> None:
    """Bring the first bad value to the host; under vmap the first of all that are batched."""

    @custom_vmap
    def look(array: Array, valid: Array, axes: dict[str, Array]) -> tuple[()]:
        # Without a reshape or an index, which arrays that are split over a mesh may not have.
        place, size = jnp.zeros_like(valid, jnp.int32), 1
        for axis in reversed(range(valid.ndim)):
            place += lax.broadcasted_iota(jnp.int32, valid.shape, axis) * size
            size *= valid.shape[axis]
        first = jnp.min(jnp.where(valid, size, place))
        # A sum, as the maximum of several devices isn't NaN for all of them.
        value = jnp.sum(jnp.where(place == first, array, jnp.zeros_like(array)))
        jax.debug.callback(partial(_add, check, valid.shape), first, value, axes)
        return ()

    @look.def_vmap
    def _(size: int, batched: Any, *args: Any) -> tuple[tuple[()], tuple[()]]:
        array, valid = (
            x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_batched in zip(args[:2], batched[:2], strict=True)
        )
        _look(check._replace(batched=True), array, valid, args[2])
        return (), ()

    look(array, valid, axes)


def _add(
    check: _Check, shape: tuple[int, ...], first: Any, value: Any, axes: dict[str, Any]
) -> None:
    """Add what a check has found, on the host, to what its call knows."""
    findings = _findings.get(check.state.slot)
    if findings is None or int(first) == np.prod(shape, dtype=int):
        return
    place = tuple(map(int, np.unravel_index(int(first), shape)))
    place = place[: len(place) - check.of_rows]
    function = f"{check.state.function}: " if check.state.function else ""
    said = f"{function}{check.rule}, got {np.asarray(value)[()]}"
    if place:
        is_row = len(place) == 1 and check.place == "at"
        said += f" {'in row' if is_row else check.place} {place[0] if len(place) == 1 else place}"
    if axes:
        said += " on device " + ", ".join(f"{name}={int(axes[name])}" for name in axes)
    device = tuple(int(index) for index in axes.values())
    findings.append(_Finding(check, device, said))


def _worst(dtype: Any) -> Any:
    """What no function takes for a value."""
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.nan
    info = jnp.iinfo(dtype)
    return -1 if info.min < 0 else info.max
