"""Modules of Flax, Haiku and Equinox as params of the blockwise transforms."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlogits as jl

nnx = pytest.importorskip("flax.nnx", reason="the frameworks aren't installed")
nn = pytest.importorskip("flax.linen", reason="the frameworks aren't installed")
eqx = pytest.importorskip("equinox", reason="the frameworks aren't installed")
hk = pytest.importorskip("haiku", reason="the frameworks aren't installed")

Array = jax.Array

N, D, K = 11, 3, 5
HIDDEN = jax.random.normal(jax.random.key(0), [N, D])
LABELS = jnp.arange(N) % K
KEY = jax.random.key(1)
KEYS = jax.random.split(KEY, N)
KINDS = pytest.mark.parametrize("kind", ["map", "sum"])
cross_entropy = jl.softmax_cross_entropy_with_integer_labels


@pytest.fixture(autouse=True)
def _promotions_of_frameworks() -> Iterator[None]:
    """Layers add a bias to a batch."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def total(kind: str, fn: Callable[..., Array], *args: Any) -> Array:
    return jnp.sum(getattr(jl, f"blockwise_{kind}")(fn, block_size=4)(*args))


def close(got: Any, want: Any) -> None:
    """Sums of 11 losses, each of a few dozen roundings."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    for g, w in pairs:
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


class Flax(nnx.Module):
    def __init__(self, rate: float, has_norm: bool) -> None:
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(D, K, rngs=rngs)
        self.norm = nnx.BatchNorm(K, rngs=rngs) if has_norm else None
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, hidden: Array) -> Array:
        logits = self.linear(hidden)
        return self.dropout(logits if self.norm is None else self.norm(logits))


def of_batch(module: Any, hidden: Array, labels: Array) -> Array:
    return cross_entropy(module(hidden), labels)


def of_rows(module: Any, hidden: Array, labels: Array, *keys: Array) -> Array:
    def one(hidden: Array, *key: Array) -> Array:
        return module(hidden, key=key[0]) if key else module(hidden)

    return cross_entropy(jax.vmap(one)(hidden, *keys), labels)


@KINDS
@pytest.mark.parametrize(("rate", "has_norm"), [(0.5, False), (0.0, True)])
def test_state_of_nnx_modules_is_refused_in_training_and_read_in_evaluation(
    kind: str, rate: float, has_norm: bool
) -> None:
    module = Flax(rate, has_norm)

    def step(module: Flax) -> Array:
        return total(kind, of_batch, module, HIDDEN, LABELS)

    place = ".norm.mean" if has_norm else ".dropout.rngs.count"
    for call in (step, nnx.jit(step), nnx.jit(nnx.value_and_grad(step))):
        with pytest.raises(ValueError, match=re.escape(f"got a write to {place}")):
            call(module)
    assert module.dropout.rngs.count[...] == 0
    module.eval()
    got = nnx.jit(nnx.value_and_grad(step))(module)
    close(got, nnx.value_and_grad(lambda m: of_batch(m, HIDDEN, LABELS).sum())(module))
    close(total(kind, lambda _, *rows: of_batch(module, *rows), None, HIDDEN, LABELS), got[0])


@KINDS
def test_shared_keys_of_linen_haiku_and_equinox_are_refused_and_keys_of_rows_are_not(
    kind: str,
) -> None:
    linen = nn.Sequential([nn.Dense(K), nn.Dropout(0.5, deterministic=False)])
    haiku = hk.transform(lambda h: hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(K)(h)))
    equinox = eqx.nn.Sequential([eqx.nn.Linear(D, K, key=KEY), eqx.nn.Dropout(0.5)])

    def of_linen(params: Any, hidden: Array, key: Array) -> Array:
        return linen.apply(params, hidden, rngs={"dropout": key})

    def of_haiku(params: Any, hidden: Array, key: Array) -> Array:
        return haiku.apply(params, key, hidden)

    def of_equinox(module: Any, hidden: Array, key: Array) -> Array:
        if hidden.ndim == 1:
            return module(hidden, key=key)
        return jax.vmap(module)(hidden, key=jax.random.split(key, len(hidden)))

    rngs = {"params": KEY, "dropout": KEY}
    cases = [
        (of_linen, linen.init(rngs, HIDDEN)),
        (of_haiku, haiku.init(KEY, HIDDEN)),
        (of_equinox, equinox),
    ]
    for apply, params in cases:

        def shared(params: Any, hidden: Array, labels: Array, apply: Any = apply) -> Array:
            return cross_entropy(apply(params, hidden, KEY), labels)

        def own(
            params: Any, hidden: Array, labels: Array, keys: Array, apply: Any = apply
        ) -> Array:
            return cross_entropy(jax.vmap(apply, (None, 0, 0))(params, hidden, keys), labels)

        with pytest.raises(ValueError, match="fn must draw with keys that are rows"):
            total(kind, shared, params, HIDDEN, LABELS)
        want = own(params, HIDDEN, LABELS, KEYS).sum()
        close(total(kind, own, params, HIDDEN, LABELS, KEYS), want)


@KINDS
def test_equinox_modules_with_leaves_of_any_kind(kind: str) -> None:
    mlp = eqx.nn.MLP(D, K, 8, 1, key=KEY)  # its activation is a leaf
    dropout = eqx.nn.inference_mode(eqx.nn.Sequential([mlp, eqx.nn.Dropout(0.5)]))
    for module in (mlp, dropout):

        def step(module: Any) -> Array:
            return total(kind, of_rows, module, HIDDEN, LABELS)

        want = eqx.filter_value_and_grad(lambda m: of_rows(m, HIDDEN, LABELS).sum())(module)
        close(step(module), want[0])
        close(eqx.filter_jit(eqx.filter_value_and_grad(step))(module), want)
    noisy = eqx.nn.Sequential([mlp, eqx.nn.Dropout(0.5)])
    want = of_rows(noisy, HIDDEN, LABELS, KEYS).sum()
    close(total(kind, of_rows, noisy, HIDDEN, LABELS, KEYS), want)


@KINDS
def test_equinox_state_is_read(kind: str) -> None:
    make = eqx.nn.make_with_state(lambda: eqx.nn.BatchNorm(D, "rows", mode="batch"))
    norm, state = make()
    norm = eqx.nn.inference_mode(norm)
    kernel = jax.random.normal(KEY, [D, K])

    def fn(params: Any, hidden: Array, labels: Array) -> Array:
        norm, state, kernel = params
        return cross_entropy(jax.vmap(lambda h: norm(h, state)[0] @ kernel)(hidden), labels)

    params = norm, state, kernel
    close(total(kind, fn, params, HIDDEN, LABELS), fn(params, HIDDEN, LABELS).sum())


@KINDS
@pytest.mark.parametrize("mode", [{"ref": True}, {"hijax": True}], ids=str)
def test_variables_that_are_references(kind: str, mode: dict[str, bool]) -> None:
    if not hasattr(nnx, "var_defaults"):
        pytest.skip("this Flax has no such variables")
    with nnx.var_defaults(**mode):
        module = nnx.Linear(D, K, rngs=nnx.Rngs(0))
    want = of_batch(module, HIDDEN, LABELS).sum()
    close(total(kind, of_batch, module, HIDDEN, LABELS), want)
    jitted = jax.jit(lambda module: total(kind, of_batch, module, HIDDEN, LABELS))
    close(jitted(module), want)
    with pytest.raises(TypeError, match=r"fn must close over arrays, got Abstract\w+: pass it"):
        total(kind, lambda _, *rows: of_batch(module, *rows), None, HIDDEN, LABELS)
    if "hijax" in mode:
        message = "kernel must be an array of numbers, got a reference to one: write kernel["
        with pytest.raises(TypeError, match=re.escape(message)):
            jl.linear_softmax_cross_entropy(HIDDEN, module.kernel, LABELS)
    close(jl.linear_log_probs(HIDDEN, module.kernel[...], LABELS).sum(), -want)


def test_boxes_and_variables() -> None:
    init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("features", "classes"))
    dense = nn.Dense(K, kernel_init=init)
    params = dense.init(KEY, HIDDEN)

    def fn(params: Any, hidden: Array, labels: Array) -> Array:
        return cross_entropy(dense.apply(params, hidden), labels)

    want = fn(params, HIDDEN, LABELS).mean()
    close(jl.blockwise_mean(fn, block_size=4)(params, HIDDEN, LABELS), want)
    box = params["params"]["kernel"]
    message = r"kernel must be an array of numbers, got LogicallyPartitioned: write kernel.unbox()"
    with pytest.raises(TypeError, match=message):
        jl.linear_softmax_cross_entropy(HIDDEN, box, LABELS)
    close(jl.linear_softmax_cross_entropy(HIDDEN, box.unbox(), LABELS), want)
    module = nnx.Linear(D, K, rngs=nnx.Rngs(0))
    want = of_batch(module, HIDDEN, LABELS).mean()
    close(jl.linear_softmax_cross_entropy(HIDDEN, module.kernel, LABELS), want)
