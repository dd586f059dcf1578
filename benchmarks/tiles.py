"""Vocabulary tiles beside blocks of rows and optax, on a CPU: memory and time.

Run: python benchmarks/tiles.py   (pip install optax)

It writes benchmarks/results/tiles-cpu.md. Memory is the compiler's, and nothing of that size runs.
"""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import optax
from _measure import RESULTS, interleaved, table, versions

import jaxlogits as jl

MIB = 2**20
FOR_MEMORY = [(2048, 1024, 131072), (64, 64, 10_000_000)]
FOR_TIME = [(512, 256, 16384), (64, 128, 65536)]


def plain(hidden: Any, kernel: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels).mean()


def mean(memory: Any) -> Callable[..., Any]:
    def loss(hidden: Any, kernel: Any, labels: Any) -> Any:
        return jl.linear_softmax_cross_entropy(hidden, kernel, labels, memory=memory)

    return loss


def per_token(memory: Any) -> Callable[..., Any]:
    def loss(hidden: Any, kernel: Any, labels: Any) -> Any:
        return jl.linear_log_probs(hidden, kernel, labels, memory=memory).sum()

    return loss


LOSSES = {
    "optax on hidden @ kernel": plain,
    "mean, rows": mean("rows"),
    "mean, tiles": mean("tiles"),
    "log probs, rows": per_token("rows"),
    "log probs, tiles": per_token("tiles"),
}


def compiled(loss: Any, shape: tuple[int, int, int]) -> Any:
    rows, features, classes = shape
    types = [
        jax.ShapeDtypeStruct((rows, features), jnp.float32),
        jax.ShapeDtypeStruct((features, classes), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    ]
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*types).compile()


def timings(shape: tuple[int, int, int]) -> list[str]:
    rows, features, classes = shape
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (rows, features))
    kernel = jax.random.normal(keys[1], (features, classes)) / features**0.5
    labels = jax.random.randint(keys[2], (rows,), 0, classes)

    def bound(loss: Any) -> Callable[[], Any]:
        program = compiled(loss, shape)
        return lambda: program(hidden, kernel, labels)

    found = interleaved([bound(loss) for loss in LOSSES.values()], rounds=15, budget=20)
    return list(map(str, found))


def main() -> None:
    shapes = [" × ".join(map(str, shape)) for shape in (*FOR_MEMORY, *FOR_TIME)]
    memory = [
        [
            f"{compiled(loss, shape).memory_analysis().temp_size_in_bytes / MIB:.0f}"
            for loss in LOSSES.values()
        ]
        for shape in FOR_MEMORY
    ]
    times = [timings(shape) for shape in FOR_TIME]
    columns = zip(*memory, *times, strict=True)
    rows = [[name, *cells] for name, cells in zip(LOSSES, columns, strict=True)]
    units = ["MiB"] * len(FOR_MEMORY) + ["time"] * len(FOR_TIME)
    header = ["", *(f"{shape}, {unit}" for shape, unit in zip(shapes, units, strict=True))]
    paragraphs = [
        "# Vocabulary tiles on a CPU",
        f"{versions('jax', 'jaxlogits', 'optax')}; float32, value and both gradients, rows × "
        "features × classes. MiB of temporaries by the compiler's memory analysis, beyond "
        "arguments and results; time as a ratio to optax, median of neighbouring calls with its "
        "quartiles.",
        table(header, rows),
    ]
    path = RESULTS / "tiles-cpu.md"
    path.write_text("\n\n".join(paragraphs) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
