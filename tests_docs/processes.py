"""One of several processes that train the same head: run by test_processes.py.

``python processes.py PORT COUNT INDEX [die]``: with "die" the last process ends without a word.
"""

import os
import sys

import jax

port, count, index = map(int, sys.argv[1:4])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=10)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import jaxlogits as jl  # noqa: E402

N, D, K = 24, 8, 40
mesh = jax.make_mesh((2, count), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
hidden, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((N, D), (D, K)))
labels = rng.integers(0, K, N).astype(np.int32)


def local(hidden, kernel, labels):
    return jl.linear_softmax_cross_entropy(
        hidden, kernel, labels, axis_name="model", row_axis_name="data", block_size=5
    )


specs = (P("data"), P(None, "model"), P("data"))
split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
step = jax.jit(jax.value_and_grad(split, argnums=(0, 1)))


def place(array, spec):
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), array.__getitem__)


arrays = [place(x, spec) for x, spec in zip((hidden, kernel, labels), specs, strict=True)]
if sys.argv[4:] == ["die"] and index == count - 1:
    step.lower(*arrays).compile()  # the others are under way
    os._exit(1)
value, (of_hidden, of_kernel) = step(*arrays)

want, (want_hidden, want_kernel) = jax.value_and_grad(
    lambda h, w: jl.softmax_cross_entropy_with_integer_labels(h @ w, labels).mean(), argnums=(0, 1)
)(jnp.asarray(hidden), jnp.asarray(kernel))
np.testing.assert_allclose(value, want, rtol=2e-6)
for got, whole in ((of_hidden, want_hidden), (of_kernel, want_kernel)):
    for shard in got.addressable_shards:
        part = np.asarray(whole)[shard.index]
        np.testing.assert_allclose(shard.data, part, atol=2e-6 * np.max(np.abs(whole)))
print("agrees")
