"""soft_cap, apply_temperature, penalize_repetition, adjust_prior: mpmath, edges, derivatives."""

from typing import Any

import accuracy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import transforms as tf

import jaxlogits as jl

INF, NAN = np.inf, np.nan
tanh = np.frompyfunc(ro.mp.tanh, 1, 1)


def cap_of(z: Any, cap: Any) -> Any:
    return cap * tanh(z / cap)


def repeated(z: Any, counts: Any, penalty: Any) -> Any:
    return np.where(np.asarray(counts) > 0, np.where(z > 0, z / penalty, z * penalty), z)


def cooled(z: Any, temperature: Any) -> Any:
    return z / temperature


def adjusted(z: Any, source: Any, target: Any) -> Any:
    return z + ro.log(target) - ro.log(source)


# Accuracy: the values and first derivatives of every bfloat16, and of many a float32.

STATED = {
    name: accuracy.stated(getattr(jl, name).__doc__)
    for name in ("soft_cap", "apply_temperature", "penalize_repetition")
}
TEMPERATURE, PENALTY = ro.exact(np.float32([0.7, 1.3]))
ONE_ARGUMENT = {
    "soft_cap": (lambda z: jl.soft_cap(z, 30.0), lambda z: cap_of(z, ro.mp.mpf(30))),
    "apply_temperature": (
        lambda z: jl.apply_temperature(z[:, None], 0.7)[:, 0],
        lambda z: cooled(z, TEMPERATURE),
    ),
    "penalize_repetition": (
        lambda z: jl.penalize_repetition(z, jnp.ones(z.shape, bool), 1.3),
        lambda z: repeated(z, np.ones(z.shape), PENALTY),
    ),
}
SLOPES = {
    "soft_cap": lambda z: 1 - tanh(z / 30) ** 2,
    "apply_temperature": lambda z: 0 * z + 1 / TEMPERATURE,
    "penalize_repetition": lambda z: 1 / PENALTY if z > 0 else PENALTY,
}


@pytest.mark.optimized
@pytest.mark.newest
@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_accuracy(name: str) -> None:
    fn, oracle = ONE_ARGUMENT[name]
    value_and_slope = jax.jit(lambda z: jax.jvp(fn, [z], [jnp.ones_like(z)]))
    rng = np.random.default_rng(0)
    wide = np.concatenate(
        [rng.normal(size=300), 30 * rng.normal(size=300), np.linspace(-600, 600, 101), [1e-20]]
    ).astype(np.float32)
    wide = wide[wide != 0]
    value, slope = value_and_slope(wide)
    budget = STATED[name]["float32"]
    assert ro.ulps(value, oracle(ro.exact(wide))) <= budget.value
    for z, got in zip(wide, slope, strict=True):
        want = np.array([SLOPES[name](ro.exact(z))])
        allowed = 4 + abs(z) / 10 if name == "soft_cap" else budget.derivatives[0]
        assert ro.ulps(got, want) <= allowed
    narrow = np.asarray(jnp.linspace(-80, 80, 256, dtype=jnp.bfloat16))
    value, _ = value_and_slope(narrow)
    assert value.dtype == jnp.bfloat16
    assert ro.ulps(value, oracle(ro.exact(narrow))) <= STATED[name]["bfloat16"].value


@pytest.mark.optimized
def test_accuracy_of_adjust_prior() -> None:
    rng = np.random.default_rng(1)
    z, source, target = (rng.gamma(0.5, size=[3, 500]) + 1e-6).astype(np.float32)
    want = adjusted(*map(ro.exact, (z, source, target)))
    terms = np.max(np.abs([z, np.log(source), np.log(target)]), axis=0)
    got = jax.jit(jl.adjust_prior)(z, source, target)
    budget = accuracy.stated(jl.adjust_prior.__doc__)["float32"].value
    errors = np.abs(np.asarray(got, float) - want.astype(float))
    assert np.max(errors / np.spacing(terms)) <= budget


# Edges.


def test_edges_of_soft_cap() -> None:
    z = jnp.array([-INF, INF, NAN, 0.0, 1e30])
    np.testing.assert_array_equal(jl.soft_cap(z, 2.0), [-INF, 2, NAN, 0, 2])
    by_z, by_cap = jax.jit(jax.vmap(jax.grad(jl.soft_cap, (0, 1)), (0, None)))(z, 2.0)
    np.testing.assert_array_equal(by_z, [0, 0, NAN, 1, 0])
    np.testing.assert_array_equal(by_cap, [0, 1, NAN, 0, 1])  # all of it counts where it is reached
    # Peers' 1 - tanh(z)**2 is 0 here.
    np.testing.assert_allclose(jax.jit(jax.grad(jl.soft_cap))(10.0, 1.0), 8.244615e-09, rtol=1e-6)
    assert np.isnan(jax.jit(jl.soft_cap)(1.0, -1.0))


def test_edges_of_apply_temperature() -> None:
    z = jnp.array([[1.0, 3, 2], [3, 1, 3], [-INF, 0, 1], [NAN, 0, 1], [-INF, -INF, -INF]])
    greedy = [[-INF, 0, -INF], [0, -INF, 0], [-INF, -INF, 0], [NAN] * 3, [-INF] * 3]
    np.testing.assert_array_equal(jax.jit(lambda z: jl.apply_temperature(z, 0.0))(z), greedy)
    np.testing.assert_array_equal(jl.apply_temperature(z, 2.0), z / 2)
    where = jnp.array([True, False, True])
    cool = jax.jit(jl.apply_temperature)
    cold = cool(z, jnp.zeros([5]), where=jnp.broadcast_to(where, z.shape))
    np.testing.assert_array_equal(cold[0], [-INF, -INF, 0])
    mixed = jnp.array([0.0, 0.5, 1.0, 2.0, 0.0])
    got = cool(z, mixed)
    np.testing.assert_array_equal(got[0], greedy[0])
    np.testing.assert_array_equal(got[1:4], z[1:4] / mixed[1:4, None])
    slope = jax.grad(lambda z, t: jnp.sum(jl.apply_temperature(z, t)[:2, 1]), (0, 1))
    slopes = jax.jit(slope)(z, mixed)
    np.testing.assert_array_equal(
        slopes[0], np.zeros([5, 3]) + 2.0 * (np.arange(15) == 4).reshape(5, 3)
    )
    np.testing.assert_array_equal(slopes[1], [0, -4, 0, NAN, 0])
    assert np.isnan(cool(z[0], -1.0)).all()


def test_edges_of_penalize_repetition() -> None:
    z, counts = jnp.array([-INF, INF, 2.0, -2.0, 0.0, 2.0]), jnp.array([1, 1, 3, 1, 1, 0])
    got = jl.penalize_repetition(z, counts, 2.0)
    np.testing.assert_array_equal(got, [-INF, INF, 1, -4, 0, 2])
    np.testing.assert_array_equal(jl.penalize_repetition(z, counts > 0, 2.0), got)
    ids = jnp.array([3, 1, 4, -1, 6])  # as the docstring says
    counted = jax.nn.one_hot(ids, 6, dtype=int).sum(-2)
    np.testing.assert_array_equal(counted, [0, 1, 0, 1, 1, 0])
    assert np.isfinite(jax.grad(lambda p: jl.penalize_repetition(z, counts, p)[0])(2.0))


def penalize_all(z: Any, penalty: Any) -> Any:
    return jl.penalize_repetition(z, jnp.ones(z.shape, bool), penalty)


# Functions of logits and one option, with a value that switches it off.
OPTIONS = {
    "soft_cap": (jl.soft_cap, INF),
    "apply_temperature": (jl.apply_temperature, 1.0),
    "penalize_repetition": (penalize_all, 1.0),
}
each_option = pytest.mark.parametrize(("fn", "off"), OPTIONS.values(), ids=OPTIONS)


@each_option
def test_an_option_for_each_row(fn: Any, off: float) -> None:
    """Its shape is that of the rows, also where there are as many classes; a bad one is NaN."""
    del off
    z, each = jnp.array([[1.0, -2.0, -INF], [1.0, -2.0, INF], [3.0, 1.0, 2.0]]), [0.5, 2.0, 1.0]
    run = jax.jit(fn)
    want = [run(row, one) for row, one in zip(z, each, strict=True)]
    np.testing.assert_array_equal(run(z, jnp.array(each)), want)
    got = run(z, jnp.array([0.5, -1.0, NAN]))
    np.testing.assert_array_equal(got, [want[0], [NAN] * 3, [NAN] * 3])
    slopes = jax.jit(jax.grad(lambda t: jnp.sum(fn(z[2], t))))
    assert np.isnan(slopes(-1.0))
    name = "penalty" if fn is penalize_all else "cap" if fn is jl.soft_cap else "temperature"
    for shape, hint in (((3, 1), rf" as in {name}\[..., 0\]"), ((3, 3), ""), ((2,), "")):
        message = rf"^{name} must broadcast to \[3\], got float32.*, or one for each row{hint}$"
        with pytest.raises(ValueError, match=message):
            fn(z, jnp.ones(shape))
    with pytest.raises(ValueError, match=rf" as in {name}\[..., None\]$"):
        fn(z[:, None], jnp.ones([3]))


@each_option
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_options_that_change_nothing(fn: Any, off: float, dtype: str) -> None:
    """The identity, at the largest numbers too, and so are its derivatives."""
    largest = float(jnp.finfo(dtype).max)
    z = jnp.array([0.0, 1e-3, -2.0, largest, -largest, -INF, INF], dtype)
    for value in (off, np.float32(off)):
        np.testing.assert_array_equal(fn(z, value), z)
    values, pullback = jax.jit(lambda z, t: jax.vjp(fn, z, t))(z, off)
    np.testing.assert_array_equal(values, z)
    by_z, by_option = pullback(jnp.ones(z.shape, dtype))
    np.testing.assert_array_equal(by_z[:5], 1.0)
    assert not jnp.isnan(by_option)  # the sum of the largest numbers


def test_an_infinite_temperature_makes_possible_classes_equal() -> None:
    z = jnp.array([[1.0, -INF, 3e38, -3e38], [INF, 1.0, -INF, 2.0]])
    for cool in (jl.apply_temperature, jax.jit(jl.apply_temperature)):
        np.testing.assert_array_equal(cool(z, INF), [[0, -INF, 0, 0], [INF, 0, -INF, 0]])


def test_large_caps() -> None:
    """z / cap would be flushed to 0, and cap**-2 too, or 2 z be infinite."""
    z, cap = jnp.array([1.0, -1e-3, 2e38, 1e20]), jnp.array([3e38, 1e38, 2e38, 1e20])
    run = jax.jit(jax.vmap(jax.value_and_grad(jl.soft_cap, (0, 1))))
    value, (by_z, by_cap) = run(z, cap)
    slope = 1 - np.tanh(1.0) ** 2
    at_one = np.tanh(1.0)
    np.testing.assert_allclose(value, [1, -1e-3, 2e38 * at_one, 1e20 * at_one], rtol=1e-6)
    np.testing.assert_allclose(by_z, [1, 1, slope, slope], rtol=1e-6)
    np.testing.assert_allclose(by_cap, [0, 0, at_one - slope, at_one - slope], rtol=1e-6)
    third = jax.jit(jax.grad(jax.grad(jax.grad(jl.soft_cap))))
    np.testing.assert_allclose(third(0.0, 2.0), -2 / 2.0**2, rtol=1e-6)


# Temperatures that take the logits beyond their dtype.

BEYOND = {
    "float16": ([100, 90], 1e-3),
    "float16 below 0": ([-100, -90], 1e-3),
    "float16, nearly equal": ([60000, 59968], 0.5),
    "bfloat16": ([3e38, 2e38], 0.5),
    "float32": ([1e38, 1e38], 1e-3),
    "float32 below 0": ([-1e38, -3e38], 1e-37),
}


@jax.jit
def cooled_and_slopes(z: Any, t: Any) -> Any:
    def likeliest(z: Any, t: Any) -> Any:
        return jl.softmax(jl.apply_temperature(z, t))[:, 0].sum()

    return jl.apply_temperature(z, t), jax.grad(likeliest, (0, 1))(z, t)


@pytest.mark.parametrize(("row", "temperature"), BEYOND.values(), ids=BEYOND)
@pytest.mark.parametrize("by", ["number", "row"])
def test_softmax_at_a_temperature_that_overflows(
    row: list[float], temperature: float, by: str, request: pytest.FixtureRequest
) -> None:
    """The differences are what matters; softmax doesn't see that the maximum was taken off."""
    dtype = request.node.callspec.id.replace("row-", "").replace("number-", "").split(" ")[0]
    z = jnp.array([row, [0.0, 1.0]], dtype.rstrip(","))
    t = temperature if by == "number" else jnp.array([temperature, 0.5])
    cooled, (by_z, by_t) = cooled_and_slopes(z, t)
    assert jnp.max(cooled[0]) == 0
    gap = float(z[0, 0] - z[0, 1]) / temperature  # exact in each dtype, but for the division
    with np.errstate(over="ignore"):
        want = 1 / (1 + np.exp(-gap))
    np.testing.assert_allclose(jl.softmax(cooled)[0], [want, 1 - want], rtol=2e-3, atol=1e-7)
    assert jnp.isfinite(by_z).all()
    assert jnp.isfinite(by_t).all()
    np.testing.assert_array_equal(jl.apply_temperature(z[1], 0.5), z[1] / 0.5)  # where nothing does


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_penalties_leave_finite_logits_finite(dtype: str) -> None:
    largest = jnp.finfo(dtype).max
    z = jnp.array([-largest, largest, 0.0, -1.0], dtype)
    np.testing.assert_array_equal(penalize_all(z, 1.5)[0], -largest)
    np.testing.assert_array_equal(penalize_all(z, 0.5)[1], largest)
    got = penalize_all(z, INF)
    np.testing.assert_array_equal(got[np.array([0, 2, 3])], [-largest, 0, -largest])
    moved = jl.adjust_prior(z, jnp.float32(1), jnp.float32(2e4))
    assert jnp.isfinite(moved).all()


# NaN in a value comes with NaN in its derivatives.


def test_nan_has_no_derivative() -> None:
    def slopes(fn: Any) -> Any:
        return jax.jit(jax.grad(lambda z, t: jnp.sum(fn(z, t)), (0, 1)))

    row = jnp.array([1.0, NAN, 2.0])
    for temperature in (0.0, -1.0):
        by_z, by_t = slopes(jl.apply_temperature)(row, temperature)
        assert np.isnan(by_z).all()
        assert np.isnan(by_t)
    nothing = jnp.full([3], -INF)
    assert np.isnan(
        slopes(lambda z, t: jl.softmax(jl.apply_temperature(z, t)))(nothing, 0.0)[0]
    ).all()
    for fn in (jl.soft_cap, penalize_all):
        by_z, by_t = slopes(fn)(jnp.array([1.0, -INF, INF]), -1.0)
        assert np.isnan(by_t)
        assert np.isnan(by_z[0])
    by_z, by_prior = slopes(lambda z, p: jl.adjust_prior(z, p, jnp.ones(3)))(
        jnp.zeros(3), jnp.array([1.0, 0.0, -1.0])
    )
    np.testing.assert_array_equal(np.isnan(by_z), [False, True, True])
    np.testing.assert_array_equal(np.isnan(by_prior), [False, True, True])


def test_edges_of_adjust_prior() -> None:
    z = jnp.array([-INF, 1.0, 1.0, 1.0, 1.0, NAN])
    source = jnp.array([0.5, 0.5, 0.0, 0.0, -1.0, 0.5])
    target = jnp.array([0.5, 0.0, 0.5, 0.0, 0.5, 0.5])
    got = jl.adjust_prior(z, source, target)
    np.testing.assert_array_equal(got, [-INF, -INF, NAN, -INF, NAN, NAN])
    slopes = jax.jit(jax.vmap(jax.grad(jl.adjust_prior, (0, 1, 2))))(z, source, target)
    assert np.isfinite(np.array(slopes)[:, [0, 1, 3]]).all()
    with pytest.raises(
        ValueError, match=r"^adjust_prior: source_prior must be at least 0, got -1.0"
    ):
        jl.checked(jl.adjust_prior)(z[:5], source[:5], target[:5])
    # A class that is 0 in both, or removed by the logits, isn't asked for.
    known = jl.checked(jl.adjust_prior)(z[:2], jnp.array([0.0, 0.0]), jnp.array([0.5, 0.0]))
    np.testing.assert_array_equal(known, [-INF, -INF])
    with pytest.raises(ValueError, match=r"source_prior must be above 0 where target_prior is"):
        jl.checked(jl.adjust_prior)(z[1:3], source[1:3], target[1:3])


@pytest.mark.newest
def test_bayes() -> None:
    """Counts of a table: what the classifier of one population says of another."""
    joint = np.random.default_rng(0).gamma(2.0, size=[5, 3])  # [features, classes]
    joint /= joint.sum()
    source, target = joint.sum(0), np.array([0.1, 0.2, 0.7])
    moved = joint / source * target
    got = jl.softmax(jl.adjust_prior(*map(jnp.float32, (np.log(joint), source, target))))
    np.testing.assert_allclose(got, moved / moved.sum(-1, keepdims=True), rtol=1e-5)


# Transforms.

Z = np.array([[6.0, -1.5, 0.25], [0.5, 1.75, -2.0]], np.float32)
PRIORS = np.array([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]], np.float32)
COUNTS = np.array([[0, 1, 2], [1, 0, 1]], np.int32)
HALF = np.array([0.5, 1.5], np.float32)
CASES = [
    tf.Case("soft_cap", jl.soft_cap, cap_of, (Z, 2 * HALF)),
    tf.Case("apply_temperature", jl.apply_temperature, cooled, (Z, HALF)),
    tf.Case("penalize_repetition", jl.penalize_repetition, repeated, (Z, COUNTS, HALF)),
    tf.Case("adjust_prior", jl.adjust_prior, adjusted, (Z, PRIORS, PRIORS[::-1])),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_transforms(case: tf.Case) -> None:
    f, exact = tf.joined(case), tf.exact(case)
    for results, want in zip(tf.of_each_order(f), exact, strict=True):
        for transform, got in results.items():
            # A dozen roundings of the largest number.
            atol = 12 * 2**-23 * np.max(np.abs(want))
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)
    for together, one_by_one in tf.vmapped(case):
        np.testing.assert_allclose(together, one_by_one, rtol=2**-22)


def test_export() -> None:
    case = CASES[0]
    for got in tf.exported(case).values():
        np.testing.assert_array_equal(got, case.batch(*case.args))


def test_refused() -> None:
    z = jnp.zeros([2, 3])
    for fn in (
        lambda z: jl.soft_cap(z, 1.0),
        lambda z: jl.apply_temperature(z, 1.0),
        lambda z: jl.penalize_repetition(z, z, 1.0),
        lambda z: jl.adjust_prior(z, z, z),
    ):
        with pytest.raises(TypeError, match=r"^logits must be floating point, got int32\[2,3\]$"):
            fn(jnp.zeros([2, 3], jnp.int32))
    with pytest.raises(ValueError, match=r"^cap must be above 0, got 0$"):
        jl.soft_cap(z, 0.0)
    with pytest.raises(ValueError, match=r"^cap must broadcast to \[2\], got float32\[3\]: a sc"):
        jl.soft_cap(z, jnp.ones([3]))
    with pytest.raises(ValueError, match=r"^temperature must be at least 0, got -1$"):
        jl.apply_temperature(z, -1.0)
    with pytest.raises(ValueError, match=r"^temperature must broadcast to \[2\], got"):
        jl.apply_temperature(z, jnp.ones([3]))
    with pytest.raises(TypeError, match=r"^counts must be integers, got float32\[2,3\]$"):
        jl.penalize_repetition(z, z, 1.0)
    with pytest.raises(ValueError, match=r"^counts must broadcast to \[2,3\], got int32\[2\]$"):
        jl.penalize_repetition(z, jnp.zeros([2], jnp.int32), 1.0)
    with pytest.raises(ValueError, match=r"^target_prior must broadcast to \[2,3\], got"):
        jl.adjust_prior(z, jnp.ones([3]), jnp.ones([4]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("z", [1e-3, 0.01, 0.4, 0.6, 3.0])
@pytest.mark.parametrize("cap", [0.81, 1.25, 30.0])
def test_the_cap_has_accurate_derivatives(z: float, cap: float, dtype: str) -> None:
    """Also of logits far below it, of which nearly nothing is cut."""
    given, bound = np.array([z, cap], dtype)
    of_cap = jax.grad(lambda c: jl.soft_cap(given, c))
    got = [of_cap(bound), jax.grad(of_cap)(bound)]
    x = ro.mp.mpf(float(given))
    want = [ro.mp.diff(lambda c: c * ro.mp.tanh(x / c), float(bound), n) for n in (1, 2)]
    ulps = [
        abs((ro.mp.mpf(float(a)) - b) / b) / np.finfo(dtype).eps
        for a, b in zip(got, want, strict=True)
    ]
    assert max(ulps) < 16  # 4 at the edge of the series, where tanh and its line cancel 3 bits


SHARP = jnp.array([0.0, -INF, 1.0])
BY_TEMPERATURE = {
    "apply_temperature": lambda t: jl.softmax(jl.apply_temperature(SHARP, t))[0],
    "a mask": lambda t: jl.logsumexp(
        jl.apply_temperature(SHARP, t, where=jnp.array([True, True, False]))
    ),
    "sample_with_log_prob": lambda t: jl.sample_with_log_prob(
        jax.random.key(3), SHARP, temperature=t
    )[1],
    "gumbel_softmax": lambda t: jl.gumbel_softmax(jax.random.key(3), SHARP, temperature=t)[0],
    "teacher": lambda t: jl.softmax_cross_entropy_with_teacher_logits(
        jnp.ones(3), SHARP, temperature=t
    ),
    "head": lambda t: jl.linear_softmax_cross_entropy(
        jnp.ones([1, 2]), jnp.ones([2, 3]), jnp.array([0]), bias=SHARP, temperature=t
    ),
    "cap": lambda t: jl.soft_cap(jnp.array([INF, 1.0]), t).sum(),
}


@pytest.mark.parametrize("name", BY_TEMPERATURE)
def test_second_derivatives_in_a_temperature_of_removed_classes(name: str) -> None:
    """In every mode."""
    fn, at = BY_TEMPERATURE[name], jnp.float32(0.7)
    forward = jax.jacfwd(jax.jacfwd(fn))(at)
    assert np.isfinite(forward)
    for outer, inner in [
        (jax.jacrev, jax.jacrev),
        (jax.jacrev, jax.jacfwd),
        (jax.jacfwd, jax.jacrev),
    ]:
        np.testing.assert_allclose(outer(inner(fn))(at), forward, rtol=1e-4, atol=1e-5)
