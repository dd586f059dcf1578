"""Draws by their counts, with fixed keys. A count fails by chance with a probability of 1e-6."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import scipy.stats
import transforms as tf

import jaxlogits as jl

INF, NAN = np.inf, np.nan
FALSE_ALARM = 1e-6
LOGITS = np.float32([0.0, 1.0, -2.0, -INF, 0.5])
KEY = jax.random.key(0)


def softmax(z: Any) -> np.ndarray:
    e = np.exp(np.asarray(z, float) - np.max(z))
    return e / np.sum(e)


def assert_drawn(classes: Any, probs: np.ndarray) -> None:
    """The counts are those of ``probs``, and nothing else was drawn."""
    counts = np.bincount(np.ravel(classes), minlength=probs.size)
    assert counts.size == probs.size
    assert np.all(counts[probs == 0] == 0)
    possible = probs > 0
    expected = probs[possible] / np.sum(probs) * np.size(classes)
    if np.sum(possible) == 1:
        return
    assert scipy.stats.chisquare(counts[possible], expected).pvalue > FALSE_ALARM


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_counts(temperature: float) -> None:
    draw = jax.jit(lambda key, t: jl.sample(key, LOGITS, shape=(100, 1000), temperature=t))
    classes = draw(KEY, temperature)
    assert (classes.shape, classes.dtype) == ((100, 1000), jnp.int32)
    assert_drawn(classes, softmax(LOGITS / temperature))


def test_rows_are_independent() -> None:
    z = np.broadcast_to(np.float32([0, 1]), [2, 2])
    first, second = jax.jit(lambda: jl.sample(KEY, z, shape=(50000,)).T)()
    assert_drawn(2 * first + second, np.outer(softmax(z[0]), softmax(z[0])).ravel())


def test_long_rows() -> None:
    """They are drawn in two rounds: of blocks, of which one is empty here and one has padding."""
    z = np.random.default_rng(0).uniform(-1, 1, [2, 1500]).astype(np.float32)
    z[:, 256:384] = -INF
    z[0, :128], z[1, 1408:] = -200, 2
    classes = jax.jit(lambda: jl.sample(KEY, z, shape=(20_000,)))()
    for row, drawn in zip(z, classes.T, strict=True):
        assert_drawn(drawn, softmax(row.astype(float)))
    # Rows are independent in both rounds: how often they share the block, or the place in it.
    p = np.pad([softmax(row.astype(float)) for row in z], [(0, 0), (0, 36)]).reshape(2, 12, 128)
    for part, axis in ((classes // 128, 2), (classes % 128, 1)):
        share = np.sum(np.prod(np.sum(p, axis=axis), axis=0))
        deviation = (share / 20_000) ** 0.5
        assert abs(np.mean(part[:, 0] == part[:, 1]) - share) < 5.5 * deviation


def test_edges_of_long_rows() -> None:
    z = np.zeros([6, 1500], np.float32)
    z[0, 1400], z[1, 3], z[2, [3, 1400]], z[3], z[4, 700] = INF, NAN, INF, -INF, 3e38
    draw = jax.jit(lambda where: jl.sample(KEY, z, where=where, shape=(3, 2)))
    classes = np.asarray(draw(np.arange(6)[:, None] * np.ones([1500], np.int32) < 5))
    assert classes.shape == (3, 2, 6)
    np.testing.assert_array_equal(classes, np.broadcast_to([1400, -1, -1, -1, 700, -1], (3, 2, 6)))


def test_noise_is_fine_enough_for_rare_classes() -> None:
    """A class of probability q is drawn when its exponential is about q: it needs q's bits.

    With jax.random's default noise these numbers are multiples of 2**-23.
    """
    noise = jax.random.gumbel(KEY, [2**18], mode="high")
    # Classes with a logit that makes each win as soon as its noise exceeds 8, against a sure 0.
    assert np.max(noise) > 10
    rare = np.exp(-np.asarray(noise, float)[noise > 8]) * 2**23
    assert np.mean(np.abs(rare - np.round(rare)) > 0.05) > 0.8
    z = jnp.array([0.0, 16.0])
    ours = jl.sample_without_replacement(KEY, z, 2)  # takes that noise
    np.testing.assert_array_equal(ours, np.argsort(-(z + jax.random.gumbel(KEY, [2], mode="high"))))


@pytest.mark.newest
def test_greedy() -> None:
    z = jnp.array([[1.0, 3.0, 3.0], [-INF, 0.0, -1.0], [5.0, -INF, -INF]])
    sample = jax.jit(functools.partial(jl.sample, KEY), static_argnames="shape")
    np.testing.assert_array_equal(sample(z, temperature=0.0), [1, 1, 0])
    mixed = sample(z, shape=(1000,), temperature=jnp.array([0.0, 1.0, 0.0]))
    np.testing.assert_array_equal(mixed[:, 0], 1)
    assert_drawn(mixed[:, 1], softmax(z[1]))
    with_log_prob = jax.jit(functools.partial(jl.sample_with_log_prob, KEY))
    classes, log_probs = with_log_prob(z, temperature=0.0)
    np.testing.assert_array_equal(classes, [1, 1, 0])
    np.testing.assert_array_equal(log_probs, 0.0)


EDGES = np.float32(
    [[0, INF, 0], [INF, INF, 0], [NAN, 0, 0], [-INF, -INF, -INF], [-INF, 2, -INF], [0, 1, NAN]]
)
EDGE_WHERE = np.array([[True] * 3] * 5 + [[False] * 3])
EDGE_CLASSES = [1, -1, -1, -1, 1, -1]


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_edges(temperature: float) -> None:
    options = {"where": EDGE_WHERE, "temperature": temperature}
    sample = jax.jit(functools.partial(jl.sample, KEY))
    np.testing.assert_array_equal(sample(EDGES, **options), EDGE_CLASSES)
    if temperature:
        classes, log_probs = jax.jit(functools.partial(jl.sample_with_log_prob, KEY))(
            EDGES, **options
        )
        np.testing.assert_array_equal(classes, EDGE_CLASSES)
        np.testing.assert_array_equal(log_probs, [0, NAN, NAN, NAN, 0, NAN])
        several = jax.jit(lambda: jl.sample_without_replacement(KEY, EDGES, 2, where=EDGE_WHERE))()
        np.testing.assert_array_equal(several[1:], [[-1, -1]] * 3 + [[1, -1], [-1, -1]])
        assert several[0, 0] == 1
        draw = jax.jit(functools.partial(jl.gumbel_softmax, KEY, hard=True))
        soft = draw(EDGES, where=EDGE_WHERE)
        np.testing.assert_array_equal(
            soft, [[0, 1, 0], [NAN] * 3, [NAN] * 3, [NAN] * 3, [0, 1, 0], [0, 0, 0]]
        )
    assert jax.jit(lambda t: jl.sample(KEY, LOGITS, temperature=t))(-1.0) == -1


# Offsets and temperatures at which z / T + noise would lose the noise, or be infinite.

FAR = {
    "large offset": ([1e7, 1e7], 1.0),
    "large offset, apart by 1": ([1e7 + 1, 1e7], 3.0),
    "small temperature": ([20.0, 20.0], 1e-6),
    "below 0": ([-1e9, -1e9], 1.0),
    "both": ([1e30, 1e30], 1e-37),
    "gap beyond the largest number": ([3e38, -3e38], 2e38),
    "overflow": ([3.4e38, 3.4e38, -3.4e38], 1e-3),
    "infinite temperature": ([0.0, 5.0, -INF, -3e38], INF),
}
SHAPE = (4, 10_000)


def far_probs(row: list[float], temperature: float) -> np.ndarray:
    z = np.float32(row).astype(np.longdouble)
    gaps = np.where(z == -INF, INF, np.max(z) - z)
    e = np.where(np.isinf(gaps), 0, np.exp(-np.where(np.isinf(gaps), 0, gaps) / temperature))
    return (e / np.sum(e)).astype(float)


# Compiled once for each number of classes.


@jax.jit
def draws_of_one_row(z: Any, t: Any) -> Any:
    return jl.sample_with_log_prob(KEY, z, shape=SHAPE, temperature=t)


@jax.jit
def draws_of_rows(z: Any, t: Any) -> Any:
    return jl.sample(KEY, z, shape=SHAPE[1:], temperature=t)


@pytest.mark.parametrize(("row", "temperature"), FAR.values(), ids=FAR)
def test_draws_at_any_offset_and_temperature(row: list[float], temperature: float) -> None:
    z, want = jnp.float32(row), far_probs(row, temperature)
    classes, log_probs = draws_of_one_row(z, temperature)
    assert_drawn(classes, want)
    np.testing.assert_allclose(log_probs, np.log(want[classes]), rtol=1e-6, atol=1e-6)
    both = draws_of_rows(jnp.stack([z, z]), jnp.float32([temperature, 0.0]))
    assert_drawn(both[:, 0], want)
    np.testing.assert_array_equal(both[:, 1], np.argmax(row))


def test_log_probs_at_small_temperatures() -> None:
    """Where z / T is infinite: the others are impossible, and nothing moves."""
    z = jnp.array([[90.0, 100.0], [-1e38, 2e38], [-100.0, -90.0]])
    run = jax.jit(
        jax.value_and_grad(
            lambda z, t: jnp.sum(jl.sample_with_log_prob(KEY, z, temperature=t)[1]), (0, 1)
        )
    )
    for temperature in (1e-37, 1e-20, 1e-3):
        value, slopes = run(z, temperature)
        assert value == 0
        assert all(np.all(slope == 0) for slope in slopes)
    ties = jax.jit(jax.grad(lambda z: jl.sample_with_log_prob(KEY, z, temperature=1e-30)[1]))
    np.testing.assert_allclose(np.abs(ties(jnp.float32([5e8, 5e8]))), 0.5e30, rtol=1e-6)


# Rows, of which the last two are far below the first, or near at an offset.
LEFT = [[0, -1e7, -1e7 - 1], [1e7, 1e7, 1e7 + 1], [5.0, -1e9, -1e9], [1e30, 0.0, 1.0]]


@jax.jit
def orders(z: Any) -> Any:
    keys = jax.random.split(KEY, 20_000)
    return jax.vmap(lambda k: jl.sample_without_replacement(k, z, 3))(keys)


@pytest.mark.parametrize("row", LEFT)
def test_without_replacement_at_any_offset(row: list[float]) -> None:
    """What is left is drawn from its own softmax, however far it is below what was drawn."""
    drawn = orders(jnp.float32(row))
    want = np.zeros([3, 3, 3])
    for order in itertools.permutations(range(3)):
        first = far_probs(row, 1.0)[order[0]]
        want[order] = first * far_probs([row[k] for k in order[1:]], 1.0)[0]
    assert_drawn(drawn @ jnp.array([9, 3, 1]), want.ravel())


@jax.jit
def soft_and_hard_draws(z: Any, t: Any) -> Any:
    keys = jax.random.split(KEY, 10_000)
    draw = functools.partial(jl.gumbel_softmax, temperature=t)
    soft, hard = (jax.vmap(lambda k, h=h: draw(k, z, hard=h))(keys) for h in (False, True))
    return soft, hard, jax.grad(lambda z, t: draw(KEY, z, temperature=t)[0], (0, 1))(z, t)


@pytest.mark.parametrize(("row", "temperature"), FAR.values(), ids=FAR)
def test_gumbel_softmax_at_any_offset_and_temperature(row: list[float], temperature: float) -> None:
    """The draw is from softmax(z) whatever the temperature, which makes it soft."""
    soft, hard, slopes = soft_and_hard_draws(jnp.float32(row), temperature)
    assert_drawn(np.argmax(hard, -1), far_probs(row, 1.0))
    np.testing.assert_array_equal(np.sum(hard, -1), 1.0)
    np.testing.assert_allclose(np.sum(soft, -1), 1.0, rtol=1e-6)
    assert all(jnp.isfinite(slope).all() for slope in slopes)
    if temperature == INF:
        np.testing.assert_allclose(soft[0], [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)


def test_gumbel_softmax_takes_a_temperature_for_each_row() -> None:
    z, t = jnp.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), jnp.array([0.5, 2.0, -1.0])
    run = jax.jit(functools.partial(jl.gumbel_softmax, KEY))
    got = run(z, temperature=t)
    for k in range(2):
        np.testing.assert_array_equal(got[k], run(z, temperature=t[k])[k])
    assert np.isnan(got[2]).all()


# NaN in a value comes with NaN in its gradient, in its row only.

ROWS = np.float32([[0, 1, 2], [INF, INF, 0], [0, NAN, 1], [-INF] * 3, [-INF, 2, -INF], [0, INF, 1]])


@functools.cache
def draw_and_slopes(name: str) -> Any:
    """Of each row, compiled once for all temperatures."""

    def of(z: Any, t: Any) -> Any:
        if name == "sample_with_log_prob":
            return jl.sample_with_log_prob(KEY, z, temperature=t)[1][..., None]
        return jl.gumbel_softmax(KEY, z, temperature=t, hard=name == "hard")

    def number(z: Any, t: Any) -> Any:
        value = of(z, t)
        return jnp.sum(value * jnp.arange(1.0, 1 + value.shape[-1]))

    @jax.jit
    @jax.vmap
    def run(z: Any, t: Any) -> Any:
        pushed = jax.jvp(number, (z, t), (jnp.ones_like(z), jnp.zeros_like(t)))[1]
        return of(z, t), jax.grad(number, (0, 1))(z, t), pushed

    return run


@pytest.mark.parametrize("temperature", [1.0, 0.0, 1e-37, INF, -1.0])
@pytest.mark.parametrize("name", ["sample_with_log_prob", "gumbel_softmax", "hard"])
def test_nan_has_no_gradient(name: str, temperature: float) -> None:
    if temperature == 0 and name != "sample_with_log_prob":
        pytest.skip("refused")
    run = draw_and_slopes(name)
    value, (by_z, by_t), pushed = run(ROWS, jnp.full(len(ROWS), temperature))
    bad = np.isnan(value).any(-1)
    want = [False, True, True, True, False, False] if temperature >= 0 else [True] * 6
    np.testing.assert_array_equal(bad, want)
    for slope in (by_z.sum(-1), by_t, pushed):
        np.testing.assert_array_equal(np.isnan(slope), bad)
        assert np.isfinite(slope[~bad]).all()


def test_masks_and_axes() -> None:
    z = np.zeros([2, 3, 4], np.float32)
    where = np.arange(4) % 2 == 1
    classes = jax.jit(lambda: jl.sample(KEY, z, where=where[None, None], shape=(200,)))()
    assert set(np.unique(classes)) == {1, 3}
    assert jax.eval_shape(lambda: jl.sample(KEY, z, axis=1, shape=(5,))).shape == (5, 2, 4)
    several = jax.eval_shape(lambda: jl.sample_without_replacement(KEY, z, 2, axis=0))
    assert several.shape == (3, 4, 2)
    low = jax.eval_shape(lambda: jl.gumbel_softmax(KEY, jnp.bfloat16(z), axis=(0, 2)))
    assert (low.shape, low.dtype) == (z.shape, jnp.bfloat16)


def test_log_probs() -> None:
    z, t = np.float32([[0.0, 3.0, -1.0], [1.0, 2.0, 2.5]]), np.float32([0.5, 2.0])

    def run(z: Any, t: Any) -> Any:
        classes, log_probs = jl.sample_with_log_prob(KEY, z, shape=(50,), temperature=t)
        return jnp.sum(log_probs), (classes, log_probs)

    (dz, dt), (classes, log_probs) = jax.jit(jax.grad(run, (0, 1), has_aux=True))(z, t)
    alone = jax.jit(lambda t: jl.sample(KEY, z, shape=(50,), temperature=t))
    np.testing.assert_array_equal(classes, alone(t))
    p = np.array([softmax(row / s) for row, s in zip(z, t, strict=True)])
    want = np.log(p)[np.arange(2), classes]
    np.testing.assert_allclose(log_probs, want, rtol=1e-5)
    hits = np.sum(np.eye(3)[classes], axis=0)  # [2, 3]
    by_scaled = hits - 50 * p
    np.testing.assert_allclose(dz, by_scaled / t[:, None], rtol=0, atol=1e-4)
    np.testing.assert_allclose(dt, np.sum(by_scaled * -z, -1) / t**2, rtol=0, atol=1e-3)


def test_without_replacement() -> None:
    z = np.float32([0.0, 1.0, -1.0, -INF])
    pairs = jax.jit(jax.vmap(lambda key: jl.sample_without_replacement(key, z, 2)))(
        jax.random.split(KEY, 50000)
    )
    p = softmax(z)
    first, second = np.ogrid[:4, :4]
    joint = np.where(first == second, 0.0, p[first] * p[second] / (1 - p[first]))
    assert_drawn(4 * pairs[:, 0] + pairs[:, 1], joint.ravel())
    np.testing.assert_array_equal(jl.sample_without_replacement(KEY, z, 4)[-1], -1)


def test_gumbel_softmax_tends_to_a_draw() -> None:
    keys = jax.random.split(KEY, 20000)
    soft = jax.jit(jax.vmap(lambda key: jl.gumbel_softmax(key, LOGITS, temperature=0.01)))(keys)
    hard = jax.jit(jax.vmap(lambda key: jl.gumbel_softmax(key, LOGITS, hard=True)))(keys)
    assert_drawn(np.argmax(soft, -1), softmax(LOGITS))
    np.testing.assert_array_equal(np.argmax(soft, -1), np.argmax(hard, -1))
    assert set(np.unique(hard)) == {0.0, 1.0}
    np.testing.assert_array_equal(np.sum(hard, -1), 1.0)


NOISE = np.asarray(jax.random.gumbel(KEY, [3], mode="high"))
Z = np.array([[1.0, -0.5, 0.25], [0.5, 1.75, -0.25]], np.float32)
T = np.array([0.75, 1.5], np.float32)


def relaxed(z: Any, t: Any) -> Any:
    return ro.softmax((z + ro.exact(NOISE)) / t)


def test_transforms() -> None:
    case = tf.Case(
        "gumbel_softmax", lambda z, t: jl.gumbel_softmax(KEY, z, temperature=t), relaxed, (Z, T)
    )
    f, exact = tf.joined(case), tf.exact(case)
    for results, want in zip(tf.of_each_order(f), exact, strict=True):
        for transform, got in results.items():
            # z + g is rounded; with what it is multiplied by, up to 8, and divided by.
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-5, err_msg=transform)


@pytest.mark.newest
def test_straight_through() -> None:
    def number(z: Any, hard: bool) -> Any:
        return jnp.sum(jl.gumbel_softmax(KEY, z, temperature=0.75, hard=hard) * jnp.arange(3.0))

    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        run = jax.jit(derivative(number), static_argnums=1)
        hard, soft = (run(Z[0], hard) for hard in (True, False))
        np.testing.assert_array_equal(hard, soft)
        assert np.any(soft != 0)


def test_in_loops_and_blocks() -> None:
    """A step of decoding over a head whose logits never exist, as in the docstring's loop."""
    kernel = jax.random.normal(KEY, [4, 50])
    hidden = jax.random.normal(jax.random.key(1), [6, 4])
    keys = jax.random.split(jax.random.key(2), 6)

    def step(kernel: Any, hidden: Any, key: Any) -> Any:
        return jax.vmap(jl.sample)(key, jl.keep_top_p(hidden @ kernel, 0.9))

    blocked = jax.jit(jl.blockwise_map(step, block_size=4))(kernel, hidden, keys)
    np.testing.assert_array_equal(blocked, jax.jit(step)(kernel, hidden, keys))
    one = lambda c, x: (c, step(kernel, x[0][None], x[1][None])[0])  # noqa: E731
    scanned = jax.jit(lambda *rows: jax.lax.scan(one, 0, rows)[1])(hidden, keys)
    np.testing.assert_array_equal(scanned, blocked)


def test_export_and_old_keys() -> None:
    exported = jax.export.export(jax.jit(lambda k, z: jl.sample(jax.random.wrap_key_data(k), z)))(
        jax.ShapeDtypeStruct([2], jnp.uint32), jax.ShapeDtypeStruct([5], jnp.float32)
    )
    data = jax.random.key_data(KEY)
    want = jl.sample(KEY, LOGITS)
    assert exported.call(data, LOGITS) == want == jl.sample(data, LOGITS)


def test_refused() -> None:
    z = jnp.zeros([2, 3])
    with pytest.raises(TypeError, match=r"^logits must be floating point, got int32\[2,3\]$"):
        jl.sample(KEY, z.astype(jnp.int32))
    with pytest.raises(ValueError, match=r"^temperature must be at least 0, got -1$"):
        jl.sample(KEY, z, temperature=-1.0)
    with pytest.raises(ValueError, match=r"^temperature must be above 0, got 0$"):
        jl.gumbel_softmax(KEY, z, temperature=0.0)
    with pytest.raises(ValueError, match=r"^temperature must broadcast to \[2\], got float32\[3\]"):
        jl.gumbel_softmax(KEY, z, temperature=jnp.ones([3]))
    for k in (0, 4):
        with pytest.raises(ValueError, match=rf"^k must be at least 1 and at most 3, got {k}$"):
            jl.sample_without_replacement(KEY, z, k)


def test_options_that_are_none() -> None:
    """In our words, also what jit can't take as a static argument."""
    z = jnp.zeros([2, 3])
    rule = "shape must be a tuple of ints that are at least 0, got "
    for shape in (2, [2], (2.0,), (-1,), (True,), "ab", None, jnp.array([2]), (jnp.int32(2),)):
        for fn in (jl.sample, jl.sample_with_log_prob):
            with pytest.raises(TypeError, match=f"^{rule}"):
                fn(KEY, z, shape=shape)
    assert jl.sample(KEY, z, shape=(np.int64(4), 1)).shape == (4, 1, 2)
    for hard in ("yes", 1, None, jnp.array(True)):
        with pytest.raises(TypeError, match=r"^hard must be True or False, got "):
            jl.gumbel_softmax(KEY, z, hard=hard)
    hard = jl.gumbel_softmax(KEY, z, hard=np.bool_(True))
    np.testing.assert_array_equal(hard, jl.gumbel_softmax(KEY, z, hard=True))
    for k in (2.0, True, "2", np.float32(2)):
        with pytest.raises(TypeError, match=r"^k must be an int that is known while tracing, got "):
            jl.sample_without_replacement(KEY, z, k)
    with pytest.raises(TypeError, match=r"^k must be an int that is known while tracing, got "):
        jax.jit(lambda k: jl.sample_without_replacement(KEY, z, k))(2)
    for k in (np.int64(2), np.array(2), jnp.int32(2)):
        got = jl.sample_without_replacement(KEY, z, k)
        np.testing.assert_array_equal(got, jl.sample_without_replacement(KEY, z, 2))
    for key in (0, jnp.zeros(2), None):
        with pytest.raises(TypeError, match=r"^key must be "):
            jl.sample(key, z)
    for key in (jax.random.split(KEY), jnp.zeros([3, 2], jnp.uint32)):
        with pytest.raises(ValueError, match=r"^key must be a single key, got .*: use jax.vmap"):
            jl.sample(key, z)


@pytest.mark.parametrize("temperature", [0, 0.0, np.float32(0), np.int64(0), jnp.zeros([])])
def test_zeros_are_alike(temperature: Any) -> None:
    z = jnp.array([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]])
    np.testing.assert_array_equal(jl.sample(KEY, z, temperature=temperature), [1, 0])
    cold = jl.apply_temperature(z, temperature)
    np.testing.assert_array_equal(cold, [[-INF, 0, 0], [0, -INF, -INF]])
