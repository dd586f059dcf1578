"""Memory of a linear head's loss on TPUs, from the TPU compiler, without a TPU.

Run: python benchmarks/linear_head_tpu.py   (pip install optax libtpu; Python 3.12 or newer)

It compiles for one device of a v5e and of a v6e and writes benchmarks/results/linear-head-tpu.md.
Nothing runs, so there are no times here.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU machine to ask about itself

import jax
import jax.numpy as jnp
import optax
from _measure import RESULTS, table, versions
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import jaxlogits as jl

MIB = 2**20
TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}


class Shape(NamedTuple):
    """N × D × K."""

    rows: int
    features: int
    classes: int

    def __str__(self) -> str:
        """N × D × K."""
        return " × ".join(map(str, self))


SHAPES = [Shape(8192, 1024, 262144)]


def plain(hidden: Any, kernel: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels).mean()


def blockwise(block_size: int | None) -> Callable[..., Any]:
    def loss(hidden: Any, kernel: Any, labels: Any) -> Any:
        return jl.linear_softmax_cross_entropy(hidden, kernel, labels, block_size=block_size)

    return loss


def tied(hidden: Any, embedding: Any, labels: Any) -> Any:
    return jl.linear_softmax_cross_entropy(hidden, embedding.T, labels, block_size=256)


LOSSES = {
    "optax on hidden @ kernel": plain,
    "jaxlogits": blockwise(None),
    "jaxlogits, block_size=256": blockwise(256),
    "jaxlogits, block_size=256, kernel = embedding.T": tied,
}


def temp_mib(fn: Callable[..., Any], shape: Shape, topology: str, transposed: bool) -> float:
    """Temporary memory on one device, for bfloat16 hidden and kernel."""
    devices = topologies.get_topology_desc(TOPOLOGIES[topology], "tpu").devices
    sharding = SingleDeviceSharding(devices[0])
    kernel = (shape.features, shape.classes)
    types = [
        jax.ShapeDtypeStruct((shape.rows, shape.features), jnp.bfloat16, sharding=sharding),
        jax.ShapeDtypeStruct(
            kernel[::-1] if transposed else kernel, jnp.bfloat16, sharding=sharding
        ),
        jax.ShapeDtypeStruct((shape.rows,), jnp.int32, sharding=sharding),
    ]
    return jax.jit(fn).lower(*types).compile().memory_analysis().temp_size_in_bytes / MIB


def main() -> None:
    paragraphs = [
        "# A linear head's loss on one TPU: temporary memory",
        f"{versions('jax', 'libtpu', 'jaxlogits', 'optax')}; bfloat16 hidden and kernel. Compiled "
        "for the TPU, not run: MiB from the compiler's memory analysis. The kernel's gradient is "
        "summed in float32, which takes memory that a bfloat16 result doesn't; the last column "
        "leaves that sum out.",
    ]
    for shape in SHAPES:
        gradient = 4 * shape.features * shape.classes / MIB
        rows = []
        for name, loss in LOSSES.items():
            for topology in TOPOLOGIES:
                value = temp_mib(loss, shape, topology, loss is tied)
                both = jax.value_and_grad(loss, argnums=(0, 1))
                whole = temp_mib(both, shape, topology, loss is tied)
                beyond = whole if loss is plain else whole - gradient
                print(shape, name, topology, value, whole, flush=True)
                rows.append([name, topology, f"{value:.0f}", f"{whole:.0f}", f"{beyond:.0f}"])
        columns = ["", "TPU", "value", "value and gradients", "without the float32 gradient"]
        paragraphs += [f"## {shape}", table(columns, rows)]
    path = RESULTS / "linear-head-tpu.md"
    path.write_text("\n\n".join(paragraphs) + "\n")
    print(path)


if __name__ == "__main__":
    main()
