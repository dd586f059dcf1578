"""Time softmax and its relatives, and losses of whole rows, against jax.nn and optax.

Run: python benchmarks/rows.py

It writes benchmarks/results/rows-<backend>.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import compile_function, interleaved, machine, table, versions, write_result

import jaxlogits as jl

CLASSES = (8, 128, 1000, 32000)
SIZE = 2**22  # logits
DTYPES = ("float32", "bfloat16")
ROUNDS, SECONDS = 60, 2.0


class Case(NamedTuple):
    """A function, its peer and what a caller makes of either's result."""

    name: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    is_loss: bool


def _kl(p: Any, q: Any) -> Any:
    return optax.kl_divergence(jax.nn.log_softmax(q), jax.nn.softmax(p))


CASES = [
    Case("softmax", jl.softmax, jax.nn.softmax, False),
    Case("log_softmax", jl.log_softmax, jax.nn.log_softmax, False),
    Case("logsumexp", jl.logsumexp, lambda z: jax.nn.logsumexp(z, axis=-1), False),
    Case("softmax_cross_entropy", jl.softmax_cross_entropy, optax.softmax_cross_entropy, True),
    Case("softmax_kl_divergence", jl.softmax_kl_divergence, _kl, True),
]


def programs(case: Case, fn: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Forward, and what a training step asks for: a loss's mean, or one class of each row."""

    def number(*args: Any) -> Any:
        result = fn(*args).astype(jnp.float32)
        return result.mean() if case.is_loss else result.reshape(result.shape[0], -1)[:, 0].sum()

    forward = number if case.is_loss else fn
    return {"forward": forward, "value and gradient": jax.value_and_grad(number)}


def measure(case: Case, classes: int, dtype: str) -> list[list[str]]:
    rng = np.random.default_rng(0)
    shape = (SIZE // classes, classes)
    z = jnp.asarray(3 * rng.standard_normal(shape, np.float32), dtype)
    other = 3 * rng.standard_normal(shape, np.float32)
    if case.name == "softmax_cross_entropy":
        other = np.asarray(jax.nn.softmax(other))
    args = (z, jnp.asarray(other, dtype)) if case.is_loss else (z,)
    rows = []
    pairs = zip(
        programs(case, case.theirs).items(), programs(case, case.ours).values(), strict=True
    )
    for (kind, peer), ours in pairs:
        compiled = [compile_function(fn, *args) for fn in (peer, ours)]
        calls = [lambda c=c: c.call(*args) for c in compiled]
        theirs, mine = interleaved(calls, rounds=ROUNDS, budget=SECONDS)
        memory = " / ".join(f"{c.temp_bytes / 2**20:.0f}" for c in reversed(compiled))
        times = [f"{1e3 * t.seconds:.1f}" for t in (theirs, mine)]
        rows.append([case.name, str(classes), dtype, kind, *times, str(mine), memory])
    return rows


def main() -> None:
    rows = []
    for case in CASES:
        for dtype in DTYPES:
            for classes in CLASSES:
                rows += measure(case, classes, dtype)
                print(*rows[-2:], sep="\n", flush=True)
    columns = ["function", "classes", "dtype", "program", "ms theirs", "ms ours", "ours / theirs"]
    write_result(
        "rows",
        "# Softmax and losses of whole rows",
        f"Written by `benchmarks/rows.py`: {SIZE} logits in rows of so many classes. Calls are "
        "interleaved; ratios are medians over neighbouring calls, with quartiles. Of a loss the "
        "mean is taken, of other functions' gradients that of one class. MiB are what the program "
        "asks for beside arguments and results, ours / theirs. The peers are `jax.nn`'s softmax, "
        "log_softmax and logsumexp, and optax's softmax_cross_entropy and kl_divergence (of "
        "`jax.nn.log_softmax` and `jax.nn.softmax`, as it takes no logits).",
        f"{machine()}. {versions('jax', 'jaxlib', 'optax')}.",
        table([*columns, "MiB"], rows),
    )


if __name__ == "__main__":
    main()
