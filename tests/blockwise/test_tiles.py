"""Vocabulary tiles: the numbers of the plain loss of hidden @ kernel, and one tile in memory."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxlogits as jl
from jaxlogits._src.blockwise import tiles

Array = jax.Array
ROWS, FEATURES, CLASSES = 6, 4, 13
RNG = np.random.default_rng(0)
ARRAYS = {
    "hidden": RNG.normal(size=(ROWS, FEATURES)),
    "kernel": RNG.normal(size=(FEATURES, CLASSES)),
    "bias": RNG.normal(size=CLASSES),
    "class_weights": np.arange(CLASSES) + 0.5,
    "weights": np.arange(ROWS) + 0.5,
    "temperature": np.arange(ROWS) * 0.3 + 0.2,
    "label_smoothing": np.arange(ROWS) * 0.1,
    "z_loss": np.array(0.01),
    "soft_cap": np.array(3.0),
}
EXISTS, KEEP = np.arange(CLASSES) % 4 != 1, np.arange(ROWS) % 3 != 1
LABELS = RNG.choice(np.flatnonzero(EXISTS), size=ROWS)
MASKS = {"class_where": EXISTS, "where": KEEP}
# A logit is at most 16 from a few products, each within 8 * 16 * 2^-24; a result or a gradient adds
# up a dozen such errors, times 13 for the weights and divided by the smallest temperature.
CLOSE = 24 * 13 * 5 * 2**-20


@pytest.fixture(autouse=True)
def _narrow_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of 5 classes, the last of which overlaps."""
    monkeypatch.setattr(tiles, "_TILE_BYTES", 0)
    monkeypatch.setattr(tiles, "_FEWEST_CLASSES", 5)
    monkeypatch.setattr(tiles, "_LANES", 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


def plain(arrays: dict[str, Any], reduction: str) -> Array:
    """The loss of all logits, in float64 under enable_x64."""
    given = {k: jnp.asarray(v) for k, v in arrays.items()}
    z = given["hidden"] @ given["kernel"] + jnp.broadcast_to(given["bias"], (ROWS, CLASSES))
    z = given["soft_cap"] * jnp.tanh(z / given["soft_cap"]) / given["temperature"][:, None]
    z = jnp.where(jnp.asarray(EXISTS)[None], z, -jnp.inf)
    smoothing = given["label_smoothing"][:, None]
    even = jnp.asarray(EXISTS / EXISTS.sum())[None]
    targets = (1 - smoothing) * jax.nn.one_hot(LABELS, CLASSES, dtype=z.dtype) + smoothing * even
    surprise = jnp.where(jnp.asarray(EXISTS)[None], -jax.nn.log_softmax(z), 0.0)
    losses = (targets * given["class_weights"][None] * surprise).sum(-1)
    losses = losses + given["z_loss"] * jax.nn.logsumexp(z, axis=-1) ** 2
    total = jnp.where(KEEP, losses * given["weights"], 0.0)
    if reduction == "none":
        return total
    return total.sum() / (1 if reduction == "sum" else jnp.where(KEEP, given["weights"], 0.0).sum())


def tiled(arrays: dict[str, Any], reduction: str, **options: Any) -> Array:
    given = {"labels": LABELS, "reduction": reduction, "memory": "tiles", **MASKS, **options}
    return jl.linear_softmax_cross_entropy(**arrays, **given)


def scalar(fn: Callable[..., Array], reduction: str) -> Callable[[Any], Array]:
    return lambda arrays: jnp.sum(jnp.sin(fn(arrays, reduction)))


def narrow(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def assert_close(tree: Any, expected: Any, tolerance: float = CLOSE) -> None:
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), tree, expected
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_gradients_are_those_of_the_plain_loss(reduction: str) -> None:
    with jax.enable_x64(True):
        expected = jax.jit(jax.value_and_grad(scalar(plain, reduction)))(ARRAYS)
        expected = jax.tree.map(np.asarray, expected)
    assert_close(jax.value_and_grad(scalar(tiled, reduction))(narrow(ARRAYS)), expected)


def test_second_derivatives_in_all_three_ways() -> None:
    fn, arrays = scalar(tiled, "none"), narrow(ARRAYS)
    ones = jax.tree.map(jnp.ones_like, arrays)

    def slope(arrays: Any) -> Array:
        return jax.jvp(fn, (arrays,), (ones,))[1]

    def of_gradient(arrays: Any) -> Array:
        return sum(map(jnp.sum, jax.tree.leaves(jax.grad(fn)(arrays))), jnp.zeros([]))

    with jax.enable_x64(True):
        wide = jax.tree.map(jnp.asarray, ARRAYS)
        every = jax.tree.map(jnp.ones_like, wide)
        grad = jax.grad(scalar(plain, "none"))
        expected = jax.tree.map(
            np.asarray, jax.jit(lambda a: jax.jvp(grad, (a,), (every,))[1])(wide)
        )
    # They add up nine gradients, each divided by a temperature once more.
    close = 45 * CLOSE
    assert_close(jax.jit(jax.grad(slope))(arrays), expected, close)
    assert_close(jax.jit(jax.grad(of_gradient))(arrays), expected, close)
    assert_close(
        jax.jit(lambda a: jax.jvp(jax.grad(fn), (a,), (ones,))[1])(arrays), expected, close
    )


def test_log_probs_and_vmap() -> None:
    hidden, kernel = narrow((ARRAYS["hidden"], ARRAYS["kernel"]))

    def fn(hidden: Array, label: Any) -> Array:
        return jl.linear_log_probs(hidden, kernel, label, memory="tiles")

    expected = np.asarray(jax.nn.log_softmax(hidden @ kernel))[np.arange(ROWS), LABELS]
    assert_close(fn(hidden, LABELS), expected)
    assert_close(jax.vmap(fn)(hidden, jnp.asarray(LABELS)), expected)


def test_sure_label_keeps_its_digits() -> None:
    kernel = jnp.zeros([1, CLASSES]).at[0, 7].set(20.0)

    def fn(kernel: Array) -> Array:
        return jl.linear_softmax_cross_entropy(
            jnp.ones([1, 1]), kernel, jnp.array([7]), memory="tiles"
        )

    value, gradient = jax.value_and_grad(fn)(kernel)
    others = 12 * np.exp(-20.0)
    # A few roundings each.
    np.testing.assert_allclose(value, np.log1p(others), 8 * 2**-24)
    np.testing.assert_allclose(gradient[0, 7], -others / (1 + others), 16 * 2**-24)


def test_bad_rows_and_classes() -> None:
    hidden, kernel = narrow((ARRAYS["hidden"], ARRAYS["kernel"]))
    labels, keep = jnp.array([0, -1, CLASSES, 3, 4, 5]), np.arange(ROWS) != 3

    def fn(hidden: Array, kernel: Array, memory: Any) -> Array:
        bias = jnp.zeros(CLASSES).at[4].set(-jnp.inf)
        return jl.linear_log_probs(hidden, kernel, labels, bias=bias, where=keep, memory=memory)

    spoiled = hidden.at[3].set(jnp.nan)
    found = fn(spoiled, kernel, "tiles")
    assert_close(found, fn(spoiled, kernel, "rows"))
    assert np.isnan(found).tolist() == [False, True, True, False, False, False]
    used = np.array([0, 5])
    gradients = jax.grad(lambda *args: fn(*args, "tiles")[used].sum(), (0, 1))(spoiled, kernel)
    assert all(np.isfinite(x).all() for x in gradients)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_classes_split_over_a_mesh(reduction: str) -> None:
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    arrays = narrow(ARRAYS)
    # 12 classes, 6 on each device.
    by_class = ("kernel", "bias", "class_weights")
    arrays |= {k: arrays[k][..., :12] for k in by_class}
    labels = np.where(LABELS < 12, LABELS, 0)
    masks = {"class_where": EXISTS[:12], "labels": labels}
    of_classes = P("model")
    specs = {k: P() for k in arrays} | dict.fromkeys(by_class, of_classes)
    specs["kernel"] = P(None, "model")

    def local(arrays: Any, exists: Array) -> Array:
        given = {"class_where": exists, "axis_name": "model", "labels": labels}
        return tiled(arrays, reduction, **given)

    split = jax.shard_map(local, mesh=mesh, in_specs=(specs, of_classes), out_specs=P())

    def value(arrays: Any) -> Array:
        return jnp.sum(jnp.sin(split(arrays, jnp.asarray(EXISTS[:12]))))

    program = jax.jit(jax.value_and_grad(value))
    expected = jax.value_and_grad(lambda a: jnp.sum(jnp.sin(tiled(a, reduction, **masks))))(arrays)
    assert_close(program(arrays), expected)


def test_half_precision_is_summed_in_float32() -> None:
    hidden, kernel = (jnp.asarray(ARRAYS[name], jnp.bfloat16) for name in ("hidden", "kernel"))

    def fn(hidden: Array, kernel: Array) -> Array:
        return jl.linear_softmax_cross_entropy(hidden, kernel, LABELS, memory="tiles")

    value, gradients = jax.value_and_grad(fn, (0, 1))(hidden, kernel)
    wide = narrow((hidden, kernel))
    expected, wide_gradients = jax.value_and_grad(fn, (0, 1))(*wide)
    np.testing.assert_allclose(value, expected, 8 * 2**-24)  # products of bfloat16 are exact
    assert [x.dtype for x in gradients] == [jnp.bfloat16] * 2
    # The logits' derivative, each of three tiles' sums and the result are rounded to 8 bits.
    largest = max(float(jnp.abs(x).max()) for x in wide_gradients)
    for found, want in zip(gradients, wide_gradients, strict=True):
        np.testing.assert_allclose(found.astype(jnp.float32), want, 0, 5 * 2**-8 * largest)


@pytest.mark.parametrize("order", [1, 2])
def test_memory_is_that_of_a_tile(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_FEWEST_CLASSES", 64)
    rows, features, classes = 512, 8, 8192
    types = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((rows, features), (features, classes))
    ]

    def loss(hidden: Array, kernel: Array) -> Array:
        labels = jnp.arange(rows)
        losses = jl.linear_softmax_cross_entropy(
            hidden, kernel, labels, reduction="none", memory="tiles"
        )
        return jnp.sum(losses**2)

    def second(hidden: Array, kernel: Array) -> Any:
        def of_gradient(*args: Array) -> Array:
            return sum(jnp.sum(x * x) for x in jax.grad(loss, (0, 1))(*args))

        return jax.grad(of_gradient, (0, 1))(hidden, kernel)

    fn = jax.value_and_grad(loss, (0, 1)) if order == 1 else second
    memory = jax.jit(fn).lower(*types).compile().memory_analysis()
    logits = 4 * rows * classes
    assert memory.temp_size_in_bytes < logits / 4


def test_what_is_refused() -> None:
    args = narrow((ARRAYS["hidden"], ARRAYS["kernel"])), LABELS
    hidden, kernel = args[0]
    for name, value in {"block_size": 2, "accumulate_dtype": jnp.float32}.items():
        with pytest.raises(ValueError, match=f'{name} must be None with memory="tiles"'):
            jl.linear_softmax_cross_entropy(hidden, kernel, LABELS, memory="tiles", **{name: value})
    bad: Any = "columns"
    with pytest.raises(ValueError, match='memory must be "rows", "tiles" or None'):
        jl.linear_log_probs(hidden, kernel, LABELS, memory=bad)
    kept = jnp.asarray(LABELS)[:, None]
    with pytest.raises(ValueError, match="memory must not"):
        jl.linear_log_probs(hidden, kernel, LABELS, kept=kept, memory="tiles")


@pytest.mark.parametrize(
    ("kind", "rows", "features", "classes", "expected"),
    [
        ("cpu", 64, 64, 10**7, 65408),  # 16 MiB of logits, and 153 tiles: 65360, in whole lanes
        ("cpu", 64, 8192, 10**6, 1024),  # of the kernel's columns there would be 512
        ("cpu", 64, 1024, 10**6, 4096),  # 16 MiB of the kernel's columns
        ("cpu", 8192, 4096, 128256, 1024),  # never fewer than 1024 classes while there are more
        ("TPU v5 lite", 8192, 4096, 128256, 4096),  # nor 4096 on an accelerator
        ("cpu", 8192, 4096, 1100, 640),  # evened out: not 1024 and 76
        ("cpu", 64, 8, 100, 100),
    ],
)
def test_classes_in_a_tile(
    kind: str,
    rows: int,
    features: int,
    classes: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    fields = inspect.signature(jax.sharding.AbstractDevice).parameters
    device = jax.sharding.AbstractDevice(**{**dict.fromkeys(fields), "device_kind": kind})
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    shapes = (rows, features), (features, classes)
    with jax.sharding.use_abstract_mesh(mesh):
        size = tiles.tile_size(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    assert size == expected
    assert size == classes or size % 128 == 0


@pytest.mark.parametrize(
    ("rows", "classes", "options", "is_tiled"),
    [
        (64, 10**7, {}, True),  # 2.4 GiB of logits
        (4096, 2**20, {}, False),  # 256 rows of which take 1 GiB
        (4096, 2**20 + 1, {}, True),
        (64, 10**7, {"block_size": 64}, False),
        (64, 10**7, {"memory": "rows"}, False),
        (8, 1000, {"memory": "tiles"}, True),
    ],
)
def test_tiles_where_few_rows_of_logits_are_too_many(
    rows: int, classes: int, options: dict[str, Any], is_tiled: bool
) -> None:
    types = [((rows, 4), jnp.float32), ((4, classes), jnp.float32), ((rows,), jnp.int32)]
    args = [jax.ShapeDtypeStruct(*t) for t in types]
    for fn in (jl.linear_softmax_cross_entropy, jl.linear_log_probs):
        program = str(jax.make_jaxpr(lambda *args, fn=fn: fn(*args, **options))(*args))
        assert (f"f32[{min(rows, 256)},{classes}]" not in program) == is_tiled


def everything(bias: Array, labels: Array, **options: Any) -> Any:
    """Losses, gradients and tangents."""
    hidden, kernel = narrow((ARRAYS["hidden"], ARRAYS["kernel"]))

    def loss(hidden: Array, kernel: Array, bias: Array) -> Array:
        return jl.linear_softmax_cross_entropy(
            hidden, kernel, labels, bias=bias, reduction="none", **options
        )

    args, direction = (hidden, kernel, bias), jnp.arange(float(CLASSES))
    gradients = jax.grad(lambda *args: jnp.sum(loss(*args)), (0, 1, 2))(*args)
    tangents = jax.jvp(lambda bias: loss(hidden, kernel, bias), (bias,), (direction,))
    return *tangents, *gradients


@pytest.mark.parametrize("name", ["", "class_weights", "weights", "label_smoothing", "temperature"])
def test_an_infinite_logit_is_that_of_rows(name: str) -> None:
    """An infinite bias, of which a product may overflow to one, at a label and elsewhere."""
    bias = jnp.where(jnp.arange(CLASSES) == 7, jnp.inf, jnp.asarray(ARRAYS["bias"], jnp.float32))
    labels = jnp.array([0, 7, 2, 3, 7, 12])
    options = {name: jnp.asarray(ARRAYS[name], jnp.float32)} if name else {}
    of_rows, of_tiles = (everything(bias, labels, memory=m, **options) for m in ("rows", "tiles"))
    is_finite = (labels == 7) & ((name != "label_smoothing") | (jnp.arange(ROWS) == 0))
    np.testing.assert_array_equal(np.isposinf(of_tiles[0]), ~is_finite)
    for ours, theirs in zip(of_tiles, of_rows, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("memory", ["rows", "tiles"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_of_weight_0_may_hold_anything(memory: Any, reduction: Any) -> None:
    """What isn't finite, a temperature below 0, and a label that is no class."""
    hidden, kernel = narrow((ARRAYS["hidden"], ARRAYS["kernel"]))
    temperature, labels = jnp.ones(ROWS), jnp.asarray(LABELS)
    weights = jnp.array([0.0, 1.0, 0.0, 2.0, 0.0, 1.0])

    def loss(
        hidden: Array, kernel: Array, temperature: Array, labels: Array, weights: Array
    ) -> Any:
        options: Any = {"weights": weights, "temperature": temperature, "memory": memory}
        each = jl.linear_softmax_cross_entropy(
            hidden, kernel, labels, reduction=reduction, **options
        )
        return jnp.sum(each)

    value_and_gradients = jax.value_and_grad(loss, (0, 1, 2))
    want = value_and_gradients(hidden, kernel, temperature, labels, weights)
    hidden, labels = hidden.at[0].set(jnp.nan), labels.at[2].set(-100)
    got = value_and_gradients(hidden, kernel, temperature.at[4].set(-1.0), labels, weights)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("memory", ["rows", "tiles"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_weight_of_0_has_the_row_as_its_derivative(memory: Any, order: int) -> None:
    hidden, kernel = narrow((ARRAYS["hidden"], ARRAYS["kernel"]))

    def loss(hidden: Array, weights: Array) -> Array:
        each = jl.linear_softmax_cross_entropy(
            hidden, kernel, jnp.asarray(LABELS), weights=weights, reduction="none", memory=memory
        )
        return jnp.sum(each)

    by_hidden = jax.grad(loss) if order == 2 else loss
    zero, one = (jax.jacrev(by_hidden, 1)(hidden, w * jnp.ones(ROWS)) for w in (0.0, 1.0))
    np.testing.assert_allclose(zero, one, rtol=CLOSE, atol=CLOSE)
