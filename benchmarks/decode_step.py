"""Time of a decode step: a draw from logits, and one from their top-p, against what jax has.

Run: python benchmarks/decode_step.py

It writes benchmarks/results/decode-step-<backend>.md.
"""

from typing import Any

import jax
from _cases import TOP_P, arrays, top_p_by_sort
from _measure import compile_function, interleaved, machine, table, versions, write_result

import jaxlogits as jl

SHAPES = [(1, 128256), (32, 128256), (256, 32000), (32, 1000)]
DTYPES = ("float32", "bfloat16")
ROUNDS, SECONDS = 30, 15.0


def precise(key: Any, logits: Any) -> Any:
    """With as many random bits as ours."""
    return jax.random.categorical(key, logits, mode="high")


def plain_top_p(key: Any, logits: Any) -> Any:
    return jax.random.categorical(key, top_p_by_sort(logits))


def top_p(key: Any, logits: Any) -> Any:
    return jl.sample(key, jl.keep_top_p(logits, TOP_P))


STEPS = [(jax.random.categorical, precise, jl.sample), (plain_top_p, top_p)]


def main() -> None:
    rows = []
    for shape in SHAPES:
        for dtype in DTYPES:
            args = arrays("key logits", *shape, dtype)
            row = [f"[{shape[0]},{shape[1]}]", dtype]
            for functions in STEPS:
                calls = [compile_function(fn, *args).call for fn in functions]
                bound = [lambda call=call, args=args: call(*args) for call in calls]
                first, *others = interleaved(bound, rounds=ROUNDS, budget=SECONDS)
                row += [f"{1e3 * first.seconds:.2f}", *map(str, others)]
            rows.append(row)
            print(*row, sep=" | ", flush=True)
    columns = ["shape", "dtype", "categorical, ms", 'mode="high" / that', "sample / that"]
    columns += ["top-p by a sort and categorical, ms", "keep_top_p and sample / that"]
    write_result(
        "decode-step",
        "# A decode step: time",
        f"{machine()}; {versions('jax', 'numpy')}.",
        f"Written by `benchmarks/decode_step.py`: p = {TOP_P}, normal logits of deviation 3. Calls "
        "alternate in one process; a ratio is the median over neighbouring calls, with quartiles. "
        '`sample` has the random bits of `jax.random.categorical` with `mode="high"`.',
        table(columns, rows),
    )


if __name__ == "__main__":
    main()
