"""Time and memory of a blockwise loss over its block size: what the default is chosen from.

Run: python benchmarks/block_size.py

Writes benchmarks/results/block-size-<backend>.md. The loss is a plain cross entropy of a linear
head, with its gradients in hidden and kernel; times are ratios to that of all rows at once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from _measure import compile_function, interleaved, machine, table, versions, write_result

import jaxlogits as jl

ROWS, FEATURES, CLASSES = 2048, 512, 16000
SIZES = (32, 64, 128, 256, 512, 1024, 2048)
DTYPES = (jnp.float32, jnp.bfloat16)


def losses(kernel: Any, hidden: Any, labels: Any) -> Any:
    logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
    return jl.softmax_cross_entropy_with_integer_labels(logits, labels)


def plain(*args: Any) -> Any:
    return losses(*args).mean()


def arguments(dtype: Any) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    kernel = jax.random.normal(keys[0], (FEATURES, CLASSES), dtype) / FEATURES**0.5
    hidden = jax.random.normal(keys[1], (ROWS, FEATURES), dtype)
    return kernel, hidden, jax.random.randint(keys[2], [ROWS], 0, CLASSES)


def measure(dtype: Any) -> list[list[str]]:
    """For the plain loss and each block size: time as a ratio, temporary MiB."""
    args = arguments(dtype)
    blockwise = (jl.blockwise_mean(losses, block_size=size) for size in SIZES)
    fns = [jax.value_and_grad(fn, argnums=(0, 1)) for fn in (plain, *blockwise)]
    compiled = [compile_function(fn, *args) for fn in fns]
    timings = interleaved([functools.partial(c.call, *args) for c in compiled], rounds=7, budget=60)
    memory = [f"{c.temp_bytes / 2**20:.0f}" for c in compiled]
    return [[str(t), m] for t, m in zip(timings, memory, strict=True)]


def main() -> None:
    measured = [measure(dtype) for dtype in DTYPES]
    names = ["all rows at once", *map(str, SIZES)]
    rows = [[name, *a, *b] for name, a, b in zip(names, *measured, strict=True)]
    columns = ["rows in a block"]
    for dtype in DTYPES:
        columns += [f"{dtype.__name__}: time", "temporary MiB"]
    write_result(
        "block-size",
        "# Time and memory over the block size",
        f"`python benchmarks/block_size.py` on {machine()}; {versions('jax')}.",
        f"Value and gradients of a linear head's mean cross entropy, {ROWS} × {FEATURES} × "
        f"{CLASSES}. Time is a ratio to that of all rows at once: median and quartiles of "
        "interleaved calls.",
        table(columns, rows),
    )


if __name__ == "__main__":
    main()
