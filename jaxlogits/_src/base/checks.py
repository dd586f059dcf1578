"""Refuse bad input: shapes, dtypes and options, while tracing.

Every message is one sentence in the caller's words: "{argument} must {rule}, got {dtype}[{shape}]".
Shapes and dtypes are asserted with chex; what leaves here is a TypeError for a wrong dtype and a
ValueError for a wrong shape, axis or option.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, ParamSpec, TypeGuard, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlogits._src.base.checked import check_no_nan as check_no_nan
from jaxlogits._src.base.checked import check_values as check_values
from jaxlogits._src.base.checked import check_weights as check_weights
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, widen
from jaxlogits._src.base.products import times
from jaxlogits._src.base.rules import derivatives

# What else a framework keeps an array in; traced, it isn't an array either.
_REFERENCES = (jax.core.Tracer, getattr(jax, "Ref", jax.core.Tracer))

P = ParamSpec("P")
T = TypeVar("T")


# Shapes, dtypes and options: raised while tracing.


def _is_array(value: Any) -> TypeGuard[Array]:
    """Whether it is an array of JAX's, which the tracer of a reference says it is, too."""
    return isinstance(value, jax.Array) and isinstance(jax.typeof(value), jax.core.ShapedArray)


def as_array(name: str, value: ArrayLike) -> Array:
    """The value as an array; refused if it is none."""
    if _is_array(value):
        return value
    try:
        array = jnp.asarray(value)
    except (AttributeError, TypeError, ValueError):
        array = None
    if _is_array(array):
        return array
    got = f"dtype {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
    if hasattr(value, "unbox"):
        got = f"{type(value).__name__}: write {name}.unbox()"
    elif isinstance(value, _REFERENCES):
        got = f"a reference to one: write {name}[...]"
    raise TypeError(f"{name} must be an array of numbers, got {got}")


def as_floating(name: str, value: ArrayLike) -> Array:
    """The value as a floating-point array."""
    array = as_array(name, value)
    if array.dtype == jnp.float8_e8m0fnu:  # has neither 0 nor a sign
        raise TypeError(f"{name} must have a signed dtype, got {describe(array)}")
    with _refusing(TypeError, f"{name} must be floating point, got {describe(array)}"):
        chex.assert_type(array, jnp.floating)
    return array


def as_real(name: str, value: ArrayLike) -> Array:
    """The value as an array of real numbers: floating point, integers or booleans."""
    array = as_array(name, value)
    if jnp.issubdtype(array.dtype, jnp.floating) or array.dtype == jnp.bool_:
        return array
    with _refusing(TypeError, f"{name} must be real numbers, got {describe(array)}"):
        chex.assert_type(array, jnp.integer)
    return array


def as_integer(name: str, value: ArrayLike) -> Array:
    """The value as an integer array."""
    array = as_array(name, value)
    with _refusing(TypeError, f"{name} must be integers, got {describe(array)}"):
        chex.assert_type(array, jnp.integer)
    return array


def as_boolean(name: str, value: ArrayLike) -> Array:
    """The value as a boolean array."""
    array = as_array(name, value)
    hint = f": write {name} != 0" if jnp.issubdtype(array.dtype, jnp.number) else ""
    with _refusing(TypeError, f"{name} must be boolean, got {describe(array)}{hint}"):
        chex.assert_type(array, jnp.bool_)
    return array


def as_mask(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    """The value as a boolean array that is broadcast to ``shape``."""
    return broadcast_to(name, as_boolean(name, value), shape)


class Range(NamedTuple):
    """The numbers that an option may be."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, number: Any) -> Any:
        """Whether a number, or each of an array, is inside; NaN never is."""
        inside = (number >= self.low) & (number <= self.high)
        inside = inside & (number > self.above) if self.above > -math.inf else inside
        return inside & (number < self.below) if self.below < math.inf else inside

    def require(self, name: str, number: float) -> None:
        """Refuse a number outside."""
        if not self.holds(number):
            raise ValueError(f"{name} must be {self}, got {number:g}")

    def __str__(self) -> str:
        rules = [f"at least {self.low:g}"] if self.low > -math.inf else []
        rules += [f"above {self.above:g}"] if self.above > -math.inf else []
        rules += [f"at most {self.high:g}"] if self.high < math.inf else []
        rules += [f"below {self.below:g}"] if self.below < math.inf else []
        return " and ".join(rules)


def in_range(name: str, number: Array, inside: Range) -> Array:
    """Numbers outside as NaN, in float32 or wider."""
    number = widen(number)
    valid = inside.holds(number)
    check_values(f"{name} must be {inside}", number, valid)
    return _nan_unless(valid, number)


@jax.custom_jvp
def _nan_unless(valid: Array, number: Array) -> Array:
    return jnp.where(valid, number, jnp.nan)


# A select's would be 0; of a row that doesn't count it is.
derivatives(
    _nan_unless,
    None,
    lambda dnumber, _, valid, number: times(
        jnp.where(valid, 1.0, jnp.nan).astype(number.dtype), dnumber
    ),
)


def known_number(value: Any) -> float | None:
    """The value of a scalar, or None while it is traced, or where it is none."""
    if isinstance(value, jax.core.Tracer | str | complex | np.complexfloating | None):
        return None
    try:
        return float(value) if np.ndim(value) == 0 else None
    except (TypeError, ValueError):
        return None


def as_option(name: str, value: ArrayLike, dtype: jnp.dtype) -> Array:
    """A real option as a scalar of ``dtype``; ``program`` has looked at its range."""
    array = as_real(name, value)
    with _refusing(ValueError, f"{name} must be a scalar, got {describe(array)}"):
        chex.assert_rank(array, 0)
    return array.astype(dtype)


def as_row_option(name: str, value: ArrayLike, dtype: jnp.dtype, shape: tuple[int, ...]) -> Array:
    """A real option, one number or one for each row as ``[..., 1]``; rows have ``shape``."""
    array = as_real(name, value)
    return array.astype(dtype) if array.ndim == 0 else _of_rows(name, array.astype(dtype), shape)


def as_row_count(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    """An integer option, one number or one for each row as ``[..., 1]``; rows have ``shape``."""
    array = _within_int32(as_integer(name, value))
    return array if array.ndim == 0 else _of_rows(name, array, shape)


def as_count_option(name: str, value: ArrayLike) -> Array:
    """An integer option as a scalar."""
    array = as_integer(name, value)
    return _within_int32(as_option(name, array, array.dtype))


def _within_int32(count: Array) -> Array:
    """A count in int32, where a larger one is as good as the largest."""
    return jnp.minimum(count, min(2**31 - 1, jnp.iinfo(count.dtype).max)).astype(jnp.int32)


def _of_rows(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """``[..., 1]`` from an array in the shape of the rows, or with 1 in place of a dimension."""
    fits = len(array.shape) == len(shape) and all(
        size in (1, rows) for size, rows in zip(array.shape, shape, strict=True)
    )
    if fits:
        return jnp.broadcast_to(array, shape)[..., None]
    # Not even by NumPy's rules: [N] goes along the last dimension of [M, N], whatever was meant.
    hint = "a scalar, or one for each row"
    if array.ndim == len(shape) + 1 and array.shape[-1] == 1:
        hint += f" as in {name}[..., 0]"
    elif 0 < array.ndim < len(shape) and array.shape == shape[: array.ndim]:
        hint += f" as in {name}[...{', None' * (len(shape) - array.ndim)}]"
    raise ValueError(f"{name} must broadcast to {_dims(shape)}, got {describe(array)}: {hint}")


def require_infinity(name: str, array: Array) -> None:
    """Refuse a dtype without infinities, in which no class can be removed."""
    if not np.isinf(np.asarray(np.inf, np.float32).astype(array.dtype)):
        raise TypeError(f"{name} must have a dtype with -inf, got {describe(array)}")


def is_zero(option: ArrayLike) -> bool:
    """Whether an option is switched off, so that nothing of it need be in the program."""
    return isinstance(option, int | float) and option == 0


def whole(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: the argument is a positive Python int, or refused.

    It has to be one before jit sees it, whose cache takes 2, 2.0 and True for the same.
    """

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        position = list(inspect.signature(fn).parameters).index(name)

        @functools.wraps(fn)
        def public(*args: P.args, **kwargs: P.kwargs) -> T:
            given: Any = list(args), dict(kwargs)
            where, key = (given[1], name) if name in kwargs else (given[0], position)
            if name in kwargs or len(args) > position:
                where[key] = _as_count(name, where[key])
            return fn(*given[0], **given[1])

        return public

    return decorate


def _as_count(name: str, value: Any) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return int(value)


def broadcast_to(name: str, array: Array, shape: tuple[int, ...], hint: str = "") -> Array:
    """The array broadcast to ``shape``, for arguments whose documentation says that they are."""
    try:
        return jnp.broadcast_to(array, shape)
    except ValueError:
        message = f"{name} must broadcast to {_dims(shape)}, got {describe(array)}{hint}"
        raise ValueError(message) from None


def require_shape(name: str, array: Array, shape: tuple[int, ...], rule: str) -> None:
    """Refuse an array of another shape; ``rule`` says where the shape comes from."""
    with _refusing(ValueError, f"{name} must have {rule} {_dims(shape)}, got {describe(array)}"):
        chex.assert_shape(array, shape)


def require_classes(name: str, array: Array, axes: tuple[int, ...]) -> None:
    """Refuse rows without a single class."""
    if any(array.shape[axis] == 0 for axis in axes):
        raise ValueError(f"{name} must have at least one class, got {describe(array)}")


def require_index_dtype(name: str, array: Array, num_classes: int) -> None:
    """Refuse an integer dtype that can't hold every class index, where their number is known."""
    if isinstance(num_classes, int) and num_classes - 1 > jnp.iinfo(array.dtype).max:
        raise ValueError(
            f"{name} must have a dtype that holds {num_classes - 1}, got {describe(array)}"
        )


def normalize_axes(array: Array, axis: Axis, name: str = "logits") -> tuple[int, ...]:
    """The axis or axes as distinct non-negative integers, in the order given."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not axes or not all(hasattr(a, "__index__") and not isinstance(a, bool) for a in axes):
        raise TypeError(f"axis must be an int or a non-empty tuple of ints, got {axis!r}")
    if not all(-array.ndim <= a < array.ndim for a in axes):
        raise ValueError(f"axis must name dimensions of {name}, got {axis} for {describe(array)}")
    normalized = tuple(operator.index(a) % array.ndim for a in axes)
    if len(set(normalized)) != len(axes):
        raise ValueError(f"axis must name each dimension once, got {axis} for {describe(array)}")
    return normalized


@contextmanager
def _refusing(error: type[Exception], message: str) -> Iterator[None]:
    """Turn a failed chex assertion into ``error`` with the caller's words."""
    try:
        yield
    except AssertionError:
        raise error(message) from None


def _dims(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def describe(array: Any) -> str:
    """An array or a type, for a message."""
    return f"{array.dtype}{_dims(array.shape)}"
