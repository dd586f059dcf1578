"""What ``base/xla.py`` does for the compiler, left undone: for its tests and its benchmark."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import jaxlogits as jl
from jaxlogits._src.base import xla


def _by_default(*arrays: Any, cpu: Any, default: Any) -> Any:
    del cpu
    return default(*arrays)


def _rounded(x: Any, dtype: Any) -> Any:
    return lax.reduce_precision(x.astype(dtype), 8, jnp.finfo(x.dtype).nmant)


def _is_nonzero(distance: Any, row: Any) -> Any:
    del row
    return jnp.where(distance > 0, 1.0, 0.0).astype(distance.dtype)


def _zero_at(position: Any, values: Any) -> Any:
    index = lax.broadcasted_iota(position.dtype, values.shape, values.ndim - 1)
    return jnp.where(index == position, 0.0, values)


PLAIN: dict[str, Callable[..., Any]] = {
    "apart": lambda arrays: arrays,
    "by_device": _by_default,
    "by_itself": lambda fn, *args: fn(*args),
    "is_nonzero": _is_nonzero,
    "is_positive": lambda x: jnp.where(x > 0, 1.0, 0.0).astype(x.dtype),
    "of_row": lambda number, row: jnp.asarray(number, row.dtype),
    "one_array": lambda x: x,
    "rounded": _rounded,
    "zero_at": _zero_at,
}


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Programs traced in here are made without one of the helpers."""
    helper = getattr(xla, name)
    jax.clear_caches()
    setattr(xla, name, PLAIN[name])
    try:
        yield
    finally:
        setattr(xla, name, helper)
        jax.clear_caches()


class Program(NamedTuple):
    """A program for which a helper does something, with arguments of these shapes."""

    helper: str
    name: str
    fn: Callable[..., Any]
    args: tuple[jax.ShapeDtypeStruct, ...]


def _mean(logits: Any, labels: Any) -> Any:
    return jl.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _mean_divergence(p: Any, q: Any) -> Any:
    return jl.softmax_kl_divergence(p, q).mean()


def _rows(n: int, k: int, dtype: str = "float32") -> tuple[jax.ShapeDtypeStruct, ...]:
    return jax.ShapeDtypeStruct((n, k), dtype), jax.ShapeDtypeStruct((n,), "int32")


def _head(n: int, d: int, k: int, dtype: str = "float32") -> tuple[jax.ShapeDtypeStruct, ...]:
    kernel = jax.ShapeDtypeStruct((d, k), dtype)
    return jax.ShapeDtypeStruct((n, d), dtype), kernel, jax.ShapeDtypeStruct((n,), "int32")


def _fits(features: Any, numbers: Any) -> Any:
    labels, weights = jnp.arange(len(features)) % 2, jnp.square(numbers)
    return jax.vmap(lambda w: jl.fit_logistic(features, labels, weights=w).coefficients)(weights)


_losses = jl.softmax_cross_entropy_with_integer_labels
_head_gradients = jax.grad(jl.linear_softmax_cross_entropy, (0, 1))

PROGRAMS = [
    Program("apart", "mean of losses", _mean, _rows(2**20, 10)),
    Program("by_device", "losses", _losses, _rows(64, 128256)),
    Program("by_device", "mean of losses", _mean, _rows(64, 128256, "bfloat16")),
    Program("by_itself", "mean divergence", _mean_divergence, _rows(4096, 1000)[:1] * 2),
    Program("is_nonzero", "logsumexp", jl.logsumexp, _rows(2**15, 128)[:1]),
    Program("is_positive", "sparsemax", jl.sparsemax, _rows(4096, 1000)[:1]),
    Program("of_row", "logsumexp", jl.logsumexp, _rows(2**15, 128)[:1]),
    Program(
        "one_array",
        "gradients of a linear head",
        _head_gradients,
        _head(1024, 256, 4096, "bfloat16"),
    ),
    Program(
        "one_array",
        "a thousand regressions",
        _fits,
        (jax.ShapeDtypeStruct((200, 4), "float32"), jax.ShapeDtypeStruct((1000, 200), "float32")),
    ),
    Program("one_array", "mean divergence", _mean_divergence, _rows(4096, 1000)[:1] * 2),
    Program("rounded", "mean of losses", _mean, _rows(2**16, 100, "bfloat16")),
    Program("rounded", "softmax", jl.softmax, _rows(2**16, 100, "bfloat16")[:1]),
    Program("zero_at", "losses", _losses, _rows(4096, 1000)),
]
