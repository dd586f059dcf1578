"""Speculative sampling at ten million requests: whether what comes out is the target's.

Drafts are drawn from one model and verified by another, for several pairs of models. Of each place
the counts of the classes are compared with the target's probabilities, and those of accepted drafts
with one less the total variation, by chi-squared tests.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from _measure import machine, table, versions, write_result

import jaxlogits as jl

BATCH, BATCHES = 2**16, 160
INF = np.inf
TARGET = np.float32([[0, 1, -1, 2, -INF], [1, 0, 0, -2, 0.5], [0, 0, 3, 1, -1]])
OTHER = np.float32([[1, -1, 0, 2, 0.5], [1, 0, -INF, -2, -INF]])
DRAFTS = {
    "another model": OTHER,
    "nearly the same": TARGET[:2] + np.float32([0, 2.0**-9, 0, -(2.0**-9), 0]),
    "the same": TARGET[:2],
}


@jax.jit
def counts(q: Any, temperature: Any) -> Any:
    """How often each place had each class ``[3, 5]``, and how often 0, 1 and 2 were accepted."""

    def one(key: Any) -> Any:
        to_draft, to_verify = jax.random.split(key)
        drafts = jl.sample(to_draft, q, temperature=temperature)
        return jl.speculative_sample(to_verify, drafts, q, TARGET, temperature=temperature)

    def batch(total: Any, key: Any) -> Any:
        classes, accepted = jax.vmap(one)(jax.random.split(key, BATCH))
        of_class = jax.nn.one_hot(classes, 5, dtype=jnp.int32).sum(axis=0)
        of_number = jax.nn.one_hot(accepted, 3, dtype=jnp.int32).sum(axis=0)
        return jax.tree.map(jnp.add, total, (of_class, of_number)), None

    start = jnp.zeros([3, 5], jnp.int32), jnp.zeros([3], jnp.int32)
    return jax.lax.scan(batch, start, jax.random.split(jax.random.key(0), BATCHES))[0]


def softmax(z: Any) -> Any:
    z = np.asarray(z, float)
    e = np.exp(z - np.max(z, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def p_value(observed: Any, probs: Any) -> str:
    """Of the counts, if those of probability 0 are 0."""
    possible = probs > 0
    assert not observed[~possible].any()
    expected = probs[possible] / probs[possible].sum() * observed.sum()
    return f"{scipy.stats.chisquare(observed[possible], expected).pvalue:.2g}"


def main() -> None:
    rows = []
    for name, q in DRAFTS.items():
        for temperature in (1.0, 0.7):
            of_class, of_number = map(np.asarray, counts(q, jnp.float32(temperature)))
            p_probs, q_probs = (softmax(z.astype(float) / temperature) for z in (TARGET, q))
            first, second = np.minimum(p_probs[:2], q_probs).sum(axis=-1)
            numbers = np.array([1 - first, first * (1 - second), first * second])
            numbers = np.where(numbers < 1e-12, 0.0, numbers)
            places = [p_value(*x) for x in zip(of_class, p_probs, strict=True)]
            row = [name, f"{temperature:g}", f"{of_class.sum():,}", *places]
            row += [f"{1 - numbers[0]:.6f}", f"{1 - of_number[0] / of_number.sum():.6f}"]
            row.append(p_value(of_number, numbers) if numbers.max() < 1 - 1e-9 else "all accepted")
            rows.append(row)
            print(*row, sep=" | ", flush=True)
    columns = ["draft", "temperature", "classes drawn", "p, place 0", "p, place 1", "p, place 2"]
    columns += ["first accepted, exactly", "counted", "p, number accepted"]
    write_result(
        "speculative",
        "# Speculative sampling: counts against the target",
        f"{machine()}; {versions('jax', 'numpy', 'scipy')}.",
        f"Written by `benchmarks/speculative.py`: {BATCH * BATCHES:,} requests of two drafts and "
        "five classes for each row, in float32. p is that of a chi-squared test; one below "
        "0.001 in all of these would be chance in one of 40 runs.",
        table(columns, rows),
    )


if __name__ == "__main__":
    main()
