"""What each helper of ``jaxlogits/_src/base/xla.py`` saves: programs with it and without it.

Run: python benchmarks/xla.py

It writes benchmarks/results/xla-<backend>.md.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _measure import compile_function, interleaved, machine, table, versions, write_result

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import plain

ROUNDS, SECONDS = 100, 6.0


def arrays(shapes: tuple[jax.ShapeDtypeStruct, ...]) -> list[jax.Array]:
    """Normal numbers, such that logits of a head are about as large as those given; labels."""
    rng = np.random.default_rng(0)
    wide = max(shape.shape[-1] for shape in shapes)
    return [
        jnp.asarray(rng.integers(0, wide, s.shape), s.dtype)
        if jnp.issubdtype(s.dtype, jnp.integer)
        else jnp.asarray(rng.normal(size=s.shape), s.dtype)
        for s in shapes
    ]


def measure(program: plain.Program) -> list[Any]:
    args = arrays(program.args)
    ours = compile_function(program.fn, *args)
    with plain.without(program.helper):
        theirs = compile_function(program.fn, *args)
    calls = [lambda c=c: c.call(*args) for c in (theirs, ours)]
    before, after = interleaved(calls, rounds=ROUNDS, budget=SECONDS)
    shapes = " and ".join(f"{s.dtype} {list(s.shape)}" for s in program.args if s.dtype != "int32")
    return [
        f"`{program.helper}`",
        program.name,
        shapes,
        f"{1e3 * before.seconds:.1f}",
        f"{1e3 * after.seconds:.1f}",
        str(after),
        f"{theirs.temp_bytes / 2**20:.1f}",
        f"{ours.temp_bytes / 2**20:.1f}",
    ]


def main() -> None:
    rows = [measure(program) for program in plain.PROGRAMS]
    columns = ["helper", "program", "input", "ms without", "ms with", "ratio (quartiles)"]
    write_result(
        "xla",
        "# What is said to the compiler",
        "Written by `benchmarks/xla.py`: programs of the library as they are, and with one helper "
        "of `jaxlogits/_src/base/xla.py` replaced by what a reader may take it for "
        "(`tests/plain.py`). "
        "Calls are interleaved, times are medians, and MiB are what the program asks for beside "
        "arguments and results.",
        f"{machine()}. {versions('jax', 'jaxlib', 'numpy')}.",
        table([*columns, "MiB without", "MiB with"], rows),
    )


if __name__ == "__main__":
    main()
