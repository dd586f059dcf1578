"""What users do: every function that a peer has, compiled and eager, from a decode step to a batch.

Run: python benchmarks/functions.py [--sizes 1x128256 4096x2 ...] [--cases softmax ...]

It writes benchmarks/results/functions-<backend>.md. A value and its gradient are those of the mean
of a loss, or of the mean square of a map.
"""

import argparse
from typing import Any

from _cases import BY_NAME, Case, arrays, programs
from _measure import compile_function, interleaved, machine, table, versions, write_result

SIZES = ("32x10", "65536x2", "1x128256", "8x262144")  # the first is all dispatch
COLUMNS = ("value", "value and gradient", "compile time", "eager")


def ratios(case: Case, size: tuple[int, int], seconds: float) -> list[str]:
    """Our time over the peer's: compiled, to compile, and eager."""
    args = arrays(case.args, *size)
    fns = [case.peer, case.ours]
    cells = {}
    compile_seconds = [0.0, 0.0]
    for kind in programs(case, case.ours):
        compiled = [compile_function(programs(case, fn)[kind], *args) for fn in fns]
        calls = [lambda c=c: c.call(*args) for c in compiled]
        cells[kind] = cell(calls, seconds)
        compile_seconds = [s + c.seconds for s, c in zip(compile_seconds, compiled, strict=True)]
    eager = cell([lambda fn=fn: fn(*args) for fn in fns], seconds)
    compiling = f"{compile_seconds[1] / compile_seconds[0]:.2f}"
    return [cells["value"], cells.get("gradient", ""), compiling, eager]


def cell(calls: list[Any], seconds: float) -> str:
    theirs, ours = interleaved(calls, budget=seconds)
    time = f"{1e3 * theirs.seconds:.3g}"
    return f"{ours} of {time} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=[n for n, c in BY_NAME.items() if c.peer])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="rows x classes")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each comparison")
    options = parser.parse_args()
    rows: list[list[str]] = []
    for size in options.sizes:
        shape = tuple(int(n) for n in size.split("x"))
        for name in options.cases:
            row = [name, f"[{size.replace('x', ',')}]"]
            rows.append(row + ratios(BY_NAME[name], shape, options.seconds))
            print(*rows[-1], sep=" | ", flush=True)
        write(rows)  # after each size, as all of them take a while


def write(rows: list[list[str]]) -> None:
    write_result(
        "functions",
        "# Every function that a peer has: time",
        f"{machine()}; {versions('jax', 'optax', 'numpy')}.",
        "Written by `benchmarks/functions.py`, in float32: our time over that of `jax.nn`, optax "
        "or what people write (`benchmarks/_cases.py`), whose time stands behind. Calls alternate "
        "in one process; a ratio is the median over neighbouring calls, with quartiles. Gradients "
        "are those of the mean of a loss, or of the mean square of a map. The time to "
        "compile is that of both programs.",
        table(["function", "shape", *COLUMNS], rows),
    )


if __name__ == "__main__":
    main()
