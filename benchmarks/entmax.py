"""Sparsemax and 1.5-entmax: Newton's method on the threshold, against a full sort and bisection.

The sort is how both papers find the threshold, the bisection, of 30 halvings, how alpha-entmax is
usually computed: 30 halvings bring a bracket of length 1 below float32's spacing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _measure import compile_function, interleaved, machine, table, versions, write_result

import jaxlogits as jl

SHAPES = [(1, 128256), (32, 128256), (4096, 1000), (65536, 32)]
SCALES = [1.0, 4.0]
ROUNDS, SECONDS = 50, 4.0

Function = Callable[[Any], Any]


def sorted_sparsemax(z: Any) -> Any:
    """Martins and Astudillo (2016), algorithm 1."""
    falling = -jnp.sort(-z, axis=-1)
    counts = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    excess = jnp.cumsum(falling, axis=-1) - 1.0
    size = jnp.sum(counts * falling > excess, axis=-1, keepdims=True)
    tau = jnp.take_along_axis(excess, size - 1, axis=-1) / size.astype(z.dtype)
    return jnp.maximum(z - tau, 0.0)


def sorted_entmax15(z: Any) -> Any:
    """Peters et al. (2019), algorithm 2."""
    z = 0.5 * (z - jnp.max(z, axis=-1, keepdims=True))
    falling = -jnp.sort(-z, axis=-1)
    counts = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    mean = jnp.cumsum(falling, axis=-1) / counts
    spread = counts * (jnp.cumsum(jnp.square(falling), axis=-1) / counts - jnp.square(mean))
    tau = mean - jnp.sqrt(jnp.maximum((1.0 - spread) / counts, 0.0))
    size = jnp.sum(tau <= falling, axis=-1, keepdims=True)
    return jnp.square(jnp.maximum(z - jnp.take_along_axis(tau, size - 1, axis=-1), 0.0))


def bisected(power: int) -> Function:
    """Entmax with 1 / (alpha - 1) = power by 30 halvings."""

    def entmax(z: Any) -> Any:
        z = (z - jnp.max(z, axis=-1, keepdims=True)) / power

        def probs(tau: Any) -> Any:
            return jnp.maximum(z - tau, 0.0) ** power

        def halve(_: Any, bracket: Any) -> Any:
            low, high = bracket
            middle = 0.5 * (low + high)
            above = jnp.sum(probs(middle), axis=-1, keepdims=True) >= 1.0
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        high = jnp.zeros_like(z[..., :1])
        low, _ = jax.lax.fori_loop(0, 30, halve, (high - 1.0, high))
        p = probs(low)
        return p / jnp.sum(p, axis=-1, keepdims=True)

    return entmax


FUNCTIONS = {
    "sparsemax": (sorted_sparsemax, bisected(1), jl.sparsemax),
    "entmax15": (sorted_entmax15, bisected(2), jl.entmax),
}


def main() -> None:
    rows = []
    for name, functions in FUNCTIONS.items():
        for shape in SHAPES:
            for scale in SCALES:
                z = np.random.default_rng(0).normal(scale=scale, size=shape)
                z = jnp.asarray(z, jnp.float32)
                calls = [compile_function(function, z).call for function in functions]
                results = [np.asarray(call(z)) for call in calls]
                for result in results[:2]:  # nobody is fast by being wrong
                    np.testing.assert_allclose(result, results[2], rtol=0, atol=2e-5)
                support = np.mean(np.sum(results[2] > 0, axis=-1))
                bound = [lambda call=call, z=z: call(z) for call in calls]
                sort, bisection, ours = interleaved(bound, rounds=ROUNDS, budget=SECONDS)
                row = [name, f"[{','.join(map(str, shape))}]", f"{scale:g}", f"{support:.1f}"]
                row += [f"{1e3 * timing.seconds:.2f}" for timing in (sort, bisection, ours)]
                rows.append([*row, str(bisection), str(ours)])
                print(*rows[-1], sep=" | ", flush=True)
    columns = ["function", "shape", "deviation of the logits", "classes in the support"]
    columns += ["sort, ms", "bisection, ms", "ours, ms"]
    columns += ["bisection / sort, median (quartiles)", "ours / sort, median (quartiles)"]
    write_result(
        "entmax",
        "# The threshold of sparsemax and 1.5-entmax: time",
        f"{machine()}; {versions('jax', 'numpy')}.",
        "Written by `benchmarks/entmax.py`: normal logits in float32, forward. Calls of the three "
        "alternate in one process; a ratio is the median over neighbouring calls.",
        table(columns, rows),
    )


if __name__ == "__main__":
    main()
