"""Refuse bad input: shapes, dtypes and options while tracing, values only inside ``checked``.

Every message is one sentence in the caller's words: "{argument} must {rule}, got {dtype}[{shape}]".
Shapes and dtypes are asserted with chex; what leaves here is a TypeError for a wrong dtype and a
ValueError for a wrong shape, axis or option.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import chex
import jax
import jax.numpy as jnp

from jaxlogits._typing import Array, ArrayLike, Axis

P = ParamSpec("P")
T = TypeVar("T")


# Shapes, dtypes and options: raised while tracing.


def as_floating(name: str, value: ArrayLike) -> Array:
    """The value as a floating-point array."""
    array = jnp.asarray(value)
    with _refusing(TypeError, f"{name} must be floating point, got {_describe(array)}"):
        chex.assert_type(array, jnp.floating)
    return array


def as_real(name: str, value: ArrayLike) -> Array:
    """The value as an array of real numbers: floating point, integers or booleans."""
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating) or array.dtype == jnp.bool_:
        return array
    with _refusing(TypeError, f"{name} must be real numbers, got {_describe(array)}"):
        chex.assert_type(array, jnp.integer)
    return array


def as_integer(name: str, value: ArrayLike) -> Array:
    """The value as an integer array."""
    array = jnp.asarray(value)
    with _refusing(TypeError, f"{name} must be integers, got {_describe(array)}"):
        chex.assert_type(array, jnp.integer)
    return array


def as_mask(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    """The value as a boolean array that is broadcast to ``shape``."""
    array = jnp.asarray(value)
    with _refusing(TypeError, f"{name} must be boolean, got {_describe(array)}"):
        chex.assert_type(array, jnp.bool_)
    return broadcast_to(name, array, shape)


def as_option(
    name: str,
    value: ArrayLike,
    dtype: jnp.dtype,
    *,
    low: float = 0.0,
    high: float = jnp.inf,
    below: float = jnp.inf,
) -> Array:
    """A real option as a scalar of ``dtype``, in [low, high] and below ``below`` if it is known."""
    array = as_real(name, value)
    with _refusing(ValueError, f"{name} must be a scalar, got {_describe(array)}"):
        chex.assert_rank(array, 0)
    known = _known(value)
    if known is not None and not (low <= known <= high and known < below):
        raise ValueError(f"{name} must be {_range(low, high, below)}, got {known:g}")
    return array.astype(dtype)


def as_positive(
    name: str, value: ArrayLike, dtype: jnp.dtype, shape: tuple[int, ...] = ()
) -> Array:
    """A scalar, or what broadcasts to ``shape``, above 0; NaN where it is traced and isn't."""
    if is_zero(value):
        raise ValueError(f"{name} must be above 0, got 0")
    if shape and jnp.ndim(value) > 0:
        option = broadcast_to(name, as_real(name, value).astype(dtype), shape)
    else:
        option = as_option(name, value, dtype)
    check_values(f"{name} must be above 0", option, option > 0)
    return jnp.where(option > 0, option, jnp.nan)


def as_row_option(
    name: str,
    value: ArrayLike,
    dtype: jnp.dtype,
    shape: tuple[int, ...],
    *,
    low: float = 0.0,
    high: float = jnp.inf,
) -> Array:
    """A real option in [low, high], one number or one for each row as ``[..., 1]``; else NaN."""
    array = as_real(name, value)
    if array.ndim == 0:
        array = as_option(name, value, dtype, low=low, high=high)
    else:
        array = broadcast_to(name, array.astype(dtype), shape)[..., None]
    valid = (array >= low) & (array <= high)
    check_values(f"{name} must be {_range(low, high)}", array, valid)
    return jnp.where(valid, array, jnp.nan)


def is_zero(option: ArrayLike) -> bool:
    """Whether an option is switched off in Python, so that nothing of it need be in the program."""
    return isinstance(option, int | float) and option == 0


def broadcast_to(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """The array broadcast to ``shape``, for arguments whose documentation says that they are."""
    try:
        return jnp.broadcast_to(array, shape)
    except ValueError:
        message = f"{name} must broadcast to {_dims(shape)}, got {_describe(array)}"
        raise ValueError(message) from None


def require_shape(name: str, array: Array, shape: tuple[int, ...], rule: str) -> None:
    """Refuse an array of another shape; ``rule`` says where the shape comes from."""
    with _refusing(ValueError, f"{name} must have {rule} {_dims(shape)}, got {_describe(array)}"):
        chex.assert_shape(array, shape)


def require_classes(name: str, array: Array, axes: tuple[int, ...]) -> None:
    """Refuse rows without a single class."""
    if any(array.shape[axis] == 0 for axis in axes):
        raise ValueError(f"{name} must have at least one class, got {_describe(array)}")


def require_index_dtype(name: str, array: Array, num_classes: int) -> None:
    """Refuse an integer dtype that can't hold every class index."""
    if num_classes - 1 > jnp.iinfo(array.dtype).max:
        raise ValueError(
            f"{name} must have a dtype that holds {num_classes - 1}, got {_describe(array)}"
        )


def normalize_axes(array: Array, axis: Axis, name: str = "logits") -> tuple[int, ...]:
    """The axis or axes as distinct non-negative integers, in the order given."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not axes or not all(isinstance(a, int) and not isinstance(a, bool) for a in axes):
        raise TypeError(f"axis must be an int or a non-empty tuple of ints, got {axis!r}")
    if not all(-array.ndim <= a < array.ndim for a in axes):
        raise ValueError(f"axis must name dimensions of {name}, got {axis} for {_describe(array)}")
    normalized = tuple(a % array.ndim for a in axes)
    if len(set(normalized)) != len(axes):
        raise ValueError(f"axis must name each dimension once, got {axis} for {_describe(array)}")
    return normalized


@contextmanager
def _refusing(error: type[Exception], message: str) -> Iterator[None]:
    """Turn a failed chex assertion into ``error`` with the caller's words."""
    try:
        yield
    except AssertionError:
        raise error(message) from None


def _range(low: float, high: float, below: float = jnp.inf) -> str:
    rules = [f"at least {low:g}"] if low > -jnp.inf else []
    rules += [f"at most {high:g}"] if high < jnp.inf else []
    rules += [f"below {below:g}"] if below < jnp.inf else []
    return " and ".join(rules)


def _dims(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _describe(array: Array) -> str:
    return f"{array.dtype}{_dims(array.shape)}"


def _known(scalar: ArrayLike) -> float | None:
    """The value of a scalar, or None while it is traced."""
    try:
        return float(scalar)  # type: ignore[arg-type]
    except jax.errors.ConcretizationTypeError:
        return None


# Values: checked only inside ``checked``.


class _Report:
    """What the checks of one ``checked`` function have found."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.reasons: list[str] = []
        self.ran = False

    def start(self) -> None:
        self.ran = True

    def add(self, valid: Any, low: Any, high: Any, *, rule: str) -> None:
        if not valid:
            self.reasons.append(f"{rule}, got values in [{low}, {high}]")


# Part of jit's cache key, so that a function compiled before is traced anew with its checks.
_report = jax.make_user_context(None)


def checked(fn: Callable[P, T]) -> Callable[P, T]:
    """``fn`` with the value checks of this library switched on.

    Outside ``checked`` no value check is in the program and a bad value gives NaN in its row.
    Inside, every function of this library that ``fn`` calls looks at its values too: labels that
    are no class index, probabilities outside [0, 1], dense targets below 0. The checks report
    through ``jax.debug.callback``, which, unlike a checkify check, survives the gradient of a scan.

    Args:
        fn: any function, also one that was jitted and run before; jit, vmap, grad, scan and every
            other transform may be inside.

    Returns:
        A function with the arguments and results of ``fn``. It waits for its checks, so it is for
        finding errors, not for speed.

    Raises:
        ValueError: at the call, for a bad value, with the argument and the range of its values.
        TypeError: at the call, where the result was not computed but staged, as in
            ``jit(checked(fn))``: write ``checked(jit(fn))``.

    Example:
        >>> loss = jax.jit(jl.softmax_cross_entropy_with_integer_labels)
        >>> jl.checked(loss)(jnp.zeros([2, 3]), jnp.array([0, 3]))
        Traceback (most recent call last):
        ValueError: labels must be in [0, 3), got values in [0, 3]
    """
    report = _Report()

    @functools.wraps(fn)
    def checked_fn(*args: P.args, **kwargs: P.kwargs) -> T:
        report.reset()
        with _report(report):
            jax.debug.callback(report.start)
            result = fn(*args, **kwargs)
            jax.effects_barrier()
        if not report.ran:
            raise TypeError("checked(fn) must be called on values: write checked(jit(fn))")
        if report.reasons:
            raise ValueError(report.reasons[0])
        return result

    return checked_fn


def check_values(rule: str, array: Array, valid: Array) -> None:
    """Report ``rule`` with the range of ``array`` unless all of ``valid`` holds; free when off."""
    report = _report.value
    if report is None or array.size == 0:
        return
    add = functools.partial(report.add, rule=rule)
    jax.debug.callback(add, jnp.all(valid), jnp.min(array), jnp.max(array))
