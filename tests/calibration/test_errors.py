"""Calibration errors against plain float64 formulas, scikit-learn and netcal."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import transforms as tf
from scipy.special import softmax
from sklearn.calibration import calibration_curve

import jaxlogits as jl

Metric = Callable[..., jax.Array]

BINNED: list[Metric] = [
    jl.expected_calibration_error,
    jl.adaptive_calibration_error,
    jl.maximum_calibration_error,
]
METRICS: list[Metric] = [*BINNED, jl.brier_score]


def some_rows(n: int, k: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels of which a half and some are right."""
    rng = np.random.default_rng(n)
    z = (3 * rng.standard_normal((n, k))).astype(dtype)
    labels = rng.integers(0, k, n).astype(np.int32)
    labels[::2] = z[::2].argmax(axis=1)
    return z, labels


def all_of(z: Any, labels: Any, where: Any = True, weights: Any = 1.0, **bins: Any) -> jax.Array:
    """The five metrics."""
    options = {"where": where, "weights": weights}
    binned = [metric(z, labels, **bins, **options) for metric in BINNED]
    return jnp.stack([*binned, *(metric(z, labels, **options) for metric in METRICS[3:])])


jitted = jax.jit(all_of)
reliability_curve = jax.jit(jl.reliability_curve, static_argnames="num_bins")


# The formulas as textbooks write them.


def graded(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence of each row, and whether it's right."""
    return softmax(z, axis=1).max(axis=1), z.argmax(axis=1) == labels


def oracle(z: np.ndarray, labels: np.ndarray, w: np.ndarray, num_bins: int = 15) -> np.ndarray:
    """The four metrics in float64, bin by bin; without equal confidences."""
    confidence, right = graded(z, labels)
    gaps = w * (right - confidence)
    edges = np.linspace(0, 1, num_bins + 1)
    bins = [(low < confidence) & (confidence <= high) for low, high in itertools.pairwise(edges)]
    order = np.argsort(confidence)
    middle = np.empty(len(z))
    middle[order] = (np.cumsum(w[order]) - w[order] / 2) / w.sum()
    equal = [np.floor(middle * num_bins) == b for b in range(num_bins)]
    ece, ace = (sum(abs(gaps[b].sum()) for b in some) / w.sum() for some in (bins, equal))
    mce = max(abs(gaps[b].sum()) / w[b].sum() for b in bins if w[b].sum() > 0)
    p = softmax(z, axis=1)
    brier = np.sum(w * np.square(p - np.eye(z.shape[1])[labels]).sum(axis=1)) / w.sum()
    return np.array([ece, ace, mce, brier])


@pytest.mark.usefixtures("x64")
def test_values() -> None:
    for k in (2, 7):
        z, labels = some_rows(203, k, np.float64)
        weights = np.random.default_rng(0).uniform(size=203)
        got = jitted(z, labels, weights=weights)
        # Sums of 203 terms of up to 20: 1e-13.
        np.testing.assert_allclose(got, oracle(z, labels, weights), rtol=1e-12)


@pytest.mark.newest
def test_float32_of_a_million_sure_rows() -> None:
    """The distances are 1e-3 and less; a float32 sum of confidences would lose all of them."""
    rng = np.random.default_rng(0)
    z = np.zeros((2**20, 2), np.float32)
    z[:, 1] = rng.uniform(7, 12, 2**20)
    labels = (rng.random(2**20) < softmax(z.astype(float), axis=1)[:, 1]).astype(np.int32)
    got = jitted(z, labels)
    want = oracle(z.astype(float), labels, np.ones(2**20))
    confidence, right = graded(z.astype(float), labels)
    sizes = np.array([np.abs(right - confidence).mean()] * 3 + [*want[3:]])
    # The docstrings' 2e-6: a sum's tree of 2^20 terms has 20 levels, 2^-24 each, and a term 4 ulp.
    assert np.all(np.abs(got - want) <= 2e-6 * sizes)
    assert np.all(want[:3] < 1e-3)


def test_no_row_without_classes_is_looked_for() -> None:
    """Where every row counts, XLA would while it compiles: 4 s for a million of them."""
    assert "reduce_or" not in str(jax.make_jaxpr(jl.brier_score)(*some_rows(8, 3)))


def test_sure_and_right_is_not_perfect() -> None:
    z = jnp.array([[40.0, 0.0], [0.0, 41.0]])
    missed = np.exp(-np.array([40.0, 41.0]))
    got = jitted(z, jnp.array([0, 1]))
    want = [missed.mean(), missed.mean(), missed.mean(), 2 * np.square(missed).mean()]
    np.testing.assert_allclose(got, want, rtol=2e-6)


# Bins.


@pytest.mark.newest
def test_reliability_curve_is_sklearns() -> None:
    z, labels = some_rows(500, 3, np.float64)
    z[:2] = 0  # a confidence of 1/3, on an edge of 3 bins
    with jax.enable_x64(True):
        for num_bins in (1, 3, 15):
            curve = reliability_curve(z, labels, num_bins=num_bins)
            assert isinstance(curve, jl.ReliabilityCurve)
            confidence, right = graded(z, labels)
            accuracy, mean = calibration_curve(right, confidence, n_bins=num_bins)
            full = np.asarray(curve.weight) > 0
            np.testing.assert_allclose(curve.accuracy[full], accuracy, rtol=1e-12)
            np.testing.assert_allclose(curve.confidence[full], mean, rtol=1e-12)
            assert np.isnan(curve.accuracy[~full]).all()
            assert np.isnan(curve.confidence[~full]).all()
            assert curve.weight.sum() == 500


def test_upper_edges_belong_to_a_bin() -> None:
    half = jnp.zeros([1, 2])  # a confidence of 0.5
    sure = jnp.array([[jnp.inf, 0.0]])  # and one of 1
    for num_bins, z, bin_ in ((2, half, 0), (4, half, 1), (2, sure, 1), (4, sure, 3)):
        weight = reliability_curve(z, jnp.array([0]), num_bins=num_bins).weight
        np.testing.assert_array_equal(weight, np.eye(num_bins)[bin_])


def test_edges_are_those_of_the_bins() -> None:
    z, labels = some_rows(60, 3)
    curve = reliability_curve(z, labels, num_bins=4)
    np.testing.assert_array_equal(curve.edges, [0, 0.25, 0.5, 0.75, 1])
    full = np.asarray(curve.weight) > 0
    assert (curve.edges[:-1][full] < curve.confidence[full]).all()
    assert (curve.confidence[full] <= curve.edges[1:][full]).all()


@pytest.mark.newest
@pytest.mark.compiled  # numpy sums in another order
def test_classwise() -> None:
    """Of each class the error of its own probability, which the likeliest one's doesn't show."""
    z, labels = some_rows(300, 4, np.float64)
    p = softmax(z, axis=1)
    errors = []
    for k in range(4):
        bins = np.ceil(15 * p[:, k]).astype(int) - 1
        errors.append(abs(np.bincount(bins, (labels == k) - p[:, k])).sum() / 300)
    with jax.enable_x64(True):
        got = jl.classwise_calibration_error(z, labels)
    np.testing.assert_allclose(got, np.mean(errors), rtol=1e-12)
    # Exchanged with each other, classes 1 and 2 are as likely the likeliest.
    z, labels = jnp.array([[1.0, 0.5, 0.0]] * 100), jnp.arange(100) % 4
    one, other = jnp.minimum(labels, 1), jnp.where(labels > 0, 2, 0)
    assert jl.expected_calibration_error(z, one) == jl.expected_calibration_error(z, other)
    classwise = [jl.classwise_calibration_error(z, labels) for labels in (one, other)]
    assert abs(classwise[0] - classwise[1]) > 0.01


def test_a_weight_is_a_repetition_and_order_does_not_matter() -> None:
    z, labels = some_rows(60, 3)
    repeated = np.random.default_rng(0).integers(0, 60, 60)
    times = np.bincount(repeated, minlength=60).astype(np.float32)
    every, ones = np.ones(60, bool), np.ones(60, np.float32)
    got = jitted(z, labels, every, times)
    want = jitted(z[repeated], labels[repeated], every, ones)
    # Sums in another order: 2^-24 for each of 7 levels.
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_axis_and_leading_dimensions() -> None:
    z, labels = some_rows(60, 4)
    metric = jax.jit(jl.expected_calibration_error, static_argnames="axis")
    want = oracle(z.astype(float), labels, np.ones(60))[0]
    blocks = np.moveaxis(z.reshape(5, 12, 2, 2), 2, 0)
    # 60 rows, 2^-24 and 4 ulp each.
    got = metric(blocks, labels.reshape(5, 12), axis=(0, 3))
    np.testing.assert_allclose(got, want, rtol=1e-5)


# What is masked, bad or absent.


def test_masked_rows_never_leak() -> None:
    z, labels = some_rows(60, 3)
    where = np.arange(60) % 3 > 0
    bad_z, bad_labels, weights = z.copy(), labels.copy(), np.ones(60, np.float32)
    bad_z[~where], bad_labels[~where], weights[~where] = np.nan, 99, -1

    def total(z: Any, w: Any) -> jax.Array:
        return all_of(z, bad_labels, where, w).sum()

    got = jitted(bad_z, bad_labels, where, weights)
    slopes = jax.jit(jax.grad(total, (0, 1)))(bad_z, weights)
    want = oracle(z[where].astype(float), labels[where], np.ones(40))
    np.testing.assert_allclose(got, want, rtol=1e-5)  # 40 rows, 2^-24 and 4 ulp each
    assert all(np.isfinite(slope).all() for slope in slopes)
    assert all((slope[~where] == 0).all() for slope in slopes)
    curve = reliability_curve(bad_z, bad_labels, where=where, weights=weights)
    np.testing.assert_allclose(curve.weight.sum(), 40)
    confidence, right = graded(z[where].astype(float), labels[where])
    for means, total in ((curve.confidence, confidence.sum()), (curve.accuracy, right.sum())):
        np.testing.assert_allclose(np.nansum(means * curve.weight), total, rtol=1e-6)


def test_bad_rows_of_weight_0_do_not_exist() -> None:
    """Rows that are filled up for a shape; a good one has a derivative in its weight."""
    z, labels = some_rows(60, 3)
    keep = np.arange(60) % 3 > 0
    bad_z, bad_labels = z.copy(), labels.copy()
    bad_z[:20][~keep[:20]], bad_labels[20:40][~keep[20:40]] = np.nan, -100
    bad_z[40:][~keep[40:]] = -np.inf
    every = np.ones(60, bool)
    for weights in (keep.astype(np.float32), keep):
        got = jitted(bad_z, bad_labels, every, weights)
        # 40 rows, 2^-24 and 4 ulp each.
        np.testing.assert_allclose(got, jitted(z, labels, keep, np.ones(60)), rtol=1e-5)
    total = jax.jit(jax.grad(lambda z, w, y: all_of(z, y, every, w).sum(), (0, 1)))
    slopes = total(bad_z, keep.astype(np.float32), bad_labels)
    assert all((slope[~keep] == 0).all() for slope in slopes)
    of_good = total(z, keep.astype(np.float32), labels)
    assert (of_good[1][~keep] != 0).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[keep], b[keep]), slopes, of_good)
    jl.checked(jl.brier_score)(bad_z, bad_labels, weights=keep)


def test_bad_values_and_no_rows_are_nan() -> None:
    z, labels = (jnp.asarray(array) for array in some_rows(60, 3))
    every, ones = np.ones(60, bool), np.ones(60, np.float32)
    bad = [
        (z, labels.at[3].set(3), every, ones),
        (z, labels.at[3].set(-1), every, ones),
        (z.at[3, 0].set(jnp.nan), labels, every, ones),
        (z.at[3, :2].set(jnp.inf), labels, every, ones),
        (z.at[3].set(-jnp.inf), labels, every, ones),
        (z, labels, every, -ones),
        (z, labels, ~every, ones),
        (z[:0], labels[:0], every[:0], ones[:0]),
    ]
    for z_, labels_, where, weights in bad:
        assert np.isnan(jitted(z_, labels_, where, weights)).all()
        curve = reliability_curve(z_, labels_, where=where, weights=weights)
        assert np.isnan(curve.accuracy).all()
        assert (np.isnan(curve.weight) | (np.asarray(curve.weight) == 0)).all()


def test_impossible_classes_and_certain_ones() -> None:
    z = jnp.array([[jnp.inf, 0.0, -jnp.inf], [0.0, -jnp.inf, 0.0]])
    got = jitted(z, jnp.array([0, 2]))
    # Right at confidence 1; at 1/2 the first of the two is taken, which is wrong.
    np.testing.assert_allclose(got, [0.25, 0.25, 0.5, 0.25], rtol=1e-6)


def test_refused() -> None:
    z, labels = jnp.zeros([4, 3]), jnp.zeros([4], jnp.int32)
    for fn in (*METRICS, jl.reliability_curve):
        metric = functools.partial(jax.eval_shape, fn)  # traced only
        with pytest.raises(TypeError, match=r"^logits must be floating point, got int32\[4,3\]"):
            metric(z.astype(jnp.int32), labels)
        with pytest.raises(TypeError, match=r"^labels must be integers"):
            metric(z, labels.astype(jnp.float32))
        with pytest.raises(ValueError, match=r"^labels must have the shape of logits without axis"):
            metric(z, labels[:3])
        with pytest.raises(ValueError, match=r"^where must broadcast to \[4\]"):
            metric(z, labels, where=np.ones([4, 3], bool))
        with pytest.raises(ValueError, match=r"^weights must broadcast to \[4\]"):
            metric(z, labels, weights=np.ones([3], np.float32))
    for metric in (*BINNED, jl.reliability_curve):
        with pytest.raises(ValueError, match=r"^num_bins must be a positive int, got 0"):
            jax.eval_shape(functools.partial(metric, num_bins=0), z, labels)
        assert jax.tree.leaves(metric(z, labels, num_bins=np.int64(2)))
        for number in (2.0, True):  # whose program isn't that of 2
            with pytest.raises(ValueError, match=r"^num_bins must be a positive int, got"):
                metric(z, labels, num_bins=number)


def test_checked() -> None:
    metric = jl.checked(jax.jit(jl.brier_score))
    z, labels, every = jnp.zeros([4, 3]), jnp.full([4], 3, jnp.int32), jnp.full([4], True)
    with pytest.raises(ValueError, match=r"^brier_score: labels must be in \[0, 3\)"):
        metric(z, labels, where=every, weights=1.0)
    metric(z, labels, where=~every, weights=-1.0)
    with pytest.raises(ValueError, match=r"^brier_score: weights must be at least 0"):
        metric(z, labels - 1, where=every, weights=-1.0)


# Transforms: two data sets of three rows, the last one masked.


def exact_metrics(z: Any, labels: Any, where: Any, w: Any) -> Any:
    """The metrics and the curve with one bin, as ``metrics`` has them, in 150 digits."""
    rows = [i for i in range(len(z)) if where[i]]
    p = [ro.softmax(z[i]) for i in rows]
    confidence = [max(row) for row in p]
    right = [int(np.argmax(z[i]) == labels[i]) for i in rows]
    total = sum(w[i] for i in rows)
    gaps = [w[i] * (r - c) for i, r, c in zip(rows, right, confidence, strict=True)]
    # Two rows in bins of their own: by confidence in thirds, and by half of the weight.
    errors = [abs(gap) for gap in gaps]
    brier = sum(
        w[i] * sum((q - (k == labels[i])) ** 2 for k, q in enumerate(row))
        for i, row in zip(rows, p, strict=True)
    )
    mean = sum(w[i] * c for i, c in zip(rows, confidence, strict=True))
    accuracy = sum(w[i] * r for i, r in zip(rows, right, strict=True))
    largest = max(error / w[i] for error, i in zip(errors, rows, strict=True))
    sums = [sum(errors), sum(errors), total * largest, brier, mean, accuracy]
    of_classes = [
        abs(sum(w[i] * (row[k] - (k == labels[i])) for i, row in zip(rows, p, strict=True)))
        for k in range(2)
    ]
    means = [x / total for x in (*sums, sum(of_classes) / 2)]
    return np.array([*means[:-1], total, means[-1]], dtype=object)


def metrics(z: Any, labels: Any, where: Any, w: Any) -> jax.Array:
    options = {"where": where, "weights": w}
    curve = jl.reliability_curve(z, labels, num_bins=1, **options)
    classwise = jl.classwise_calibration_error(z, labels, num_bins=1, **options)
    results = [all_of(z, labels, num_bins=3, **options), *curve[:3], classwise[None]]
    return jnp.concatenate(results)


def test_transforms() -> None:
    z = np.array([[[2.0, -0.5], [0.25, 0.5], [0.0, 0.0]], [[-1.5, 1.0], [0.25, 0.0], [9.0, 0.0]]])
    labels = np.array([[0, 0, 1], [0, 0, 7]], np.int32)
    where = np.array([[True, True, False]] * 2)
    weights = np.array([[1.0, 1.25, 1.0], [0.75, 0.5, 2.0]])
    args = (z.astype(np.float32), labels, where, weights.astype(np.float32))
    case = tf.Case("all", metrics, exact_metrics, args)
    exact, f = tf.exact(case), tf.joined(case)

    @jax.jit
    def derivatives(x: jax.Array) -> dict[str, jax.Array]:
        return {
            "grad of checkpoint": jax.grad(jax.checkpoint(f.number))(x),
            "jacfwd": jax.jacfwd(f.number)(x),
        }

    for transform, got in derivatives(f.point).items():
        # Seven results, weighted by up to 2.75, of some 8 ulp each are added up.
        atol = 64 * 2**-23 * np.max(np.abs(exact.gradient))
        np.testing.assert_allclose(got, exact.gradient, rtol=0, atol=atol, err_msg=transform)
    np.testing.assert_allclose(jax.jit(f.value)(f.point), exact.value, rtol=1e-5)


def test_export() -> None:
    """A symbolic number of rows is lowered too."""
    (n,) = jax.export.symbolic_shape("n")
    rows = jax.ShapeDtypeStruct((n, 3), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    exported = jax.export.export(jitted)(*rows)
    z, labels = some_rows(60, 3)
    want = oracle(z.astype(float), labels, np.ones(60))
    np.testing.assert_allclose(exported.call(z, labels), want, rtol=1e-5)


@pytest.mark.parametrize("unit", [1e-37, 1e37])
def test_any_unit_of_the_weights(unit: float) -> None:
    """Even of weights whose sum is too large for a float32."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(200, 3)), jnp.float32)
    labels, weights = jnp.arange(200) % 3, jnp.linspace(0.5, 1.0, 200)
    for error in (
        *(jl.expected_calibration_error, jl.adaptive_calibration_error),
        *(jl.classwise_calibration_error, jl.maximum_calibration_error, jl.brier_score),
    ):
        usual, scaled = (error(z, labels, weights=w * weights) for w in (1.0, unit))
        np.testing.assert_allclose(scaled, usual, rtol=1e-5)
    curves = [jl.reliability_curve(z, labels, weights=w * weights) for w in (1.0, unit)]
    np.testing.assert_allclose(curves[1].confidence, curves[0].confidence, rtol=1e-5)
    of_two = [jl.binary_brier_score(z[:, 0], labels == 1, weights=w * weights) for w in (1.0, unit)]
    np.testing.assert_allclose(*of_two, rtol=1e-5)
