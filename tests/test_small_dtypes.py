"""float8 and float4 logits: some of these dtypes have no infinity, no NaN or no sign."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxlogits as jl

DTYPES = [
    name
    for name in (
        *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz", "float4_e2m1fn"),
    )
    if hasattr(jnp, name)
]
LOGITS = np.array([[0.5, -2.0, 3.0, 1.5], [-0.5, 1.0, 1.0, 4.0], [2.0, 0.0, -1.0, 6.0]])
WHERE = np.array([[True, True, False, True], [True, False, True, True], [False] * 4])
LABELS = np.array([0, 3, 1])


def exact() -> dict[str, np.ndarray]:
    exps = np.where(WHERE, np.exp(LOGITS), 0.0)
    total = exps.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = np.log(total)
        softmax = np.where(WHERE, exps / total[:, None], 0.0)
        loss = np.where(WHERE.any(-1), lse - LOGITS[np.arange(3), LABELS], 0.0)
    return {"logsumexp": lse, "softmax": softmax, "loss": loss}


@pytest.mark.parametrize("name", DTYPES)
def test_a_masked_class_never_counts(name: str) -> None:
    z = jnp.asarray(LOGITS).astype(getattr(jnp, name))  # all of them are numbers of each dtype

    @jax.jit
    def results(z: Any) -> dict[str, Any]:
        loss = jl.softmax_cross_entropy_with_integer_labels
        return {
            "logsumexp": jl.logsumexp(z, where=WHERE),
            "softmax": jl.softmax(z, where=WHERE),
            "loss": loss(z, jnp.asarray(LABELS), where=WHERE),
        }

    for key, want in exact().items():
        got = np.asarray(results(z)[key]).astype(float)
        # Softmax comes back in the dtype of the logits: the nearest of its numbers.
        near = want.astype(getattr(ml_dtypes, name)).astype(float) if key == "softmax" else want
        np.testing.assert_allclose(got, near, rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", DTYPES)
def test_elementwise(name: str) -> None:
    z = jnp.asarray(LOGITS).astype(getattr(jnp, name))
    want = (1 / (1 + np.exp(-LOGITS))).astype(getattr(ml_dtypes, name)).astype(float)
    np.testing.assert_array_equal(np.asarray(jl.sigmoid(z)).astype(float), want)


def test_a_dtype_without_a_sign_is_refused() -> None:
    z = jnp.ones([2, 3]).astype(jnp.float8_e8m0fnu)
    for fn in (jl.softmax, jl.sigmoid, jl.entropy):
        with pytest.raises(TypeError, match=r"^logits must have a signed dtype, got float8_e"):
            fn(z)
