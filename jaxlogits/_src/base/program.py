"""Eager is jit: a public function is one program, compiled once for its shapes.

Called eagerly it runs that program; where the caller traces, the program is part of the caller's.
Its options are of two kinds. What decides about shapes or axes is static. A number is an input of
the program, whatever its value, unless it is one that switches something off: that kind is static,
too, so that nothing of it is in the program. Python, NumPy and JAX numbers are alike: what counts
is whether a number is known at the call, and then a bad one is refused there.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np

from jaxlogits._src.base import checks
from jaxlogits._src.base.checked import calling
from jaxlogits._src.base.checks import Range

P = ParamSpec("P")
T = TypeVar("T")


class Option(NamedTuple):
    """A number among a function's arguments."""

    range: Range
    off: tuple[float, ...] = ()  # the values that the program is made for
    integer: bool = False


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Known:
    """A number that is part of the program: a pytree without leaves."""

    value: float


def program(*static: str, **options: Option) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: one compiled program for each shape and each value of the ``static`` arguments.

    ``options`` has the numbers among the arguments, with their ranges: one that is known at the
    call raises ValueError outside, and one that isn't is NaN there, which the function makes of it
    what the numbers of a row are then. An ``integer`` one is left as it is.
    """

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(fn)
        positions = {name: i for i, name in enumerate(signature.parameters) if name in options}
        fixed = {name: i for i, name in enumerate(signature.parameters) if name in static}
        first_option = min(positions.values(), default=len(signature.parameters))

        @functools.wraps(fn)
        def traced(*args: Any, **kwargs: Any) -> T:
            given = [_unwrapped(x) for x in args], {k: _unwrapped(v) for k, v in kwargs.items()}
            for name, option in options.items():
                _in_range(name, option, *_place(name, positions[name], *given))
            return fn(*given[0], **given[1])

        run = jax.jit(traced, static_argnames=static, inline=True)

        @functools.wraps(fn)
        def public(*args: P.args, **kwargs: P.kwargs) -> T:
            if len(args) > first_option or not kwargs.keys().isdisjoint(options):
                given: Any = list(args), dict(kwargs)
                for name, option in options.items():
                    _settle(name, option, *_place(name, positions[name], *given))
                args, kwargs = given
            if any(type(x) is np.ndarray for x in (*args, *kwargs.values())):
                args = tuple(map(_within_int32, args))  # type: ignore[assignment]
                kwargs = {k: _within_int32(v) for k, v in kwargs.items()}  # type: ignore[assignment]
            try:
                with calling(fn.__name__):
                    result: T = run(*args, **kwargs)
                return result
            except (TypeError, ValueError, OverflowError) as error:
                if any(_read(x) is not x for x in (*args, *kwargs.values())):
                    return public(*map(_read, args), **{k: _read(v) for k, v in kwargs.items()})
                # What jit itself can't read, the function refuses in the caller's words.
                places = (_place(name, i, args, kwargs) for name, i in fixed.items())
                if any(isinstance(where[key], jax.Array) for where, key in places if where) or (
                    not all(map(_is_readable, (*args, *kwargs.values())))
                ):
                    traced(*args, **kwargs)
                vars(error).pop("__notes__", None)  # about the frames that jit has left out
                raise

        return public

    return decorate


def _place(name: str, position: int, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Where an argument is: a container and its key there, or None."""
    if name in kwargs:
        return kwargs, name
    return (args, position) if position < len(args) else (None, None)


def _settle(name: str, option: Option, where: Any, key: Any) -> None:
    """Refuse a known number out of range, and make one that switches something off static."""
    if where is None or (number := checks.known_number(where[key])) is None:
        return
    kind = getattr(where[key], "dtype", type(where[key]))
    if option.integer and not np.issubdtype(kind, np.integer):
        return  # the function refuses it
    option.range.require(name, number)
    if number in option.off:
        where[key] = _Known(float(number))
    elif option.integer:
        where[key] = min(int(number), 2**31 - 1)


def _in_range(name: str, option: Option, where: Any, key: Any) -> None:
    """Make a traced number out of range NaN, or one of a sequence of numbers."""
    if where is None or option.integer or not isinstance(where[key], jax.Array | list | tuple):
        return
    number = checks.as_real(name, where[key])
    where[key] = checks.in_range(name, number, option.range)


def _unwrapped(value: Any) -> Any:
    return value.value if isinstance(value, _Known) else value


def _within_int32(value: Any) -> Any:
    """Large integers as the largest that JAX holds, instead of what their last bits say."""
    if type(value) is not np.ndarray or value.dtype.kind not in "iu" or value.dtype.itemsize < 8:
        return value
    if jax.config.jax_enable_x64:
        return value
    limits = np.iinfo(np.int32 if value.dtype.kind == "i" else np.uint32)
    return np.clip(value, limits.min, limits.max).astype(limits.dtype)


def _read(value: Any) -> Any:
    """Numbers that another library holds, such as a pandas Series, as NumPy's; else the value."""
    is_held = hasattr(value, "__array__") and not isinstance(value, jax.Array | np.ndarray)
    if not is_held or _is_readable(value) or hasattr(value, "__jax_array__"):
        return value
    array = np.asarray(value)
    return array if _is_readable(array) else value


def _is_readable(value: Any) -> bool:
    """Whether jit takes it as an argument."""
    if isinstance(value, jax.Array | bool | int | float | complex | np.number | np.bool_):
        return True
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufcV"
