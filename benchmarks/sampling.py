"""How often rare classes are drawn: ours, and jax.random.categorical by default.

One sure class and 63 rare ones of probability q each: the rare ones' share of many draws, over what
it should be, with its standard error.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _measure import machine, table, versions, write_result

import jaxlogits as jl

NUM_RARE = 63
PROBS = [1e-6, 1e-7, 1e-8]
BATCH, BATCHES = 2**16, 512

Sampler = Callable[[Any, Any], Any]
SAMPLERS: dict[str, Sampler] = {
    "jaxlogits": lambda key, logits: jl.sample(key, logits, shape=(BATCH,)),
    "jax.random.categorical": lambda key, logits: jax.random.categorical(
        key, logits, shape=(BATCH,)
    ),
}


def count_rare(sampler: Sampler, logits: Any) -> int:
    """How many of all draws are rare classes."""

    def batch(count: Any, key: Any) -> Any:
        return count + jnp.sum((sampler(key, logits) > 0).astype(jnp.int32)), None

    keys = jax.random.split(jax.random.key(0), BATCHES)
    return int(jax.jit(lambda keys: jax.lax.scan(batch, jnp.int32(0), keys)[0])(keys))


def main() -> None:
    rows = []
    for prob in PROBS:
        logits = np.log(np.array([1 - NUM_RARE * prob, *[prob] * NUM_RARE]))
        expected = BATCH * BATCHES * NUM_RARE * prob
        row = [f"{prob:g}", f"{expected:.1f}"]
        for sampler in SAMPLERS.values():
            count = count_rare(sampler, jnp.asarray(logits, jnp.float32))
            row += [str(count), f"{count / expected:.3f} ± {expected**-0.5:.3f}"]
        rows.append(row)
        print(*row, sep=" | ", flush=True)
    columns = ["probability of each", "expected"]
    for name in SAMPLERS:
        columns += [f"drawn by {name}", "over expected"]
    write_result(
        "sampling",
        "# Rare classes: how often they are drawn",
        f"{machine()}; {versions('jax', 'numpy')}.",
        f"Written by `benchmarks/sampling.py`: {BATCH * BATCHES:,} draws from one likely class and "
        f"{NUM_RARE} rare ones, in float32.",
        table(columns, rows),
    )


if __name__ == "__main__":
    main()
