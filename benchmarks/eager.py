"""Eager calls of every function at [32, 10] against jax.nn and optax.

Value, and value with gradients, of programs that are compiled already: what is left is the way
through Python. Where there is a peer, the calls of both take turns.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _measure import interleaved

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import cases

# Rows, drafts before a last row, and classes of the registry's arguments become these.
SIZES = {cases.N: 32, cases.N - 1: 31, cases.K: 10}


def larger(args):
    """The arguments, repeated to the shape that is measured."""
    return cases.on_device({name: repeated(x) for name, x in args.items()})


def repeated(x):
    if not isinstance(x, np.ndarray):
        return x
    return x[np.ix_(*(np.arange(SIZES.get(size, size)) % size for size in x.shape))]


def with_gradients(fn, at, fixed):
    """A call of value and gradients in the arguments ``at``."""

    def number(at):
        return sum(jnp.sum(x) for x in cases.floats(fn({**fixed, **at})))

    return lambda: jax.value_and_grad(number)(at)


def main():
    print(f"{'function':45} {'us':>8} {'ratio':>6} {'gradient us':>12} {'ratio':>6}")
    for case in cases.CASES:
        args = larger(case.calls["plain"])
        at = case.differentiable(args)
        functions = [lambda args, case=case: case(**args)]
        if case.peer is not None:
            functions.insert(0, lambda args, case=case: case.peer(*(args[k] for k in case.args)))
        line = f"{case.name:45}"
        runs = [lambda f=f, args=args: f(args) for f in functions]
        line += cell(interleaved(runs, budget=1.0))
        if at and cases.floats(case(**args)):
            runs = [with_gradients(f, at, args) for f in functions]
            line += "    " + cell(interleaved(runs, budget=1.0))
        print(line, flush=True)


def cell(timings):
    ours = timings[-1]
    ratio = f"{ours.ratio:6.2f}" if len(timings) > 1 else 6 * " "
    return f" {1e6 * ours.seconds:8.0f} {ratio}"


if __name__ == "__main__":
    main()
