"""Time softmax and its relatives, and losses of whole rows, against jax.nn and optax.

Run: python benchmarks/rows.py

It writes benchmarks/results/rows-<backend>.md.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from _cases import BY_NAME, Case, arrays
from _measure import compile_function, interleaved, machine, table, versions, write_result

CLASSES = (8, 128, 1000, 32000)
SIZE = 2**22  # logits
DTYPES = ("float32", "bfloat16")
ROUNDS, SECONDS = 60, 2.0


FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
LOSSES = ("softmax_cross_entropy", "softmax_kl_divergence")


def programs(case: Case, fn: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Forward, and what a training step asks for: a loss's mean, or something of each row.

    Of one class the cotangents are zeros but for a column, which XLA knows; else they are dense.
    """

    def mean(*args: Any) -> Any:
        return fn(*args).astype(jnp.float32).mean()

    def of_one(*args: Any) -> Any:
        result = fn(*args).astype(jnp.float32)
        return result.reshape(result.shape[0], -1)[:, 0].sum()

    def of_all(*args: Any) -> Any:
        return jnp.square(fn(*args).astype(jnp.float32)).mean()

    if case.name in LOSSES:
        return {"mean": mean, "value and gradient": jax.value_and_grad(mean)}
    return {
        "forward": fn,
        "gradient, one class": jax.value_and_grad(of_one),
        "gradient, squares": jax.value_and_grad(of_all),
    }


def measure(case: Case, classes: int, dtype: str) -> list[list[str]]:
    args = arrays(case.args, SIZE // classes, classes, dtype)
    rows = []
    pairs = zip(programs(case, case.peer).items(), programs(case, case.ours).values(), strict=True)
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
    for case in map(BY_NAME.get, FUNCTIONS + LOSSES):
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
        "mean is taken; of other functions the value and gradient of the sum of one class, whose "
        "cotangents are zeros in all other columns, and of the mean square, whose are dense. MiB "
        "are what the program asks for beside arguments and results, ours / theirs. The peers are "
        "`jax.nn`'s softmax, log_softmax and logsumexp, and optax's softmax_cross_entropy and "
        "kl_divergence (of `jax.nn.log_softmax` and `jax.nn.softmax`, as it takes no logits).",
        f"{machine()}. {versions('jax', 'jaxlib', 'optax')}.",
        table([*columns, "MiB"], rows),
    )


if __name__ == "__main__":
    main()
