"""Memory of the blockwise transforms, from the compiler: one block, however many rows there are."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxlogits as jl

Array = jax.Array

ROWS = (4096, 8192, 16384)
BLOCK, FEATURES, CLASSES = 128, 16, 4096
BLOCK_BYTES = 4 * BLOCK * CLASSES  # 2 MiB of logits
KERNEL_BYTES = 4 * FEATURES * CLASSES  # an eighth of that


def loss(kernel: Array, hidden: Array, labels: Array) -> Array:
    logits = hidden @ kernel
    is_label = lax.broadcasted_iota(labels.dtype, logits.shape, 1) == labels[:, None]
    picked = jnp.where(is_label, logits, jnp.zeros_like(logits))
    return jax.nn.logsumexp(logits, axis=1) - jnp.sum(picked, axis=1)


def mapped(*args: Array) -> Array:
    return jl.blockwise_map(loss, block_size=BLOCK)(*args).sum()


def masked(kernel: Array, hidden: Array, labels: Array) -> Array:
    mean = jl.blockwise_mean(loss, block_size=BLOCK)
    return mean(kernel, hidden, labels, where=labels > 0, weights=labels)


TOTALS = {
    "sum": jl.blockwise_sum(loss, block_size=BLOCK),
    "masked mean": masked,
    "map": mapped,
}

Total = Callable[..., Array]
Args = tuple[Array, ...]


def value(total: Total, labels: Array, at: Args, _: Args) -> Any:
    return total(*at, labels)


def value_and_grad(total: Total, labels: Array, at: Args, _: Args) -> Any:
    return jax.value_and_grad(lambda at: total(*at, labels))(at)


def jvp(total: Total, labels: Array, at: Args, along: Args) -> Any:
    return jax.jvp(lambda at: total(*at, labels), (at,), (along,))


def forward_over_reverse(total: Total, labels: Array, at: Args, along: Args) -> Any:
    return jax.jvp(jax.grad(lambda at: total(*at, labels)), (at,), (along,))[1]


def reverse_over_reverse(total: Total, labels: Array, at: Args, along: Args) -> Any:
    gradient = jax.grad(lambda at: total(*at, labels))
    return jax.vjp(gradient, at)[1](along)


def reverse_over_forward(total: Total, labels: Array, at: Args, along: Args) -> Any:
    return jax.grad(lambda at: jax.jvp(lambda at: total(*at, labels), (at,), (along,))[1])(at)


MODES = [
    value,
    value_and_grad,
    jvp,
    forward_over_reverse,
    reverse_over_reverse,
    reverse_over_forward,
]


@functools.cache
def temp_bytes(mode: Callable[..., Any], total: Total, rows: int, with_rows: bool) -> int:
    """What the program of a mode allocates, beside arguments and results."""
    kernel = jax.ShapeDtypeStruct((FEATURES, CLASSES), jnp.float32)
    hidden = jax.ShapeDtypeStruct((rows, FEATURES), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def program(kernel: Array, hidden: Array, labels: Array, along: Args) -> Any:
        if with_rows:
            return mode(total, labels, (kernel, hidden), along)
        return mode(lambda kernel, labels: total(kernel, hidden, labels), labels, (kernel,), along)

    along = (kernel, hidden) if with_rows else (kernel,)
    compiled = jax.jit(program).lower(kernel, hidden, labels, along).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def plain(*args: Array) -> Array:
    return loss(*args).sum()


CASES = [
    *((mode, name) for mode in MODES for name in ("sum", "map")),
    (value_and_grad, "masked mean"),
    (reverse_over_reverse, "masked mean"),
]


@pytest.mark.parametrize(("mode", "name"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_memory_is_that_of_one_block_for_any_number_of_rows(
    mode: Callable[..., Any], name: str
) -> None:
    one_block = temp_bytes(mode, plain, BLOCK, False)
    # The backward pass of a map computes the logits again while it holds their gradient.
    extra = BLOCK_BYTES if (mode, name) == (value_and_grad, "map") else 0
    used = [temp_bytes(mode, TOTALS[name], rows, False) for rows in ROWS]
    assert max(used) <= 1.3 * one_block + KERNEL_BYTES + extra
    # What grows is a few numbers for each row, such as its weight and its loss.
    assert used[-1] - used[0] <= 16 * (ROWS[-1] - ROWS[0])


@pytest.mark.parametrize("mode", [value_and_grad, jvp, reverse_over_reverse])
@pytest.mark.parametrize("name", ["sum", "map"])
def test_derivatives_of_the_rows_add_arrays_of_the_size_of_the_rows(
    mode: Callable[..., Any], name: str
) -> None:
    few, many = ROWS[0], ROWS[-1]
    growth = temp_bytes(mode, TOTALS[name], many, True) - temp_bytes(mode, TOTALS[name], few, True)
    rows_bytes = 4 * FEATURES * (many - few)
    # The rows, their tangents and their gradients, each once, in the order of the blocks.
    assert growth <= 3 * rows_bytes + 16 * (many - few)


def test_the_plain_function_does_grow() -> None:
    # Else the bounds above would hold for anything.
    used = [temp_bytes(value_and_grad, plain, rows, False) for rows in (ROWS[0], ROWS[-1])]
    assert used[1] - used[0] >= 4 * CLASSES * (ROWS[-1] - ROWS[0])
