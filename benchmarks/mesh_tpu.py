"""A sharded linear head at scale: memory and collectives on a pod of TPUs, without a TPU.

Run: python benchmarks/mesh_tpu.py   (pip install optax libtpu; Python 3.12 or newer)

It compiles a loss and its gradients for 256 chips of a v5e and writes
benchmarks/results/mesh-tpu.md. Nothing runs, so there are no times here.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU machine to ask about itself

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import RESULTS, table, versions
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlogits as jl

sys.path.append(str(RESULTS.parents[1] / "examples"))
from _collectives import collectives

MIB = 2**20
ROWS, FEATURES, CLASSES = 2**20, 8192, 262144
MESHES = [(16, 16), (32, 8), (64, 4)]
SPECS = (P("data"), P(None, "model"), P("data"))


def plain(hidden: Any, kernel: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels).mean()


def split(hidden: Any, kernel: Any, labels: Any) -> Any:
    return jl.linear_softmax_cross_entropy(
        hidden, kernel, labels, axis_name="model", row_axis_name="data"
    )


def compiled(loss: Callable[..., Any], mesh: Mesh) -> Any:
    """The program of one step, for bfloat16 hidden and kernel."""
    shapes = [(ROWS, FEATURES), (FEATURES, CLASSES), (ROWS,)]
    dtypes = [jnp.bfloat16, jnp.bfloat16, jnp.int32]
    places = [NamedSharding(mesh, spec) for spec in SPECS]
    types = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=place)
        for shape, dtype, place in zip(shapes, dtypes, places, strict=True)
    ]
    step = jax.value_and_grad(loss, argnums=(0, 1))
    return jax.jit(step, out_shardings=(None, tuple(places[:2]))).lower(*types).compile()


def main() -> None:
    devices = np.array(topologies.get_topology_desc("v5e:16x16", "tpu").devices)
    rows = []
    for shape in MESHES:
        mesh = Mesh(devices.reshape(shape), ("data", "model"))
        sharded = jax.shard_map(split, mesh=mesh, in_specs=SPECS, out_specs=P())
        for name, loss in (("optax on hidden @ kernel, jit", plain), ("jaxlogits", sharded)):
            program = compiled(loss, mesh)
            memory = program.memory_analysis()
            sent = collectives(program.as_text())
            others = ", ".join(f"{n} {kind}" for kind, n in sent.items() if kind != "all-reduce")
            print(shape, name, memory.temp_size_in_bytes / MIB, sent, flush=True)
            rows.append(
                [
                    " × ".join(map(str, shape)),
                    name,
                    f"{(memory.argument_size_in_bytes + memory.output_size_in_bytes) / MIB:.0f}",
                    f"{memory.temp_size_in_bytes / MIB:.0f}",
                    str(sent["all-reduce"]),
                    others or "none",
                ]
            )
    columns = ["data × model", "", "arguments and results", "temporary", "all-reduce", "others"]
    paragraphs = [
        "# A linear head on 256 chips: memory of each and collectives",
        f"{versions('jax', 'libtpu', 'jaxlogits', 'optax')}; a loss and its gradients for {ROWS} "
        f"rows, {FEATURES} features and {CLASSES} classes, hidden and kernel in bfloat16, rows "
        "split over data and classes over model. Compiled for a v5e of 16 × 16 chips of 16 GiB, "
        "not run: MiB of each chip from the compiler's memory analysis, and how often collectives "
        "run in a step, those in loops counted for each round.",
        table(columns, rows),
        "jaxlogits sends three times a step: the loss with the weight of the rows, and both "
        "gradients. The other all-reduces are those of a block's maxima and of its sums, one "
        "number for each row.",
    ]
    path = RESULTS / "mesh-tpu.md"
    path.write_text("\n\n".join(paragraphs) + "\n")
    print(path)


if __name__ == "__main__":
    main()
