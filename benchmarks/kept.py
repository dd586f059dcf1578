"""Time and memory of ``kept`` in ``linear_log_probs``, beside the logits of all classes.

Run: python benchmarks/kept.py

Writes benchmarks/results/kept-<backend>.md. The other way makes the logits of a block of rows and
looks among them: ``kept_log_probs`` in ``blockwise_map``. Times are ratios to it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from _measure import compile_function, interleaved, machine, table, versions, write_result

import jaxlogits as jl

FEATURES, COUNTS = 1024, (64, 1024, 8192)
TIMED = (128, 32768)  # rows, classes
COMPILED = (4096, 131072)
Args = tuple[Any, ...]


def columns(hidden: Any, kernel: Any, labels: Any, kept: Any) -> Any:
    return jl.linear_log_probs(hidden, kernel, labels, kept=kept)


def all_classes(hidden: Any, kernel: Any, labels: Any, kept: Any) -> Any:
    def of_block(kernel: Any, hidden: Any, labels: Any, kept: Any) -> Any:
        return jl.kept_log_probs(hidden @ kernel, labels, kept)

    return jl.blockwise_map(of_block)(kernel, hidden, labels, kept)


def of_table(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Of a tied embedding [K, D]."""
    return lambda hidden, table, *rest: fn(hidden, table.T, *rest)


def gradient(fn: Callable[..., Any]) -> Callable[..., Any]:
    return jax.grad(lambda *args: fn(*args).sum(), (0, 1))


def types(rows: int, classes: int, size: int, is_tied: bool) -> Args:
    shape = (classes, FEATURES) if is_tied else (FEATURES, classes)
    each = [((rows, FEATURES), jnp.float32), (shape, jnp.float32)]
    each += [((rows,), jnp.int32), ((rows, size), jnp.int32)]
    return tuple(jax.ShapeDtypeStruct(*x) for x in each)


def arguments(of: Args, classes: int) -> Args:
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, kernel = (jax.random.normal(k, t.shape) for k, t in zip(keys, of[:2], strict=False))
    kept = jax.random.randint(keys[2], of[3].shape, 0, classes)
    return hidden, kernel / FEATURES**0.5, kept[:, 0], kept


def variants(is_tied: bool) -> list[Callable[..., Any]]:
    """Both ways, and the gradients of both."""
    both = [of_table(fn) if is_tied else fn for fn in (all_classes, columns)]
    return [*both, *map(gradient, both)]


def measure(size: int, is_tied: bool) -> list[str]:
    """Ratios of times, and MiB of both ways, of the value and of the gradients."""
    small, large = (types(*shape, size, is_tied) for shape in (TIMED, COMPILED))
    args = arguments(small, TIMED[1])
    cells = []
    fns = variants(is_tied)
    for pair in (fns[:2], fns[2:]):
        run = [functools.partial(compile_function(fn, *small).call, *args) for fn in pair]
        _, ratio = interleaved(run, rounds=5, budget=30)
        memory = [compile_function(fn, *large).temp_bytes / 2**20 for fn in pair]
        cells += [str(ratio), *(f"{m:.0f}" for m in memory)]
    print(size, is_tied, *cells, flush=True)
    return cells


def main() -> None:
    rows = [
        [str(size), "tied" if is_tied else "[D, K]", *measure(size, is_tied)]
        for size in COUNTS
        for is_tied in (True, False)
    ]
    heads = ["kept", "kernel", "value: time", "MiB, all", "MiB, kept"]
    heads += ["gradients: time", "MiB, all", "MiB, kept"]
    write_result(
        "kept",
        "# Recorded classes: their columns or all logits",
        f"`python benchmarks/kept.py` on {machine()}; {versions('jax')}.",
        f"Time of `linear_log_probs(.., kept=..)` over that of all logits, block by block, with "
        f"`kept_log_probs`, of {TIMED[0]} × {FEATURES} × {TIMED[1]}: median and quartiles of "
        f"interleaved calls. Temporary memory of both, from the compiler, of {COMPILED[0]} × "
        f"{FEATURES} × {COMPILED[1]}, whose kernel has 512 MiB; all in float32.",
        table(heads, rows),
    )


if __name__ == "__main__":
    main()
