"""Memory and modelled time of a linear head's loss on TPUs, from their compiler, without a TPU.

Run: python benchmarks/linear_head_tpu.py   (pip install optax libtpu; Python 3.12 or newer)

It compiles for one device of a v5e and of a v6e and writes benchmarks/results/linear-head-tpu.md.
Nothing runs: `_tpu.py` says how times are modelled.
"""

import inspect
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU machine to ask about itself

import jax
import jax.numpy as jnp
import optax
from _measure import RESULTS, table, versions
from _tpu import CHIPS, SHARE, compile_for, seconds

import jaxlogits as jl

MIB = 2**20
BLOCK_SIZES = (256, 1024, 2048, 4096)


class Shape(NamedTuple):
    """N × D × K."""

    rows: int
    features: int
    classes: int

    def __str__(self) -> str:
        """N × D × K."""
        return " × ".join(map(str, self))


SHAPES = [Shape(8192, 4096, 128256), Shape(8192, 1024, 262144)]


def plain(hidden: Any, kernel: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels).mean()


def blockwise(block_size: int | None) -> Callable[..., Any]:
    def loss(hidden: Any, kernel: Any, labels: Any) -> Any:
        return jl.linear_softmax_cross_entropy(hidden, kernel, labels, block_size=block_size)

    return loss


def tiles(hidden: Any, kernel: Any, labels: Any) -> Any:
    return jl.linear_softmax_cross_entropy(hidden, kernel, labels, memory="tiles")


def tied(hidden: Any, embedding: Any, labels: Any) -> Any:
    return jl.linear_softmax_cross_entropy(hidden, embedding.T, labels)


def log_probs(hidden: Any, kernel: Any, labels: Any) -> Any:
    return jl.linear_log_probs(hidden, kernel, labels).sum()


LOSSES = {
    "optax on hidden @ kernel": plain,
    "jaxlogits": blockwise(None),
    **{f"jaxlogits, block_size={size}": blockwise(size) for size in BLOCK_SIZES},
    "jaxlogits, kernel = embedding.T": tied,
    "sum of linear_log_probs": log_probs,
}
if "memory" in inspect.signature(jl.linear_softmax_cross_entropy).parameters:
    LOSSES['jaxlogits, memory="tiles"'] = tiles


def measure(name: str, shape: Shape, kind: str) -> list[str]:
    """Temporary MiB and modelled ms of one loss, for bfloat16 hidden and kernel."""
    loss, chip = LOSSES[name], CHIPS[kind]
    kernel = (shape.features, shape.classes)
    types = [
        jax.ShapeDtypeStruct((shape.rows, shape.features), jnp.bfloat16),
        jax.ShapeDtypeStruct(kernel[::-1] if loss is tied else kernel, jnp.bfloat16),
        jax.ShapeDtypeStruct((shape.rows,), jnp.int32),
    ]
    programs = [
        compile_for(fn, chip, *types) for fn in (loss, jax.value_and_grad(loss, argnums=(0, 1)))
    ]
    value, whole = (p.memory_analysis().temp_size_in_bytes / MIB for p in programs)
    milliseconds = [1e3 * seconds(p.as_text(), chip) for p in programs]
    floor = 1e3 * 6 * math.prod(shape) / chip.peak  # of three products
    beyond = whole if loss in (plain, tiles) else whole - 4 * math.prod(kernel) / MIB
    numbers = [value, whole, beyond, *milliseconds]
    return [name, kind, *(f"{x:.0f}" for x in numbers), f"{milliseconds[1] / floor:.2f}"]


def main() -> None:
    paragraphs = [
        "# A linear head's loss on one TPU: memory and modelled time",
        f"{versions('jax', 'libtpu', 'jaxlogits', 'optax')}; bfloat16 hidden and kernel. Compiled "
        "for the TPU, not run. MiB are temporary memory, from the compiler's memory analysis. The "
        "kernel's gradient is summed in float32, which takes memory that a bfloat16 result "
        "doesn't; one column leaves that sum out.",
        "Times are modelled from the compiled program: matrix products, with what is fused into "
        f"them, by the compiler's estimate of cycles; the rest by the bytes that it reads and "
        f"writes, at {SHARE} of the bandwidth. They rank programs for one chip. No chip was there "
        "to compare them with. The last column is the time of value and gradients over that of "
        "three matrix products at the chip's peak.",
    ]
    for shape in SHAPES:
        rows = []
        for name in LOSSES:
            for kind in CHIPS:
                rows.append(measure(name, shape, kind))
                print(shape, *rows[-1], sep=" | ", flush=True)
        columns = ["", "TPU", "MiB, value", "MiB, value and gradients", "without the float32 sum"]
        columns += ["ms, value", "ms, value and gradients", "over the floor"]
        paragraphs += [f"## {shape}", table(columns, rows)]
    path = RESULTS / "linear-head-tpu.md"
    path.write_text("\n\n".join(paragraphs) + "\n")
    print(path)


if __name__ == "__main__":
    main()
