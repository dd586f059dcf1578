"""Log probabilities among recorded classes: those of a softmax over them alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import transforms as tf
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlogits as jl

Array = jax.Array
INF, NAN = np.inf, np.nan
ROWS, CLASSES, FEATURES = 6, 8, 4
RNG = np.random.default_rng(0)
HIDDEN, KERNEL = RNG.normal(size=(ROWS, FEATURES)), RNG.normal(size=(FEATURES, CLASSES))
BIAS = RNG.normal(size=CLASSES)
LOGITS = np.float32(HIDDEN @ KERNEL)
KEPT = np.array(
    [[0, 3, 3, -1], [1, 2, 5, 7], [-1, -1, -1, -1], [6, 6, 6, 6], [0, 1, 2, 3], [4, -1, 5, 4]]
)
LABELS = np.array([3, 0, 1, 6, 2, 5])
FOUND = np.array([True, False, False, True, True, True])
# Logits of at most 16 from a few products, and a dozen sums of them.
CLOSE = 24 * 2**-17


def plain(z: Any) -> Array:
    """By a mask of the classes, -inf where a label isn't kept."""
    keep = np.any(KEPT[:, :, None] == np.arange(CLASSES), axis=1)
    log_probs = jax.nn.log_softmax(jnp.where(keep, z, -INF), axis=-1)
    chosen = jnp.take_along_axis(log_probs, LABELS[:, None], axis=-1)[:, 0]
    return jnp.where(FOUND, chosen, -INF)


def of_head(hidden: Array, kernel: Array, bias: Array) -> Array:
    options = {"bias": bias, "kept": KEPT, "temperature": 0.5, "soft_cap": 3.0, "block_size": 4}
    return jl.linear_log_probs(hidden, kernel, LABELS, **options)


def plain_head(hidden: Array, kernel: Array, bias: Array) -> Array:
    z = hidden @ kernel + jnp.broadcast_to(bias, (ROWS, CLASSES))
    return plain(3.0 * jnp.tanh(z / 3.0) / 0.5)


FUNCTIONS = {
    "logits": (lambda z: jl.kept_log_probs(z, LABELS, KEPT), plain, (LOGITS,)),
    "head": (of_head, plain_head, (HIDDEN, KERNEL, BIAS)),
}


def joined(fn: Any, args: Any) -> tf.Joined:
    arrays = [jnp.asarray(x, jnp.result_type(float)) for x in args]
    point, restore = ravel_pytree(arrays)

    def number(point: Array) -> Array:
        each = fn(*restore(point))
        found = jnp.where(each > -INF, each, 0.0)
        return jnp.sum(found * jnp.cos(jnp.arange(ROWS, dtype=found.dtype)))

    return tf.Joined(point, lambda point: fn(*restore(point)), number)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_gradient_and_hessian(name: str) -> None:
    ours, theirs, args = FUNCTIONS[name]
    with jax.enable_x64(True):
        g = joined(theirs, args)
        wants = [jax.jit(fn)(g.point) for fn in (g.value, jax.grad(g.number))]
        wants.append(jax.jit(jax.hessian(g.number))(g.point))
    f = joined(ours, args)
    # Those of the row function alone; the head's are of blockwise_map.
    results = tf.of_each_order(f) if name == "logits" else tf.few_of_each(f)
    for of_order, want in zip(results, wants, strict=True):
        size = np.max(abs(np.asarray(want)), where=np.isfinite(want), initial=1.0)
        for transform, got in of_order.items():
            np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE * size, err_msg=transform)


def test_a_label_that_is_not_kept_has_no_gradient() -> None:
    value, pull = jax.vjp(lambda z: jl.kept_log_probs(z, LABELS, KEPT), LOGITS)
    np.testing.assert_array_equal(value == -INF, ~FOUND)
    (slope,) = pull(jnp.ones(ROWS))
    assert not slope[~FOUND].any()
    assert np.isfinite(slope).all()
    # Row 0 keeps two classes, row 3 a sole one.
    assert not slope[0, [1, 2, 4, 5, 6, 7]].any()
    assert value[3] == 0


def test_where() -> None:
    z = np.where(np.arange(CLASSES) == 1, NAN, LOGITS).astype(np.float32)
    classes = np.broadcast_to(np.arange(CLASSES) != 1, z.shape)
    got = jl.kept_log_probs(z, LABELS, KEPT, where=classes)
    want = jl.kept_log_probs(LOGITS, LABELS, np.where(KEPT == 1, -1, KEPT))
    np.testing.assert_array_equal(got, want)
    rows = np.arange(ROWS) != 4
    labels, kept = np.where(rows, LABELS, -100), np.where(rows[:, None], KEPT, 99)
    got, slope = jax.value_and_grad(
        lambda z: jnp.where(FOUND, jl.kept_log_probs(z, labels, kept, where=rows), 0.0).sum()
    )(np.where(rows[:, None], LOGITS, NAN).astype(np.float32))
    assert np.isfinite(got)
    assert not slope[4].any()
    assert jl.kept_log_probs(LOGITS, labels, kept, where=rows)[4] == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_values_make_their_row_nan(name: str) -> None:
    """A label or an index that is no class, in value and gradient; NaN among the classes kept."""
    labels, kept = LABELS.copy(), KEPT.copy()
    labels[0], kept[4, 0], kept[5, 1] = CLASSES, CLASSES, -2
    bad = np.isin(np.arange(ROWS), [0, 4, 5])

    def total(z: Array) -> tuple[Array, Array]:
        if name == "logits":
            each = jl.kept_log_probs(z, labels, kept)
        else:
            each = jl.linear_log_probs(z, jnp.eye(CLASSES), labels, kept=kept, block_size=4)
        return jnp.sum(jnp.where(each == -INF, 0.0, each)), each

    slope, each = jax.jit(jax.grad(total, has_aux=True))(LOGITS)
    np.testing.assert_array_equal(np.isnan(each), bad)
    np.testing.assert_array_equal(np.isnan(slope).any(axis=1), bad)
    spoiled = LOGITS.copy()
    spoiled[4, 3], spoiled[1, 0] = NAN, NAN
    each = jl.kept_log_probs(spoiled, LABELS, KEPT)
    # Row 1 doesn't keep class 0.
    np.testing.assert_array_equal(np.isnan(each), np.arange(ROWS) == 4)


def test_layout_and_dtypes() -> None:
    want = jl.kept_log_probs(LOGITS, LABELS, KEPT)
    got = jl.kept_log_probs(LOGITS.T, LABELS.astype(np.int8), KEPT.astype(np.int8), 0)
    np.testing.assert_array_equal(got, want)
    low = jnp.asarray(LOGITS, jnp.bfloat16)
    got = jl.kept_log_probs(low, LABELS, KEPT)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, jl.kept_log_probs(low.astype(jnp.float32), LABELS, KEPT))
    assert jl.kept_log_probs(LOGITS[0], LABELS[0], KEPT[0]) == want[0]
    one = jl.linear_log_probs(
        LOGITS[0], jnp.eye(CLASSES), LABELS[0], kept=jnp.asarray(KEPT[0], jnp.int8)
    )
    np.testing.assert_allclose(one, want[0], rtol=2**-21)


def test_a_truncated_policy_is_that_of_the_recorded_classes() -> None:
    """What a sampler says of its own draw, and what is computed from its record, are the same."""
    shaped = jl.keep_top_p(jl.keep_top_k(jl.apply_temperature(LOGITS, 0.7), 4), 0.9)
    classes, log_probs = jl.sample_with_log_prob(jax.random.key(0), shaped)
    largest, ids = jax.lax.top_k(shaped, 4)
    kept = jnp.where(largest > -INF, ids, -1)
    again = jl.kept_log_probs(jl.apply_temperature(LOGITS, 0.7), classes, kept)
    np.testing.assert_allclose(again, log_probs, rtol=2**-20)
    head = jl.linear_log_probs(LOGITS, jnp.eye(CLASSES), classes, kept=kept, temperature=0.7)
    np.testing.assert_allclose(head, log_probs, rtol=2**-20)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_on_a_mesh(kind: AxisType) -> None:
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    exists = np.arange(CLASSES) != 5

    def both(z: Array, labels: Array, kept: Array, kernel: Array, there: Array, **o: Any) -> Any:
        # On both axes in the rows of a shard_map: of logits and of a head.
        rows = {"row_axis_name": o["row_axis_name"]} if o else {}
        axis = {"axis_name": o["axis_name"]} if o else {}
        hidden = jax.lax.all_gather(z, "model", axis=1, tiled=True) if o else z
        head = jl.linear_log_probs(
            hidden, kernel, labels, kept=kept, class_where=there, block_size=2, **axis, **rows
        )
        return jl.kept_log_probs(z, labels, kept, **axis), head

    args = LOGITS, LABELS, KEPT, np.eye(CLASSES, dtype=np.float32), exists
    specs = P("data", "model"), P("data"), P("data"), P(None, "model"), P("model")
    want = jax.jit(both)(*args)
    placed = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(args, specs, strict=True)]
    if kind == AxisType.Explicit:
        got = jax.jit(both)(*placed)
        assert jax.typeof(got[0]).sharding.spec == P("data")
    else:
        local = jax.shard_map(
            lambda *a: both(*a, axis_name="model", row_axis_name="data"),
            mesh=mesh, in_specs=specs, out_specs=P("data"),
        )  # fmt: skip
        got = jax.jit(local)(*placed)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=2**-20)


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_a_head_holds_the_columns_of_a_few_rows(is_tied: bool) -> None:
    """As many as 32 MiB or half of the kernel hold, however many a product would be fast for."""
    rows, features, classes, size = 1024, 64, 2**16, 2048
    shape = (classes, features) if is_tied else (features, classes)

    def log_probs(hidden: Array, kernel: Array, labels: Array, kept: Array) -> Array:
        kernel = kernel.T if is_tied else kernel
        return jl.linear_log_probs(hidden, kernel, labels, kept=kept).sum()

    def need(fn: Any) -> int:
        types = [((rows, features), float), (shape, float), ((rows,), int), ((rows, size), int)]
        dtypes = {float: jnp.float32, int: jnp.int32}
        args = [jax.ShapeDtypeStruct(shape, dtypes[kind]) for shape, kind in types]
        return int(jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes)

    # All rows' columns would be 512 MiB. The kernel is 16, of which an untied one is copied once;
    # the rows, their ids and logits take a tenth of the columns.
    columns, copy = 2**25, 0 if is_tied else 4 * features * classes
    assert need(log_probs) <= 1.1 * columns + copy
    assert need(jax.grad(log_probs, (0, 1))) <= 2.1 * columns + copy  # and their gradient


def test_refusals() -> None:
    rule = r"^kept must have the shape of logits without axis, and n, \[6,n\], got int64\[6\]$"
    with pytest.raises(ValueError, match=rule.replace("int64", r"int\d+")):
        jl.kept_log_probs(LOGITS, LABELS, KEPT[:, 0])
    with pytest.raises(TypeError, match=r"^kept must be integers, got float32\[6,8\]$"):
        jl.kept_log_probs(LOGITS, LABELS, LOGITS)
    with pytest.raises(ValueError, match=r"^kept must have the rows of hidden and n, \[6,n\], got"):
        jl.linear_log_probs(LOGITS, jnp.eye(CLASSES), LABELS, kept=KEPT[:4])
    with pytest.raises(ValueError, match=r"^kept_log_probs: kept must be in \[-1, 8\), got 9 in r"):
        jl.checked(jl.kept_log_probs)(LOGITS, LABELS, np.where(KEPT == 7, 9, KEPT))
    jl.checked(jl.kept_log_probs)(LOGITS, LABELS, KEPT)


def test_the_oracle_says_the_same() -> None:
    want = references.kept_log_probs(LOGITS, LABELS, KEPT)
    np.testing.assert_allclose(jl.kept_log_probs(LOGITS, LABELS, KEPT), want, rtol=2**-20)


def test_the_number_of_classes_may_be_a_symbol() -> None:
    rows, classes, kept = jax.export.symbolic_shape("n, k, m")
    types = [([rows, classes], jnp.float32), ([rows], jnp.int32), ([rows, kept], jnp.int32)]
    exported = jax.export.export(jax.jit(jl.kept_log_probs))(
        *(jax.ShapeDtypeStruct(*t) for t in types)
    )
    z = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    args = z, np.int32([0, 1, 3]), np.int32([[0, 5, -1], [1, 1, 2], [4, 5, 6]])
    np.testing.assert_allclose(exported.call(*args), jl.kept_log_probs(*args), rtol=1e-6)


def test_a_row_of_impossible_classes_leaves_no_nan_where_it_does_not_count() -> None:
    """The first row keeps a class that its bias makes impossible: it is NaN, as its softmax is."""
    hidden, kernel, bias = np.ones([2, 3]), np.ones([3, 4]), np.array([-np.inf, 0, 1, 0])
    labels, kept = np.array([0, 1]), np.array([[0, -1], [1, 2]])

    def total(counts: Any, *layer: Any) -> Any:
        rows = jl.linear_log_probs(*layer[:2], labels, bias=layer[2], kept=kept)
        return jnp.sum(jnp.where(counts, rows, 0.0))

    layer = [jnp.asarray(x, jnp.float32) for x in (hidden, kernel, bias)]
    gradient = jax.jit(jax.grad(total, (1, 2, 3)))
    of_one, of_both = (gradient(jnp.array(c), *layer) for c in ([False, True], [True, True]))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(of_one))
    assert np.isnan(of_both[0][0]).all()
    assert np.isnan(of_both[1][:, 0]).all()
