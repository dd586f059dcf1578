"""Entropy and the divergences of two softmaxes: mpmath, edges and transforms."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import transforms as tf
from interpret import interpreted

import jaxlogits as jl

INF, NAN, LOG2 = np.inf, np.nan, np.log(2.0)
EPS = 2.0**-24  # half of float32's spacing at 1


# What the formulas say, of rows [K] of mpf.


def entropy(z: Any, where: Any = True) -> Any:
    return cross_entropy_of(z, z, where)


def cross_entropy_of(a: Any, b: Any, where: Any = True) -> Any:
    kept = np.broadcast_to(where, a.shape)
    return -np.sum((ro.softmax(a, where) * ro.log_softmax(b, where))[kept])


def kl(a: Any, b: Any, where: Any = True) -> Any:
    return cross_entropy_of(a, b, where) - entropy(a, where)


def js(a: Any, b: Any, where: Any = True, weight: Any = 0.5) -> Any:
    kept = np.broadcast_to(where, a.shape)
    p, q = ro.softmax(a, where)[kept], ro.softmax(b, where)[kept]
    m = weight * p + (1 - weight) * q
    return np.sum(weight * p * ro.log(p / m) + (1 - weight) * q * ro.log(q / m))


def tv(a: Any, b: Any, where: Any = True) -> Any:
    return np.sum(abs(ro.softmax(a, where) - ro.softmax(b, where))) / 2


def distilled(student: Any, teacher: Any, where: Any = True, temperature: Any = 1) -> Any:
    return temperature**2 * cross_entropy_of(teacher / temperature, student / temperature, where)


class Function(NamedTuple):
    fn: Callable[..., Any]
    oracle: Callable[..., Any]


PAIRS = {
    "softmax_kl_divergence": Function(jl.softmax_kl_divergence, kl),
    "jensen_shannon_divergence": Function(jl.jensen_shannon_divergence, js),
    "jensen_shannon_divergence at 1/8": Function(
        functools.partial(jl.jensen_shannon_divergence, weight=0.125),
        functools.partial(js, weight=ro.mp.mpf(0.125)),
    ),
    "total_variation": Function(jl.total_variation, tv),
    "softmax_cross_entropy_with_teacher_logits": Function(
        jl.softmax_cross_entropy_with_teacher_logits, distilled
    ),
}
each_pair = pytest.mark.parametrize("name", PAIRS)
each_name = pytest.mark.parametrize("name", [name for name in PAIRS if " " not in name])
each_divergence = pytest.mark.parametrize("name", [name for name in PAIRS if "cross" not in name])


def relative_error(got: Any, want: Any, floor: float = 0.0) -> float:
    """The largest error of a number relative to it, or to the row's largest times ``floor``."""
    got = np.ravel(ro.exact(np.asarray(got, np.float64)))
    want = np.ravel(np.asarray(want, dtype=object))
    size = abs(want) if floor == 0 else np.maximum(abs(want), floor * np.max(abs(want)))
    return max(
        (float(abs(g - w) / s) for g, w, s in zip(got, want, size, strict=True) if s > 1e-37),
        default=0.0,
    )


# Values.

# What the docstrings promise for nearly equal rows. Gaps stay under 3 there.
NEAR = {name: 1e-6 if "jensen" in name else 5e-7 for name in PAIRS}


@pytest.mark.optimized
@pytest.mark.newest
@each_divergence
@pytest.mark.parametrize("num_classes", [2, 50])
def test_nearly_equal_rows(name: str, num_classes: int) -> None:
    """From differences of the last bits on, also where a shift hides what b - a loses."""
    rng = np.random.default_rng(num_classes)
    steps = np.repeat([1e-7, 1e-6, 1e-5, 1e-3, 0.1], 4)[:, None]
    a = rng.uniform(-1.5, 1.5, [20, num_classes]).astype(np.float32)
    b = a + steps * rng.normal(size=a.shape)
    a, b = np.concatenate([a, a]), np.concatenate([b, b + 37]).astype(np.float32)
    fn, oracle = PAIRS[name]
    got = jax.jit(fn)(a, b)
    assert np.all(got >= 0)
    assert relative_error(got, ro.of_rows(oracle, a, b)) <= NEAR[name]


@pytest.mark.newest
def test_equal_rows_are_no_distance_apart() -> None:
    rows = ro.random_rows(20, 64)

    @jax.jit
    def results(a: Any, b: Any) -> Any:
        fns = [fn for name, (fn, _) in PAIRS.items() if " " not in name and "cross" not in name]
        slopes = [jax.grad(lambda a, b, fn=fn: jnp.sum(fn(a, b)), (0, 1))(a, b) for fn in fns]
        return [fn(a, b) for fn in fns], slopes

    for shift in (0, 8):
        for result in jax.tree.leaves(results(rows, rows + np.float32(shift))):
            np.testing.assert_array_equal(result, np.zeros_like(result))


# Every pair of a confident, a tied, a flat and a lopsided row, at gaps up to 87.
FAR_A, FAR_B = (
    np.reshape(rows, [-1, 3])
    for rows in np.broadcast_arrays(
        np.float32([[g, 0, 0.25] for g in (0, 3, 20, 60, 87)])[:, None],
        np.float32([[0.5, 0, 0], [0, 20, 1], [87, 0, 2], [30, 29.75, 0], [0, -3, -60]]),
    )
)


def far_budget(a: np.ndarray, b: np.ndarray) -> float:
    """5 ulp, and one for each unit of a row's gap, as both its ends are rounded before exp."""
    return (10 + 2 * max(np.max(np.ptp(a, axis=-1)), np.max(np.ptp(b, axis=-1)))) * EPS


@pytest.mark.optimized
@each_pair
def test_rows_far_apart(name: str) -> None:
    fn, oracle = PAIRS[name]
    got, want = jax.jit(fn)(FAR_A, FAR_B), ro.of_rows(oracle, FAR_A, FAR_B)
    for a, b, one, exact in zip(FAR_A, FAR_B, got, want, strict=True):
        assert relative_error(one, exact) <= far_budget(a, b), (a, b)


@pytest.mark.optimized
@pytest.mark.parametrize("rows", ro.ROWS.values(), ids=ro.ROWS)
def test_entropy(rows: np.ndarray) -> None:
    got, want = jax.jit(jl.entropy)(rows), ro.of_rows(entropy, rows)
    for row, one, exact in zip(rows, got, want, strict=True):
        assert relative_error(one, exact) <= far_budget(row, row), row


@pytest.mark.newest
@pytest.mark.parametrize("num_classes", [1, 2, 1000, 128256])
def test_entropy_of_equal_logits(num_classes: int) -> None:
    z = jnp.full([num_classes], 3.0)
    value, slopes = jax.jit(jax.value_and_grad(jl.entropy))(z)
    np.testing.assert_allclose(value, np.log(num_classes), rtol=4 * EPS)
    np.testing.assert_array_equal(slopes, np.zeros(num_classes))


@jax.jit
def all_of(a: Any, b: Any) -> Any:
    divergences = (jl.softmax_kl_divergence, jl.total_variation, jl.jensen_shannon_divergence)
    return *(fn(a, b) for fn in divergences), jl.entropy(a)


@pytest.mark.newest
def test_many_classes() -> None:
    """Against float64; 128256 classes of almost equal rows, as a distilled vocabulary has them."""
    rng = np.random.default_rng(7)
    a = rng.normal(scale=2, size=128256).astype(np.float32)
    b = (a + 1e-4 * rng.normal(size=a.size)).astype(np.float32)
    with jax.enable_x64(True):
        wide = [np.asarray(x, np.float64) for x in (a, b)]
        # Right to 1e-9, as float64 is tested on fewer classes.
        want = all_of(*wide)
    np.testing.assert_allclose(all_of(a, b), want, rtol=2e-6)


@pytest.mark.optimized
@pytest.mark.parametrize("name", ["softmax_kl_divergence", "jensen_shannon_divergence"])
def test_float64(name: str, x64: None) -> None:  # noqa: ARG001
    fn, oracle = PAIRS[name]
    wide = FAR_A.astype(np.float64)
    for a, b in [(wide, FAR_B.astype(np.float64)), (wide, wide + 1e-9 * np.arange(3))]:
        got = jax.jit(fn)(a, b)
        assert got.dtype == jnp.float64
        assert relative_error(got, ro.of_rows(oracle, a, b)) <= 200 * 2.0**-53


@pytest.mark.parametrize("name", ["softmax_kl_divergence", "jensen_shannon_divergence"])
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_narrow_logits_give_float32(name: str, dtype: str) -> None:
    fn = PAIRS[name].fn
    a, b = (jnp.asarray(rows, dtype) for rows in (FAR_A[:5], FAR_B[:5]))
    run = jax.jit(fn)
    got = run(a, b)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, run(a.astype(jnp.float32), b.astype(jnp.float32)))
    assert jax.eval_shape(fn, a.astype(jnp.float32), b).dtype == jnp.float32
    assert jax.eval_shape(jax.grad(lambda a: jnp.sum(fn(a, b))), a).dtype == a.dtype


# Derivatives.

NEAR_ROWS = np.float32([[0.25, -1, 0.5], [0.25 + 1e-5, -1 - 3e-5, 0.5 + 2e-5]])
CONFIDENT = np.float32([[20, 0, 0.5], [19, 1, 0]])
APART = np.float32([[3, 0, -1], [-4, 0.5, 6]])


ROW_PAIRS = np.stack([NEAR_ROWS, CONFIDENT, APART])


@pytest.mark.optimized
@pytest.mark.parametrize(
    "name", [name for name in PAIRS if name != "jensen_shannon_divergence"]
)  # at 1/8
def test_gradients_and_second_derivatives(name: str) -> None:
    """Every number of the gradient on its own, also that of a class with p close to 1.

    Of nearly equal rows, whose gradient is a difference of small numbers, and in the Hessians,
    relative to the largest number.
    """
    fn, oracle = PAIRS[name]

    def of(x: Any) -> Any:
        return fn(*x)

    both = jax.jit(jax.vmap(lambda x: (jax.grad(of)(x), jax.hessian(of)(x))))
    gradients, hessians = both(ROW_PAIRS)

    def number(x: Any) -> Any:
        return oracle(*np.reshape(x, [2, 3]))

    for rows, gradient, hessian in zip(ROW_PAIRS, gradients, hessians, strict=True):
        budget = 2 * max(far_budget(*rows), NEAR[name])
        floor = 1.0 if np.max(np.abs(rows[0] - rows[1])) < 1e-3 else 0.0
        assert relative_error(gradient, ro.gradient(number, rows.ravel()), floor) <= budget
        assert relative_error(hessian, ro.hessian(number, rows.ravel()), 1.0) <= budget


@pytest.mark.optimized
@pytest.mark.newest
@pytest.mark.parametrize("z", [[50.0, 0, 0], [0.5, 0.25, 0.25], [87, 86, 0]])
def test_entropy_gradient(z: list[float]) -> None:
    z = np.float32(z)
    got, want = jax.jit(jax.grad(jl.entropy))(z), ro.gradient(entropy, z)
    assert relative_error(got, want) <= 2 * far_budget(z, z)


def test_third_derivative_along_a_direction() -> None:
    fn, oracle = PAIRS["softmax_kl_divergence"]
    a, b, v = np.float32([2, 0, -1.5]), np.float32([1, -0.5, 2]), np.float32([0.25, 1, -0.5])

    def at(t: Any) -> Any:
        return fn(a + t * v, b - t * v)

    third = jax.jit(jax.grad(jax.grad(jax.grad(at))))(jnp.float32(0))
    rows, direction = np.stack([a, b]), np.stack([v, -v])
    want = ro.along(lambda x: oracle(*x), rows, direction, 3)
    # The terms are up to 2**3 times a number below 1, and the result may be small.
    assert abs(float(third) - float(want[0])) <= 200 * EPS * max(1.0, abs(float(want[0])))


def test_total_variation_has_slope_0_at_a_tie() -> None:
    """Of |p - q|, whose slope jumps from -1 to 1; autodiff's is 1."""
    a, b = jnp.array([1.0, 0.0, 2.0]), jnp.array([0.0, 1.0, 2.0])
    p = jax.nn.softmax(a)
    signs = np.array([1.0, -1.0, 0.0])
    want = 0.5 * p * (signs - np.sum(signs * p))
    np.testing.assert_allclose(jax.jit(jax.grad(jl.total_variation))(a, b), want, rtol=8 * EPS)


@pytest.mark.optimized
@pytest.mark.newest
def test_teacher_at_another_temperature() -> None:
    """The derivative in the temperature, which -inf logits have no part in."""
    student, teacher = np.float32([1, 0, -2, 5]), np.float32([3, 0.5, 0, 1])
    kept = np.array([True, True, True, False])
    loss = functools.partial(jl.softmax_cross_entropy_with_teacher_logits, where=kept)

    def oracle(x: Any) -> Any:
        return distilled(*(ro.exact(z[:3]) for z in (student, teacher)), temperature=x[0])

    got = jax.jit(jax.grad(lambda t: loss(student, teacher, temperature=t)))(2.0)
    assert relative_error(got, ro.gradient(oracle, np.array([2.0]))) <= 20 * EPS
    removed = np.where(kept, teacher, -np.float32(np.inf))
    whole = jl.softmax_cross_entropy_with_teacher_logits
    assert np.isfinite(jax.jit(jax.grad(lambda t: whole(student, removed, temperature=t)))(2.0))


# Edges: p, q, where, and what comes of them: value, gradient in p, gradient in q.


class Edge(NamedTuple):
    p: list[float]
    q: list[float]
    where: list[bool] | None = None


SHARED, NONE = [True, False, True], [False] * 3
EDGES = {
    "-inf in both": Edge([0, 1, -INF], [1, 0, -INF]),
    "-inf in p": Edge([0, 1, -INF], [1, 0, 0]),
    "-inf in q": Edge([0, 1, 0], [1, 0, -INF]),
    "nothing in common": Edge([0, -INF, -INF], [-INF, 0, 0]),
    "+inf in p": Edge([0, INF, 0], [0, 1, 0]),
    "+inf in q": Edge([0, 1, 0], [0, INF, 0]),
    "+inf in both": Edge([0, INF, 0], [1, INF, 0]),
    "+inf elsewhere in q": Edge([0, INF, 0], [INF, 0, 0]),
    "two +inf in p": Edge([0, INF, INF], [0, 1, 0]),
    "two +inf in q": Edge([0, 1, 0], [0, INF, INF]),
    "NaN in p": Edge([0, NAN, 0], [0, 1, INF]),
    "NaN in q": Edge([0, 1, 0], [0, NAN, INF]),
    "all of p -inf": Edge([-INF] * 3, [0, 1, 0]),
    "all of q -inf": Edge([0, 1, 0], [-INF] * 3),
    "masked NaN and inf": Edge([0, NAN, 0.5], [0, INF, 0], SHARED),
    "all masked": Edge([0, NAN, 0.5], [-INF, INF, 0], NONE),
}
E, F = np.e / (np.e + 1), np.e / (np.e + 2)  # the likeliest of [0, 1] and of [0, 1, 0]
H2 = np.log(1 + np.e) - E  # entropy of [0, 1]
H3 = np.log(2 + np.e) - F
KL = {
    "-inf in both": 2 * E - 1,
    "-inf in p": -H2 - (1 - E) + np.log(2 + np.e),
    "-inf in q": INF,
    "nothing in common": INF,
    "+inf in p": -np.log(F),
    "+inf in q": INF,
    "+inf in both": 0,
    "+inf elsewhere in q": INF,
    "masked NaN and inf": 0.5 / (1 + np.exp(-0.5)) - np.log((1 + np.exp(0.5)) / 2),
    "all masked": 0,
}
ENTROPY = {name: H2 if name in ("-inf in both", "-inf in p") else H3 for name in EDGES} | {
    "nothing in common": 0,
    "+inf in p": 0,
    "+inf in both": 0,
    "+inf elsewhere in q": 0,
    "two +inf in p": NAN,
    "NaN in p": NAN,
    "all of p -inf": NAN,
    "masked NaN and inf": np.log(1 + np.exp(0.5)) - 0.5 / (1 + np.exp(-0.5)),
    "all masked": 0,
}


def probs(z: Any, where: Any) -> np.ndarray:
    """Softmax in float64, with a single +inf, and 0 where all is masked."""
    z = np.where(True if where is None else where, np.asarray(z, float), -INF)
    if np.sum(z == INF) == 1 and not np.isnan(z).any():
        return (z == INF).astype(float)
    if np.max(z) == -INF and where is not None:
        return np.zeros(3)
    with np.errstate(invalid="ignore"):
        e = np.exp(z - np.max(z))
        return e / np.sum(e)


def expected(name: str, p: np.ndarray, q: np.ndarray, edge: str) -> float:
    """The value from probabilities, with 0 log 0 = 0 and inf where only q is 0."""
    if np.isnan(p).any() or np.isnan(q).any():
        return NAN
    if "jensen" in name:
        w = 0.125 if "1/8" in name else 0.5
        m = w * p + (1 - w) * q
        terms = w * p * np.log(np.where(p > 0, p / np.where(m > 0, m, 1), 1))
        return float(
            np.sum(terms + (1 - w) * q * np.log(np.where(q > 0, q / np.where(m > 0, m, 1), 1)))
        )
    if "variation" in name:
        return float(np.sum(np.abs(p - q)) / 2)
    return KL[edge] + (ENTROPY[edge] if "cross" in name else 0)


# All of them as the rows of one array: a bad row leaves the others alone.
EDGE_P, EDGE_Q = (np.float32([edge[i] for edge in EDGES.values()]) for i in (0, 1))
EDGE_WHERE = np.array([edge.where or [True] * 3 for edge in EDGES.values()])
each_mode = pytest.mark.parametrize("run", [jax.jit, lambda fn: fn], ids=["jit", "eager"])


@pytest.mark.parametrize(
    ("name", "run"),
    [
        *(pytest.param(name, jax.jit, id=name) for name in PAIRS if " " not in name),
        pytest.param("softmax_kl_divergence", lambda f: f, id="softmax_kl_divergence eager"),
    ],
)
def test_edges(name: str, run: Any) -> None:
    fn = PAIRS[name].fn

    def summed(p: Any, q: Any) -> Any:
        rows = (q, p) if "cross" in name else (p, q)
        return jnp.sum(fn(*rows, where=EDGE_WHERE)), fn(*rows, where=EDGE_WHERE)

    (of_p, of_q), values = run(jax.grad(summed, (0, 1), has_aux=True))(EDGE_P, EDGE_Q)
    for k, (edge, (p, q, where)) in enumerate(EDGES.items()):
        want_p, want_q = probs(p, where), probs(q, where)
        want = expected(name, want_p, want_q, edge)
        np.testing.assert_allclose(values[k], want, rtol=1e-6, atol=1e-6, err_msg=edge)
        for slope in (of_p[k], of_q[k]):
            assert np.all(np.isnan(slope) if np.isnan(want) else np.isfinite(slope)), edge
            assert np.isnan(want) or abs(np.sum(slope)) < 1e-6, edge  # a shift changes nothing
        if "kl" in name or "cross" in name:
            np.testing.assert_allclose(
                of_q[k], want_q - want_p + 0 * want_p, atol=1e-6, err_msg=edge
            )
            if want == INF:
                np.testing.assert_array_equal(of_p[k], np.zeros(3), err_msg=edge)


@pytest.mark.parametrize("name", ["softmax_kl_divergence", "jensen_shannon_divergence"])
def test_second_derivatives_at_edges(name: str) -> None:
    fn = PAIRS[name].fn

    def hessian(a: Any, b: Any, where: Any) -> Any:
        return jax.hessian(lambda x: fn(*x, where=where))(jnp.stack([a, b]))

    got = jax.jit(jax.vmap(hessian))(EDGE_P, EDGE_Q, EDGE_WHERE)
    for edge, second in zip(EDGES, got, strict=True):
        bad = any(word in edge for word in ("two", "NaN in", "all of"))
        assert np.isfinite(second).all() != bad, edge


@each_mode
def test_entropy_edges(run: Any) -> None:
    def summed(z: Any) -> Any:
        return jnp.sum(jl.entropy(z, where=EDGE_WHERE)), jl.entropy(z, where=EDGE_WHERE)

    slopes, values = run(jax.grad(summed, has_aux=True))(EDGE_P)
    for k, (edge, (p, _, where)) in enumerate(EDGES.items()):
        want, prob = ENTROPY[edge], probs(p, where)
        np.testing.assert_allclose(values[k], want, rtol=1e-6, atol=1e-6, err_msg=edge)
        slope = -prob * (np.log(np.where(prob > 0, prob, 1)) + want)
        np.testing.assert_allclose(slopes[k], slope + 0 * want, atol=1e-6, err_msg=edge)


@each_name
def test_finite_logits_at_the_ends_of_the_range(name: str) -> None:
    """Masks are written as the dtype's lowest number too: it is as good as -inf, and never NaN."""
    fn, low = PAIRS[name].fn, float(np.finfo(np.float32).min)
    rows = jnp.float32([[0, 1, low], [0, low, 1], [low, 0, 0], [0, -low, low], [1e30, 0, 0]])
    a, b = jnp.repeat(rows, 5, axis=0), jnp.tile(rows, [5, 1])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(fn, (0, 1))))(a, b)
    assert not np.isnan(values).any()
    assert np.isfinite(slopes).all()


# Logits whose differences, or differences of differences, are beyond the largest number.


def kl_slopes(p: Any, q: Any) -> Any:
    return centred(p, ro.log(p) - ro.log(q)), q - p


def js_slopes(p: Any, q: Any) -> Any:
    m = (p + q) / 2
    return centred(p, ro.log(p) - ro.log(m)) / 2, centred(q, ro.log(q) - ro.log(m)) / 2


def tv_slopes(p: Any, q: Any) -> Any:
    # A tie has slope 0, also one that float64 can't tell from it.
    signs = np.sign((p - q).astype(float) * (abs(p - q) > 1e-30))
    return centred(p, signs) / 2, -centred(q, signs) / 2


def teacher_slopes(student: Any, teacher: Any) -> Any:
    return student - teacher, -centred(teacher, ro.log(student))


def centred(p: Any, c: Any) -> Any:
    return p * (c - np.sum(p * c))


SLOPES = {
    "softmax_kl_divergence": kl_slopes,
    "jensen_shannon_divergence": js_slopes,
    "total_variation": tv_slopes,
    "softmax_cross_entropy_with_teacher_logits": teacher_slopes,
}


def rows_of_every_size(largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows of ordinary numbers and of some up to the largest, of both signs."""
    sizes = np.array([0, 1, 1e9, -1e9, largest / 7, -0.9 * largest, largest, -largest])
    rows = np.random.default_rng(3).choice(sizes, size=[2, 60, 3])
    pairs = [[-0.3 * largest, -0.9 * largest, 0], [0, 0, 0]]
    more = [pairs, pairs[::-1], [[0, 0, 0], [largest, -largest, 0]], [[0, 0, 0], [1e9, -1e9, 0]]]
    return tuple(np.concatenate([rows, np.moveaxis(np.array(more), 0, 1)], axis=1))


@each_name
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_up_to_the_largest_number(name: str, dtype: str) -> None:
    check_logits_of_every_size(name, jnp.dtype(dtype))


@pytest.mark.parametrize("name", ["softmax_kl_divergence", "jensen_shannon_divergence"])
def test_logits_up_to_the_largest_float64(name: str, x64: None) -> None:  # noqa: ARG001
    check_logits_of_every_size(name, jnp.dtype("float64"))


def check_logits_of_every_size(name: str, dtype: Any) -> None:
    """Right to the rounding of the largest terms, and infinite only where the result is."""
    largest = float(jnp.finfo(dtype).max)
    a, b = (jnp.asarray(rows, dtype) for rows in rows_of_every_size(largest))
    fn, oracle = PAIRS[name]
    run = jax.vmap(jax.value_and_grad(fn, (0, 1)))
    values, slopes = jax.jit(run)(a, b)
    most = float(jnp.finfo(values.dtype).max)
    rtol = 1e-5 if values.dtype == jnp.float32 else 1e-12
    # The gradients of narrow logits are rounded to their dtype, too.
    rounded = rtol + (float(jnp.finfo(dtype).eps) if dtype.itemsize == 2 else 0.0)
    for k, value in enumerate(values.tolist()):
        # Below their maximum, as 150 digits don't hold both 1e308 and log(2).
        pair = [ro.exact(np.asarray(x[k], np.float64)) for x in (a, b)]
        pair = [row - max(row) for row in pair]
        want = oracle(*pair)
        assert np.isclose(min(value, most), float(min(want, most)), rtol=rtol, atol=rtol), k
        exact = SLOPES[name](*map(ro.softmax, pair))
        for slope, exact_slope in zip(slopes, exact, strict=True):
            got, right = np.asarray(slope[k], float), exact_slope.astype(float)
            assert np.isfinite(got).all(), k
            if want < most:
                atol = rtol * max(1.0, np.max(np.abs(right)))
                np.testing.assert_allclose(got, right, rtol=rounded, atol=atol, err_msg=str(k))


def test_teachers_at_small_temperatures() -> None:
    """T**2 times a cross entropy over T is T times a gap, however small T is."""
    teacher, student = jnp.array([1.0, 101.0, 1.0]), jnp.array([100.0, 0.0, -1e38])
    loss = jl.softmax_cross_entropy_with_teacher_logits
    run = jax.jit(jax.value_and_grad(lambda s, t, T: loss(s, t, temperature=T), (0, 1, 2)))
    for temperature in (1e-3, 1e-30, 1e-37):
        value, (by_student, by_teacher, by_t) = run(student, teacher, temperature)
        np.testing.assert_allclose(value, 100 * temperature, rtol=1e-6)
        np.testing.assert_allclose(by_student, temperature * np.array([1.0, -1.0, 0]), rtol=1e-6)
        np.testing.assert_array_equal(by_teacher, 0.0)
        np.testing.assert_allclose(by_t, 100.0, rtol=1e-6)
    equal = jax.jit(loss)(jnp.zeros(2), jnp.zeros(2), temperature=1e-10)
    np.testing.assert_allclose(equal, 1e-20 * LOG2, rtol=1e-6)


def test_bad_options_have_no_derivative() -> None:
    x = jnp.array([1.0, 0.0])
    teach = jax.grad(
        lambda a, t: jl.softmax_cross_entropy_with_teacher_logits(a, x, temperature=t), (0, 1)
    )
    mix = jax.grad(lambda a, w: jl.jensen_shannon_divergence(a, x, weight=w), (0, 1))
    for slopes in (jax.jit(teach)(2 * x, -1.0), jax.jit(mix)(2 * x, 1.5)):
        assert all(np.isnan(slope).all() for slope in slopes)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_mixture_of_one(weight: float) -> None:
    """Nothing is far from itself, also where the other one excludes a class."""
    a, b = jnp.array([1.0, 0.0, -jnp.inf]), jnp.array([0.0, -jnp.inf, 2.0])
    value, slopes = jax.value_and_grad(jl.jensen_shannon_divergence, (0, 1))(a, b, weight=weight)
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_allclose(slopes, np.zeros([2, 3]), atol=1e-7)


# What must hold for any rows.

LOGITS = hnp.arrays(
    np.float32, [2, 5], elements=st.floats(-50, 50, width=32, allow_subnormal=False)
)


@pytest.mark.newest
@hypothesis.given(LOGITS, st.sampled_from([1.0, 1e-3, 1e-6]))
def test_inequalities(rows: np.ndarray, step: float) -> None:
    a, b = rows[0], rows[0] + np.float32(step) * rows[1]
    divergence, distance, mixed, uncertainty = map(float, all_of(a, b))
    reverse, back, swapped, _ = map(float, all_of(b, a))
    assert divergence >= 0
    assert reverse >= 0
    assert 0 <= distance <= 1
    assert 0 <= mixed <= LOG2 * (1 + 8 * EPS)
    assert distance**2 <= divergence / 2 * (1 + 1e-4) + 1e-37  # Pinsker
    np.testing.assert_allclose(distance, back, rtol=1e-4, atol=1e-37)
    np.testing.assert_allclose(mixed, swapped, rtol=1e-4, atol=1e-37)
    assert uncertainty >= 0


# Axes, masks and transforms.


@pytest.mark.parametrize("axis", [0, (2, 0)])
def test_axes(axis: Any) -> None:
    fn = jl.softmax_kl_divergence
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=[2, 3, 4, 5]).astype(np.float32)
    axes = axis if isinstance(axis, tuple) else (axis,)
    flat = [np.moveaxis(x, axes, range(-len(axes), 0)) for x in (a, b)]
    flat = [x.reshape(*x.shape[: 3 - len(axes)], -1) for x in flat]
    got = jax.jit(functools.partial(fn, axis=axis))(a, b)
    np.testing.assert_allclose(got, jax.jit(fn)(*flat), rtol=1e-5)


@pytest.mark.parametrize("name", ["softmax_kl_divergence", "jensen_shannon_divergence"])
def test_where_is_as_good_as_leaving_out(name: str) -> None:
    fn = PAIRS[name].fn
    where = np.array([True, False, True, True])
    a, b = np.random.default_rng(2).normal(size=[2, 6, 4]).astype(np.float32)

    def masked(x: Any) -> Any:
        values = fn(*x, where=where[None])
        return jnp.sum(values), values

    slopes, got = jax.jit(jax.grad(masked, has_aux=True))(np.stack([a, b]))
    want = interpreted(fn)(a[:, where], b[:, where])
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(slopes[..., ~where], np.zeros([2, 6, 1]))


@each_name
def test_no_rows(name: str) -> None:
    empty = jnp.zeros([0, 3])
    assert jax.jit(PAIRS[name].fn)(empty, empty).shape == (0,)
    assert jax.jit(jl.entropy)(empty).shape == (0,)


P = np.array([[0.5, 1.75, -2.0]], np.float32)
Q = np.array([[0.5, -1.0, 0.75]], np.float32)
WHERE = np.array([[True, False, True]])
SCALES = np.array([0.75], np.float32)


def case(name: str, oracle: Any, *rows: np.ndarray, **options: np.ndarray) -> tf.Case:
    fn = getattr(jl, name)

    def call(*args: Any) -> Any:
        *logits, where = args[: len(rows) + 1]
        values = args[len(rows) + 1 :]
        return fn(*logits, where=where, **dict(zip(options, values, strict=True)))

    return tf.Case(name, call, oracle, (*rows, WHERE, *options.values()))


CASES = [
    case("entropy", entropy, P),
    case("softmax_kl_divergence", kl, P, Q),
    case("jensen_shannon_divergence", js, P, Q, weight=SCALES),
    case("total_variation", tv, P, Q),
    case("softmax_cross_entropy_with_teacher_logits", distilled, P, Q, temperature=4 * SCALES),
]


def few_gradients(f: tf.Joined) -> tf.Results:
    """For functions made of the same rules as those that go through everything."""
    return {
        "grad": jax.grad(f.number)(f.point),
        "jacfwd": jax.jacfwd(f.number)(f.point),
        "grad of checkpoint": jax.grad(jax.checkpoint(f.number))(f.point),
        "vmap of grad": jax.vmap(jax.grad(f.number))(jnp.stack([f.point, f.point]))[1],
    }


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_transforms(case: tf.Case) -> None:
    """Second derivatives are in test_gradients_and_second_derivatives."""
    everything = case.name in ("entropy", "softmax_kl_divergence")
    exact = tf.exact(case)
    f = tf.joined(case)
    groups = [(few_gradients, exact.gradient)]
    if everything:
        groups = [(tf.values, exact.value), (tf.gradients, exact.gradient)]
    for group, want in groups:
        (results,) = tf.of_each_order(f, group)
        # Gaps of up to 8 cost 8 ulp more than the 16 that sums over results take elsewhere.
        atol = 24 * 2**-23 * np.max(np.abs(want))
        for transform, got in results.items():
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)
    if everything:
        for name, got in tf.exported(case).items():
            np.testing.assert_allclose(got, exact.value, rtol=1e-5, err_msg=name)


def test_the_teacher_costs_nothing_in_the_program() -> None:
    """A derivative in the student alone leaves what the teacher's would need out of the program."""
    both = jax.make_jaxpr(jax.grad(jl.softmax_kl_divergence, (0, 1)))(P[0], Q[0])
    student = jax.make_jaxpr(jax.grad(jl.softmax_kl_divergence, 1))(P[0], Q[0])
    assert len(str(student)) < len(str(both))


# What is refused.


@each_name
def test_refused(name: str) -> None:
    fn = PAIRS[name].fn
    first, second = ("logits", "teacher_logits") if "cross" in name else ("logits_p", "logits_q")
    x = jnp.zeros([2, 3])
    with pytest.raises(TypeError, match=rf"^{first} must be floating point, got int32\[2,3\]$"):
        fn(x.astype(jnp.int32), x)
    with pytest.raises(TypeError, match=rf"^{second} must be floating point, got int32\[2,3\]$"):
        fn(x, x.astype(jnp.int32))
    with pytest.raises(
        ValueError, match=rf"^{second} must have the shape of {first}, \[2,3\], got"
    ):
        fn(x, x[0])
    with pytest.raises(ValueError, match=rf"^{first} must have at least one class"):
        fn(x[:, :0], x[:, :0])
    with pytest.raises(ValueError, match=rf"^axis must name dimensions of {first}"):
        fn(x, x, axis=2)
    with pytest.raises(TypeError, match=r"^where must be boolean"):
        fn(x, x, where=jnp.ones([2, 3]))


def test_refused_options() -> None:
    x = jnp.zeros([3])
    with pytest.raises(ValueError, match=r"^weight must be at least 0 and at most 1"):
        jl.jensen_shannon_divergence(x, x, weight=1.5)
    with pytest.raises(ValueError, match=r"^temperature must be above 0, got 0$"):
        jl.softmax_cross_entropy_with_teacher_logits(x, x, temperature=0)
    with pytest.raises(ValueError, match=r"^temperature must be above 0, got -1"):
        jl.softmax_cross_entropy_with_teacher_logits(x, x, temperature=-1.0)
    traced = jax.jit(jl.softmax_cross_entropy_with_teacher_logits)(x, x, temperature=-1.0)
    assert np.isnan(traced)


def test_classes_that_one_of_them_lacks() -> None:
    """Which may be all that the other has: their mean says nothing of the ratio elsewhere."""
    rng = np.random.default_rng(0)
    scale = rng.choice([1, 10, 60], (2, 500, 1))
    z = np.where(rng.random((2, 500, 5)) < 0.3, -np.inf, rng.normal(size=(2, 500, 5)) * scale)
    z[:, :, 0] = np.where(np.isinf(z).all(axis=-1), 0.0, z[:, :, 0])
    a, b = z.astype(np.float32)
    exps = np.exp(z.astype(np.float32).astype(float) - z.max(axis=-1, keepdims=True))
    p, q = exps / exps.sum(axis=-1, keepdims=True)
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / m), 0) + np.where(q > 0, q * np.log(q / m), 0)
    # Gaps of up to 300 are rounded to 1e-5 where they are relative to the probabilities.
    got = jax.jit(jl.jensen_shannon_divergence)(a, b)
    np.testing.assert_allclose(got, terms.sum(axis=-1) / 2, rtol=0, atol=2e-6)
    got = jax.jit(jl.total_variation)(a, b)
    np.testing.assert_allclose(got, np.abs(p - q).sum(axis=-1) / 2, rtol=0, atol=2e-6)


# What is computed between the logits and the result.


def temporary_arrays(fn: Any) -> float:
    """In arrays of the logits' size."""
    logits = jax.ShapeDtypeStruct((256, 4096), jnp.float32)
    compiled = jax.jit(fn).lower(logits, logits).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (4 * logits.size)


def test_kl_divergence_writes_few_arrays() -> None:
    def mean(p: Any, q: Any) -> Any:
        return jl.softmax_kl_divergence(p, q).mean()

    # The terms of one sum at a time, on older versions with their exponentials; beside them, the
    # gradients.
    assert temporary_arrays(mean) <= 2.1
    assert temporary_arrays(jax.grad(mean, 1)) <= 3.1
    assert temporary_arrays(jax.grad(mean, (0, 1))) <= 4.2
