"""The rank of ``where`` says what it masks, and masking is leaving out."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlogits as jl

# As many rows as classes, so that nothing but the rank tells what a mask is of.
LOGITS = np.array([[2.0, -1, 0.5], [0.0, 3, 1], [1.5, 0.25, -2]], np.float32)
OTHER = LOGITS[::-1] * 0.75
LABELS = np.array([0, 2, 1])
TARGETS = np.array([[0.5, 0.5, 0], [0, 0.25, 0.75], [0.2, 0.3, 0.5]], np.float32)
ROWS = np.array([True, False, True])

INTEGER_LOSSES = (
    "softmax_cross_entropy_with_integer_labels",
    "softmax_focal_loss_with_integer_labels",
    "entmax_loss_with_integer_labels",
)
DENSE_LOSSES = ("softmax_cross_entropy", "poly_loss_cross_entropy", "entmax_loss")
ONE_PER_ROW: dict[str, Callable[..., Any]] = {
    "entropy": jl.entropy,
    "softmax_kl_divergence": lambda z, **o: jl.softmax_kl_divergence(z, OTHER, **o),
    "jensen_shannon_divergence": lambda z, **o: jl.jensen_shannon_divergence(z, OTHER, **o),
    "total_variation": lambda z, **o: jl.total_variation(z, OTHER, **o),
    "softmax_cross_entropy_with_teacher_logits": lambda z, **o: (
        jl.softmax_cross_entropy_with_teacher_logits(z, OTHER, **o)
    ),
    **{
        name: functools.partial(lambda name, t, z, **o: getattr(jl, name)(z, t, **o), name, labels)
        for labels, names in (
            (LABELS, INTEGER_LOSSES),
            (TARGETS, DENSE_LOSSES),
        )
        for name in names
    },
}
# These return classes, or -inf for a row without one.
OF_CLASSES: dict[str, Callable[..., Any]] = {
    "softmax": jl.softmax,
    "log_softmax": jl.log_softmax,
    "logsumexp": jl.logsumexp,
    "class_log_odds": jl.class_log_odds,
    "sparsemax": jl.sparsemax,
    "keep_top_p": lambda z, **o: jl.keep_top_p(z, 0.5, **o),
    "sample": lambda z, **o: jl.sample(jax.random.key(0), z, **o),
}


@pytest.mark.parametrize("name", ONE_PER_ROW)
def test_a_mask_of_rows(name: str) -> None:
    """It costs 0, without a gradient, whatever the row holds; the others are as they were."""
    fn = ONE_PER_ROW[name]
    bad = np.where(ROWS[:, None], LOGITS, np.nan)

    def slopes_and_values(z: Any, where: Any) -> Any:
        def total(z: Any) -> Any:
            values = fn(z, where=where)
            return values.sum(), values

        return jax.grad(total, has_aux=True)(z)

    @jax.jit
    def everything(bad: Any, where: Any) -> Any:
        masked = slopes_and_values(bad, where), slopes_and_values(bad, where[:, None])
        return *masked, fn(jnp.asarray(LOGITS))

    (gradient, got), (as_classes, by_classes), plain = everything(bad, ROWS)
    np.testing.assert_allclose(got, np.where(ROWS, plain, 0.0), rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[~ROWS] == 0).all()
    np.testing.assert_array_equal(by_classes, got)
    np.testing.assert_array_equal(as_classes, gradient)


@pytest.mark.parametrize("name", [*ONE_PER_ROW, *OF_CLASSES])
def test_a_mask_of_neither_rank_is_refused(name: str) -> None:
    fn = (ONE_PER_ROW | OF_CLASSES)[name]
    batch = np.stack([LOGITS, LOGITS])
    with pytest.raises(ValueError, match=r"^(where|labels|logits|teacher).* must "):
        fn(batch, where=np.ones(3, bool))
    if name in OF_CLASSES:
        with pytest.raises(ValueError, match=r"got bool\[3\]: write where\[:, None\] for rows or"):
            fn(LOGITS, where=ROWS)


def test_a_mask_of_numbers_is_refused_with_the_cure() -> None:
    with pytest.raises(TypeError, match=r"^where must be boolean, got int32.*: write where != 0$"):
        jl.entropy(LOGITS, where=ROWS.astype(np.int32))


def test_several_axes_of_classes() -> None:
    z = jnp.asarray(np.stack([LOGITS, LOGITS * 2, OTHER]))
    want = np.where(ROWS, jl.entropy(z, axis=(1, 2)), 0.0)
    np.testing.assert_allclose(jl.entropy(z, axis=(1, 2), where=ROWS), want, rtol=1e-6)
    by_classes = jl.entropy(z, axis=(1, 2), where=ROWS[:, None, None])
    np.testing.assert_allclose(by_classes, want, rtol=1e-6)
