"""The linear head and the functions of rows on a GPU or a TPU, for whoever has one.

Run: python benchmarks/device.py head
     python benchmarks/device.py rows      [--out FOLDER] [--limit SECONDS]

Each call ends within ten minutes: what doesn't fit in ``--limit`` is left out. It writes
benchmarks/results/device-<kind>-<part>.md anew after each line, so that nothing is lost if it is
stopped. Only optax is needed; tokamax is measured if it can be imported.
"""

import argparse
import functools
import importlib.util
import inspect
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import linear_head
import numpy as np
from _cases import BY_NAME, arrays, head_of_logits, programs
from _measure import RESULTS, compile_function, interleaved, machine, table, versions

import jaxlogits as jl

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import references

GIB = 2**30
DTYPES = ("bfloat16", "float32")
HEADS = ((8192, 4096, 128256), (8192, 1024, 262144), (32768, 2560, 128256))  # rows, D, classes
BLOCK_SIZES = (256, 1024, 2048, 4096, 8192)
SMALL = linear_head.Shape(256, 512, 4096, 1)  # that a host can compute in float64
ROWS = ((8192, 128256), (65536, 1000))
SMALL_ROWS = (64, 1000)
FUNCTIONS = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_cross_entropy",
    "softmax_kl_divergence",
    "entropy",
    "sparsemax",
    "sigmoid_binary_cross_entropy",
    "sample",
    "keep_top_p",
    "keep_top_k",
)
Function = Callable[..., Any]


class Page(NamedTuple):
    """What is written, and until when there is time."""

    path: Path
    deadline: float
    paragraphs: list[str]

    def add(self, title: str, columns: list[str], lines: Iterator[list[str]]) -> None:
        """A table that grows on the disk as it is measured."""
        rows: list[list[str]] = []
        self.paragraphs.append("")
        for line in lines:
            rows.append(line)
            print(*line, sep=" | ", flush=True)
            self.paragraphs[-1] = f"## {title}\n\n{table(columns, rows)}"
            self.path.write_text("\n\n".join(self.paragraphs) + "\n")


class Measured(NamedTuple):
    """A compiled program and how long it takes."""

    seconds: float
    compile_seconds: float
    temp_bytes: int


def measure(deadline: float, fn: Function, *args: Any) -> Measured | str:
    """The time of a program, or why there is none."""
    if time.perf_counter() > deadline:
        return "no time left"
    try:
        compiled = compile_function(fn, *args)
        (timing,) = interleaved([lambda: compiled.call(*args)], rounds=20, budget=1.0)
    except Exception as error:  # out of memory, mostly; the rest shall run
        return type(error).__name__
    return Measured(timing.seconds, compiled.seconds, compiled.temp_bytes)


# The linear head.


def products(hidden: Any, kernel: Any, slopes: Any) -> Any:
    """The matrix products of a loss and its gradients, without anything else."""
    return hidden @ kernel, slopes @ kernel.T, hidden.T @ slopes


def ours(hidden: Any, kernel: Any, labels: Any, **options: Any) -> Any:
    return jl.linear_softmax_cross_entropy(hidden, kernel, labels, **options)


def losses() -> dict[str, Function]:
    """By name, in the order of their memory: the peak of the process only grows."""
    options = inspect.signature(jl.linear_softmax_cross_entropy).parameters
    found: dict[str, Function] = {}
    if "memory" in options:
        found['jaxlogits, memory="tiles"'] = functools.partial(ours, memory="tiles")
    for size in BLOCK_SIZES:
        found[f"jaxlogits, block_size={size}"] = functools.partial(ours, block_size=size)
    found["jaxlogits"] = ours
    if importlib.util.find_spec("tokamax"):
        found["tokamax"] = tokamax_loss
    return found | {"optax on hidden @ kernel": head_of_logits}


def tokamax_loss(hidden: Any, kernel: Any, labels: Any) -> Any:
    import tokamax

    return tokamax.linear_softmax_cross_entropy_loss(hidden, labels, kernel, reduction="mean")


def with_gradients(loss: Function) -> Function:
    return jax.value_and_grad(loss, argnums=(0, 1))


def peak() -> float:
    """GiB that the process has had at most on the device, NaN if it isn't said."""
    stats = jax.devices()[0].memory_stats() or {}
    return float(stats.get("peak_bytes_in_use", np.nan)) / GIB


def head_lines(page: Page) -> Iterator[list[str]]:
    for shape in HEADS:
        for dtype in DTYPES:
            rows, features, classes = shape
            args = arrays("hidden kernel labels", rows, classes, dtype, features)
            slopes = jnp.ones((rows, classes), dtype)
            alone = measure(page.deadline, products, *args[:2], slopes)
            del slopes
            for name, loss in losses().items():
                found = measure(page.deadline, with_gradients(loss), *args)
                yield [*head_line(name, shape, dtype, found, alone), f"{peak():.1f}"]
            yield [*head_line("products alone", shape, dtype, alone, alone), ""]


def head_line(
    name: str, shape: tuple[int, ...], dtype: str, found: Measured | str, alone: Measured | str
) -> list[str]:
    cells = [" × ".join(map(str, shape)), dtype, name]
    if isinstance(found, str):
        return [*cells, found, "", "", "", ""]
    share = "" if isinstance(alone, str) else f"{alone.seconds / found.seconds:.0%}"
    rate = 6 * np.prod(shape, dtype=float) / found.seconds / 1e12
    times = [f"{1e3 * found.seconds:.3g}", f"{rate:.1f}", share, f"{found.compile_seconds:.1f}"]
    return [*cells, *times, f"{found.temp_bytes / GIB:.2f}"]


def head_errors(page: Page) -> Iterator[list[str]]:
    for dtype in DTYPES:
        given = linear_head.arguments(SMALL, dtype)
        want = linear_head.exact(given)
        for name, loss in losses().items():
            if time.perf_counter() > page.deadline:
                return
            result = jax.jit(with_gradients(loss))(*map(jnp.asarray, given))
            errors = linear_head.errors(result, want, classes_first=False)
            yield [name, dtype, *(f"{x:.1e}" for x in errors)]


def head(page: Page) -> None:
    page.add(
        f"Errors at {SMALL}, against float64",
        ["", "dtype", "of the loss", "of the worse gradient"],
        head_errors(page),
    )
    columns = ["rows × features × classes", "dtype", "", "ms", "TFLOP/s of 3 products"]
    columns += ["of the products' speed", "s to compile", "temporary GiB", "GiB so far, at most"]
    page.add("Value and both gradients", columns, head_lines(page))


# Functions of rows.


def num_bytes(tree: Any) -> int:
    """Of arrays or of their types; a key is small."""
    leaves = [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return sum(x.size * x.dtype.itemsize for x in leaves)


def row_lines(page: Page) -> Iterator[list[str]]:
    for shape in ROWS:
        for dtype in DTYPES:
            for case in map(BY_NAME.__getitem__, FUNCTIONS):
                args = arrays(case.args, *shape, dtype)
                for kind, fn in programs(case, case.ours).items():
                    moved = num_bytes(args) + num_bytes(jax.eval_shape(fn, *args))
                    both = [fn, programs(case, case.peer)[kind]]
                    found = [measure(page.deadline, each, *args) for each in both]
                    line = [case.name, f"[{shape[0]},{shape[1]}]", dtype, kind]
                    yield line + row_cells(moved, found)


def row_cells(moved: int, found: list[Measured | str]) -> list[str]:
    known = [x for x in found if isinstance(x, Measured)]
    rates = [x if isinstance(x, str) else f"{moved / x.seconds / 1e9:.0f}" for x in found]
    if len(known) < 2:
        return [*rates, "", "", ""]
    mine, theirs = known
    memory = " / ".join(f"{x.temp_bytes / GIB:.2f}" for x in known)
    compile_seconds = " / ".join(f"{x.compile_seconds:.1f}" for x in known)
    return [*rates, f"{mine.seconds / theirs.seconds:.2f}", memory, compile_seconds]


def row_errors(page: Page) -> Iterator[list[str]]:
    for dtype in DTYPES:
        for name in FUNCTIONS:
            case, oracle = BY_NAME[name], getattr(references, name, None)
            if case.call or oracle is None or time.perf_counter() > page.deadline:
                continue
            args = arrays(case.args, *SMALL_ROWS, dtype)
            exact = [np.asarray(x, float if x.dtype != jnp.int32 else int) for x in args]
            want, got = oracle(*exact), np.asarray(jax.jit(case.ours)(*args), float)
            error = np.max(np.abs(got - want)) / np.max(np.abs(want))
            yield [name, dtype, "deviation 3", f"{error:.1e}"]
        yield ["softmax_cross_entropy_with_integer_labels", dtype, "sure rows", sure_error(dtype)]


def sure_error(dtype: str) -> str:
    """Of the losses of rows that are right by 16, each relative to itself: they are about 1e-4."""
    logits, labels = arrays("logits labels", *SMALL_ROWS, dtype)
    top = 16 + jnp.max(logits, axis=-1)
    logits = logits.at[jnp.arange(SMALL_ROWS[0]), labels].set(top.astype(logits.dtype))
    loss = jl.softmax_cross_entropy_with_integer_labels
    want = references.softmax_cross_entropy_with_integer_labels(
        np.asarray(logits, float), np.asarray(labels)
    )
    return f"{np.max(np.abs(np.asarray(jax.jit(loss)(logits, labels), float) / want - 1)):.1e}"


def rows(page: Page) -> None:
    page.add(
        f"Errors at {list(SMALL_ROWS)}, relative to the largest number, against float64",
        ["function", "dtype", "logits", "error"],
        row_errors(page),
    )
    columns = ["function", "shape", "dtype", "what", "GB/s, ours", "GB/s, peer", "time over peer"]
    columns += ["temporary GiB, ours / peer", "s to compile, ours / peer"]
    page.add("Arguments and results once, over the time", columns, row_lines(page))


PARTS = {"head": head, "rows": rows}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds")
    options = parser.parse_args(given)
    kind = re.sub(r"\W+", "-", jax.devices()[0].device_kind.lower())
    path = options.out / f"device-{kind}-{options.part}.md"
    of = {"head": "A linear head's loss", "rows": "Functions of rows"}[options.part]
    page = Page(path, time.perf_counter() + options.limit, [f"# {of} on {kind}"])
    packages = ("jax", "jaxlib", "jaxlogits", "optax", "tokamax")
    page.paragraphs.append(
        f"{machine()}; {versions(*packages)}. Written by `benchmarks/device.py {options.part}`; "
        "the peers are those of `benchmarks/_cases.py`."
    )
    PARTS[options.part](page)
    print(path)


if __name__ == "__main__":
    main()
