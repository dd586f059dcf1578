"""Rows whose classes are split over a mesh give what the whole row gives.

Everything runs on eight devices of the CPU's, which conftest.py sets up.
"""

import functools
import itertools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from _collectives import collectives
from interpret import interpreted
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlogits as jl
from jaxlogits._src.base import varying
from jaxlogits._src.blockwise import linear_layer
from jaxlogits._src.mesh import layouts, reductions

Array = jax.Array

N, K = 12, 48
RNG = np.random.default_rng(0)


def mesh_of(kind: AxisType = AxisType.Auto, **sizes: int) -> jax.sharding.Mesh:
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))


class Layout(NamedTuple):
    mesh: jax.sharding.Mesh
    rows: Any  # the mesh axes over which the rows are split
    classes: Any  # and the classes

    def spec(self, array: Any) -> P:
        """Rows, classes and whatever has them are split; the rest every device has."""
        names = {N: self.rows, K: self.classes}
        return P(*(names.get(size) for size in array.shape))


TWO = Layout(mesh_of(data=4, model=2), "data", "model")
LAYOUTS = {
    "data 4, model 2": TWO,
    "model 8": Layout(mesh_of(model=8), None, "model"),
    "two axes for the classes": Layout(mesh_of(a=2, b=4), None, ("a", "b")),
}


class Case(NamedTuple):
    fn: Callable[..., Array]
    args: tuple[Array, ...]


def random(*shape: int, scale: float = 3.0) -> Array:
    return jnp.asarray(scale * RNG.normal(size=shape), jnp.float32)


LOGITS, OTHER = random(N, K), random(N, K)
LABELS = jnp.asarray(RNG.integers(0, K, N), jnp.int32)
TARGETS = jax.nn.softmax(random(N, K))
WHERE = (
    jnp.asarray(RNG.random((N, K)) < 0.8)
    .at[0]
    .set(False)
    .at[jnp.arange(1, N), LABELS[1:]]
    .set(True)
)
WEIGHTS = jnp.asarray(RNG.random(K) + 0.5, jnp.float32)
SHARE = jnp.asarray(RNG.random(N), jnp.float32)


def case(name: str, *args: Array, **options: Any) -> Any:
    given = {k: x for k, x in options.items() if isinstance(x, jax.Array)}
    static = {k: x for k, x in options.items() if k not in given}

    def fn(*values: Array, axis_name: Any = None) -> Array:
        positional, named = values[: len(args)], values[len(args) :]
        more = dict(zip(given, named, strict=True)) | static
        return getattr(jl, name)(*positional, axis_name=axis_name, **more)

    suffix = " with options" if options else ""
    return pytest.param(Case(fn, (*args, *given.values())), id=name + suffix)


SCALAR = jnp.asarray(0.25, jnp.float32)
OPTIONS = {"where": WHERE, "label_smoothing": SCALAR, "class_weights": WEIGHTS, "z_loss": SCALAR}
CASES = [
    case("logsumexp", LOGITS),
    case("logsumexp", LOGITS, where=WHERE),
    case("softmax", LOGITS),
    case("softmax", LOGITS, where=WHERE),
    case("log_softmax", LOGITS),
    case("class_log_odds", LOGITS),
    case("softmax_cross_entropy", LOGITS, TARGETS),
    case("softmax_cross_entropy", LOGITS, TARGETS, **OPTIONS),
    case("softmax_cross_entropy_with_integer_labels", LOGITS, LABELS),
    case("softmax_cross_entropy_with_integer_labels", LOGITS, LABELS, **OPTIONS),
    case("softmax_focal_loss_with_integer_labels", LOGITS, LABELS),
    case(
        "softmax_focal_loss_with_integer_labels",
        LOGITS,
        LABELS,
        where=WHERE,
        label_smoothing=0.5 * SHARE,
        class_weights=WEIGHTS,
    ),
    case("poly_loss_cross_entropy", LOGITS, TARGETS),
    case("entropy", LOGITS),
    case("softmax_kl_divergence", LOGITS, OTHER),
    case("jensen_shannon_divergence", LOGITS, OTHER),
    case("total_variation", LOGITS, OTHER),
    case("softmax_cross_entropy_with_teacher_logits", LOGITS, OTHER),
    case("sparsemax", LOGITS),
    case("entmax", LOGITS),
    case("entmax", LOGITS, alpha=1.0 + SHARE),
    case("entmax_loss", LOGITS, TARGETS, alpha=2),
    case("entmax_loss_with_integer_labels", LOGITS, LABELS, alpha=2),
    case("entmax_loss", LOGITS, TARGETS),
    case("entmax_loss_with_integer_labels", LOGITS, LABELS),
    case("keep_top_k", LOGITS, jnp.asarray(7)),
    case("keep_top_p", LOGITS, SHARE),
    case("keep_min_p", LOGITS, SHARE),
    case("keep_top_n_sigma", LOGITS, SHARE),
    case("keep_typical", LOGITS, SHARE),
    case("keep_epsilon", LOGITS, 0.1 * SHARE),
    case("keep_eta", LOGITS, 0.1 * SHARE),
    case("apply_temperature", LOGITS, SHARE),
]


def split(case: Case, layout: Layout) -> Callable[..., Array]:
    """The case's function on the whole arrays, run by every device on its part of them."""
    whole = jax.eval_shape(case.fn, *case.args)

    def local(*args: Array) -> Array:
        return case.fn(*args, axis_name=layout.classes)

    specs = tuple(map(layout.spec, case.args))
    return jax.shard_map(local, mesh=layout.mesh, in_specs=specs, out_specs=layout.spec(whole))


def number(fn: Callable[..., Array]) -> Callable[..., Array]:
    """One number of finite results, which tells rows and classes apart."""

    def of(*args: Array, **options: Any) -> Array:
        result = fn(*args, **options)
        finite = jnp.isfinite(result)
        weights = jnp.cos(jnp.arange(result.size, dtype=jnp.float32)).reshape(result.shape)
        return jnp.sum(jnp.where(finite, result, 0.0) * weights)

    return of


def floats(case: Case) -> tuple[int, ...]:
    return tuple(i for i, x in enumerate(case.args) if x.dtype == jnp.float32)


def assert_close(got: Any, want: Any, factor: float = 1.0) -> None:
    """Within 2e-6 of the largest number: sums over classes are added up in another order."""
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        size = np.max(np.abs(w), where=np.isfinite(w), initial=1.0)
        np.testing.assert_allclose(g, w, rtol=0, atol=factor * 2e-6 * size)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case: Case) -> None:
    def both(fn: Callable[..., Array]) -> Any:
        return fn(*case.args), jax.grad(number(fn), argnums=floats(case))(*case.args)

    assert_close(jax.jit(lambda: both(split(case, TWO)))(), interpreted(lambda: both(case.fn))())


FEW = [c for c in CASES if c.id in ("softmax", "softmax_cross_entropy_with_integer_labels")]


@pytest.mark.parametrize("case", FEW)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_both_modes_and_second_derivatives(case: Case, layout: Layout) -> None:
    direction = jnp.sin(jnp.arange(N * K, dtype=jnp.float32)).reshape(N, K)

    def derivatives(fn: Callable[..., Array]) -> Any:
        def of(z: Array) -> Array:
            return number(fn)(z, *case.args[1:])

        def along(of: Callable[[Array], Array]) -> Callable[[Array], Array]:
            return lambda z: jax.jvp(of, [z], [direction])[1]

        return [f(case.args[0]) for f in (along(of), along(jax.grad(of)), jax.grad(along(of)))]

    got = jax.jit(lambda: derivatives(split(case, layout)))()
    assert_close(got, interpreted(lambda: derivatives(case.fn))())


def test_vmap_with_an_axis_name_is_a_mesh_too() -> None:
    slices = jnp.moveaxis(LOGITS.reshape(N, 8, -1), 1, 0)
    local = functools.partial(jl.log_softmax, axis_name="k")
    got = jax.jit(jax.vmap(local, axis_name="k"))(slices)
    assert_close(jnp.moveaxis(got, 0, 1).reshape(N, K), jl.log_softmax(LOGITS))


# Edges that lie on one device and concern all of them.

EDGES = np.zeros((8, 8), np.float32) + np.arange(8, dtype=np.float32)
for row, column, value in [(1, 7, np.nan), (2, 0, np.inf), (3, 2, np.inf), (3, 5, np.inf)]:
    EDGES[row, column] = value
EDGES[4] = -np.inf
EDGES[5, :4] = -np.inf
EDGES[6, 1] = 1e30


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_edges(dtype: Any) -> None:
    """NaN, infinities, labels that are none, and masks are those of the whole row."""
    z, where = jnp.asarray(EDGES, dtype), jnp.arange(64).reshape(8, 8) < 56
    labels = jnp.array([0, 0, 0, 2, 0, 7, 1, 0], jnp.uint8)
    wrong = labels.astype(jnp.int32).at[0].set(-1).at[6].set(8)
    mesh = mesh_of(model=4)

    def results(z: Array, where: Array, axis_name: Any) -> list[Array]:
        rows = (jl.logsumexp, jl.softmax, jl.log_softmax, jl.class_log_odds, jl.entropy)
        loss = functools.partial(
            jl.softmax_cross_entropy_with_integer_labels, axis_name=axis_name, where=where
        )
        smooth = functools.partial(loss, label_smoothing=0.1)
        losses = [fn(z, y) for fn in (loss, smooth) for y in (labels, wrong)]
        gradients = jax.grad(lambda z: jnp.sum(loss(z, labels)))(z)
        some = [fn(z, axis_name=axis_name) for fn in (*rows, jl.sparsemax)]
        kept = jl.keep_top_k(z, 3, axis_name=axis_name, where=where)
        return [*some, *losses, gradients, kept]

    whole = jax.eval_shape(lambda: results(z, where, None))
    names = [P("model") if x.shape == z.shape else P() for x in whole]
    specs = [P(None, *spec) for spec in names]
    local = functools.partial(results, axis_name="model")
    on_devices = jax.shard_map(
        local, mesh=mesh, in_specs=(P(None, "model"), P(None, "model")), out_specs=specs
    )
    got, want = jax.jit(on_devices)(z, where), interpreted(lambda: results(z, where, None))()
    for g, w in zip(got, want, strict=True):
        tolerance = 2e-6 if g.dtype == jnp.float32 else 2**-8
        pair = (np.asarray(x, np.float32) for x in (g, w))
        np.testing.assert_allclose(*pair, rtol=tolerance, atol=tolerance)


def test_a_maximum_over_devices_keeps_nan() -> None:
    """Collectives may drop NaN, as the CPU's do."""
    x = jnp.array([[jnp.nan, 1.0], [2.0, -jnp.nan], [3.0, jnp.inf], [-jnp.inf, -jnp.inf]])
    largest = jax.vmap(lambda x: reductions.row_max(x[:, None], "k"), 1, None, axis_name="k")(x)
    np.testing.assert_array_equal(largest[:, 0], [np.nan, np.nan, np.inf, -np.inf])


# Draws.


def on_eight(fn: Callable[..., Any], out: Any) -> Callable[[Array], Any]:
    mesh = mesh_of(model=8)
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=P(None, "model"), out_specs=out))


def test_nan_in_classes_that_the_compiler_splits() -> None:
    """The collective of a maximum may return the number of a device without NaN."""
    z = np.asarray(random(4, 8)).copy()
    z[0, 6], z[1, 1], z[2, 7] = np.nan, np.nan, np.inf
    z[3, 0], z[3, 6] = np.inf, np.inf
    key = jax.random.key(0)

    def results(z: Array) -> Any:
        maps = [fn(z, 0.5) for fn in (jl.keep_min_p, jl.keep_top_n_sigma, jl.keep_epsilon)]
        maps += [jl.keep_top_k(z, 3), jl.apply_temperature(z, 0.0), jl.keep_top_p(z, 0.5)]
        return maps, [jl.sample(key, z), jl.sample_without_replacement(key, z, 1)[:, 0]]

    split = place(mesh_of(data=2, model=4), jnp.asarray(z), P("data", "model"))
    maps, draws = jax.jit(results)(split)
    for shaped in maps:
        np.testing.assert_array_equal(np.isnan(shaped[:3]).all(axis=1), [True, True, False])
        assert not np.isnan(shaped[2]).any()
    assert np.isnan(maps[2][3]).all()
    for drawn in draws:
        np.testing.assert_array_equal(drawn == -1, [True, True, False, True])


def test_draws_have_the_probabilities_of_the_whole_row() -> None:
    z, draws = LOGITS[:1], 40_000

    def local(z: Array) -> tuple[Array, Array]:
        key = jax.random.key(0)
        return jl.sample_with_log_prob(key, z, shape=(draws,), axis_name="model")

    classes, log_probs = on_eight(local, P())(z)
    want = jax.nn.log_softmax(z[0])
    np.testing.assert_allclose(log_probs[:, 0], want[classes[:, 0]], rtol=2e-6, atol=2e-6)
    expected = draws * np.exp(np.asarray(want, np.float64))
    likely = expected > 10
    counts = np.bincount(classes[:, 0], minlength=K)
    statistic = np.sum((counts - expected)[likely] ** 2 / expected[likely])
    # A right sampler fails with probability 1e-6.
    assert statistic < scipy.stats.chi2.isf(1e-6, likely.sum() - 1)


def test_draws_without_replacement_and_of_the_largest() -> None:
    def local(z: Array) -> tuple[Array, Array, Array]:
        key = jax.random.key(1)
        hot = jl.gumbel_softmax(key, z, hard=True, axis_name="model")
        some = jl.sample_without_replacement(key, 100.0 * z, 9, axis_name="model")
        return hot, some, jl.sample(key, z, temperature=0.0, axis_name="model")

    hot, some, largest = on_eight(local, (P(None, "model"), P(), P()))(LOGITS)
    np.testing.assert_allclose(np.sort(hot, axis=-1)[:, -2:], np.tile([0.0, 1.0], (N, 1)))
    assert all(len(set(row.tolist())) == 9 for row in some)
    np.testing.assert_array_equal(some[:, 0], jnp.argmax(LOGITS, axis=-1))
    np.testing.assert_array_equal(largest, jnp.argmax(LOGITS, axis=-1))


def test_draws_at_large_offsets_and_small_temperatures() -> None:
    """Two classes of eight devices tie at the top; the next two far below."""
    z = jnp.full([2, 8], -3e38).at[:, jnp.array([1, 6])].set(1e7)
    z = z.at[:, jnp.array([3, 4])].set(jnp.array([-1e7, -1e7 + 1]))
    draws = 20_000

    def local(z: Array) -> tuple[Array, Array]:
        key = jax.random.key(3)
        options = {"temperature": jnp.array([1.0, 1e-30]), "axis_name": "model"}
        drawn = jl.sample(key, z, shape=(draws,), **options)
        keys = jax.random.split(key, draws)
        several = jax.vmap(lambda k: jl.sample_without_replacement(k, z[0], 3, axis_name="model"))
        return drawn, several(keys)

    drawn, several = on_eight(local, P())(z)
    likelier = np.e / (1 + np.e)
    for classes, shares in (
        (drawn[:, 0], {1: 0.5, 6: 0.5}),
        (drawn[:, 1], {1: 0.5, 6: 0.5}),
        (several[:, 0], {1: 0.5, 6: 0.5}),
        (several[:, 2], {3: 1 - likelier, 4: likelier}),
    ):
        assert set(np.unique(classes)) == set(shares)
        counts = [np.sum(classes == k) for k in shares]
        expected = draws * np.array(list(shares.values()))
        assert scipy.stats.chisquare(counts, expected).pvalue > 1e-6


def test_draws_from_long_rows() -> None:
    """Of 1100 classes of each device, which are drawn in two rounds; one device has none left."""
    z = jnp.linspace(-1.0, 1.0, 8 * 1100)[None].at[:, 1100:2200].set(-jnp.inf)
    draws = 10_000
    classes = on_eight(
        lambda z: jl.sample(jax.random.key(4), z, shape=(draws,), axis_name="model"), P()
    )(z)
    # Each device's classes in 11 parts: a hundred draws or so of each.
    probs = np.exp(np.asarray(z[0], np.float64)).reshape(88, 100).sum(axis=-1)
    counts = np.bincount(classes[:, 0] // 100, minlength=88)
    some = probs > 0
    assert not counts[~some].any()
    expected = draws * probs[some] / probs.sum()
    assert scipy.stats.chisquare(counts[some], expected).pvalue > 1e-6


# A linear head, whose rows and classes are split.

D, ROWS, CLASSES = 5, 4 * 7, 2 * 21  # odd numbers for each device, and blocks of 3 don't fit
HIDDEN, KERNEL = random(ROWS, D, scale=1.0), random(D, CLASSES, scale=1.0)
BIAS, INDEX = random(CLASSES), jnp.asarray(RNG.integers(0, CLASSES, ROWS), jnp.int32)
KEEP = jnp.arange(ROWS) % 5 > 0
HEAD = (P("data"), P(None, "model"), P("model"), P("data"), P("data"))


def head(hidden: Array, kernel: Array, bias: Array, labels: Array, keep: Array, **o: Any) -> Array:
    return jl.linear_softmax_cross_entropy(
        hidden, kernel, labels, bias=bias, where=keep, z_loss=1e-3, soft_cap=5.0, block_size=3, **o
    )


def teach(hidden: Array, kernel: Array, bias: Array, labels: Array, keep: Array, **o: Any) -> Array:
    del labels
    return jl.linear_softmax_kl_divergence(
        hidden, kernel, 0.5 * hidden, kernel, bias_p=bias, where=keep, block_size=3, **o
    )


@pytest.mark.parametrize(
    ("fn", "reduction"),
    [(head, "mean"), (head, "none"), (teach, "sum")],
    ids=["mean", "none", "teacher"],
)
def test_linear_head(fn: Callable[..., Array], reduction: str) -> None:
    args = (HIDDEN, KERNEL, BIAS, INDEX, KEEP)

    def local(*args: Array) -> Array:
        return fn(*args, reduction=reduction, axis_name="model", row_axis_name="data")

    out = P("data") if reduction == "none" else P()
    on_devices = jax.shard_map(local, mesh=TWO.mesh, in_specs=HEAD, out_specs=out)

    def derivatives(fn: Callable[..., Array]) -> Any:
        def of(*args: Array) -> Array:
            return jnp.sum(jnp.square(fn(*args)))

        gradient = jax.grad(of, argnums=(0, 1, 2))
        direction = jax.tree.map(jnp.cos, args[:3])
        pushed = jax.jvp(lambda *three: gradient(*three, *args[3:]), args[:3], direction)
        return fn(*args), pushed

    whole = functools.partial(fn, reduction=reduction)
    got = jax.jit(lambda: derivatives(on_devices))()
    want = interpreted(lambda: derivatives(whole))()
    assert_close(got, want, factor=2.0)  # a gradient of a gradient, over rows and classes


def test_rows_of_arrays_that_are_split_in_jit() -> None:
    """With row_axis_name alone, for whatever else is split, in sum, mean and map."""
    labels, keep = INDEX.reshape(4, 7), KEEP.reshape(4, 7)
    hidden = HIDDEN.reshape(4, 7, D)

    def fn(kernel: Array, hidden: Array, labels: Array) -> Array:
        return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)

    def all_three(hidden: Array, kernel: Array, **options: Any) -> Array:
        options |= {"row_ndim": 2, "block_size": 3}
        total = jl.blockwise_sum(fn, **options)(kernel, hidden, labels)
        mean = jl.blockwise_mean(fn, **options)(kernel, hidden, labels, where=keep)
        each = jl.blockwise_map(fn, **options)(kernel, hidden, labels)
        log_probs = jl.linear_log_probs(
            hidden, kernel, labels, row_axis_name=options.get("row_axis_name")
        )
        return total + mean + jnp.sum(jnp.sin(each)) + jnp.sum(jnp.cos(log_probs))

    gradient = jax.jit(
        jax.value_and_grad(all_three, argnums=(0, 1)), static_argnames="row_axis_name"
    )
    want = gradient(hidden, KERNEL)
    split = place(TWO.mesh, hidden, P("data")), place(TWO.mesh, KERNEL, P(None, "model"))
    with jax.set_mesh(TWO.mesh):
        assert_close(gradient(*split, row_axis_name="data"), want)


def place(mesh: jax.sharding.Mesh, array: Array, spec: P) -> Array:
    return jax.device_put(array, NamedSharding(mesh, spec))


# How much is sent: counted in the compiled program, as often as it runs.


def sent(fn: Callable[..., Any], *args: Any) -> dict[str, int]:
    return dict(collectives(jax.jit(fn).lower(*args).compile().as_text()))


def training_step(block_size: int, **options: Any) -> Callable[..., Any]:
    def loss(hidden: Array, kernel: Array, labels: Array) -> Array:
        return jl.linear_softmax_cross_entropy(
            hidden, kernel, labels, block_size=block_size, **options
        )

    return loss


LAYER = (HIDDEN, KERNEL, INDEX)
LAYER_SPECS = (P("data"), P(None, "model"), P("data"))


def placed(mesh: jax.sharding.Mesh, specs: Any = LAYER_SPECS) -> list[Array]:
    return [place(mesh, x, spec) for x, spec in zip(LAYER, specs, strict=True)]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_head_gathers_nothing(kind: AxisType) -> None:
    """The loss and both gradients once; for each block a maximum and the sums of its rows."""
    mesh = mesh_of(kind, data=4, model=2)
    for num_blocks, block_size in ((1, 7), (2, 4)):  # of the 7 rows of a device
        loss = training_step(block_size)
        if kind == AxisType.Auto:
            local = training_step(block_size, axis_name="model", row_axis_name="data")
            loss = jax.shard_map(local, mesh=mesh, in_specs=LAYER_SPECS, out_specs=P())
        found = sent(jax.value_and_grad(loss, argnums=(0, 1)), *placed(mesh))
        assert found == {"all-reduce": 3 + 2 * num_blocks}


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler")
@pytest.mark.parametrize("shape", [(2, 4), (16, 16)])
def test_a_sharded_head_gathers_nothing_on_tpus(shape: tuple[int, int]) -> None:
    topology = topologies.get_topology_desc("v5e:{}x{}".format(*shape), "tpu")
    mesh = jax.sharding.Mesh(np.array(topology.devices).reshape(shape), ("data", "model"))
    sizes = [(256 * shape[0], 128), (128, 512 * shape[1]), (256 * shape[0],)]
    dtypes = (jnp.bfloat16, jnp.bfloat16, jnp.int32)
    types = [
        jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(mesh, spec))
        for size, dtype, spec in zip(sizes, dtypes, LAYER_SPECS, strict=True)
    ]
    for num_blocks in (1, 4):
        local = training_step(256 // num_blocks, axis_name="model", row_axis_name="data")
        loss = jax.shard_map(local, mesh=mesh, in_specs=LAYER_SPECS, out_specs=P())
        found = sent(jax.value_and_grad(loss, argnums=(0, 1)), *types)
        assert found == {"all-reduce": 3 + 2 * num_blocks}


def test_docs_show_what_the_table_of_a_pod_has() -> None:
    root = Path(__file__).parents[2]
    rows = (root / "benchmarks" / "results" / "mesh-tpu.md").read_text().splitlines()
    cells = [[cell.strip() for cell in row.split("|")] for row in rows if row.startswith("| ")]
    temporary = {(row[1], row[2]): row[4] for row in cells}
    shown = [temporary["32 × 8", name] for name in ("jaxlogits", "optax on hidden @ kernel, jit")]
    page = (root / "docs" / "sharding.md").read_text()
    assert "takes {} MiB of temporary memory where the plain loss takes {};".format(*shown) in page
    assert {v for (mesh, _), v in temporary.items() if mesh == "64 × 4"} == {"3328"}
    assert "both take 3328" in page


def test_a_gradient_of_rows_is_summed_once() -> None:
    """In jit, without shard_map, too: the sums of the loss and of the kernel's gradient."""
    specs = (P("data"), P(), P("data"))
    with jax.set_mesh(TWO.mesh):

        def step(**options: Any) -> dict[str, int]:
            loss = training_step(4, **options)
            return sent(jax.value_and_grad(loss, argnums=(0, 1)), *placed(TWO.mesh, specs))

        assert step(row_axis_name="data") == {"all-reduce": 2}
        assert step()["all-reduce"] > 2  # what the option is for


def test_fully_sharded_params_are_gathered_once() -> None:
    """FSDP: the kernel's features are split over the same devices as the rows."""
    layer = (jnp.ones([ROWS, 8]), jnp.ones([8, CLASSES]), INDEX)
    specs = (P("data"), P("data", "model"), P("data"))

    def local(hidden: Array, kernel: Array, labels: Array) -> Array:
        kernel = jax.lax.all_gather(kernel, "data", tiled=True)
        loss = training_step(4, axis_name="model", row_axis_name="data")
        return loss(hidden, kernel, labels)

    loss = jax.shard_map(local, mesh=TWO.mesh, in_specs=specs, out_specs=P())
    step = jax.value_and_grad(loss, argnums=(0, 1))
    args = [place(TWO.mesh, x, spec) for x, spec in zip(layer, specs, strict=True)]
    # The loss, the gradient of hidden, and two for each of two blocks.
    assert sent(step, *args) == {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 6}
    want = interpreted(jax.value_and_grad(training_step(28), argnums=(0, 1)))(*layer)
    assert_close(jax.jit(step)(*layer), want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("num_classes", [10, 1000, 65536])  # each way of summing a row
def test_rows_over_a_mesh_take_the_collectives_of_the_plain_loss(
    num_classes: int, dtype: Any
) -> None:
    mesh = mesh_of(data=8)
    rows = NamedSharding(mesh, P("data"))
    types = [((64, num_classes), dtype), ((64,), jnp.int32)]
    types = [jax.ShapeDtypeStruct(*t, sharding=rows) for t in types]

    def found(loss: Callable[..., Array]) -> dict[str, int]:
        return sent(jax.value_and_grad(lambda z, y: loss(z, y).mean()), *types)

    ours = found(jl.softmax_cross_entropy_with_integer_labels)
    theirs = found(optax.softmax_cross_entropy_with_integer_labels)
    assert ours == theirs == {"all-reduce": 1}


@pytest.mark.parametrize("num_classes", [1000, 65536, 250_000])  # each way of summing a row
def test_classes_that_the_compiler_splits_are_not_gathered(num_classes: int) -> None:
    mesh = mesh_of(model=8)
    types = [
        jax.ShapeDtypeStruct(
            (16, num_classes), jnp.float32, sharding=split_over(mesh, None, "model")
        ),
        jax.ShapeDtypeStruct((16,), jnp.int32, sharding=split_over(mesh, None)),
    ]
    loss = jl.softmax_cross_entropy_with_integer_labels
    found = sent(jax.value_and_grad(lambda z, y: loss(z, y).mean()), *types)
    assert set(found) == {"all-reduce"}


@pytest.mark.parametrize(
    ("name", "operands", "value", "gradient"),
    [
        ("logsumexp", 1, 3, 3),
        ("softmax_cross_entropy", 2, 3, 4),
        ("softmax_kl_divergence", 2, 4, 6),
    ],
)
def test_collectives_of_split_classes(name: str, operands: int, value: int, gradient: int) -> None:
    def total(*args: Array) -> Array:
        return getattr(jl, name)(*args, axis_name="model").sum()

    split = P(None, "model")
    specs = (split,) * operands
    args = [jax.ShapeDtypeStruct((16, 256), jnp.float32)] * operands
    mapped = functools.partial(jax.shard_map, mesh=mesh_of(model=8), in_specs=specs)
    step = jax.value_and_grad(total)
    for program, most in [
        (mapped(total, out_specs=P()), value),
        (mapped(step, out_specs=(P(), split)), gradient),
    ]:
        found = sent(program, *args)
        assert set(found) == {"all-reduce"}
        assert found["all-reduce"] <= most


def split_over(mesh: jax.sharding.Mesh, *names: str | None) -> NamedSharding:
    return NamedSharding(mesh, P(*names))


# Explicit meshes: the types of the arrays say how they are split.


def whole(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, jax.Array) else x


def test_explicit_mesh() -> None:
    mesh = mesh_of(AxisType.Explicit, data=4, model=2)
    rows, row, classes = P("data", "model"), P("data"), P("model")
    z, other, targets, where = (place(mesh, x, rows) for x in (LOGITS, OTHER, TARGETS, WHERE))
    labels, weights = place(mesh, LABELS, row), place(mesh, WEIGHTS, classes)
    integer = jl.softmax_cross_entropy_with_integer_labels
    cases: list[tuple[Callable[..., Array], tuple[Any, ...], dict[str, Any]]] = [
        (jl.softmax, (z,), {}),
        (jl.log_softmax, (z,), {"axis": (1, 0)}),
        (jl.logsumexp, (z,), {"axis": 0}),
        (integer, (z, labels), {"where": where, "class_weights": weights}),
        (integer, (z, labels), {"where": place(mesh, LABELS % 3 > 0, row)}),
        (integer, (z, LABELS), {"label_smoothing": SCALAR, "where": WHERE[:, :1] | True}),
        (jl.softmax_cross_entropy, (z, targets), {"where": WHERE[1:2]}),
        (jl.softmax_kl_divergence, (z, other), {}),
        (jl.entmax, (z,), {"alpha": SHARE + 1.0}),
        (jl.keep_top_p, (z, 0.5), {}),
        (jax.vmap(jl.softmax), (z,), {}),
        (jl.sigmoid_entropy, (z,), {}),
        (jl.sigmoid_kl_divergence, (z, other), {}),
        (jl.logitexp, (-jnp.abs(z) - 0.5,), {}),
    ]
    for fn, args, options in cases:

        def both(z: Array, *rest: Any, fn: Any = fn, **options: Any) -> Any:
            def of(z: Array) -> Array:
                return number(fn)(z, *rest, **options)

            return fn(z, *rest, **options), jax.grad(of)(z)

        got = jax.jit(functools.partial(both, **options))(*args)
        plain, plain_options = jax.tree.map(whole, (args, options))
        assert_close(got, interpreted(functools.partial(both, **plain_options))(*plain))
        assert jax.typeof(got[1]).sharding.spec == rows


def test_explicit_mesh_of_a_linear_head() -> None:
    mesh = mesh_of(AxisType.Explicit, data=4, model=2)
    want = interpreted(jax.value_and_grad(training_step(28), argnums=(0, 1)))(*LAYER)
    rows = P("data", None)
    for of_kernel in (P(None, "model"), P(None, None)):
        specs = (rows, of_kernel, P("data"))
        step = jax.jit(jax.value_and_grad(training_step(3), argnums=(0, 1)))
        value, gradients = step(*placed(mesh, specs))
        assert_close((value, gradients), want)
        assert [jax.typeof(g).sharding.spec for g in gradients] == [rows, of_kernel]
    hidden, kernel, labels = placed(mesh, (rows, P(None, "model"), P("data")))
    log_probs = jax.jit(jl.linear_log_probs)(hidden, kernel, labels)
    assert_close(log_probs, jl.linear_log_probs(*LAYER))
    assert jax.typeof(log_probs).sharding.spec == P("data")


def test_values_are_checked_on_every_device() -> None:
    local = functools.partial(jl.softmax_cross_entropy_with_integer_labels, axis_name="model")
    specs = (P("data", "model"), P("data"))
    loss = jax.shard_map(local, mesh=TWO.mesh, in_specs=specs, out_specs=P("data"))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 48\), got 48"):
        jl.checked(jax.jit(loss))(LOGITS, LABELS.at[3].set(K))


def test_explicit_rows_of_any_function() -> None:
    mesh = mesh_of(AxisType.Explicit, data=4, model=2)

    def fn(kernel: Array, hidden: Array, labels: Array) -> Array:
        return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)

    def loss(hidden: Array, kernel: Array, labels: Array) -> Array:
        return jl.blockwise_mean(fn, block_size=3)(kernel, hidden, labels)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    got = step(*placed(mesh, (P("data"), P(), P("data"))))
    want = interpreted(jax.value_and_grad(training_step(28), argnums=(0, 1)))(*LAYER)
    assert_close(got, want)
    with pytest.raises(ValueError, match="params must not be split along model"):
        step(*placed(mesh))


def test_explicit_mesh_says_what_is_wrong_of_the_whole() -> None:
    mesh = mesh_of(AxisType.Explicit, data=4, model=2)
    z = place(mesh, LOGITS, P("data", "model"))
    with pytest.raises(ValueError, match=r"labels must have .* \[12\], got int32\[3\]"):
        jl.softmax_cross_entropy_with_integer_labels(z, LABELS[:3])
    with pytest.raises(ValueError, match="axis must name dimensions"):
        jl.softmax(z, axis=2)


# Every way to split the arguments.

FOUR = mesh_of(AxisType.Explicit, a=2, b=2)


def splits(rank: int) -> list[P]:
    """Every way to give each of two mesh axes to a dimension, or to none."""
    found = []
    for places in itertools.product([None, *range(rank)], repeat=2):
        held = [tuple(n for n, d in zip("ab", places, strict=True) if d == i) for i in range(rank)]
        found.append(P(*(names or None for names in held)))
    turned = [P(*(("b", "a") if i == d else None for i in range(rank))) for d in range(rank)]
    return found + turned


def names_of(spec: P) -> set[str]:
    return {name for of_dim in spec for name in varying.axis_names(of_dim)}


def test_every_split_of_a_layer_has_a_layout() -> None:
    """Rows and classes are never over one mesh axis; each argument is split as its role says."""
    shapes = {"hidden": (8, 4), "kernel": (4, 8), "labels": (8,), "weights": (8,), "bias": (8,)}
    forms = linear_layer.HEAD | {"labels": "rows", "weights": "rows"}
    forms = {name: form for name, form in forms.items() if name in shapes}
    ones = {name: jnp.ones(shape) for name, shape in shapes.items()}
    placed = {name: [place(FOUR, x, spec) for spec in splits(x.ndim)] for name, x in ones.items()}
    for arrays in itertools.product(placed["hidden"], placed["kernel"], placed["labels"]):
        rest = (placed[name][len(names_of(spec_of(arrays[0])))] for name in ("weights", "bias"))
        arguments = dict(zip(shapes, (*arrays, *rest), strict=True))
        layout = layouts.layout_of(forms, arguments)
        specs = {name: layout.spec(forms[name], shape) for name, shape in shapes.items()}
        rows, classes = P(*layout.rows), P(layout.classes)
        assert not names_of(rows) & names_of(classes)
        assert names_of(rows) == set(layout.options["row_axis_name"] or ())
        assert specs["hidden"] == P(*rows, None)
        assert specs["kernel"] == P(None, *classes)
        assert specs["labels"] == specs["weights"] == rows
        assert specs["bias"] == classes
        # What the caller split by rows alone stays where it is.
        if spec_of(arrays[0])[0] is not None:
            assert rows[0] == spec_of(arrays[0])[0]


def test_a_split_is_that_of_the_dimension_which_is_declared() -> None:
    """Not of one that happens to have its size, nor over a mesh axis that another has taken."""
    forms = {"logits": "rows classes", "where": "rows classes | rows", "weights": "classes"}
    arguments: dict[str, Any] = {"logits": jnp.ones([8, 8]), "weights": jnp.ones(8), "axis": 0}

    def layout(**specs: P) -> tuple[Any, Any]:
        arrays = {name: place(FOUR, arguments[name], spec) for name, spec in specs.items()}
        found = layouts.layout_of(forms, arguments | {"where": None} | arrays)
        assert found is not None
        return found.rows, found.classes

    assert layout(weights=P("a")) == ((None,), "a")
    arguments["where"] = jnp.ones(8, bool)
    assert layout(where=P("a")) == (("a",), None)
    assert layout(where=P("a"), weights=P("a")) == (("a",), None)
    arguments["where"] = jnp.ones([8, 1], bool)
    assert layout(where=P("b"), weights=P("a")) == ((None,), "b")


def spec_of(array: Array) -> P:
    return jax.typeof(array).sharding.spec


SHARED_AXES = {
    "FSDP": (P("a"), P(None, "a"), P("a")),
    "FSDP over two axes": (P(("a", "b")), P(None, ("b", "a")), P(("a", "b"))),
    "features and classes": (P("a", "b"), P(None, "b"), P("a")),
    "features alone": (P(None, "a"), P("a", "b"), P()),
    "features of the kernel": (P("b"), P("b", "a"), P("b")),
    "labels otherwise": (P("a"), P(None, "b"), P(("b", "a"))),
    "labels alone": (P(), P(), P("a")),
    "nothing": (P(), P(), P()),
}


def test_layers_split_in_any_way() -> None:
    """Values, and gradients that are split as their arguments are."""
    hidden, kernel = random(8, 4, scale=1.0), random(4, 8, scale=1.0)
    args = (hidden, kernel, jnp.arange(8, dtype=jnp.int32), jnp.linspace(0.5, 2.0, 8))

    def step(reduction: str, *args: Array) -> Any:
        def number(hidden: Array, kernel: Array, weights: Array) -> tuple[Array, Array]:
            options: Any = {"weights": weights, "reduction": reduction}
            if reduction == "sum":  # of a teacher's head, tied
                head = (hidden, kernel, 0.5 * hidden, kernel.T.T)
                loss = jl.linear_softmax_kl_divergence(*head, **options)
            else:
                loss = jl.linear_softmax_cross_entropy(hidden, kernel, args[2], **options)
            return jnp.sum(jnp.sin(loss)), loss

        return jax.value_and_grad(number, (0, 1, 2), has_aux=True)(*args[:2], args[3])

    reductions = [r for r, _ in zip(itertools.cycle(["mean", "none", "sum"]), SHARED_AXES)]
    cases = [
        [place(FOUR, x, spec) for x, spec in zip(args, (*specs, specs[2]), strict=True)]
        for specs in SHARED_AXES.values()
    ]

    def all_of(cases: Any) -> list[Any]:
        return [step(r, *case) for r, case in zip(reductions, cases, strict=True)]

    want = {r: interpreted(functools.partial(step, r))(*args) for r in set(reductions)}
    for name, case, reduction, got in zip(
        SHARED_AXES, cases, reductions, jax.jit(all_of)(cases), strict=True
    ):
        assert_close(got, want[reduction], factor=2.0)
        assert [spec_of(g) for g in got[1]] == [spec_of(case[i]) for i in (0, 1, 3)], name


def test_a_kernel_split_over_the_axis_of_the_rows_is_gathered_once() -> None:
    """In the forward pass, and its gradient is summed once, however many blocks there are."""
    mesh = mesh_of(AxisType.Explicit, data=8)
    layer = (jnp.ones([32, 4]), jnp.ones([4, 16]), jnp.zeros(32, jnp.int32))
    specs = (P("data"), P(None, "data"), P("data"))
    args = [place(mesh, x, spec) for x, spec in zip(layer, specs, strict=True)]
    for block_size in (1, 4):
        found = sent(jax.value_and_grad(training_step(block_size), argnums=(0, 1)), *args)
        assert found["all-gather"] == 1
        assert found["all-reduce"] + found.get("reduce-scatter", 0) <= 2


# By hand: what the types can tell is refused, in one sentence.


def by_hand(fn: Callable[..., Any], in_specs: Any, *args: Array, **options: Any) -> Any:
    return jax.shard_map(fn, mesh=TWO.mesh, in_specs=in_specs, out_specs=P(), **options)(*args)


def traced(fn: Callable[..., Any], *args: Any) -> None:
    """What is refused is refused while tracing, which compiles nothing."""
    jax.eval_shape(lambda: fn(*args))


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "log_probs"])
def test_one_mesh_axis_for_rows_and_classes_is_refused(name: str) -> None:
    def local(*args: Array) -> Array:
        head = getattr(jl, f"linear_{name}")
        return head(*args, axis_name="model", row_axis_name=("data", "model"))

    specs = (P(("data", "model")), P(None, "model"), P(("data", "model")))
    with pytest.raises(ValueError, match=r"(?m)^row_axis_name must name other .* got 'model'$"):
        traced(by_hand, local, specs, jnp.ones([8, 4]), jnp.ones([4, 8]), jnp.zeros(8, jnp.int32))


@pytest.mark.parametrize("case", CASES)
def test_an_axis_along_which_nothing_varies_is_refused(case: Case) -> None:
    """The loss would be log(devices) too large."""

    def local(*args: Array) -> Array:
        return case.fn(*args, axis_name="model")

    with pytest.raises(ValueError, match=r"(?m)^logits must vary over .* the same along 'model'$"):
        traced(by_hand, local, P(), *case.args)
    with pytest.raises(ValueError, match=r"(?m)^axis_name must name mesh axes of .*, got 'nope'$"):
        traced(functools.partial(case.fn, axis_name="nope"), *case.args)


@pytest.mark.parametrize("sampler", ["sample", "gumbel_softmax", "sample_without_replacement"])
def test_draws_along_which_nothing_varies_are_refused(sampler: str) -> None:
    def local(z: Array) -> Array:
        more = (3,) if sampler.endswith("replacement") else ()
        return getattr(jl, sampler)(jax.random.key(0), z, *more, axis_name="model")

    with pytest.raises(ValueError, match=r"(?m)^logits must vary over"):
        traced(by_hand, local, P("data"), LOGITS)


def test_heads_refuse_axes_along_which_nothing_varies() -> None:
    whole, split = (P(), P(), P()), (P("data"), P(), P("data"))
    for name in ("softmax_cross_entropy", "log_probs"):
        head = getattr(jl, f"linear_{name}")
        with pytest.raises(ValueError, match=r"(?m)^kernel must vary over .*'model'$"):
            traced(by_hand, functools.partial(head, axis_name="model"), split, *LAYER)
        with pytest.raises(ValueError, match=r"(?m)^hidden must vary over .*'data'$"):
            traced(by_hand, functools.partial(head, row_axis_name="data"), whole, *LAYER)
        for option in ("axis_name", "row_axis_name"):
            with pytest.raises(
                ValueError, match=rf"(?m)^{option} must name mesh axes .*, got 'nope'$"
            ):
                traced(functools.partial(head, **{option: "nope"}), *LAYER)

    def total(kernel: Array, hidden: Array) -> Array:
        fn = jl.blockwise_sum(lambda k, h: jl.logsumexp(h @ k), row_axis_name="data")
        return fn(kernel, hidden)

    with pytest.raises(
        ValueError, match=r"(?m)^rows must vary over .*row_axis_name, got float32\[28,5"
    ):
        by_hand(total, P(), KERNEL, HIDDEN)


def test_rows_that_differ_along_the_split_classes_are_nan() -> None:
    """Gathered rows vary by their type and are the same; rows of each device's own aren't."""

    def local(hidden: Array, kernel: Array, labels: Array) -> Array:
        gathered = jax.lax.all_gather(hidden, "model", tiled=True)
        right = jl.linear_log_probs(gathered, kernel, labels, axis_name="model")
        own = jl.linear_log_probs(hidden, kernel, labels[:14], axis_name="model")
        return right, own

    specs = (P("model"), P(None, "model"), P())
    right, own = by_hand(local, specs, *LAYER)
    assert_close(right, jl.linear_log_probs(*LAYER))
    assert jnp.isnan(own).all()


def test_a_uniform_teacher_needs_no_split() -> None:
    def local(z: Array) -> Array:
        uniform = jnp.zeros([N, K // 2])
        return jl.softmax_kl_divergence(z, uniform, axis_name="model")

    got = by_hand(local, P(None, "model"), LOGITS)
    assert_close(got, jl.softmax_kl_divergence(LOGITS, jnp.zeros_like(LOGITS)))


# Explicit meshes, further.


def test_draws_on_an_explicit_mesh_are_those_of_one_device() -> None:
    mesh, key = mesh_of(AxisType.Explicit, data=4, model=2), jax.random.key(3)

    def all_draws(z: Array, where: Array) -> Any:
        drawn = jl.sample_with_log_prob(key, z, where=where, shape=(2,))
        some = jl.sample_without_replacement(key, z, 5, where=where)
        hot = [jl.gumbel_softmax(key, z, where=where, hard=hard) for hard in (True, False)]
        return [jl.sample(key, z, where=where), *drawn, some, *hot]

    def both(z: Array, where: Array) -> Any:
        def number(z: Array) -> Array:
            return jnp.sum(jnp.stack(all_draws(z, where)[4:]) * jnp.stack([z, jnp.cos(z)]))

        return all_draws(z, where), jax.grad(number)(z)

    where = WHERE.at[0].set(True)
    want = interpreted(both)(LOGITS, where)
    split = P("data", "model")
    got = jax.jit(both)(place(mesh, LOGITS, split), place(mesh, where, split))
    assert_close(got, want)
    specs = [P("data"), P(None, "data"), P(None, "data"), P("data", None), split, split]
    assert [spec_of(x) for x in got[0]] == specs
    assert spec_of(got[1]) == split


def of_yes(name: str) -> Any:
    return lambda z, y, w: getattr(jl, name)(jnp.sum(z, 1), (y > 2).astype(jnp.float32), weights=w)


def of_classes(name: str, **options: Any) -> Any:
    return lambda z, y, w: getattr(jl, name)(z, y, weights=w, **options)


# What looks at all rows at once, or at a row in an order of its own.
OF_ALL_ROWS: dict[str, Any] = {
    **{
        name: of_classes(name)
        for name in (
            *("expected_calibration_error", "adaptive_calibration_error", "reliability_curve"),
            *("maximum_calibration_error", "classwise_calibration_error", "brier_score"),
            "fit_temperature",
        )
    },
    **{
        name: of_yes(name)
        for name in (
            *("binary_calibration_error", "binary_brier_score", "binary_reliability_curve"),
            "fit_platt",
        )
    },
    "fit_vector_scaling": of_classes("fit_vector_scaling", l2=1.0),
    "fit_logistic": lambda z, y, w: jl.fit_logistic(z, y > 2, weights=w, l2=1.0),
    "fit_multinomial": lambda z, y, w: jl.fit_multinomial(z, y, 8, weights=w, l2=1.0),
    "conformal_threshold": lambda z, y, _: jl.conformal_threshold(z, y, 0.5),
    "conformal_set": lambda z, _, w: jl.conformal_set(z, jnp.max(w)),
    "aps_scores": lambda z, *_: jl.aps_scores(z, key=jax.random.key(0), penalty=0.25),
    "sample_without_replacement": lambda z, *_: jl.sample_without_replacement(
        jax.random.key(0), z, 3
    ),
}


@pytest.mark.parametrize("name", OF_ALL_ROWS)
def test_functions_of_all_rows_on_an_explicit_mesh(name: str) -> None:
    """Whatever is split: their types say what JAX refuses, before anything is computed."""
    fn, specs = OF_ALL_ROWS[name], (P("b", "a"), P("a"), P("a"))
    arrays = random(8, 8), jnp.arange(8, dtype=jnp.int32), jnp.ones(8)
    want = jax.eval_shape(fn, *arrays)
    with jax.set_mesh(FOUR):
        split = [place(FOUR, x, spec) for x, spec in zip(arrays, specs, strict=True)]
        got = jax.eval_shape(fn, *split)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize("name", ["adaptive_calibration_error", "sample_without_replacement"])
def test_values_of_all_rows_on_an_explicit_mesh(name: str) -> None:
    fn = OF_ALL_ROWS[name]
    arrays = random(8, 8), jnp.arange(8, dtype=jnp.int32), jnp.ones(8)
    want = interpreted(fn)(*arrays)
    with jax.set_mesh(FOUR):
        got = fn(place(FOUR, arrays[0], P("b", "a")), *arrays[1:])
    assert_close(got, want)


def test_long_rows_on_an_explicit_mesh_are_drawn_as_on_one_device() -> None:
    mesh, z = mesh_of(AxisType.Explicit, data=4, model=2), random(4, 1200)
    draw = jax.jit(lambda z: jl.sample(jax.random.key(3), z, shape=(2,)))
    got = draw(place(mesh, z, P("data", "model")))
    np.testing.assert_array_equal(got, draw(z))
    assert spec_of(got) == P(None, "data")


def test_row_functions_split_in_any_way() -> None:
    """Logits, labels and a mask of different splits, or some whole: losses and softmax."""
    z, labels, where = random(8, 8), jnp.arange(8, dtype=jnp.int32), jnp.ones([8, 8], bool)

    def both(z: Array, labels: Array, where: Array) -> Any:
        def loss(z: Array) -> Array:
            fn = jl.softmax_cross_entropy_with_integer_labels
            return jnp.sum(jnp.sin(fn(z, labels, where=where)) * jl.logsumexp(z, axis=(1, 0)))

        return jax.value_and_grad(loss)(z)

    want = interpreted(both)(z, labels, where)
    cases = [
        [place(FOUR, z, of_z), place(FOUR, labels, of_labels), place(FOUR, where, of_where)]
        for of_z, of_labels, of_where in zip(
            splits(2), itertools.cycle(splits(1)), splits(2)[::-1], strict=False
        )
    ]
    for case, got in zip(
        cases, jax.jit(lambda cases: [both(*c) for c in cases])(cases), strict=True
    ):
        assert_close(got, want)
        assert spec_of(got[1]) == spec_of(case[0])


def test_named_axes_of_a_surrounding_shard_map_are_kept() -> None:
    """The rows are split by hand, the classes by their types."""
    mesh = mesh_of(AxisType.Explicit, data=4, model=2)
    specs = (P("data"), P(), P("data"))
    local = functools.partial(jl.linear_softmax_cross_entropy, row_axis_name="data")
    with jax.set_mesh(mesh):
        mean = jax.shard_map(local, in_specs=specs, out_specs=P(), axis_names={"data"})
        got = jax.jit(mean)(*placed(mesh))
    assert_close(got, jl.linear_softmax_cross_entropy(*LAYER))


@pytest.mark.compiled
def test_eager_calls_on_an_explicit_mesh_compile_once() -> None:
    mesh, count = mesh_of(AxisType.Explicit, data=4, model=2), 0

    def listen(event: str, _: float, **__: Any) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    z, labels = place(mesh, LOGITS, P("data", "model")), place(mesh, LABELS, P("data"))
    layer, key = placed(mesh), jax.random.key(0)
    head = (*layer[:2], *layer[:2])
    calls: list[Callable[[], Any]] = [
        lambda: jl.softmax(z),
        lambda: jl.softmax_cross_entropy_with_integer_labels(z, labels),
        lambda: jl.softmax_kl_divergence(z, z),
        lambda: jl.keep_top_p(z, 0.5),
        lambda: jl.sparsemax(z),
        lambda: jl.sample_with_log_prob(key, z),
        lambda: jl.linear_softmax_cross_entropy(*layer),
        lambda: jl.linear_log_probs(*layer),
        lambda: jl.linear_softmax_kl_divergence(*head),
    ]
    for call in calls:
        call()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for call in calls * 4:
            call()
        assert count == 0
        jax.jit(lambda x: x + 1)(1.0)
        assert count == 1  # it listens
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
