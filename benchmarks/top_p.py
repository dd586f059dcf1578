"""Top-p by a search for the threshold, against a full sort of the vocabulary."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from _cases import TOP_P, top_p_by_sort
from _measure import compile_function, interleaved, machine, table, versions, write_result

import jaxlogits as jl

NUM_CLASSES = 128256
BATCHES = [1, 32, 256]
SCALES = [1.0, 3.0]  # of a row's logits: thousands of classes in the nucleus, or tens
ROUNDS, SECONDS = 30, 20.0


def by_search(logits: Any) -> Any:
    return jl.keep_top_p(logits, TOP_P)


def main() -> None:
    rows = []
    for batch in BATCHES:
        for scale in SCALES:
            logits = np.random.default_rng(0).normal(scale=scale, size=[batch, NUM_CLASSES])
            logits = jnp.asarray(logits, jnp.float32)
            calls = [
                compile_function(function, logits).call for function in (top_p_by_sort, by_search)
            ]
            sizes = [np.sum(np.asarray(call(logits)) > -np.inf, axis=-1) for call in calls]
            # Nobody is fast by being wrong; sums in another order may move one class in thousands.
            np.testing.assert_allclose(*sizes, rtol=1e-3)
            bound = [lambda call=call, z=logits: call(z) for call in calls]
            sort, ours = interleaved(bound, rounds=ROUNDS, budget=SECONDS)
            row = [f"[{batch},{NUM_CLASSES}]", f"{scale:g}", f"{np.mean(sizes[1]):.0f}"]
            row += [f"{1e3 * timing.seconds:.2f}" for timing in (sort, ours)]
            rows.append([*row, str(ours)])
            print(*rows[-1], sep=" | ", flush=True)
    columns = ["shape", "deviation of the logits", "classes kept", "sort, ms", "search, ms"]
    write_result(
        "top-p",
        "# Top-p without a sort: time",
        f"{machine()}; {versions('jax', 'numpy')}.",
        f"Written by `benchmarks/top_p.py`: p = {TOP_P}, normal logits in float32. Calls of the "
        "two alternate in one process; a ratio is the median over neighbouring calls.",
        table([*columns, "search / sort, median (quartiles)"], rows),
    )


if __name__ == "__main__":
    main()
