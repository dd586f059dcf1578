"""Speculative sampling is lossless: counts against the target, and probabilities in float64.

Keys are fixed. A count fails by chance with a probability of 1e-6.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlogits as jl
from jaxlogits._src.decoding import speculative

INF, NAN = np.inf, np.nan
FALSE_ALARM = 1e-6
KEY = jax.random.key(0)
DRAWS = 100_000
P_LOGITS = np.float32([[0, 1, -1, 2, -INF], [1, 0, 0, -2, 0.5], [0, 0, 3, 1, -1]])
OTHER = np.float32([[1, -1, 0, 2, 0.5], [1, 0, -INF, -2, -INF]])
DRAFTS = {
    "another model": OTHER,
    "nearly the same": P_LOGITS[:2] + np.float32([0, 0.125, 0, -0.125, 0]),
    "the same": P_LOGITS[:2],
    "classes of its own": np.full([2, 5], -INF, np.float32),
    "none": np.zeros([2, 5], np.float32),
}


DRAFTS["classes of its own"][:, 4] = 0.0


def softmax(z: Any) -> np.ndarray:
    e = np.exp(np.asarray(z, float) - np.max(z, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


@jax.jit
def requests(q: Any, p: Any, temperature: Any, is_some: Any) -> tuple[Any, Any, Any]:
    """Drafts from q, if any, and what is made of them, for requests with keys of their own."""

    def one(key: Any, temperature: Any) -> Any:
        to_draft, to_verify = jax.random.split(key)
        drafts = jnp.where(is_some, jl.sample(to_draft, q, temperature=temperature), -1)
        return drafts, *jl.speculative_sample(to_verify, drafts, q, p, temperature=temperature)

    return jax.vmap(one)(jax.random.split(KEY, temperature.size), temperature)


def assert_drawn(classes: Any, probs: np.ndarray) -> None:
    counts = np.bincount(np.ravel(classes), minlength=probs.size)
    assert counts.size == probs.size
    possible = probs > 0
    assert not counts[~possible].any()
    expected = probs[possible] / np.sum(probs[possible]) * np.size(classes)
    assert scipy.stats.chisquare(counts[possible], expected).pvalue > FALSE_ALARM


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", DRAFTS)
def test_counts_are_the_targets(name: str, temperature: float) -> None:
    q, each = DRAFTS[name], np.full(DRAWS, temperature, np.float32)
    drafts, classes, count = map(np.asarray, requests(q, P_LOGITS, each, name != "none"))
    for place, probs in enumerate(softmax(P_LOGITS / temperature)):
        here = np.asarray(count) >= place
        # Rows of the target that don't depend on what was drawn before: neither do the classes.
        if here.sum() > 1000:
            assert_drawn(classes[here, place], probs)
        assert np.all(classes[~here, place] == -1)
    if name == "none":
        assert not count.any()
        return
    # As often as can be: 1 less the total variation.
    shared = np.minimum(softmax(P_LOGITS[:2] / temperature), softmax(q / temperature)).sum(-1)
    for tries, hits, rate in (
        (DRAWS, np.sum(count >= 1), shared[0]),
        (np.sum(count >= 1), np.sum(count >= 2), shared[1]),
    ):
        if 0 < rate < 1 - 1e-9 and tries:
            assert scipy.stats.binomtest(int(hits), int(tries), rate).pvalue > FALSE_ALARM
        else:
            assert hits == round(rate) * tries
    for place in range(2):
        stays = np.asarray(count) > place
        np.testing.assert_array_equal(classes[stays, place], drafts[stays, place])


def test_requests_have_temperatures_of_their_own() -> None:
    temperature = np.resize(np.float32([1.0, 0.5, 0.0]), 3 * DRAWS // 5)
    _, classes, _ = requests(OTHER, P_LOGITS, temperature, True)
    for t in (1.0, 0.5):
        assert_drawn(classes[temperature == t, 0], softmax(P_LOGITS[0] / t))
    assert np.all(classes[temperature == 0, 0] == 3)


@pytest.mark.parametrize("num_classes", [4, 1000])
@pytest.mark.parametrize("size", [1e-6, 1e-2])
@pytest.mark.parametrize("temperature", [1.0, 0.75])
def test_probabilities_of_nearly_equal_models(
    num_classes: int, size: float, temperature: float
) -> None:
    """Acceptance and replacement within 1e-5 of what float64 says.

    log q - log p is within some 2^-22 of its row's largest; the plain difference of logarithms of
    up to 20 would be 2^-20 off, twice of what it is at 1e-6.
    """
    rng = np.random.default_rng([num_classes, int(1 / size)])
    p = (3 * rng.normal(size=(20, num_classes))).astype(np.float32)
    q = p + np.float32(size) * rng.normal(size=p.shape).astype(np.float32)
    compare = jax.jit(lambda p, q, t: speculative._compare(p, q, t, None))
    models = compare(np.concatenate([p, p[:1]]), q, np.float32(temperature))
    want_p, want_q = softmax(p / np.float64(temperature)), softmax(q / np.float64(temperature))
    missing = np.maximum(want_p - want_q, 0)
    total = missing.sum(axis=-1)
    got = np.exp(np.asarray(models.missing, float))
    # float64 itself loses 2^-53 of p, which is up to 1, where the total may be 2^-23.
    np.testing.assert_allclose(got / total[:, None], missing / total[:, None], rtol=0, atol=1e-5)
    np.testing.assert_allclose(got.sum(axis=-1), total, rtol=1e-5)
    ratio = np.asarray(models.log_ratio, float)
    rejected = np.sum(want_q * -np.expm1(-np.maximum(ratio, 0)), axis=-1)
    np.testing.assert_allclose(rejected, total, rtol=1e-5)


def test_a_rare_class_of_the_draft_alone() -> None:
    """What is missing keeps its digits when q has a class that p hasn't."""
    p = np.float32([[0.0, 1.0, -INF], [0.0, 0.0, 0.0]])
    q = np.float32([[0.0, 1.0 + 2.0**-20, -16.0]])
    models = jax.jit(lambda: speculative._compare(p, q, jnp.float32(1), None))()
    want = np.maximum(softmax(p[0]) - softmax(q[0]), 0)
    np.testing.assert_allclose(np.exp(np.asarray(models.missing[0], float)), want, rtol=1e-5)
    assert models.log_ratio[0, 2] == INF


# Edges.


def verify(drafts: Any, q: Any, p: Any, **options: Any) -> tuple[list[int], int]:
    fn = jax.jit(jl.speculative_sample)
    classes, count = fn(KEY, np.asarray(drafts, np.int32), np.float32(q), np.float32(p), **options)
    assert (classes.dtype, count.dtype) == (jnp.int32, jnp.int32)
    return classes.tolist(), int(count)


ONE = [[0.0, -INF, -INF], [-INF, 0.0, -INF], [-INF, -INF, 0.0]]


def test_edges() -> None:
    flat = [[0.0] * 3] * 2
    # Drafts that are certain on both sides, one that the target can't have, and what is padded.
    assert verify([0, 1], ONE[:2], ONE) == ([0, 1, 2], 2)
    assert verify([0, 0], [ONE[0]] * 2, ONE) == ([0, 1, -1], 1)
    assert verify([1, 1], flat, ONE) == ([0, -1, -1], 0)
    # No draft, or none of q's: the class is the target's.
    for none in (-1, 3, -7):
        assert verify([0, none], ONE[:2], ONE) == ([0, 1, -1], 1)
    assert verify([0, 2], ONE[:2], ONE) == ([0, 1, -1], 1)
    # What q says where there is no draft doesn't count.
    assert verify([0, -1], [ONE[0], [NAN] * 3], ONE) == ([0, 1, -1], 1)
    # No class to draw: NaN, no class at all, two of infinite logits, in either model.
    for bad in ([NAN, 0.0, 0.0], [-INF] * 3, [INF, INF, 0.0]):
        assert verify([0, 1], ONE[:2], [ONE[0], bad, ONE[2]]) == ([0, -1, -1], 1)
        assert verify([0, 1], [ONE[0], bad], ONE) == ([0, -1, -1], 1)
    assert verify([0, 1], ONE[:2], [*ONE[:2], [NAN] * 3]) == ([0, 1, -1], 2)
    # +inf takes all of the probability.
    assert verify([1, 1], [[0.0, INF, 0.0]] * 2, [[9.0, INF, 9.0]] * 3) == ([1, 1, 1], 2)
    assert verify([1, 1], [[0.0, INF, 0.0]] * 2, [[INF, 9.0, 9.0]] * 3) == ([0, -1, -1], 0)
    # Nothing proposed.
    assert verify([], np.zeros([0, 3]), ONE[:1]) == ([0], 0)


def test_greedy() -> None:
    """At 0 the first of the target's largest logits, whatever the drafts were drawn from."""
    p = [[1.0, 3.0, 3.0], [5.0, 4.0, 0.0], [0.0, 0.0, -1.0]]
    q = [[0.0, 0.0, 9.0]] * 2
    for temperature in (0, 0.0, jnp.float32(0)):
        assert verify([1, 0], q, p, temperature=temperature) == ([1, 0, 0], 2)
        assert verify([2, 0], q, p, temperature=temperature) == ([1, -1, -1], 0)
        assert verify([1, -1], q, p, temperature=temperature) == ([1, 0, -1], 1)
    bad = [*p[:1], [NAN, 0.0, 0.0], p[2]]
    assert verify([1, 1], q, bad, temperature=0.0) == ([1, -1, -1], 1)


def test_a_traced_temperature_below_0_draws_nothing() -> None:
    assert verify([0, 1], ONE[:2], ONE, temperature=jnp.float32(-1)) == ([-1, -1, -1], 0)


def test_large_offsets_and_half_precision() -> None:
    """bfloat16 logits are those numbers, and an offset of either model changes nothing."""
    q, p = jnp.asarray(OTHER, jnp.bfloat16), jnp.asarray(P_LOGITS, jnp.bfloat16)
    drafts = jnp.array([3, 0], jnp.int8)
    want = jl.speculative_sample(KEY, drafts, OTHER, P_LOGITS)
    for got in (
        jl.speculative_sample(KEY, drafts, q, p),
        jl.speculative_sample(KEY, drafts, OTHER - 2.0**20, P_LOGITS + 2.0**20),
    ):
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_transforms() -> None:
    keys = jax.random.split(KEY, 8)
    drafts = jax.random.randint(KEY, [8, 2], 0, 5)
    one = jax.jit(lambda key, x: jl.speculative_sample(key, x, OTHER, P_LOGITS))
    want = [np.stack(x) for x in zip(*map(one, keys, drafts), strict=True)]
    together = jax.vmap(one)(keys, drafts)
    scanned = jax.lax.scan(lambda _, x: (None, one(*x)), None, (keys, drafts))[1]
    for got in (together, scanned):
        jax.tree.map(np.testing.assert_array_equal, list(got), want)

    def number(q: Any, p: Any) -> Any:
        return jnp.sum(jl.speculative_sample(KEY, drafts[0], q, p)[0]).astype(jnp.float32)

    for slope in jax.grad(number, (0, 1))(OTHER, P_LOGITS):
        assert not slope.any()


def test_on_a_mesh() -> None:
    """Classes over five devices; an Explicit mesh gives what one device gives."""
    mesh = jax.make_mesh((5,), ("model",), devices=jax.devices()[:5], axis_types=(AxisType.Auto,))

    def local(keys: Any, drafts: Any, q: Any, p: Any) -> Any:
        verify = jax.vmap(
            lambda key, x: jl.speculative_sample(key, x, q, p, axis_name="model"), (0, 0)
        )
        return verify(keys, drafts)

    draws = 20_000
    keys = jax.random.split(KEY, draws)
    drafts = jl.sample(jax.random.key(1), OTHER, shape=(draws,))
    specs = (P(), P(), P(None, "model"), P(None, "model"))
    on_five = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P()))
    classes, count = on_five(keys, drafts, OTHER, P_LOGITS)
    for place, probs in enumerate(softmax(P_LOGITS)):
        here = np.asarray(count) >= place
        assert_drawn(classes[here, place], probs)
    mesh = jax.make_mesh(
        (5,), ("model",), devices=jax.devices()[:5], axis_types=(AxisType.Explicit,)
    )
    split = [jax.device_put(x, NamedSharding(mesh, P(None, "model"))) for x in (OTHER, P_LOGITS)]
    got = jl.speculative_sample(KEY, drafts[0], *split)
    want = jl.speculative_sample(KEY, drafts[0], OTHER, P_LOGITS)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_refusals() -> None:
    drafts = np.zeros([2], np.int32)
    with pytest.raises(
        ValueError, match=r"^draft_classes must be those of one request, \[S\], got"
    ):
        jl.speculative_sample(KEY, drafts[None], OTHER, P_LOGITS)
    with pytest.raises(TypeError, match=r"^draft_classes must be integers, got float32\[2\]$"):
        jl.speculative_sample(KEY, drafts.astype(np.float32), OTHER, P_LOGITS)
    rule = r"^target_logits must have one row per draft and one more, \[3,K\], got float32\[2,5\]$"
    with pytest.raises(ValueError, match=rule):
        jl.speculative_sample(KEY, drafts, OTHER, P_LOGITS[:2])
    with pytest.raises(ValueError, match=r"^draft_logits must have one row per draft, \[2,5\], "):
        jl.speculative_sample(KEY, drafts, P_LOGITS, P_LOGITS)
    with pytest.raises(ValueError, match=r"^temperature must be at least 0, got -1$"):
        jl.speculative_sample(KEY, drafts, OTHER, P_LOGITS, temperature=-1.0)
    with pytest.raises(ValueError, match=r"^temperature must be a scalar, got float32\[2\]$"):
        jl.speculative_sample(KEY, drafts, OTHER, P_LOGITS, temperature=jnp.ones(2))
    with pytest.raises(TypeError, match=r"^key must be from jax.random, got float32\[\]$"):
        jl.speculative_sample(jnp.float32(0), drafts, OTHER, P_LOGITS)
