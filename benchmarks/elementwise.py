"""Time logit, sigmoid, log_sigmoid, softplus and log1mexp against jax.nn, scipy's names and torch.

Run: python benchmarks/elementwise.py [--torch-python PYTHON]

It writes benchmarks/results/elementwise-<backend>.md. torch is timed in a process of its own, by
this Python or the one given, so that the two thread pools don't compete; its times stand beside the
others, but no ratio is taken across processes.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SHAPES = ((2**20,), (4096, 4096))
DTYPES = ("float32", "bfloat16")
KINDS = ("forward", "gradient", "value and gradient")
ROUNDS, SECONDS = 100, 6.0
# The largest ratio to jax.nn that was asked for, in float32.
TARGETS = {
    ("softplus", "forward"): 0.8,
    ("log1mexp", "forward"): 0.75,
    ("log_sigmoid", "gradient"): 0.5,
    ("sigmoid", "forward"): 1.25,
    ("logit", "forward"): 1.45,
}


class Case(NamedTuple):
    """A function and arguments as they occur."""

    name: str
    sample: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Log-odds as a model makes them."""
    return 3 * rng.standard_normal(shape, np.float32)


CASES = [
    Case("logit", lambda rng, shape: rng.random(shape, np.float32)),
    Case("sigmoid", normal),
    Case("log_sigmoid", normal),
    Case("softplus", normal),
    Case("log1mexp", lambda rng, shape: np.abs(normal(rng, shape))),
]


def measure_jax(torch: dict[str, float]) -> list[list[str]]:
    import jax
    import jax.numpy as jnp
    from _measure import compile_function, interleaved

    import jaxlogits as jl

    def of_kind(function: Callable[[Any], Any], kind: str) -> Callable[[Any], Any]:
        def both(x: Any) -> Any:
            value, pull = jax.vjp(function, x)
            (slope,) = pull(jnp.ones_like(value))
            return slope if kind == "gradient" else (value, slope)

        return function if kind == "forward" else both

    rows = []
    for case, shape, dtype, kind in settings():
        x = jnp.asarray(case.sample(np.random.default_rng(0), shape), dtype)
        peer = getattr(jax.scipy.special if case.name == "logit" else jax.nn, case.name)
        compiled = [
            compile_function(of_kind(function, kind), x)
            for function in (peer, getattr(jl, case.name))
        ]
        calls = [lambda c=c, x=x: c.call(x) for c in compiled]
        theirs, ours = interleaved(calls, rounds=ROUNDS, budget=SECONDS)
        target = TARGETS.get((case.name, kind)) if dtype == "float32" else None
        row = [case.name, label(shape), dtype, kind]
        in_torch = torch.get(" ".join(row))
        row += [f"{1e3 * theirs.seconds:.2f}", f"{1e3 * ours.seconds:.2f}", str(ours)]
        row += [f"<= {target}" if target else "", f"{1e3 * in_torch:.2f}" if in_torch else ""]
        row.append(f"{compiled[1].seconds / compiled[0].seconds:.1f}")
        rows.append(row)
        print(*row, sep=" | ", flush=True)
    return rows


def measure_torch() -> dict[str, float]:
    """Median seconds of torch, by setting; torch has no log1mexp."""
    import torch

    functions = {
        "logit": torch.logit,
        "sigmoid": torch.sigmoid,
        "log_sigmoid": torch.nn.functional.logsigmoid,
        "softplus": torch.nn.functional.softplus,
    }
    found = {"version": torch.__version__}
    for case, shape, dtype, kind in settings():
        if case.name not in functions:
            continue
        x = torch.from_numpy(case.sample(np.random.default_rng(0), shape))
        x = x.to(getattr(torch, dtype)).requires_grad_(kind != "forward")
        ones = torch.ones_like(x)
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            y = functions[case.name](x)
            if kind != "forward":
                torch.autograd.grad(y, x, ones)
            times.append(time.perf_counter() - start)
            if sum(times) > SECONDS / 2:
                break
        found[" ".join([case.name, label(shape), dtype, kind])] = float(np.median(times))
    return found


def settings() -> list[tuple[Case, tuple[int, ...], str, str]]:
    return [
        (case, shape, dtype, kind)
        for case in CASES
        for shape in SHAPES
        for dtype in DTYPES
        for kind in KINDS
    ]


def label(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--only-torch", action="store_true", help="print torch's times as JSON")
    options = parser.parse_args()
    if options.only_torch:
        print(json.dumps(measure_torch()))
        return
    command = [options.torch_python, str(Path(__file__).resolve()), "--only-torch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    torch = json.loads(done.stdout) if done.returncode == 0 else {}

    from _measure import machine, table, versions, write_result

    rows = measure_jax(torch)
    columns = ["function", "shape", "dtype", "what", "jax.nn, ms", "ours, ms"]
    columns += ["ours / jax.nn, median (quartiles)", "target", "torch, ms", "compile time, ratio"]
    with_torch = f", torch {torch['version']} in its own process" if torch else ""
    write_result(
        "elementwise",
        "# Elementwise functions: time",
        f"{machine()}; {versions('jax', 'numpy')}{with_torch}.",
        "Written by `benchmarks/elementwise.py`. Calls of the two functions alternate in one "
        "process; the ratio is the median over neighbouring calls. logit's peer is "
        "jax.scipy.special.logit.",
        table(columns, rows),
    )


if __name__ == "__main__":
    main()
