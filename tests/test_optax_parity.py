"""optax's functions, examples and numbers under our names, and what docs/differences.md lists."""

import doctest
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import jaxlogits as jl

pytestmark = pytest.mark.newest
INF, NAN = np.inf, np.nan
OPTAX = [
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "poly_loss_cross_entropy",
]
ours = jl.softmax_cross_entropy_with_integer_labels
theirs = optax.losses.softmax_cross_entropy_with_integer_labels


def documented(name: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(getattr(optax.losses, name).__doc__)


def test_optax_still_documents_its_functions_with_examples() -> None:
    """So that the next test runs something."""
    assert [name for name in OPTAX if documented(name)] == [
        "softmax_cross_entropy",
        "softmax_cross_entropy_with_integer_labels",
    ]


@pytest.mark.parametrize("name", OPTAX[2:4])
def test_examples_of_optax_with_the_import_changed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``import optax`` imports this library while optax's docstring runs as a doctest."""
    monkeypatch.setitem(sys.modules, "optax", jl)
    example = doctest.DocTest(documented(name), {}, name, None, None, None)
    with np.printoptions():
        results = doctest.DocTestRunner().run(example)
    assert results.attempted == len(documented(name))
    assert results.failed == 0


RNG = np.random.default_rng(0)
Z = RNG.normal(scale=3, size=[4, 3, 5]).astype(np.float32)
SOFT = RNG.dirichlet(np.ones(5), size=[4, 3]).astype(np.float32)
WHERE = np.broadcast_to(np.arange(5) % 4 != 3, Z.shape)
BINARY = (SOFT > 0.2).astype(np.float32)


def last(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape) % 3


CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "binary": ("sigmoid_binary_cross_entropy", (BINARY,), {}),
    "binary, soft": ("sigmoid_binary_cross_entropy", (SOFT,), {}),
    "binary, integers": ("sigmoid_binary_cross_entropy", (BINARY.astype(np.int32),), {}),
    "binary focal": ("sigmoid_focal_loss", (BINARY,), {}),
    "binary focal, options": ("sigmoid_focal_loss", (SOFT,), {"alpha": 0.25, "gamma": 1.5}),
    "dense": ("softmax_cross_entropy", (SOFT,), {}),
    "dense, axis": ("softmax_cross_entropy", (SOFT,), {"axis": 1}),
    "dense, axes": ("softmax_cross_entropy", (SOFT,), {"axis": (0, -1)}),
    "dense, where": ("softmax_cross_entropy", (SOFT * WHERE,), {"where": WHERE}),
    "integer": ("softmax_cross_entropy_with_integer_labels", (last(4, 3),), {}),
    "integer, axis": ("softmax_cross_entropy_with_integer_labels", (last(3, 5),), {"axis": 0}),
    "integer, axes": ("softmax_cross_entropy_with_integer_labels", (last(3),), {"axis": (2, 0)}),
    "integer, where": (
        "softmax_cross_entropy_with_integer_labels",
        (last(4, 3),),
        {"where": WHERE},
    ),
    "poly": ("poly_loss_cross_entropy", (SOFT,), {}),
    "poly, options": ("poly_loss_cross_entropy", (SOFT,), {"epsilon": -1.0, "axis": 1}),
}  # fmt: skip


@pytest.mark.parametrize(("name", "labels", "options"), CALLS.values(), ids=CALLS)
def test_values_and_gradients_of_optax(
    name: str, labels: tuple[Any, ...], options: dict[str, Any]
) -> None:
    options = {k: jnp.asarray(v) if k == "where" else v for k, v in options.items()}

    def both(module: Any) -> Any:
        fn = lambda z: getattr(module, name)(z, *map(jnp.asarray, labels), **options)  # noqa: E731
        value, pullback = jax.vjp(fn, jnp.asarray(Z))
        return value, pullback(jnp.ones_like(value))[0]

    for got, want in zip(
        jax.jit(lambda: both(jl))(), jax.jit(lambda: both(optax.losses))(), strict=True
    ):
        # optax subtracts numbers of up to 16 from each other, and adds up 20 of them.
        np.testing.assert_allclose(got, want, rtol=2**-18, atol=2**-18)


PEERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], np.ndarray]] = {
    "logit": (jax.scipy.special.logit, scipy.special.logit, SOFT),
    "sigmoid": (jax.nn.sigmoid, scipy.special.expit, Z),
    "log_sigmoid": (jax.nn.log_sigmoid, scipy.special.log_expit, Z),
    "softplus": (jax.nn.softplus, lambda x: np.logaddexp(x, 0), Z),
    "log1mexp": (jax.nn.log1mexp, lambda x: np.log(-np.expm1(-x)), SOFT),
    "logsumexp": (
        lambda z: jax.nn.logsumexp(z, axis=-1),
        lambda z: scipy.special.logsumexp(z, axis=-1),
        Z,
    ),
    "softmax": (jax.nn.softmax, lambda z: scipy.special.softmax(z, axis=-1), Z),
    "log_softmax": (jax.nn.log_softmax, lambda z: scipy.special.log_softmax(z, axis=-1), Z),
}


@pytest.mark.parametrize("name", PEERS)
def test_values_of_jax_and_scipy(name: str) -> None:
    in_jax, in_scipy, x = PEERS[name]
    got = getattr(jl, name)(x)
    np.testing.assert_allclose(got, in_scipy(x.astype(np.float64)), rtol=2**-20, atol=2**-22)
    np.testing.assert_allclose(got, in_jax(jnp.asarray(x)), rtol=2**-18, atol=2**-20)


def test_dense_targets_are_weights_in_both() -> None:
    """Also below 0; and what a target says of a masked class is left out."""
    z, targets = jnp.array([5.0, 0.0, 0.0]), jnp.array([2.0, -1.0, 0.5])
    where = jnp.array([False, True, True])
    for options in ({}, {"where": where}):
        want = optax.softmax_cross_entropy(z, targets, **options)
        got = jl.softmax_cross_entropy(z, targets, **options)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_masks_of_examples_and_axis_by_position_in_both() -> None:
    z, labels, where = jnp.zeros([2, 3]), jnp.array([0, 0]), jnp.array([True, False])
    want = theirs(z, labels, where=where)
    np.testing.assert_allclose(ours(z, labels, where=where), want, rtol=1e-6)
    np.testing.assert_allclose(ours(z.T, labels, 0), theirs(z.T, labels, 0), rtol=1e-6)


# Every line of docs/differences.md: what is there, and what is here.

DIFFERENCES: dict[str, Callable[[], None]] = {}


def difference(case: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(test: Callable[[], None]) -> Callable[[], None]:
        DIFFERENCES[case] = test
        return test

    return add


def lines_of_the_page() -> list[str]:
    page = Path(__file__).parents[1] / "docs" / "differences.md"
    cases = re.findall(r"^\| (.+?) \|", page.read_text(), re.MULTILINE)
    return [case.replace("`", "") for case in cases if case != "case"]


def test_every_line_of_the_page_has_a_test() -> None:
    assert lines_of_the_page() == list(DIFFERENCES)


@pytest.mark.parametrize("case", lines_of_the_page())
def test_difference(case: str) -> None:
    DIFFERENCES[case]()


def array(*numbers: float) -> jax.Array:
    return jnp.array(numbers, jnp.float32)


@difference("a correct prediction with a margin of 17 or more")
def margin() -> None:
    z, label = array(17, 0, 0), jnp.array(0)
    loss, gradient = jax.value_and_grad(theirs)(z, label)
    assert (loss, gradient[0]) == (0, 0)
    loss, gradient = jax.value_and_grad(ours)(z, label)
    np.testing.assert_allclose([loss, -gradient[0]], 2 * np.exp(-17.0), rtol=2e-7)


@difference("derivative of the sigmoid from 17 on")
def slope() -> None:
    assert jax.grad(jax.nn.sigmoid)(17.0) == 0
    np.testing.assert_allclose(jax.grad(jl.sigmoid)(17.0), np.exp(-17.0), rtol=2e-7)


@difference("float16 with more than 65,504 classes")
def many_classes() -> None:
    z, label = jnp.zeros([70_000], jnp.float16), jnp.array(0)
    assert (jax.nn.softmax(z)[0], theirs(z, label)) == (0, INF)
    np.testing.assert_allclose(jl.softmax(z)[0], 1 / 70_000, rtol=2**-8)
    np.testing.assert_allclose(ours(z, label), np.log(70_000), rtol=1e-6)


@difference("dtype of losses and logsumexp")
def dtype() -> None:
    z, label = jnp.zeros([3], jnp.bfloat16), jnp.array(0)
    assert theirs(z, label).dtype == jax.nn.logsumexp(z).dtype == jnp.bfloat16
    assert ours(z, label).dtype == jl.logsumexp(z).dtype == jnp.float32


@difference("one logit is +inf")
def plus_inf() -> None:
    z, label = array(INF, 0), jnp.array(0)
    assert np.isnan([*jax.nn.softmax(z), theirs(z, label)]).all()
    assert [*jl.softmax(z), ours(z, label)] == [1, 0, 0]


@difference("a logit is -inf where a dense target is 0")
def minus_inf() -> None:
    z, targets = array(0, -INF, 0), array(1, 0, 0)
    assert np.isnan(optax.softmax_cross_entropy(z, targets))
    np.testing.assert_allclose(jl.softmax_cross_entropy(z, targets), np.log(2), rtol=1e-6)


@difference("gradient of logsumexp if all logits are -inf")
def nothing() -> None:
    z = array(-INF, -INF)
    assert np.isnan(jax.grad(jax.nn.logsumexp)(z)).all()
    assert jax.grad(jl.logsumexp)(z).tolist() == [0, 0]


@difference("binary loss at ±inf where it matches the label")
def sure() -> None:
    x, labels = array(INF, -INF), array(1, 0)
    for name in ("sigmoid_binary_cross_entropy", "sigmoid_focal_loss"):
        assert np.isnan(getattr(optax, name)(x, labels)).all()
        assert getattr(jl, name)(x, labels).tolist() == [0, 0]


@difference("integer label -1")
def last_class() -> None:
    z, label = array(0, 0, 5), jnp.array(-1)
    assert theirs(z, label) == theirs(z, jnp.array(2))
    assert np.isnan(ours(z, label))


@difference("gradient for a label outside [0, K)")
def outside() -> None:
    z, label = array(0, 0, 5), jnp.array(3)
    assert np.isfinite(jax.grad(theirs)(z, label)).all()
    assert np.isnan(jax.grad(ours)(z, label)).all()


@difference("binary label outside [0, 1]")
def bad_targets() -> None:
    z, targets = array(0, 0), array(2, -1)
    assert np.isfinite(optax.sigmoid_binary_cross_entropy(z, targets)).all()
    assert np.isnan(jl.sigmoid_binary_cross_entropy(z, targets)).all()


@difference("the integer label's class is masked by where")
def masked_label() -> None:
    z, where = array(5, 0, 0), jnp.array([False, True, True])
    assert theirs(z, jnp.array(0), where=where) < 0
    assert ours(z, jnp.array(0), where=where) == INF


@difference("derivative of logit or log1mexp outside its domain")
def domain() -> None:
    for peer, fn in ((jax.scipy.special.logit, jl.logit), (jax.nn.log1mexp, jl.log1mexp)):
        assert np.isnan([peer(-0.25), fn(-0.25), jax.grad(fn)(-0.25)]).all()
        assert np.isfinite(jax.grad(peer)(-0.25))


@difference("two equal logits of 1e7, drawn by jax.random.categorical or Gumbel-max")
def draws_at_an_offset() -> None:
    key, z, num_draws = jax.random.key(0), array(1e7, 1e7), 20_000
    classes = jax.random.categorical(key, z, shape=(num_draws,))
    assert 0.6 < np.mean(classes == 0) < 0.65
    # 5 standard deviations.
    assert abs(np.mean(jl.sample(key, z, shape=(num_draws,)) == 0) - 0.5) < 2.5 / num_draws**0.5


@difference("float16 [100, 90] over a temperature of 1e-3, then softmax")
def cold() -> None:
    z = jnp.array([100, 90], jnp.float16)
    assert np.isnan(jax.nn.softmax(z / jnp.float16(1e-3))).all()
    assert jax.nn.softmax(jl.apply_temperature(z, 1e-3)).tolist() == [1, 0]


@difference("half-precision logits fused under jit")
def fused() -> None:
    """A product and a bias, where XLA may leave out the caller's roundings, but not ours."""
    rng = np.random.default_rng(0)
    sizes = {"h": (64, 32), "k": (32, 100), "b": (100,)}
    scales = {"h": 1, "k": 3, "b": 20}
    h, k, b = (jnp.bfloat16(rng.normal(size=s) * scales[n]) for n, s in sizes.items())

    def logits(h: jax.Array, k: jax.Array, b: jax.Array) -> jax.Array:
        return h @ k + b[None, :]

    labels = jnp.argmax(logits(h, k, b), axis=-1)
    twice = ours(logits(h, k, b), labels)
    got = jax.jit(lambda *layer: ours(logits(*layer), labels))(h, k, b)
    product = np.asarray(h, np.float32) @ np.asarray(k, np.float32)
    once = ours(jnp.bfloat16(product + np.asarray(b, np.float32)[None]), labels)
    worst = min(np.abs(got - want).max() for want in (once, twice))
    assert worst < 1e-5


@difference("integer or boolean logits")
def integers() -> None:
    z = jnp.array([0, 1])
    for peer, fn in ((jax.nn.softmax, jl.softmax), (jax.scipy.special.logit, jl.logit)):
        assert peer(z).dtype == jnp.float32
        with pytest.raises(TypeError, match="must be floating point"):
            fn(z)


@difference("labels that broadcast to the logits")
def broadcast() -> None:
    z, targets = jnp.zeros([2, 3]), jnp.array([[1.0, 0.0, 0.0]])
    for name in ("softmax_cross_entropy", "sigmoid_binary_cross_entropy"):
        assert np.isfinite(getattr(optax, name)(z, targets)).all()
        with pytest.raises(ValueError, match="labels must have the shape of logits"):
            getattr(jl, name)(z, targets)


@difference("dense targets of integers or booleans in the poly loss")
def poly_integers() -> None:
    z, targets = array(0, 0), jnp.array([1, 0])
    with pytest.raises(TypeError, match="floating"):
        optax.losses.poly_loss_cross_entropy(z, targets)
    np.testing.assert_allclose(jl.poly_loss_cross_entropy(z, targets), np.log(2) + 1, rtol=1e-6)


@difference("where with one dimension fewer, in softmax and similar functions")
def mask_of_lower_rank() -> None:
    z, where = jnp.zeros([2, 3]), jnp.array([True, True, False])
    with pytest.raises(ValueError, match=r"write where\[:, None\] for rows or where\[None, :\]"):
        jl.softmax(z, where=where)
    got = jl.softmax(z, where=where[None, :])
    assert got.tolist() == [[0.5, 0.5, 0.0]] * 2


@difference("axis=None")
def no_axis() -> None:
    z = jnp.zeros([2, 3])
    assert jax.nn.softmax(z, axis=None)[0, 0] < 0.2
    assert optax.softmax_cross_entropy(z, z, axis=None).shape == ()
    for fn in (lambda: jl.softmax(z, axis=None), lambda: jl.softmax_cross_entropy(z, z, axis=None)):
        with pytest.raises(TypeError, match="axis must be"):
            fn()


@difference("default axis of logsumexp, and of SciPy's softmax")
def default_axis() -> None:
    z = jnp.zeros([2, 3])
    assert (jax.nn.logsumexp(z).shape, jl.logsumexp(z).shape) == ((), (2,))
    assert scipy.special.softmax(z)[0, 0] < 0.2 < jl.softmax(z)[0, 0]


@difference("b, keepdims, return_sign of logsumexp")
def extras() -> None:
    for option in ({"b": 2.0}, {"keepdims": True}, {"return_sign": True}):
        jax.nn.logsumexp(jnp.zeros([3]), **option)
        with pytest.raises(TypeError, match="unexpected keyword"):
            jl.logsumexp(jnp.zeros([3]), **option)
