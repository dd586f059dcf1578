"""What the truncations keep, by full sorts in float64; by transformers where it is installed."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import transforms as tf

import jaxlogits as jl

INF, NAN = np.inf, np.nan


# Which classes of a row [K] stay, in float64.


def likeliest_first(z: np.ndarray) -> np.ndarray:
    return np.argsort(-z, kind="stable")


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(np.asarray(z, float) - np.max(z))
    return e / np.sum(e)


def entropy(p: np.ndarray) -> float:
    return -np.sum(p * np.log(np.where(p > 0, p, 1)))


def fewest(order: np.ndarray, p: np.ndarray, mass: float) -> np.ndarray:
    """The first classes in an order that have ``mass``, at least one."""
    before = np.cumsum(p[order]) - p[order]
    keep = np.zeros(p.size, bool)
    keep[order] = (before < mass) | (np.arange(p.size) == 0)
    return keep


def top_k(z: np.ndarray, k: int) -> np.ndarray:
    return z >= np.sort(z)[::-1][min(int(k), z.size) - 1]


def top_p(z: np.ndarray, p: float) -> np.ndarray:
    return fewest(likeliest_first(z), softmax(z), p)


def typical(z: np.ndarray, mass: float) -> np.ndarray:
    p = softmax(z)
    distance = np.abs(-np.log(p) - entropy(p))
    return fewest(np.argsort(distance, kind="stable"), p, mass)


def min_p(z: np.ndarray, p: float) -> np.ndarray:
    return softmax(z) >= p * np.max(softmax(z))


def n_sigma(z: np.ndarray, n: float) -> np.ndarray:
    return np.asarray(z, float) >= np.max(z) - n * np.std(z, dtype=float)


def epsilon(z: np.ndarray, epsilon: float) -> np.ndarray:
    return (softmax(z) >= epsilon) | (z == np.max(z))


def eta(z: np.ndarray, epsilon: float) -> np.ndarray:
    p = softmax(z)
    bar = min(epsilon, epsilon**0.5 * np.exp(-entropy(p)))
    return (p >= bar) | (z == np.max(z))


ORACLES: dict[str, tuple[Callable[..., Any], list[float]]] = {
    "keep_top_k": (top_k, [1, 3, 50]),
    "keep_top_p": (top_p, [0.125, 0.75, 0.9375, 0.9999]),
    "keep_typical": (typical, [0.125, 0.75, 0.9375]),
    "keep_min_p": (min_p, [0.0625, 0.5, 1.0]),
    "keep_top_n_sigma": (n_sigma, [0.25, 1.0, 2.5]),
    "keep_epsilon": (epsilon, [0.001, 0.0625, 0.5]),
    "keep_eta": (eta, [0.001, 0.0625, 0.5]),
}
each_function = pytest.mark.parametrize("name", ORACLES)


def rows(num_classes: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([num_classes, seed])
    scales = np.array([0.3, 1.0, 3.0, 8.0])[:, None, None]
    return (scales * rng.normal(size=[4, 6, num_classes])).reshape(24, -1).astype(np.float32)


def kept(shaped: Any) -> np.ndarray:
    return np.asarray(shaped) > -INF


@pytest.mark.newest
@each_function
def test_kept_set(name: str) -> None:
    """As by a full sort; a parameter for each row gives what it gives alone."""
    oracle, parameters = ORACLES[name]
    fn = jax.jit(getattr(jl, name))
    for z in (rows(20), rows(500)):
        for parameter in parameters:
            same = np.full(len(z), parameter, np.int32 if name == "keep_top_k" else np.float32)
            got = np.asarray(fn(z, same))
            for row, shaped in zip(z, got, strict=True):
                np.testing.assert_array_equal(kept(shaped), oracle(row, parameter))
                np.testing.assert_array_equal(shaped[kept(shaped)], row[kept(shaped)])
            static = int(parameter) if name == "keep_top_k" else parameter
            np.testing.assert_array_equal(getattr(jl, name)(z[:2], static), got[:2])
        different = np.resize(same.dtype.type(parameters), len(z))
        for row, parameter, shaped in zip(z, different, fn(z, different), strict=True):
            np.testing.assert_array_equal(kept(shaped), oracle(row, parameter))


@pytest.mark.newest
def test_ties_stay_together() -> None:
    z = jnp.array([1.0, 0.0, 1.0, 1.0, -2.0])
    ties = [True, False, True, True, False]
    for shaped in (
        jl.keep_top_k(z, 1),
        jl.keep_top_k(z, jnp.array(2)),
        jl.keep_top_p(z, 0.0),
        jl.keep_top_p(z, 0.5),
        jl.keep_min_p(z, 1.0),
        jl.keep_top_n_sigma(z, 0.0),
        jl.keep_epsilon(z, 1.0),
        jl.keep_eta(z, 1.0),
        jl.keep_typical(z, 0.1),
    ):
        np.testing.assert_array_equal(kept(shaped), ties)


@pytest.mark.newest
def test_all_is_all() -> None:
    z = jnp.array([0.0, -50.0, -300.0, -jnp.inf])  # the third's probability underflows
    for shaped in (
        jl.keep_top_k(z, 9),
        jl.keep_top_k(z, jnp.array(9)),
        jl.keep_top_p(z, 1.0),
        jl.keep_typical(z, 1.0),
        jl.keep_min_p(z, 0.0),
        jl.keep_top_n_sigma(z, np.inf),
        jl.keep_epsilon(z, 0.0),
        jl.keep_eta(z, 0.0),
    ):
        np.testing.assert_array_equal(shaped, z)


OFF = {
    "keep_top_k": 4,
    "keep_top_p": 1,
    "keep_typical": 1,
    "keep_min_p": 0,
    "keep_top_n_sigma": INF,
    "keep_epsilon": 0,
    "keep_eta": 0,
}


@each_function
def test_options_that_keep_all(name: str) -> None:
    """Whatever kind of number says so, also where probabilities are 0 and gaps infinite."""
    fn = getattr(jl, name)
    largest = float(np.finfo(np.float32).max)
    z = jnp.array([[0.0, -largest, largest, -INF], [1.0, 0.0, -200.0, -1e9]])
    off = OFF[name]
    kinds = [off, jnp.asarray(off), jnp.full([2], off), np.full([2], off)]
    kinds += [np.int64(off)] if off < INF else []
    kinds += [2**31, np.int64(2**40), np.full([2], 2**40)] if name == "keep_top_k" else []
    kinds += [float(off), np.float32(off)] if name != "keep_top_k" else []
    for value in kinds:
        np.testing.assert_array_equal(fn(z, value), z)
    by_name = {list(inspect.signature(fn).parameters)[1]: np.full([2], off)}
    np.testing.assert_array_equal(jax.jit(fn)(z, **by_name), z)


@each_function
def test_options_out_of_range_spoil_their_rows(name: str) -> None:
    z = jnp.array([[1.0, 0.0, -INF], [1.0, 0.0, -INF], [0.0, 1.0, 2.0]])
    bad = jnp.array([-1, 1, 0]) if name == "keep_top_k" else jnp.array([-0.5, 0.5, 1.5])
    bad = bad.at[2].set(jnp.nan) if name == "keep_top_n_sigma" else bad

    def total(z: Any, option: Any) -> Any:
        shaped = getattr(jl, name)(z, option)
        return jnp.sum(jnp.where(shaped == -INF, 0.0, shaped)), shaped

    slope, shaped = jax.jit(jax.grad(total, has_aux=True))(z, bad)
    for rows in (slope, shaped):
        np.testing.assert_array_equal(np.isnan(rows), [[True] * 3, [False] * 3, [True] * 3])


@each_function
def test_exports_with_any_number_of_classes(name: str) -> None:
    symbols = jax.export.symbolic_shape("n, k")
    option = jnp.int32(2) if name == "keep_top_k" else jnp.float32(0.5)
    exported = jax.export.export(jax.jit(getattr(jl, name)))(
        jax.ShapeDtypeStruct(symbols, jnp.float32), jax.ShapeDtypeStruct([], option.dtype)
    )
    z = rows(7)[:3]
    np.testing.assert_array_equal(exported.call(z, option), getattr(jl, name)(z, option))


def test_dtypes_without_infinity_are_refused() -> None:
    z = jnp.zeros([2, 3], jnp.float8_e4m3fn)
    for fn in (lambda z: jl.keep_top_k(z, 1), lambda z: jl.apply_temperature(z, 0.5)):
        with pytest.raises(
            TypeError, match=r"^logits must have a dtype with -inf, got float8_e4m3"
        ):
            fn(z)
        assert fn(z.astype(jnp.float8_e5m2)).dtype == jnp.float8_e5m2


def test_sigma_is_that_of_the_classes_that_are_there() -> None:
    """Neither -inf nor what is masked is part of it, at any size of the logits and temperature."""
    z = np.array([4.0, 3.0, 2.0, 0.0, -1.0], np.float32)
    alone = np.isfinite(jl.keep_top_n_sigma(z, 1.0))
    np.testing.assert_array_equal(alone, n_sigma(z, 1.0))
    more = np.append(z, np.float32([-INF, NAN]))
    where = np.arange(7) < 6
    for scale in (1.0, 1e-30, 3e37):
        shaped = jl.keep_top_n_sigma(more * np.float32(scale), 1.0, where=where)
        np.testing.assert_array_equal(kept(shaped), [*alone, False, False])


def test_top_p_close_to_1() -> None:
    """What is cut off is summed, where 1 - 2**-20 of the whole is close to rounding."""
    z = np.array([0.0, *np.log(np.full(8, 2.0**-23))], np.float32)
    shaped = jl.keep_top_p(z + np.arange(9, dtype=np.float32) * 2**-8, np.float32(1 - 2.0**-22))
    # Each of the eight has about 2**-23: one can be cut off, two can't.
    np.testing.assert_array_equal(np.flatnonzero(~kept(shaped)), [1])


# Edges: every function, in one program each.

EDGES = {
    "-inf": ([1, 0, -INF], [True] * 3),
    "+inf": ([0, INF, 0], [True] * 3),
    "all -inf": ([-INF] * 3, [True] * 3),
    "NaN": ([0, NAN, 1], [True] * 3),
    "masked NaN": ([1, NAN, 0], [True, False, True]),
    "masked +inf": ([1, INF, 0], [True, False, True]),
    "all masked": ([NAN, INF, 0], [False] * 3),
    "two +inf": ([0, INF, INF], [True] * 3),
}


@each_function
def test_edges(name: str) -> None:
    z = np.array([row for row, _ in EDGES.values()], np.float32)
    where = np.array([mask for _, mask in EDGES.values()])
    parameter = 1 if name == "keep_top_k" else 0.5

    @functools.partial(jax.jit, static_argnums=1)
    def both(z: Any, k: Any) -> Any:
        traced = jnp.asarray(k)
        return [
            jax.value_and_grad(lambda z, p=p: total(getattr(jl, name)(z, p, where=where)), 0, True)(
                z
            )
            for p in (k, traced)
        ]

    def total(shaped: Any) -> Any:
        return jnp.sum(jnp.where(jnp.isfinite(shaped), shaped, 0.0)), shaped

    for (_, shaped), slope in both(z, parameter):
        got = dict(zip(EDGES, np.asarray(shaped), strict=True))
        np.testing.assert_array_equal(got["-inf"], [1, -INF, -INF])
        np.testing.assert_array_equal(got["+inf"], [-INF, INF, -INF])
        for edge in ("all -inf", "all masked"):
            np.testing.assert_array_equal(got[edge], [-INF] * 3)
        for edge in ("masked NaN", "masked +inf"):
            np.testing.assert_array_equal(got[edge], [1, -INF, -INF])
        np.testing.assert_array_equal(got["NaN"], [NAN] * 3)
        by_order = name in ("keep_top_k", "keep_min_p", "keep_top_n_sigma")
        np.testing.assert_array_equal(got["two +inf"], [-INF, INF, INF] if by_order else [NAN] * 3)
        want = np.where(np.isnan(shaped), NAN, np.isfinite(shaped))
        np.testing.assert_array_equal(slope, want)


@each_function
def test_layout_and_dtype(name: str) -> None:
    parameter = jnp.array([1, 2]) if name == "keep_top_k" else jnp.array([0.25, 0.75])
    z = rows(6).reshape(2, 12, 6)[:, :3]
    fn = jax.jit(getattr(jl, name), static_argnames="axis")
    along = np.moveaxis(fn(np.moveaxis(z, 0, -1), parameter[None], axis=1), -1, 0)
    np.testing.assert_array_equal(along, fn(z, parameter[:, None]))
    low = jnp.asarray(z, jnp.bfloat16)
    got = fn(low, parameter[:, None])
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, fn(low.astype(jnp.float32), parameter[:, None]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_thresholds_of_half_precision(dtype: Any) -> None:
    """They are searched among the numbers of that dtype, subnormal and infinite ones too."""
    z = np.array(jnp.asarray(rows(40), dtype).astype(jnp.float32))
    least = float(jnp.finfo(dtype).smallest_subnormal)
    if dtype == jnp.float16:  # those of bfloat16 are flushed to 0, as float32's are
        z[0] = least * np.arange(40)
    z[1, :4], z[2, 1:] = -INF, z[2, 0]
    for name, oracle, values in (
        ("keep_top_k", top_k, (1, 7, 39)),
        ("keep_top_p", top_p, (0.3, 0.9)),
    ):
        keep = jax.jit(getattr(jl, name))
        for value in values:
            kept = np.isfinite(keep(jnp.asarray(z, dtype), value))
            for got, row in zip(kept, z, strict=True):
                want = (row >= np.min(row[oracle(row, value)])) & (row > -INF)
                np.testing.assert_array_equal(got, want)


def test_float64(x64: None) -> None:  # noqa: ARG001
    for name, (oracle, parameters) in ORACLES.items():
        z = rows(20).astype(np.float64)
        parameter = jnp.asarray(parameters[1], int if name == "keep_top_k" else float)
        got = jax.jit(getattr(jl, name))(z, parameter)
        assert got.dtype == jnp.float64
        for row, shaped in zip(z, got, strict=True):
            np.testing.assert_array_equal(kept(shaped), oracle(row, parameters[1]))


# Transforms: what is kept is the identity, to any order.


def masked_by(name: str, parameter: Any) -> Callable[[Any, Any], Any]:
    def oracle(z: Any, where: Any) -> Any:
        stays = np.zeros(z.shape, bool)
        stays[where] = ORACLES[name][0](z[where].astype(float), parameter)
        return np.where(stays, z, -ro.mp.inf)

    return oracle


Z = np.array([[6.0, -1.5, 0.25, 5.5], [0.5, 1.75, -2.0, 1.5]], np.float32)
WHERE = np.array([[True, True, True, True], [True, False, True, True]])


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("keep_top_k", 2), ("keep_top_p", 0.75), ("keep_typical", 0.5), ("keep_eta", 0.25)],
)
def test_transforms(name: str, parameter: Any) -> None:
    case = tf.Case(
        name,
        lambda z, w: getattr(jl, name)(z, jnp.asarray(parameter), where=w),
        masked_by(name, parameter),
        (Z, WHERE),
    )
    f = tf.joined(case)
    exact = tf.exact(case)
    for results, want in zip(tf.of_each_order(f), exact, strict=True):
        for transform, got in results.items():
            np.testing.assert_array_equal(got, want, err_msg=transform)
    if name == "keep_top_p":
        for together, one_by_one in tf.vmapped(case):
            np.testing.assert_array_equal(together, one_by_one)
        for transform, got in tf.exported(case).items():
            np.testing.assert_array_equal(got, exact.value, err_msg=transform)


def test_refused() -> None:
    z = jnp.zeros([2, 3])
    for name in ORACLES:
        fn = getattr(jl, name)
        with pytest.raises(TypeError, match=r"^logits must be floating point, got int32\[2,3\]$"):
            fn(z.astype(jnp.int32), 1)
        low = 1 if name == "keep_top_k" else 0
        with pytest.raises(ValueError, match=rf"must be at least {low}"):
            fn(z, -1)
        parameter = "k" if name == "keep_top_k" else r"\w+"
        with pytest.raises(ValueError, match=rf"^{parameter} must broadcast to \[2\]"):
            fn(z, jnp.ones([3], jnp.int32))
    bad = jnp.array([-1, 1])
    for fn in (jl.keep_top_k, jl.keep_min_p):
        np.testing.assert_array_equal(np.isnan(fn(z, bad)), [[True] * 3, [False] * 3])
        with pytest.raises(ValueError, match=r"must be at least [01].*, got -1(\.0)? in row 0$"):
            jl.checked(fn)(z, bad)
    with pytest.raises(ValueError, match=r"^p must be at least 0 and at most 1, got 1.5$"):
        jl.keep_top_p(z, 1.5)
    with pytest.raises(TypeError, match=r"^k must be integers, got float32\[\]$"):
        jl.keep_top_k(z, 1.5)


# The order in which inference engines apply them: penalty, temperature, min-p, top-k, top-p.


@pytest.mark.newest
def test_in_the_order_of_vllm() -> None:
    z, counts = rows(50)[6:18], np.random.default_rng(1).integers(0, 2, size=[12, 50])

    @jax.jit
    def decode(z: Any, counts: Any) -> Any:
        z = jl.penalize_repetition(z, counts, 1.25)
        z = jl.apply_temperature(z, 0.75)
        return jl.keep_top_p(jl.keep_top_k(jl.keep_min_p(z, 0.01), 20), 0.9)

    for row, count, shaped in zip(z, counts, decode(z, counts), strict=True):
        want = row.astype(float)
        want = np.where(count > 0, np.where(want > 0, want / 1.25, want * 1.25), want) / 0.75
        for rule, parameter in ((min_p, 0.01), (top_k, 20), (top_p, 0.9)):
            stays = np.flatnonzero(want > -INF)
            left = np.full(50, False)
            left[stays] = rule(want[stays], parameter)
            want = np.where(left, want, -INF)
        np.testing.assert_allclose(shaped, want, rtol=2**-22)


# Hugging Face transformers, where it is installed.


@pytest.mark.newest
def test_transformers_keeps_the_same() -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    peers = {
        "keep_top_k": process.TopKLogitsWarper,
        "keep_top_p": process.TopPLogitsWarper,
        "keep_typical": process.TypicalLogitsWarper,
        "keep_min_p": process.MinPLogitsWarper,
        "keep_epsilon": process.EpsilonLogitsWarper,
        "keep_eta": lambda p: process.EtaLogitsWarper(p, device="cpu"),
    }
    for name, peer in peers.items():
        for z in (rows(50, seed=2), rows(1000, seed=3)):
            scores = torch.tensor(z.tolist(), dtype=torch.float64)
            for parameter in ORACLES[name][1]:
                if 0 < parameter < 1 or name == "keep_top_k":
                    want = peer(parameter)(None, scores.clone()).numpy() > -INF
                    got = kept(jax.jit(getattr(jl, name))(z, parameter))
                    np.testing.assert_array_equal(got, want, err_msg=f"{name} {parameter}")
    penalty = process.RepetitionPenaltyLogitsProcessor(1.5)
    ids = np.random.default_rng(0).integers(50, size=[24, 7])
    z = rows(50, seed=2)
    want = penalty(torch.tensor(ids.tolist()), torch.tensor(z.tolist())).numpy()
    counts = jax.nn.one_hot(ids, 50, dtype=int).sum(-2)
    np.testing.assert_allclose(jl.penalize_repetition(z, counts, 1.5), want, rtol=2**-23)
