"""Compare what other libraries have, and what they give at the edges, with this one.

Run: python benchmarks/comparison.py [--times]

    pip install optax scipy statsmodels torch entmax netcal tokamax jax-cce
    pip install cut-cross-entropy liger-kernel

It measures the libraries that are installed, keeps what was measured of the others, with their
versions, in benchmarks/results/comparison.json, and writes docs/comparison.md from there. What is
installed is also asked for the names in the tables of features. With --times it takes times, too.
"""

import argparse
import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ARGUMENTS = sys.argv[1:]  # before another library reads them
sys.path.insert(0, str(ROOT / "benchmarks"))

from _features import FEATURES  # noqa: E402
from _measure import interleaved, machine, table  # noqa: E402
from _peers import (  # noqa: E402
    HEADS,
    LOSSES,
    PACKAGES,
    arrays_of,
    gradient_of,
    transforms_of,
    value_of,
)

# benchmarks/entmax.py is another entmax.
sys.path = [folder for folder in sys.path if Path(folder) != ROOT / "benchmarks"]
STORE = ROOT / "benchmarks" / "results" / "comparison.json"
PAGE = ROOT / "docs" / "comparison.md"
INF = np.inf
Case = tuple[str, str, dict[str, Callable[[], Any]]]
Cells = dict[str, dict[str, str]]


def row_case(case: str, exact: str, logits: list[float], label: int, slope: bool = False) -> Case:
    """The loss of one row, or the number of its gradient at the label, by every library."""
    z, y = np.array([logits], np.float32), np.array([label])
    ask = gradient_of if slope else value_of
    return case, exact, {name: partial(ask, name, loss, z, y) for name, loss in LOSSES.items()}


def head_case(
    case: str,
    exact: str,
    logits: list[float],
    label: int,
    rows: int = 1,
    dtype: str = "float32",
    slope: bool = False,
) -> Case:
    """The same of a head of 8 features, the first of which is 1 and gives these logits."""
    hidden, kernel = np.eye(1, 8, dtype=np.float32), np.zeros([8, len(logits)], np.float32)
    kernel[0] = logits
    arrays = hidden.repeat(rows, 0), kernel, np.full(rows, label)
    ask = gradient_of if slope else partial(value_of, dtype=dtype)
    return case, exact, {name: partial(ask, name, head, *arrays) for name, head in HEADS.items()}


def row_edges() -> Iterator[Case]:
    """Where losses of logits differ."""
    yield row_case("right by a margin of 20", "4.12e-09", [20, 0, 0], 0)
    yield row_case("its gradient at the label", "-4.12e-09", [20, 0, 0], 0, slope=True)
    yield row_case("wrong by a margin of 200", "200", [-200, 0, -300], 0)
    yield row_case("the label's logit is the only +inf", "0", [INF, 0, 0], 0)
    yield row_case("the label's logit is -inf", "inf", [-INF, 0, 0], 0)
    yield row_case("another logit is -inf", "0.693", [0, 0, -INF], 0)
    yield row_case("label -100", "NaN, or 0 if it is to be ignored", [2, 1, 0], -100)
    yield row_case("label -1", "NaN, or an error", [2, 1, 0], -1)


def head_edges() -> Iterator[Case]:
    """Where losses of a linear head differ."""
    yield head_case("right by a margin of 20", "4.12e-09", [20, 0, 0], 0)
    yield head_case("its gradient in the feature", "-8.24e-08", [20, 0, 0], 0, slope=True)
    yield head_case("another logit is -inf", "0.693", [0, 0, -INF], 0)
    yield head_case("1000 logits of -5", "6.91", [-5] * 1000, 0)
    yield head_case("2048 logits of -5", "7.62", [-5] * 2048, 0)
    yield head_case(
        "sum of 1001 losses, bfloat16", "6.94e+03", [0] * 1024, 0, rows=1001, dtype="bfloat16"
    )
    yield head_case("label -100", "NaN, or 0 if it is to be ignored", [2, 1, 0], -100)


def other_edges() -> Iterator[Case]:
    """Where everything else differs; only those who have it are asked."""
    row, nothing = np.array([INF, 0], np.float32), np.full(2, -INF, np.float32)
    on = partial(in_library, row)
    yield (
        "softmax of [inf, 0]",
        "[1 0]",
        on(
            {
                "jaxlogits": "jaxlogits.softmax",
                "JAX": "jax.nn.softmax",
                "torch": "torch.softmax",
                "SciPy": "scipy.special.softmax",
            }
        ),
    )
    yield (
        "sparsemax of [inf, 0]",
        "[1 0]",
        on(
            {
                "jaxlogits": "jaxlogits.sparsemax",
                "optax": "optax.projections.projection_simplex",
                "entmax": "entmax.sparsemax",
            }
        ),
    )
    wide = np.array([1e6, 1e6 - 1], np.float32)
    yield (
        "entmax of [1e6, 1e6 - 1], alpha 1.3",
        "[0.785 0.215]",
        in_library(
            wide,
            {
                "jaxlogits": "jaxlogits.entmax",
                "entmax": "entmax.entmax_bisect",
            },
            alpha=1.3,
        ),
    )
    yield (
        "gradient of logsumexp of [-inf, -inf]",
        "[0 0]",
        {
            "jaxlogits": lambda: gradient_of("jaxlogits", look_up("jaxlogits.logsumexp"), nothing),
            "JAX": lambda: gradient_of("JAX", jax.nn.logsumexp, nothing),
            "torch": lambda: gradient_of(
                "torch", partial(look_up("torch.logsumexp"), dim=0), nothing
            ),
        },
    )
    sure = np.array(20, np.float32)
    yield (
        "slope of the sigmoid at 20",
        "2.06e-09",
        {
            "jaxlogits": lambda: gradient_of("jaxlogits", look_up("jaxlogits.sigmoid"), sure),
            "JAX": lambda: gradient_of("JAX", jax.nn.sigmoid, sure),
            "torch": lambda: gradient_of("torch", look_up("torch.sigmoid"), sure),
        },
    )
    yield (
        "first of two equal logits of 1e7, share of draws",
        "0.5",
        {
            "jaxlogits": lambda: share_of_first(look_up("jaxlogits.sample")),
            "JAX": lambda: share_of_first(jax.random.categorical),
        },
    )
    yield (
        "expected calibration error, right by a margin of 20",
        "2.06e-09",
        {
            "jaxlogits": lambda: look_up("jaxlogits.expected_calibration_error")(
                jnp.array([[20.0, 0.0]]), jnp.array([0])
            ),
            "netcal": lambda: look_up("netcal.metrics.ECE")(15).measure(
                np.asarray(jax.nn.softmax(jnp.array([[20.0, 0.0]] * 2))), np.array([0, 0])
            ),
        },
    )
    yield (
        "log likelihood of one label at a log-odds of -800",
        "-800",
        {
            "jaxlogits": lambda: (
                -look_up("jaxlogits.sigmoid_binary_cross_entropy")(
                    jnp.float32(-800), jnp.float32(1)
                )
            ),
            "statsmodels": lambda: look_up("statsmodels.api.Logit")([1.0], [[1.0]]).loglike(
                [-800.0]
            ),
        },
    )
    yield (
        "regression of separated data",
        "no finite answer",
        {
            "jaxlogits": ours_of_separated,
            "statsmodels": theirs_of_separated,
        },
    )


def in_library(row: np.ndarray, names: dict[str, str], **options: Any) -> dict[str, Any]:
    """The call of each name with one row, in its own kind of array."""

    def call(library: str, name: str) -> Any:
        dim = {"dim": -1} if library in ("torch", "entmax") else {}
        return look_up(name)(*arrays_of(library, (row,)), **dim, **options)

    return {library: partial(call, library, name) for library, name in names.items()}


def share_of_first(draw: Callable[..., jax.Array]) -> jax.Array:
    """How often the first of two equal logits of 1e7 is drawn."""
    return (draw(jax.random.key(0), jnp.full([2], 1e7), shape=(100_000,)) == 0).mean()


SEPARATED = np.array([[1.0, x] for x in range(8)]), np.arange(8.0) > 3


def ours_of_separated() -> str:
    """What a fit says of data without an answer."""
    features, labels = SEPARATED
    fit = look_up("jaxlogits.fit_logistic")(jnp.float32(features), jnp.asarray(labels))
    return f"separated={bool(fit.separated)}, covariance {float(fit.covariance[0, 0]):.0f}"


def theirs_of_separated() -> str:
    """What statsmodels does: it warns, and returns what it has."""
    features, labels = SEPARATED
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = look_up("statsmodels.api.Logit")(labels.astype(float), features).fit(disp=0)
    names = sorted({warning.category.__name__ for warning in caught})
    return f"{', '.join(names)}, standard error {fit.bse[1]:.2g}"


EDGES: dict[str, tuple[tuple[str, ...], Callable[[], Iterator[Case]]]] = {
    "The loss of one row": (tuple(LOSSES), row_edges),
    "The loss of a linear head": (tuple(HEADS), head_edges),
    "Everything else": (
        ("jaxlogits", "optax", "JAX", "torch", "SciPy", "entmax", "netcal", "statsmodels"),
        other_edges,
    ),
}


def look_up(name: str) -> Any:
    """What a dotted name stands for; its argument, in parentheses, has to exist."""
    name, _, argument = name.removesuffix(")").partition("(")
    module, attribute = name.rsplit(".", maxsplit=1)
    found = getattr(importlib.import_module(module), attribute)
    if argument and argument not in inspect.signature(found).parameters:
        raise AttributeError(f"{name} has no {argument}")
    return found


def show(call: Callable[[], Any]) -> str:
    """Three digits; of three classes, the label's; the name of an error."""
    try:
        value = call()
    except Exception as error:
        return type(error).__name__
    if isinstance(value, str):
        return value
    numbers = [f"{x:.3g}" for x in np.ravel(np.asarray(value, float)) + 0.0]  # no -0
    return f"[{' '.join(numbers)}]" if len(numbers) == 2 else numbers[0]


def edges_of(library: str) -> Iterator[tuple[str, str]]:
    """What a library gives at the edges, by table and case."""
    for title, (_, cases) in EDGES.items():
        for case, _, calls in cases():
            if library in calls:
                yield f"{title}: {case}", show(calls[library])


def exact_transforms(
    kernel: np.ndarray, x: np.ndarray, label: int, v: np.ndarray
) -> dict[str, Any]:
    """Those of the loss of x @ kernel, in float64: gradient W(p - y), Hessian W(diag p - pp')W'."""
    z = x @ kernel
    p = np.exp(z - z.max())
    p /= p.sum()
    gradient = kernel @ (p - np.eye(len(p))[label])
    product = kernel @ (p * (v @ kernel - p @ (v @ kernel)))
    return {
        "jvp": gradient @ v,
        "vmap of grad": gradient,
        "HVP, forward over reverse": product,
        "HVP, reverse over reverse": product,
    }


TRANSFORMS = ("jvp", "vmap of grad", "HVP, forward over reverse", "HVP, reverse over reverse")


def transform_cells(library: str) -> Iterator[tuple[str, str]]:
    """Which transforms of the losses are right."""
    rng = np.random.default_rng(0)
    x, v, kernel = rng.normal(size=6), rng.normal(size=6), rng.normal(size=[6, 2048])
    x, v, kernel = (a.astype(np.float32) for a in (x, v, kernel))
    label = np.array([2])
    cases = (("loss", LOSSES, np.eye(6), ()), ("head", HEADS, kernel, (kernel,)))
    for kind, functions, matrix, middle in cases:
        if library not in functions:
            continue
        exact = exact_transforms(matrix.astype(float), x.astype(float), 2, v.astype(float))
        arrays = (x[None], *middle, label)
        for name, call in transforms_of(library, functions[library], v[None], *arrays).items():
            yield f"{kind}: {name}", verdict(call, exact[name])


def verdict(call: Callable[[], Any], exact: Any) -> str:
    """Whether it is right to float32."""
    try:
        value = call()
        value = np.ravel(value.detach().numpy() if hasattr(value, "detach") else value)
    except Exception as error:
        return f"no ({type(error).__name__})"
    return "yes" if np.allclose(value, np.ravel(exact), rtol=1e-4, atol=1e-5) else "wrong"


def times() -> dict[str, str]:
    """Of peers that no other script times, beside ours; both in one process, in turn."""
    import entmax as peer
    from netcal.metrics import ECE
    from netcal.scaling import TemperatureScaling

    import jaxlogits as jl

    rng = np.random.default_rng(0)
    z = rng.normal(size=[1024, 1000]).astype(np.float32)
    ours, theirs = jnp.asarray(z), arrays_of("torch", (z,))[0]
    truth = 2 * rng.normal(size=[20000, 10]).astype(np.float32)
    labels = (truth + rng.gumbel(size=truth.shape)).argmax(axis=1)
    probs, truth, classes = (
        np.asarray(jax.nn.softmax(truth)),
        jnp.asarray(truth),
        jnp.asarray(labels),
    )
    pairs = {
        "`entmax15` | [1024, 1000]": (
            lambda: peer.entmax15(theirs, dim=-1),
            lambda: jl.entmax(ours, alpha=1.5),
        ),
        "`entmax_bisect`, alpha 1.3 | [1024, 1000]": (
            lambda: peer.entmax_bisect(theirs, alpha=1.3, dim=-1),
            lambda: jl.entmax(ours, alpha=1.3),
        ),
        "`netcal.metrics.ECE` | [20000, 10]": (
            lambda: ECE(15).measure(probs, labels),
            lambda: jl.expected_calibration_error(truth, classes),
        ),
        "`netcal.scaling.TemperatureScaling` | [20000, 10]": (
            lambda: TemperatureScaling().fit(probs, labels),
            lambda: jl.fit_temperature(truth, classes),
        ),
    }
    rows = {}
    for name, calls in pairs.items():
        peer_time, our_time = interleaved([lambda f=f: as_ready(f()) for f in calls], budget=5.0)
        ms = f"{1e3 * peer_time.seconds:.3g} | {1e3 * our_time.seconds:.3g}"
        rows[name] = f"{ms} | {our_time}"
    return rows


def as_ready(value: Any) -> Any:
    """A result that is waited for; torch's and netcal's are there when the call returns."""
    return value if isinstance(value, tuple | jax.Array) else None


def measure(library: str) -> dict[str, Any]:
    """All cells of an installed library, whose names exist."""
    for columns, rows in FEATURES.values():
        for row in rows.values():
            if library in columns and library in row and not row[library].startswith("in words"):
                look_up(row[library])
    versions = [f"{package} {metadata.version(package)}" for package in PACKAGES[library]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = dict([*edges_of(library), *transform_cells(library)])
    return {"versions": ", ".join(versions), "cells": cells}


def installed(library: str) -> bool:
    """Whether all of its packages are."""
    try:
        return bool([metadata.version(package) for package in PACKAGES[library]])
    except metadata.PackageNotFoundError:
        return False


def refreshed(store: dict[str, Any]) -> dict[str, Any]:
    """The store with everything that is installed measured anew."""
    return {
        library: measure(library) if installed(library) else store[library] for library in PACKAGES
    } | {"times": store.get("times", {})}


def feature_tables() -> Iterator[str]:
    """A name for each feature; of a function's options the argument alone."""
    for title, (columns, rows) in FEATURES.items():
        yield f"### {title}"
        yield table(
            ["", *columns],
            [
                [row, *(short(names.get(library)) for library in columns)]
                for row, names in rows.items()
            ],
        )


def short(name: str | None) -> str:
    """Ours without the package, an argument without its function."""
    if name is None:
        return "–"
    if name.startswith("in words: "):
        return name.removeprefix("in words: ")
    _, _, argument = name.removesuffix(")").partition("(")
    return f"`{argument}`" if argument else f"`{name.removeprefix('jaxlogits.')}`"


def edge_tables(store: dict[str, Any]) -> Iterator[str]:
    """What was measured at each edge."""
    for title, (columns, cases) in EDGES.items():
        yield f"### {title}"
        rows = [
            [case, exact, *(store[x]["cells"].get(f"{title}: {case}", "–") for x in columns)]
            for case, exact, _ in cases()
        ]
        yield table(["case", "exact", *columns], rows)


def transform_table(store: dict[str, Any], kind: str, columns: tuple[str, ...]) -> str:
    """Which transforms are right."""
    rows = ([name, *(store[x]["cells"][f"{kind}: {name}"] for x in columns)] for name in TRANSFORMS)
    return table(["", *columns], rows)


def quoted(result: str, heading: str) -> str:
    """The table under a heading of another script's results."""
    text = (ROOT / "benchmarks" / "results" / result).read_text()
    return text.split(f"{heading}\n\n")[1].split("\n\n")[0]


def page(store: dict[str, Any]) -> str:
    """The document."""
    versions = "\n".join(f"- {name}: {store[name]['versions']}" for name in PACKAGES)
    shape = "4096 × 512 × 32000, bfloat16"
    parts = [
        WHEN,
        "## Features",
        "A dash means that the library has no function for it, not that it can't be done.",
        *feature_tables(),
        "## Results in edge cases",
        EDGES_TEXT,
        *edge_tables(store),
        "## Transforms",
        TRANSFORMS_TEXT,
        "### Of the loss of one row",
        transform_table(store, "loss", tuple(LOSSES)),
        "### Of the loss of a linear head",
        transform_table(store, "head", tuple(HEADS)),
        "## Time, memory and accuracy",
        HEAD_TEXT,
        quoted("linear-head-cpu.md", f"## {shape}"),
        TIMES_TEXT.format(machine=store["times"]["machine"]),
        table(
            ["function", "shape", "theirs, ms", "ours, ms", "ours / theirs, median (quartiles)"],
            [
                [*name.split(" | "), *row.split(" | ")]
                for name, row in store["times"]["rows"].items()
            ],
        ),
        "## Versions",
        versions,
        HOW,
    ]
    return "\n\n".join(parts) + "\n"


WHEN = """\
# Comparison with optax, JAX, PyTorch and others

jaxlogits covers what comes after the last layer and nothing else, so it is used together with
other libraries: optax trains the model, for instance. These are the cases in which another library
is the better choice:

- **optax** has CTC, ranking, metric-learning and regression losses, which aren't here, and you
  probably have it installed already. Its losses of logits are fine as long as the logits are
  moderate and finite. On a CPU its float32 loss with gradient is faster for 100 classes or more:
  [speed](speed.md).
- **`jax.nn`** needs no other package. Its reductions keep the dtype of half-precision logits,
  whereas these return float32.
- **PyTorch**: if the model is written in PyTorch, use its functions. These are for JAX.
- **CCE** and **Liger** have hand-written Triton kernels for GPUs, and Liger has ready-made
  preference losses. Here everything is compiled by XLA.
- **tokamax** has hand-written kernels for GPUs and TPUs, and needs the least temporary memory on a
  CPU.
- **entmax** also has normmax and budgets.
- **netcal** also has histogram binning, isotonic regression, beta calibration, and calibration for
  regression and object detection.
- **statsmodels** has formulas, diagnostics, many more models, and years of use. The fits here run
  on accelerators, under `jit`, `vmap` and `grad`."""

EDGES_TEXT = """\
In float32 unless stated otherwise, on a CPU. The name of an error means that it was raised. The
loss in the JAX column is written with `jax.nn.log_softmax`. The CCE column is its reference
implementation, `impl="torch_compile"`, since its Triton kernels don't run on a CPU. Liger's
kernels run in Triton's interpreter. Neither has been run on a GPU here. The tokamax column is its
`chunked_xla`, which is correct only if the number of classes is a multiple of 2048, as in the
fifth row and under Transforms below. torch's head is `torch.nn.functional.linear_cross_entropy`."""

TRANSFORMS_TEXT = """\
Each is run on one row and compared with its closed form in float64, with respect to the logits or
to hidden. "wrong" means that it returned a wrong result without an error. (HVP: Hessian-vector
product. In PyTorch the transforms are those of `torch.func`, and reverse over reverse is
`torch.autograd.grad` with `create_graph=True`.) [The linear head's own
table](../benchmarks/results/linear-head-cpu.md) has eleven transforms, `shard_map` and `export`
among them."""

HEAD_TEXT = """\
A linear head of 4096 tokens, 512 features and 32,000 classes in bfloat16, from [the table of all
shapes](../benchmarks/results/linear-head-cpu.md), which has the machine and the versions. CCE and
Liger aren't in it, because their kernels need a GPU."""

TIMES_TEXT = """\
[Speed](speed.md) and [accuracy](accuracy.md) compare with optax, `jax.nn`, SciPy and torch,
[regression](../benchmarks/results/regression-cpu.md) with statsmodels and scikit-learn. Forward
times of other functions, in float32, on {machine}:"""

HOW = """\
Written by `benchmarks/comparison.py`. A column is measured if its library is installed, and kept
otherwise, with the versions above. The names in the feature tables were looked up in these
versions. [Differences](differences.md) lists all differences in results and arguments."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", action="store_true", help="take the times anew")
    arguments = parser.parse_args(ARGUMENTS)
    kept = json.loads(STORE.read_text()) if STORE.exists() else {}
    new = refreshed(kept)
    if arguments.times:
        new["times"] = {"machine": machine(), "rows": times()}
    STORE.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(new))
    print(PAGE)
