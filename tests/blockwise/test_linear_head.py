"""The linear heads: the numbers of the plain loss of hidden @ kernel, without that array."""

import functools
import inspect
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transforms as tf
from interpret import interpreted
from jax import lax
from jax.experimental import topologies
from jax.sharding import PartitionSpec as P
from jax.sharding import SingleDeviceSharding

import jaxlogits as jl

Array = jax.Array
ROWS, FEATURES, CLASSES = 6, 4, 5
OPTIONS = {
    "plain": {},
    "bias": {"bias": np.linspace(-1, 1, CLASSES)},
    "smoothing": {"label_smoothing": 0.125},
    "class weights": {"class_weights": np.linspace(0.5, 2, CLASSES)},
    "z-loss": {"z_loss": 0.25},
    "soft cap": {"soft_cap": 1.5},
    "temperature": {"temperature": 0.5},
    "all": {
        "bias": np.linspace(-1, 1, CLASSES),
        "label_smoothing": 0.125,
        "class_weights": np.linspace(0.5, 2, CLASSES),
        "z_loss": 0.25,
        "soft_cap": 1.5,
        "temperature": 0.5,
    },
}


def data(lead: tuple[int, ...] = (ROWS,), num_features: int = FEATURES, num_classes: int = CLASSES):
    """hidden, kernel and labels, in float64."""
    random = np.random.default_rng(0)
    hidden = random.normal(size=(*lead, num_features))
    kernel = random.normal(size=(num_features, num_classes))
    return hidden, kernel, random.integers(num_classes, size=lead).astype(np.int32)


def cast(tree: Any, dtype: Any) -> Any:
    """The floating-point leaves in ``dtype``."""

    def leaf(x: Any) -> Array:
        return jnp.asarray(x, dtype if jnp.issubdtype(jnp.result_type(x), jnp.floating) else None)

    return jax.tree.map(leaf, tree)


def plain_logits(hidden, kernel, bias=None, soft_cap=None, temperature=1.0):
    z = hidden @ kernel
    z = z if bias is None else z + jnp.broadcast_to(bias, z.shape)
    z = z if soft_cap is None else soft_cap * jnp.tanh(z / soft_cap)
    return z / temperature


def plain(
    hidden, kernel, labels, *, label_smoothing=0.0, class_weights=None, z_loss=0.0, **layer
) -> Array:
    """The losses from the whole array of logits, by their formula."""
    z = plain_logits(hidden, kernel, **layer)
    num_classes = z.shape[-1]
    targets = jax.nn.one_hot(labels, num_classes, dtype=z.dtype)
    targets = (1 - label_smoothing) * targets + label_smoothing / num_classes
    if class_weights is not None:
        targets = targets * jnp.broadcast_to(class_weights, targets.shape)
    lse = jax.nn.logsumexp(z, axis=-1)
    return jnp.sum(targets * (lse[..., None] - z), axis=-1) + z_loss * lse**2


def reduced(losses: Array, reduction: str, where: Any = None, weights: Any = None) -> Array:
    weights = jnp.ones_like(losses) if weights is None else jnp.broadcast_to(weights, losses.shape)
    weights = weights if where is None else jnp.where(where, weights, 0)
    total = jnp.sum(weights * losses)
    return {"none": weights * losses, "sum": total, "mean": total / weights.sum()}[reduction]


def cotangent(value: Array) -> Array:
    """Weights in which the results of the rows differ."""
    return jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)


def assert_same(ours: Callable[..., Array], theirs: Callable[..., Array], args: Any) -> None:
    """The value and all gradients of both, the other one's in float64.

    The logits here are below 16, sums of a few products: each is within 8 * 16 * 2^-24 = 2^-17, and
    a loss or a gradient adds up at most a dozen such errors, times options of at most 2.
    """

    def both(fn: Callable[..., Array], args: Any) -> Any:
        value, pullback = jax.vjp(fn, *args)
        grads = jax.tree.leaves(pullback(cotangent(value)))
        return value, [g for g in grads if g.dtype != jax.dtypes.float0]

    got = jax.jit(functools.partial(both, ours))(cast(args, jnp.float32))
    with jax.enable_x64(True):
        want = interpreted(functools.partial(both, theirs))(cast(args, jnp.float64))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=24 * 2**-17, atol=24 * 2**-17)


# The numbers.


@pytest.mark.parametrize(
    ("options", "reduction"),
    [*((name, "mean") for name in OPTIONS), ("all", "sum"), ("all", "none")],
)
def test_cross_entropy_is_the_plain_one(options: str, reduction: str) -> None:
    def ours(hidden, kernel, labels, options, weights):
        return jl.linear_softmax_cross_entropy(
            hidden, kernel, labels, weights=weights, reduction=reduction, block_size=4, **options
        )

    def theirs(hidden, kernel, labels, options, weights):
        return reduced(plain(hidden, kernel, labels, **options), reduction, weights=weights)

    assert_same(ours, theirs, (*data(), OPTIONS[options], np.linspace(0.5, 2, ROWS)))


@pytest.mark.parametrize(
    ("lead", "reduction"),
    [
        ((), "mean"),
        ((), "none"),
        ((1,), "mean"),
        ((2, 3), "sum"),
        ((2, 3), "none"),
        ((2, 1, 2), "mean"),
    ],
    ids=str,
)
def test_any_leading_shape(lead: tuple[int, ...], reduction: str) -> None:
    where = np.arange(np.prod(lead, dtype=int)).reshape(lead) != 1

    def ours(*args):
        options = {"where": where, "reduction": reduction, "block_size": 2}
        return jl.linear_softmax_cross_entropy(*args, **options)

    assert_same(ours, lambda *args: reduced(plain(*args), reduction, where), data(lead))


@pytest.mark.parametrize(("num_classes", "block_size"), [(1, 4), (33, 1), (33, 6), (33, None)])
def test_any_number_of_classes_and_rows_in_a_block(
    num_classes: int, block_size: int | None
) -> None:
    def ours(*args):
        return jl.linear_softmax_cross_entropy(*args, block_size=block_size)

    assert_same(ours, lambda *args: plain(*args).mean(), data(num_classes=num_classes))


def of_each_head(hidden, kernel, labels, temperature, **how):
    """What each head gives to rows of their own temperatures, [..., 8] in all."""
    options = {"temperature": temperature, "soft_cap": 3.0, "block_size": 4, **how}
    kept = jnp.stack([labels, (labels + 1) % CLASSES, (labels + 3) % CLASSES], axis=-1)
    none = {"reduction": "none", **options}
    each = [
        jl.linear_softmax_cross_entropy(hidden, kernel, labels, **none),
        jl.linear_softmax_kl_divergence(hidden, kernel, hidden, kernel[:, ::-1], **none),
        jl.linear_log_probs(hidden, kernel, labels, **options),
        jl.linear_log_probs(hidden, kernel, labels, kept=kept, **options),
        *jl.linear_log_probs_and_entropy(hidden, kernel, labels, **options),
    ]
    return jnp.stack(
        [*each, *jnp.moveaxis(jl.linear_top_k(hidden, kernel, 2, **options)[0], -1, 0)]
    )


def test_temperature_of_each_row() -> None:
    hidden, kernel, labels = cast(data(), jnp.float32)
    warmth = jnp.linspace(0.5, 2.0, 6)

    def one_by_one(warmth):
        rows = jax.vmap(lambda h, y, t: of_each_head(h[None], kernel, y[None], t)[:, 0])
        return rows(hidden, labels, warmth).T

    def together(warmth):
        return of_each_head(hidden, kernel, labels, warmth)

    direction = jnp.cos(jnp.arange(6.0))
    got, want = (
        jax.jit(lambda t, f=f: jax.jvp(f, [t], [direction]))(warmth) for f in (together, one_by_one)
    )
    # Sums of a dozen terms, in blocks or not, twice at half the temperature.
    np.testing.assert_allclose(got, want, rtol=2**-18, atol=2**-18)
    slopes = jax.jit(jax.grad(lambda t: jnp.sum(together(t))))(warmth)
    np.testing.assert_allclose(slopes @ direction, jnp.sum(want[1]), rtol=2**-16)
    # What isn't a temperature spoils its own row, unless that is left out.
    bad = warmth.at[2].set(-1.0)
    assert jnp.isnan(together(bad)[:, 2]).all()
    np.testing.assert_array_equal(together(bad)[:, 3:], together(warmth)[:, 3:])
    left_out = of_each_head(hidden, kernel, labels, bad, where=jnp.arange(6) != 2)
    np.testing.assert_array_equal(left_out[:, 2], 0)
    message = (
        r"^temperature must have no dimensions or those of the rows, \[6\], got float32\[6,1\]$"
    )
    with pytest.raises(ValueError, match=message):
        together(warmth[:, None])


@pytest.mark.parametrize("warmth", [np.float32(0.5), np.linspace(0.5, 2.0, ROWS)], ids=np.ndim)
def test_a_class_of_bias_minus_infinity_is_none_at_any_temperature(warmth: Any) -> None:
    hidden, kernel, _ = cast(data(), jnp.float32)
    labels, removed = np.arange(ROWS) % 2, np.arange(CLASSES) == 3
    bias = jnp.where(removed, -jnp.inf, 0.5)

    def slopes(kernel: Array, bias: Array) -> Any:
        def total(hidden: Array, kernel: Array, warmth: Array) -> Array:
            options = {"bias": bias, "temperature": warmth}
            both = jl.linear_log_probs_and_entropy(hidden, kernel, labels, **options)
            return jnp.sum(both[0] + jnp.sin(both[1]))

        args = hidden, kernel, jnp.asarray(warmth, jnp.float32)
        return jax.jit(jax.grad(total, (0, 1, 2)))(*args)

    got, want = slopes(kernel, bias), slopes(kernel[:, ~removed], bias[~removed])
    assert not got[1][:, removed].any()
    for one, other in zip((got[0], got[1][:, ~removed], got[2]), want, strict=True):
        np.testing.assert_allclose(one, other, rtol=2**-18, atol=2**-18)


def test_an_infinite_loss_that_counts_nothing_changes_no_weight() -> None:
    hidden, kernel, labels = cast(data(), jnp.float32)
    exists = jnp.arange(CLASSES) != labels[0]

    def losses(weights: Array) -> Array:
        options = {"weights": weights, "class_where": exists, "reduction": "none"}
        return jl.linear_softmax_cross_entropy(hidden, kernel, labels, **options)

    value, pull = jax.vjp(losses, jnp.ones(ROWS))
    (slope,) = pull(jnp.where(jnp.isinf(value), 0.0, 1.0))
    assert jnp.isinf(value[0])
    np.testing.assert_array_equal(slope, jnp.where(jnp.isinf(value), 0.0, value))


def test_label_smoothing_of_each_row() -> None:
    eps = np.linspace(0, 0.5, ROWS).reshape(2, 3)

    def ours(hidden, kernel, labels, eps):
        return jl.linear_softmax_cross_entropy(
            hidden, kernel, labels, label_smoothing=eps, reduction="none", block_size=4
        )

    def theirs(hidden, kernel, labels, eps):
        return plain(hidden, kernel, labels, label_smoothing=eps[..., None])

    assert_same(ours, theirs, (*data((2, 3)), eps))
    rule = (
        r"^label_smoothing must have no dimensions or those of the rows, \[6\], got float32\[5\]$"
    )
    with pytest.raises(ValueError, match=rule):
        jl.linear_softmax_cross_entropy(*cast(data(), jnp.float32), label_smoothing=jnp.ones(5) / 8)


def test_log_probs_are_those_of_the_labels() -> None:
    layer = {"bias": np.linspace(-1, 1, CLASSES), "soft_cap": 1.5, "temperature": 0.5}

    def ours(hidden, kernel, labels, layer):
        return jl.linear_log_probs(hidden, kernel, labels, block_size=2, **layer)

    def theirs(hidden, kernel, labels, layer):
        log_probs = jax.nn.log_softmax(plain_logits(hidden, kernel, **layer), axis=-1)
        return jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]

    assert_same(ours, theirs, (*data((2, 3)), layer))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_kl_divergence_is_that_of_two_softmaxes(reduction: str) -> None:
    hidden_p, kernel_p, _ = data((2, 3))
    hidden_q, kernel_q, _ = data((2, 3), num_features=FEATURES + 1)
    options = {"bias_p": np.linspace(-1, 1, CLASSES), "bias_q": np.zeros(CLASSES)}
    options |= {"temperature": 2.0}
    where, weights = np.array([[True, False, True]]), np.array([[1.0], [2.0]])

    def ours(heads, weights, options):
        rows = {"where": where, "weights": weights, "reduction": reduction}
        return jl.linear_softmax_kl_divergence(*heads, block_size=4, **rows, **options)

    def theirs(heads, weights, options):
        hidden_p, kernel_p, hidden_q, kernel_q = heads
        z_p = plain_logits(hidden_p, kernel_p, options["bias_p"], None, options["temperature"])
        z_q = plain_logits(hidden_q, kernel_q, options["bias_q"], None, options["temperature"])
        log_p, log_q = jax.nn.log_softmax(z_p, axis=-1), jax.nn.log_softmax(z_q, axis=-1)
        kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
        return reduced(kl, reduction, where, weights)

    assert_same(ours, theirs, ((hidden_p, kernel_p, hidden_q, kernel_q), weights, options))


def test_kl_divergence_of_nearly_equal_heads() -> None:
    # log p - log q would be lost in rounding: these are 1e-11.
    hidden, kernel, _ = cast(data(), jnp.float32)
    other = kernel.at[0, 0].add(2.0**-17)
    ours = functools.partial(jl.linear_softmax_kl_divergence, reduction="none")
    got = jax.jit(ours)(hidden, kernel, hidden, other)
    want = jax.jit(jl.softmax_kl_divergence)(hidden @ kernel, hidden @ other)
    # Each of two logits in a row may be rounded otherwise, and differs by 2^-17.
    assert np.all(got >= 0)
    np.testing.assert_allclose(got, want, rtol=0, atol=2 * 2.0**-34)


# Edges.


def head(**options: Any) -> Callable[[Array, Array, Array], tuple[Array, Any]]:
    """The sum of the losses with its gradients in hidden and kernel."""
    options = {"reduction": "sum", "block_size": 4} | options

    def loss(hidden: Array, kernel: Array, labels: Array) -> Array:
        return jl.linear_softmax_cross_entropy(hidden, kernel, labels, **options).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_out_of_range_makes_its_row_nan(label: int, reduction: str) -> None:
    hidden, kernel, labels = cast(data(), jnp.float32)
    labels = labels.at[2].set(label)
    each = functools.partial(jl.linear_softmax_cross_entropy, reduction="none", block_size=4)
    losses = jax.jit(each)(hidden, kernel, labels)
    np.testing.assert_array_equal(jnp.isnan(losses), np.arange(ROWS) == 2)
    value, (dhidden, dkernel) = head(reduction=reduction)(hidden, kernel, labels)
    assert jnp.isnan(value)
    assert jnp.isnan(dkernel).all()
    np.testing.assert_array_equal(jnp.isnan(dhidden).any(axis=1), np.arange(ROWS) == 2)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_leaks_from_a_masked_row(reduction: str) -> None:
    hidden, kernel, labels = cast(data(), jnp.float32)
    where = np.arange(ROWS) % 3 != 0
    bad_hidden = jnp.where(where[:, None], hidden, jnp.nan)
    bad_labels = jnp.where(where, labels, -100)
    weights = jnp.ones(ROWS)

    def loss(weights, hidden, kernel, labels):
        options = {"where": where, "weights": weights, "reduction": reduction, "block_size": 4}
        return jl.linear_softmax_cross_entropy(hidden, kernel, labels, **options).sum()

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    want = both(weights, hidden, kernel, labels)
    got = both(weights, bad_hidden, kernel, bad_labels)
    # The zeros in the place of a row are multiplied and added too: an ulp of the largest, 2.
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2**-20)
    assert not got[1][0][0]
    assert not got[1][1][0].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_row_that_counts(reduction: str) -> None:
    hidden, kernel, labels = cast(data(), jnp.float32)
    value, grads = head(reduction=reduction, where=np.zeros(ROWS, bool))(hidden, kernel, labels)
    assert value == 0
    assert not any(jnp.any(g) for g in grads)
    value, grads = head(reduction=reduction)(hidden[:0], kernel, labels[:0])
    assert value == 0
    assert not any(jnp.any(g) for g in grads)


def test_a_class_masked_by_its_bias_has_no_gradient() -> None:
    hidden, kernel, _ = cast(data(), jnp.float32)
    labels = jnp.zeros(ROWS, jnp.int32)
    bias = jnp.zeros(CLASSES).at[3].set(-jnp.inf)
    value, (_, dkernel) = head(bias=bias)(hidden, kernel, labels)
    fewer = jnp.delete(kernel, 3, axis=1)
    want, (_, dfewer) = head()(hidden, fewer, labels)
    # Five sums of at most 16 rows, of terms below 16.
    np.testing.assert_allclose(value, want, rtol=16 * 2**-24)
    np.testing.assert_allclose(jnp.delete(dkernel, 3, axis=1), dfewer, rtol=0, atol=16 * 2**-20)
    assert not dkernel[:, 3].any()


def test_a_confident_row_keeps_its_small_loss() -> None:
    # optax gives 0 from a margin of 17 on.
    loss = jl.linear_softmax_cross_entropy(
        jnp.array([[1.0]]), jnp.array([[40.0, 0.0]]), jnp.array([0])
    )
    np.testing.assert_allclose(loss, np.exp(-40.0), rtol=4 * 2**-23)


def row_losses(name: str, where: Any = None, **options: Any) -> Callable[..., Any]:
    """One of the three heads as a function of hidden, kernel and labels, one number a row."""

    def each(hidden: Array, kernel: Array, labels: Array) -> Array:
        if name == "linear_softmax_kl_divergence":
            options_q = {"reduction": "none", "where": where, "block_size": 2, **options}
            return jl.linear_softmax_kl_divergence(
                hidden, kernel, 0.5 * hidden, kernel, **options_q
            )
        if name == "linear_log_probs":
            return jl.linear_log_probs(hidden, kernel, labels, where=where, block_size=2, **options)
        more = {"label_smoothing": 0.125, "z_loss": 0.25, "reduction": "none", "block_size": 2}
        return jl.linear_softmax_cross_entropy(
            hidden, kernel, labels, where=where, **more, **options
        )

    return each


HEADS = ["linear_softmax_cross_entropy", "linear_log_probs", "linear_softmax_kl_divergence"]


@pytest.mark.parametrize("name", HEADS)
def test_rows_and_classes_left_out_are_as_if_not_there(name: str) -> None:
    """Of ``where`` and ``class_where``, whatever is in their place."""
    hidden, kernel, labels = cast(data(num_classes=3), jnp.float32)
    exists = np.array([True, False, True, True, False])
    padded = jnp.full([FEATURES, 5], 7.0).at[:, exists].set(kernel)
    keep = np.array([True, True, False, True, False, True])
    rows = jnp.where(keep[:, None], hidden, jnp.nan)
    among = jnp.where(keep, np.flatnonzero(exists)[labels], jnp.array([0, 0, -100, 0, 5, 0]))

    def both(each: Callable[..., Array], *args: Array) -> Any:
        def number(hidden: Array, kernel: Array) -> tuple[Array, Array]:
            losses = each(hidden, kernel, args[2])
            return jnp.sum(jnp.sin(losses)), losses

        return jax.value_and_grad(number, (0, 1), has_aux=True)(*args[:2])

    options = {"soft_cap": 2.0, "temperature": 0.5}
    ours = row_losses(name, keep, class_where=exists, **options)
    theirs = row_losses(name, **options)
    got = jax.jit(functools.partial(both, ours))(rows, padded, among)
    want = jax.jit(functools.partial(both, theirs))(hidden[keep], kernel, labels[keep])
    (_, losses), (dhidden, dkernel) = got
    (_, want_losses), (want_dhidden, want_dkernel) = want
    # As in assert_same: sums of a dozen terms, of logits that are within 2^-17.
    close = functools.partial(np.testing.assert_allclose, rtol=24 * 2**-17, atol=24 * 2**-17)
    close(losses[keep], want_losses)
    close(dhidden[keep], want_dhidden)
    close(dkernel[:, exists], want_dkernel)
    assert not losses[~keep].any()
    assert not np.signbit(losses[~keep]).any()
    assert not dhidden[~keep].any()
    assert not dkernel[:, ~exists].any()


def test_a_label_of_a_class_that_does_not_exist() -> None:
    """Costs +inf, as one that is masked does."""
    hidden, kernel, labels = cast(data(), jnp.float32)
    exists = jnp.arange(CLASSES) != labels[0]
    log_probs = jl.linear_log_probs(hidden, kernel, labels, class_where=exists)
    np.testing.assert_array_equal(log_probs == -jnp.inf, labels == labels[0])


@pytest.mark.parametrize("name", HEADS[:2])
def test_a_bad_label_that_counts_for_nothing_leaves_no_nan(name: str) -> None:
    """The caller's own select of a padded batch: only a row with a part in a gradient spoils it."""
    hidden, kernel, labels = cast(data(), jnp.float32)
    padded = labels.at[2].set(-100)
    each = row_losses(name)

    def number(hidden: Array, kernel: Array, labels: Array, weights: Array) -> Array:
        losses = each(hidden, kernel, labels)
        return jnp.where(weights > 0, losses, 0.0).sum()

    some, everything = jnp.ones(ROWS).at[2].set(0.0), jnp.ones(ROWS)
    gradients = jax.jit(jax.grad(number, (0, 1)))
    got = gradients(hidden, kernel, padded, some)
    want = gradients(hidden, kernel, labels, some)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    dhidden, dkernel = gradients(hidden, kernel, padded, everything)
    assert jnp.isnan(dkernel).all()
    np.testing.assert_array_equal(jnp.isnan(dhidden).all(axis=1), np.arange(ROWS) == 2)
    pushed = jax.jit(lambda dh: jax.jvp(lambda h: each(h, kernel, padded), (hidden,), (dh,)))
    np.testing.assert_array_equal(jnp.isnan(pushed(hidden)[1]), np.arange(ROWS) == 2)
    assert not jnp.isnan(pushed(hidden.at[2].set(0.0))[1]).any()


def test_weights_that_cancel_are_no_rows_left_out() -> None:
    """A mean of them is a division by 0; 0 is for no row that counts."""
    hidden, kernel, labels = cast(data(), jnp.float32)
    mean = jax.jit(lambda w: jl.linear_softmax_cross_entropy(hidden, kernel, labels, weights=w))
    cancel = jnp.array([1.0, -1.0, 0.5, -0.5, 0.0, 0.0])
    assert not jnp.isfinite(mean(cancel))
    assert mean(jnp.zeros(ROWS)) == 0


# Dtypes.


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    # Rounding each of 64 sums to bfloat16 on the way would lose 2e-2.
    hidden, kernel, labels = data((512,), num_features=16, num_classes=8)
    hidden, kernel = cast((hidden, kernel), jnp.bfloat16)

    def gradients(loss: Callable[..., Array], *args: Array) -> list[Array]:
        return jax.jit(jax.grad(lambda h, w: loss(h, w, labels).mean(), argnums=(0, 1)))(*args)

    with jax.enable_x64(True):
        exact = [np.asarray(g) for g in gradients(plain, *cast((hidden, kernel), jnp.float64))]
    for reduction in ("mean", "none"):
        loss = functools.partial(jl.linear_softmax_cross_entropy, reduction=reduction, block_size=8)
        assert jax.eval_shape(loss, hidden, kernel, labels).dtype == jnp.float32
        for got, want in zip(gradients(loss, hidden, kernel), exact, strict=True):
            assert got.dtype == jnp.bfloat16
            error = np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)
            # Two roundings to bfloat16, of the logits' derivative and of the result, at most 2^-9
            # of each number, and far less of most.
            assert error < 2**-8


def test_bfloat16_logits_are_float32() -> None:
    # bfloat16 has steps of 2 at 257: the two logits would be equal.
    hidden, kernel = jnp.ones([1, 2], jnp.bfloat16), jnp.array([[256.0, 256.0], [1.0, 0.0]])
    loss = jl.linear_softmax_cross_entropy(hidden, kernel.astype(jnp.bfloat16), jnp.array([0]))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-1.0)), rtol=4 * 2**-23)


@pytest.mark.parametrize("shape", [(1, 4, 5), (6, 1, 5), (6, 4, 1), (1, 1, 1)], ids=str)
def test_bfloat16_gradients_of_a_single_row_feature_or_class(shape: tuple[int, int, int]) -> None:
    rows, features, classes = shape
    *exact, labels = data((rows,), features, classes)
    arrays = cast(exact, jnp.bfloat16)
    gradients = jax.jit(
        jax.grad(lambda h, w: jl.linear_softmax_cross_entropy(h, w, labels), argnums=(0, 1))
    )
    for got, want in zip(gradients(*arrays), gradients(*cast(arrays, jnp.float32)), strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0, atol=2**-6)


@pytest.mark.parametrize("dtypes", ["float16 float16", "bfloat16 float32", "float32 bfloat16"])
def test_gradients_have_the_dtypes_of_their_arguments(dtypes: str) -> None:
    hidden, kernel, labels = data()
    dtype_h, dtype_w = map(jnp.dtype, dtypes.split())
    value, (dhidden, dkernel) = head()(
        jnp.asarray(hidden, dtype_h), jnp.asarray(kernel, dtype_w), labels
    )
    assert (value.dtype, dhidden.dtype, dkernel.dtype) == (jnp.float32, dtype_h, dtype_w)


@pytest.mark.usefixtures("x64")
def test_float64() -> None:
    hidden, kernel, labels = data()
    loss = jl.linear_softmax_cross_entropy(hidden, kernel, labels, reduction="none")
    assert loss.dtype == jnp.float64
    np.testing.assert_allclose(loss, plain(hidden, kernel, labels), rtol=64 * 2**-53)


# Transforms.


def joined(fn: Callable[..., Array], *args: np.ndarray) -> tf.Joined:
    """A function of several arrays as one of a vector, for the harness."""
    point, restore = jax.flatten_util.ravel_pytree(list(cast(args, jnp.result_type(float))))

    def value(point: Array) -> Array:
        return fn(*restore(point))

    def number(point: Array) -> Array:
        each = value(point)
        return jnp.sum(each * cotangent(each))

    return tf.Joined(point, value, number)


def assert_same_transforms(
    f: tf.Joined, harness: list[Any], theirs: Any, args: Any, tolerance: float = 12 * 2**-19
) -> None:
    """Within the tolerance of the largest number of the value, the gradient, the Hessian.

    By default as in ``assert_same``: 16 ulp or 2^-19 for each of a dozen terms.
    """
    with jax.enable_x64(True):
        g = joined(theirs, *args)
        wants = [
            jax.jit(fn)(g.point) for fn in (g.value, jax.grad(g.number), jax.hessian(g.number))
        ]
    every_result = tf.of_each_order(f, *harness)
    for results, fn in zip(every_result, (f.value, jax.grad(f.number)), strict=False):
        results["compiled"] = jax.jit(fn)(f.point)
    for results, want in zip(every_result, wants, strict=False):
        atol = tolerance * np.max(np.abs(want))
        for transform, got in results.items():
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)


def test_every_transform_in_every_argument() -> None:
    hidden, kernel, labels = data()
    names = ["bias", "soft_cap"]

    def ours(hidden, kernel, weights, *values):
        options = dict(zip(names, values, strict=True))
        return jl.linear_softmax_cross_entropy(
            hidden, kernel, labels, weights=weights, block_size=4, **options
        )

    def theirs(hidden, kernel, weights, *values):
        losses = plain(hidden, kernel, labels, **dict(zip(names, values, strict=True)))
        return reduced(losses, "mean", weights=weights)

    args = hidden, kernel, np.linspace(0.5, 2, ROWS), *(OPTIONS["all"][name] for name in names)
    assert_same_transforms(
        joined(ours, *args), [tf.values, tf.gradients, tf.hessians], theirs, args
    )


def test_every_transform_of_results_for_each_row() -> None:
    hidden, kernel, labels = data()

    def ours(hidden, kernel):
        return -jl.linear_log_probs(hidden, kernel, labels, block_size=4)

    def theirs(hidden, kernel):
        return plain(hidden, kernel, labels)

    f = joined(ours, hidden, kernel)
    assert_same_transforms(f, [tf.values, tf.gradients], theirs, (hidden, kernel))


def test_bfloat16_under_every_transform() -> None:
    _, _, labels = data()
    # Numbers that bfloat16 has.
    args = [np.asarray(x, np.float64) for x in cast(data()[:2], jnp.bfloat16)]

    def ours(hidden, kernel):
        hidden, kernel = cast((hidden, kernel), jnp.bfloat16)
        return jl.linear_softmax_cross_entropy(hidden, kernel, labels, block_size=4)

    def theirs(hidden, kernel):
        return plain(hidden, kernel, labels).mean()

    f = joined(ours, *args)
    # Derivatives are rounded to bfloat16 a few times on the way.
    assert_same_transforms(f, [tf.values, tf.gradients], theirs, args, 4 * 2**-9)


@pytest.mark.parametrize("in_axes", [(0, None, None), (None, 0, 0)])
def test_vmap(in_axes: tuple[int | None, ...]) -> None:
    args = [jnp.stack([x, x[::-1]]) for x in cast(data(), jnp.float32)]
    args = [x if axis == 0 else x[0] for x, axis in zip(args, in_axes, strict=True)]

    loss = functools.partial(jl.linear_softmax_cross_entropy, block_size=4)
    gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    got = jax.jit(jax.vmap(gradients, in_axes))(*args)
    for i in range(2):
        one = [x[i] if axis == 0 else x for x, axis in zip(args, in_axes, strict=True)]
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(gradients(*one)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=0, atol=16 * 2**-20)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_shard_map_over_the_rows(dtype: Any) -> None:
    hidden, kernel, labels = cast(data((8,)), dtype)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=P()
    )
    def loss(hidden, kernel, labels):
        each = jl.linear_log_probs(hidden, kernel, labels, block_size=4)
        mean = jl.linear_softmax_cross_entropy(hidden, kernel, labels, block_size=4)
        return lax.pmean(mean - each.mean(), "data")

    def same(hidden, kernel, labels):
        return 2 * jl.linear_softmax_cross_entropy(hidden, kernel, labels, block_size=4)

    got, want = (
        jax.jit(jax.grad(fn, argnums=(0, 1)))(hidden, kernel, labels) for fn in (loss, same)
    )
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=16 * float(jnp.finfo(dtype).eps))


def test_export_with_any_number_of_rows() -> None:
    (rows,) = jax.export.symbolic_shape("rows")
    hidden, kernel, labels = cast(data(), jnp.float32)
    types = [jax.ShapeDtypeStruct((rows, FEATURES), hidden.dtype), kernel]
    types.append(jax.ShapeDtypeStruct((rows,), labels.dtype))
    loss = functools.partial(jl.linear_softmax_cross_entropy, block_size=4)
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    reloaded = jax.export.deserialize(jax.export.export(both)(*types).serialize())
    got, want = reloaded.call(hidden, kernel, labels), both(hidden, kernel, labels)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=16 * 2**-20)


# What runs: read from the program.


def gradient_of_head(**options: Any) -> Callable[..., Any]:
    loss = functools.partial(jl.linear_softmax_cross_entropy, **options)
    return jax.value_and_grad(lambda *args: loss(*args).sum(), argnums=(0, 1))


def products(fn: Callable[..., Any], *args: Any) -> list[str]:
    """The matrix products of the optimised program, as their lines."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    return re.findall(r"^.* (?:dot|custom-call)\(.*$", text, re.MULTILINE)


@pytest.mark.parametrize(("reduction", "count"), [("mean", 3), ("sum", 3), ("none", 4)])
def test_number_of_products(reduction: str, count: int) -> None:
    # 2NDK flops each: the logits (again in the backward pass of "none") and two gradients.
    args = cast(data((64,), 16, 32), jnp.float32)
    forward = functools.partial(jl.linear_softmax_cross_entropy, block_size=16)
    assert len(products(forward, *args)) == 1
    lines = products(gradient_of_head(reduction=reduction, block_size=16), *args)
    assert len(lines) == count
    # XLA:CPU takes up to 1.6 times as long for one that transposes its first factor.
    assert not any("lhs_contracting_dims={0}" in line for line in lines)


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="older XLA:CPU copies it once")
def test_tied_embedding_is_not_copied() -> None:
    hidden, kernel, labels = cast(data((64,), 48, 160), jnp.float32)

    def loss(hidden: Array, embedding: Array, labels: Array) -> Array:
        return jl.linear_softmax_cross_entropy(hidden, embedding.T, labels, block_size=16)

    text = jax.jit(loss).lower(hidden, kernel.T, labels).compile().as_text()
    assert re.search(r"\[160,48\]", text)
    assert not re.findall(
        r"^.*\[(?:160,48|48,160)\]\S* (?:copy|transpose|fusion)\(.*$", text, re.MULTILINE
    )


def temp_bytes(fn: Callable[..., Any], *args: Any) -> int:
    return jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_memory_does_not_grow_with_the_rows(reduction: str) -> None:
    def need(rows: int) -> int:
        hidden = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
        kernel = jax.ShapeDtypeStruct((8, 4096), jnp.float32)
        labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
        return temp_bytes(
            gradient_of_head(reduction=reduction, block_size=128), hidden, kernel, labels
        )

    block = 128 * 4096 * 4
    few, many = need(512), need(2048)
    assert many < 5 * block
    # The labels, hidden and its gradient, cut into blocks: 8 features and a few numbers a row.
    assert many - few <= (2048 - 512) * 4 * (3 * 8 + 16)


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="older XLA:CPU takes an array more")
def test_memory_in_bfloat16() -> None:
    hidden = jax.ShapeDtypeStruct((512, 64), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((64, 4096), jnp.bfloat16)
    labels = jax.ShapeDtypeStruct((512,), jnp.int32)
    need = temp_bytes(gradient_of_head(block_size=32), hidden, kernel, labels)
    # The kernel's gradient of a block and of all, in float32, and one block of derivatives.
    assert need <= 1.05 * (2 * 64 * 4096 * 4 + 32 * 4096 * 4)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler")
def test_memory_on_a_tpu() -> None:
    device = topologies.get_topology_desc("v5e:2x2", "tpu").devices[0]
    on_tpu = SingleDeviceSharding(device)

    def types(*kernel: int) -> list[Any]:
        args = ((8192, 1024), jnp.bfloat16), (kernel, jnp.bfloat16), ((8192,), jnp.int32)
        return [jax.ShapeDtypeStruct(*arg, sharding=on_tpu) for arg in args]

    def tied(hidden: Array, embedding: Array, labels: Array) -> Array:
        return jl.linear_softmax_cross_entropy(hidden, embedding.T, labels, block_size=256)

    text = jax.jit(tied).lower(*types(262144, 1024)).compile().as_text()
    copies = r"^.*\[(?:262144,1024|1024,262144)\]\S* (?:copy|transpose)\(.*$"
    assert not re.findall(copies, text, re.MULTILINE)
    # The plain loss takes 4096 MiB there; the float32 sum of the kernel's gradient is 1024 MiB.
    whole = temp_bytes(gradient_of_head(block_size=256), *types(1024, 262144))
    assert whole - 4 * 1024 * 262144 <= 4096 * 2**20 / 8


# Bad arguments.


def test_refusals() -> None:
    hidden, kernel, labels = cast(data(), jnp.float32)
    loss = jl.linear_softmax_cross_entropy
    with pytest.raises(TypeError, match=r"^hidden must be floating point, got int32\[6,4\]$"):
        loss(hidden.astype(jnp.int32), kernel, labels)
    with pytest.raises(
        ValueError, match=r"^hidden must have the shape \[..., D\], got float32\[\]$"
    ):
        loss(jnp.float32(1), kernel, labels)
    rule = r"^kernel must have the features of hidden and the classes, \[4,K\], got "
    hint = r"float32\[5,4\]: a tied embedding is embedding.T$"
    with pytest.raises(ValueError, match=rule + hint):
        loss(hidden, kernel.T, labels)
    for wrong in (kernel[:, 0], kernel[:3]):
        with pytest.raises(ValueError, match=rule + r"float32\[[35,]*4?\]$"):
            loss(hidden, wrong, labels)
    with pytest.raises(
        ValueError, match=r"^kernel must have at least one class, got float32\[4,0\]$"
    ):
        loss(hidden, kernel[:, :0], labels)
    with pytest.raises(ValueError, match=r"^bias must have the classes of kernel, \[5\], got"):
        loss(hidden, kernel, labels, bias=jnp.zeros(4))
    with pytest.raises(
        ValueError, match=r"^labels must have the shape of hidden without its features, "
    ):
        loss(hidden, kernel, labels[:, None])
    with pytest.raises(
        ValueError, match=r"^labels must have a dtype that holds 299, got int8\[6\]$"
    ):
        loss(hidden, jnp.zeros([4, 300]), labels.astype(jnp.int8))
    with pytest.raises(
        ValueError, match=r'^reduction must be "mean", "sum" or "none", got \'max\'$'
    ):
        loss(hidden, kernel, labels, reduction="max")
    for option in ("soft_cap", "temperature"):
        for value in (0.0, -1.0):
            with pytest.raises(ValueError, match=f"^{option} must be "):
                loss(hidden, kernel, labels, **{option: value})
    with pytest.raises(ValueError, match=r"^where must broadcast to \[6\], got bool\[5\]$"):
        loss(hidden, kernel, labels, where=jnp.ones(5, bool))
    with pytest.raises(ValueError, match=r"^weights must broadcast to \[6\], got float32\[5\]$"):
        loss(hidden, kernel, labels, weights=jnp.ones(5))


@pytest.mark.parametrize("option", ["where", "weights"])
def test_a_mask_of_another_rank_is_refused_with_a_hint(option: str) -> None:
    """NumPy would lay [B] along S wherever the two are equal."""
    hidden, kernel, labels = cast(data((3, 3)), jnp.float32)
    either = rf"write {option}\[None, :\] or {option}\[:, None\]$"
    other = rf"write {option}\[:, None\]$"
    for rows, hint in ((slice(None), either), (slice(2), other)):
        args = hidden[:, rows], kernel, labels[:, rows]
        mask = jnp.ones(3, bool if option == "where" else jnp.float32)
        with pytest.raises(ValueError, match=rf"^{option} must have the dimensions .*" + hint):
            jl.linear_softmax_cross_entropy(*args, **{option: mask})
        with pytest.raises(ValueError, match=rf"^{option} must have the dimensions .*" + hint):
            jl.linear_softmax_kl_divergence(*args[:2], *args[:2], **{option: mask})
    with pytest.raises(ValueError, match=r"got bool\[3,3,5\]: class_where masks classes$"):
        jl.linear_log_probs(hidden, kernel, labels, where=jnp.ones([3, 3, 5], bool))


def test_options_stand_in_one_order() -> None:
    rows = ["bias", "bias_p", "bias_q", "where", "weights", "class_where"]
    logits = ["kept", "label_smoothing", "class_weights", "z_loss", "soft_cap", "temperature"]
    how = ["reduction", "memory", "block_size", "precision", "accumulate_dtype"]
    order = [*rows, *logits, *how, "axis_name", "row_axis_name"]
    losses = ("softmax_cross_entropy", "softmax_kl_divergence")
    for name in (*losses, "log_probs", "log_probs_and_entropy", "top_k"):
        parameters = inspect.signature(getattr(jl, f"linear_{name}")).parameters.values()
        names = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
        assert names == [x for x in order if x in names]
        assert {"where", "class_where", "soft_cap", "temperature", "precision"} < set(names)


def test_refusals_of_two_heads() -> None:
    hidden, kernel, _ = cast(data(), jnp.float32)
    loss = jl.linear_softmax_kl_divergence
    with pytest.raises(
        ValueError, match=r"^hidden_q must have the leading shape of hidden_p, \[6,4\]"
    ):
        loss(hidden, kernel, hidden[:5], kernel)
    with pytest.raises(
        ValueError, match=r"^kernel_q must have the classes of kernel_p, \[4,5\], got"
    ):
        loss(hidden, kernel, hidden, kernel[:, :4])
    with pytest.raises(TypeError, match=r"^kernel_p must be floating point, got int32\[4,5\]$"):
        loss(hidden, kernel.astype(jnp.int32), hidden, kernel)


@pytest.mark.parametrize("bad", ["temperature", "soft_cap"])
def test_a_traced_option_out_of_range_gives_nan(bad: str) -> None:
    loss = jax.jit(lambda x: jl.linear_log_probs(*cast(data(), jnp.float32), **{bad: x}))
    assert jnp.isnan(loss(-1.0)).all()


def test_checked_reports_a_label() -> None:
    hidden, kernel, labels = cast(data(), jnp.float32)
    loss = jl.checked(jax.jit(jl.linear_softmax_cross_entropy))
    loss(hidden, kernel, labels)
    with pytest.raises(
        ValueError, match=r"^linear_softmax_cross_entropy: labels must be in \[0, 5\), got 5"
    ):
        loss(hidden, kernel, labels.at[0].set(5))
