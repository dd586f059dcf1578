"""Numbers of rows that are found in blocks are those of all rows, and need no memory on a TPU.

Blocks are for accelerators; here they run on the CPU, of 8 rows each.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from _collectives import collectives
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import jaxlogits as jl
from jaxlogits._src.rows import blocks

INF, NAN = np.inf, np.nan
KEY = jax.random.key(0)
N, K = 29, 600  # no multiple of a block's rows; a long row to the samplers
RNG = np.random.default_rng(0)

OPTIONS = {
    "keep_top_k": 7,
    "keep_top_p": 0.75,
    "keep_typical": 0.5,
    "keep_min_p": 0.25,
    "keep_top_n_sigma": 1.5,
    "keep_epsilon": 0.01,
    "keep_eta": 0.01,
}


@contextlib.contextmanager
def in_blocks(num_classes: int = K, devices: int = 1) -> Iterator[None]:
    """Programs traced in here are those of an accelerator that has room for 8 rows."""
    with pytest.MonkeyPatch.context() as patch, plain.without("by_device"):
        patch.setattr(blocks, "_BLOCK_BYTES", 8 * num_classes * 4)
        patch.setattr(blocks, "_TILE_OF_BYTES", 8)
        patch.setattr(blocks, "_num_devices", lambda: devices)
        yield


def both(fn: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """What a function gives with blocks and without."""
    want = jax.jit(fn)(*args)
    with in_blocks():
        got = jax.jit(fn)(*args)
    return got, want


def assert_same(got: Any, want: Any) -> None:
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32))


def rows(num_rows: int = N) -> np.ndarray:
    """Ordinary ones, ties, and each edge, the last block's among them."""
    z = np.float32(3.0 * RNG.normal(size=(num_rows, K)))
    z[1] = z[1].round()
    z[2, ::2], z[3], z[4, 5], z[5, :2], z[6, 9] = -INF, -INF, INF, INF, NAN
    z[-1, 3] = INF
    return z


def numbers(x: Any) -> Any:
    return jnp.sum(jnp.where(jnp.isfinite(x), jnp.sin(x), 0.0))


@pytest.mark.parametrize(
    ("name", "num_rows"), [*((name, N) for name in OPTIONS), ("keep_top_p", 32)]
)
def test_what_is_kept(name: str, num_rows: int) -> None:
    """With an option for all rows or for each, masks, half precision, another axis, gradients."""
    keep, option = getattr(jl, name), OPTIONS[name]
    z = rows(num_rows)
    where = RNG.random((num_rows, K)) < 0.9
    where[[0, 7]] = False
    dtype = jnp.int32 if name == "keep_top_k" else jnp.float32
    each = jnp.asarray(np.resize([option, 1, 2 * option], num_rows), dtype)

    def run(z: Any, where: Any, each: Any) -> Any:
        low = jnp.asarray(z.T, jnp.bfloat16)
        return (
            jax.value_and_grad(lambda z: numbers(keep(z, option)))(z),
            jax.jvp(lambda z: keep(z, each, where=where), (z,), (jnp.ones_like(z),)),
            keep(low, each, 0, where=where.T),
        )

    got, want = both(run, z, where, each)
    assert_same(got, want)


def test_draws() -> None:
    """The same classes: of one key or a key for each row, of one draw or several."""
    z, where = rows(), RNG.random((N, K)) < 0.9
    temperature = jnp.asarray(np.resize([1.0, 0.0, 0.5], N), jnp.float32)

    def run(z: Any, where: Any, temperature: Any) -> Any:
        keys = jax.random.split(KEY, N)
        return (
            jl.sample(KEY, z, temperature=0.7),
            jl.sample(KEY, jnp.asarray(z.T, jnp.bfloat16), 0, where=where.T, shape=(2, 1)),
            jl.sample(KEY, z, where=where, temperature=temperature),
            jl.sample(KEY, z[:, :100]),
            jax.vmap(jl.sample)(keys, z),
            jax.vmap(lambda key: jl.sample(key, z))(keys[:3]),
        )

    got, want = both(run, z, where, temperature)
    assert_same(got, want)
    assert len(np.unique(want[0])) > N // 2


def test_log_probs_of_draws() -> None:
    """With their derivatives by the logits and the temperature, of one draw or several."""
    z, where = rows(), RNG.random((N, K)) < 0.9
    where[[0, 7]] = False
    temperature = jnp.asarray(np.resize([1.0, 0.0, 0.5], N), jnp.float32)

    def run(z: Any, where: Any, temperature: Any) -> Any:
        keys = jax.random.split(KEY, N)
        draw = functools.partial(jl.sample_with_log_prob, KEY)

        def loss(z: Any, t: Any) -> Any:
            classes, log_probs = draw(z, temperature=t, shape=(2,), where=where)
            return numbers(log_probs), (classes, log_probs)

        return (
            draw(z),
            draw(jnp.asarray(z.T, jnp.bfloat16), 0, where=where.T),
            jax.vmap(jl.sample_with_log_prob)(keys, z),
            jax.value_and_grad(loss, (0, 1), has_aux=True)(z, temperature),
            jax.jvp(lambda z: draw(z)[1], (z,), (jnp.ones_like(z).at[:, 0].set(2.0),)),
        )

    for x, y in zip(*map(jax.tree.leaves, both(run, z, where, temperature)), strict=True):
        # Sums over other loops: to a few ulp.
        np.testing.assert_allclose(
            np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-6, atol=1e-6
        )


def test_batches_are_more_rows() -> None:
    z = jnp.asarray(RNG.normal(size=(3, 2, N, K)), jnp.float32)
    p = jnp.asarray(RNG.random((2, N)), jnp.float32)

    def run(z: Any, p: Any) -> Any:
        of_rows = jax.vmap(jl.keep_top_p)
        return (
            jax.vmap(jax.vmap(of_rows), (0, None))(z, p),
            jax.vmap(jl.keep_top_p, (None, 0))(z[0, 0], p),
            jax.vmap(jl.keep_top_p, (None, 0))(z[0, 0, 0], p[0]),
            jax.vmap(jax.grad(lambda z, p: numbers(jl.keep_top_p(z, p))), (1, None))(z[0, 0], 0.5),
        )

    got, want = both(run, z, p)
    assert_same(got, want)


def loops(fn: Callable[..., Any], *args: Any) -> list[int]:
    """The lengths of the loops of a program, those within others first."""
    found = []

    def look(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            values = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple) else [p])]
            for inner in values:
                if hasattr(inner, "eqns"):
                    look(getattr(inner, "jaxpr", inner))
            if eqn.primitive.name == "scan":
                found.append(eqn.params["length"])

    look(jax.make_jaxpr(fn)(*args).jaxpr)
    return found


def test_when_there_are_blocks() -> None:
    """Of 8 rows each where there are more, whether vmap or an argument has them."""

    def keep(z: Any) -> Any:
        return jl.keep_min_p(z, 0.5)

    z = jnp.zeros([N, K])
    with in_blocks():
        assert loops(keep, z) == loops(jax.vmap(keep), z) == [4]
        assert loops(keep, z[:8]) == loops(keep, z[0]) == []
        assert loops(lambda z, w: jl.keep_min_p(z, 0.5, where=w), z, z == 0) == [4]
    with in_blocks(devices=8):  # which have no equal parts of 29 rows, but of 256, and of 128
        assert loops(keep, z) == [4]
        assert loops(keep, jnp.zeros([256, K])) == [4]
        assert loops(keep, jnp.zeros([3, 128, K])) == [2]
        assert loops(keep, jnp.zeros([8 * 9, K])) == loops(keep, jnp.zeros([9 * K])) == []


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((256, K), P("data")),
        ((256, K), P(("data", "more"))),
        ((4, 128, K), P("data")),
        ((4, 128, K), P(None, "data")),
        ((4, 128, K), P("data", "more")),
    ],
)
def test_rows_that_the_compiler_splits_stay_where_they_are(shape: tuple[int, ...], spec: P) -> None:
    mesh = jax.make_mesh((4, 2), ("data", "more"), axis_types=(AxisType.Auto,) * 2)
    z = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    split = jax.device_put(z, NamedSharding(mesh, spec))

    def run(z: Any) -> Any:
        return jl.keep_top_p(z, 0.5), jl.sample(KEY, z)

    want = jax.jit(run)(z)
    with in_blocks(devices=8):
        program = jax.jit(run).lower(split).compile()
        assert (4 if len(shape) == 2 else 2) in loops(run, z)
    assert not collectives(program.as_text())
    assert_same(program(split), want)


def test_rows_that_types_say_are_split() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    z = jnp.asarray(RNG.normal(size=(64, K)), jnp.float32)

    def run(z: Any) -> Any:
        return jl.keep_top_p(z, 0.5), jl.sample(KEY, z)

    want = jax.jit(run)(z)
    with in_blocks(), jax.set_mesh(mesh):
        got = jax.jit(run)(jax.device_put(z, NamedSharding(mesh, P("data", "model"))))
    assert_same(got, want)


def test_classes_that_are_split() -> None:
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    z = jnp.asarray(RNG.normal(size=(N, K)), jnp.float32)
    local = jax.shard_map(
        lambda z: jl.keep_top_p(z, 0.5, axis_name="model"),
        mesh=mesh,
        in_specs=P(None, "model"),
        out_specs=P(None, "model"),
    )
    want = jax.jit(local)(z)
    with in_blocks(K // 8):
        assert_same(jax.jit(local)(z), want)
        assert 4 in loops(local, z)


# What the compiler of TPUs makes of it.

ON_TPU: dict[str, Callable[..., Any]] = {
    "keep_top_k": lambda z: jl.keep_top_k(z, 50),
    "keep_top_p": lambda z: jl.keep_top_p(z, 0.9),
    "keep_typical": lambda z: jl.keep_typical(z, 0.9),
    "sample": lambda z: jl.sample(KEY, z),
    "sample_with_log_prob": lambda z: jl.sample_with_log_prob(KEY, z),
    "a key for each row": lambda z: jax.vmap(jl.sample)(jax.random.split(KEY, len(z)), z),
    "a mask": lambda z, where: jl.keep_top_p(z, 0.9, where=where),
}


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler")
@pytest.mark.parametrize("name", ON_TPU)
def test_no_memory_on_a_tpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a thousandth of the logits, which are 2 GiB."""
    if name == "a mask":  # of which each of eight devices would have 32 rows in a block
        monkeypatch.setattr(blocks, "_num_devices", lambda: 1)
    device = topologies.get_topology_desc("v5e:2x2", "tpu").devices[0]
    place = SingleDeviceSharding(device)
    dtypes = (jnp.bfloat16, jnp.bool_)[: 1 + (name == "a mask")]
    types = [jax.ShapeDtypeStruct((8192, 128256), dtype, sharding=place) for dtype in dtypes]
    program = jax.jit(ON_TPU[name]).lower(*types).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2**21
