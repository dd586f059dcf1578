"""Measure how accurate the elementwise functions are, beside jax.nn, scipy and torch.

Run: python benchmarks/accuracy.py [--stride 1] [--peer-stride 17] [--torch-python PYTHON]

It writes docs/accuracy.md. ``--stride 1`` looks at every float32 number at which these functions
are more than a line or a logarithm (CORE), and at every 257th of all others; a larger stride is a
quick look. The truth is numpy's float64 (tests/oracles.py), and mpmath for float64
results. A section of the document is a function that returns its text: add one to SECTIONS for
other functions.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import accuracy as budgets  # noqa: E402
import oracles  # noqa: E402
import row_oracles as ro  # noqa: E402
from _measure import machine, table, versions  # noqa: E402

Results = dict[tuple[str, int], oracles.Worst]
CHUNK = 2**17
OUTSIDE_STRIDE = 257
# Sizes of the arguments: below the first one the functions are constant or the same in every binade
# but for a multiple of log(2), above the second constant or a line.
CORE = {"logit": (2.0**-12, 1.0), "log1mexp": (2.0**-12, 90.0)}
CORE |= dict.fromkeys(("sigmoid", "log_sigmoid", "softplus"), (2.0**-12, 90.0))
ONE_SIDED = ("logit", "log1mexp")


def arguments(name: str, stride: int) -> Iterator[np.ndarray]:
    low, high = (int(np.float32(size).view(np.uint32)) for size in CORE[name])
    for sign in (0,) if name in ONE_SIDED else (0, 2**31):
        bits = range(sign + low, sign + high + 1)
        yield from oracles.strided(stride, 0, bits, CHUNK)
    yield from oracles.strided(max(stride, OUTSIDE_STRIDE), 0, chunk=CHUNK)


def sweep(
    name: str, functions: dict[str, list[Callable[[np.ndarray], Any]]], stride: int
) -> dict[str, list[oracles.Worst]]:
    """The worst error of each implementation's value and derivatives where they are finite.

    What a function does at its edges, outside of its domain and with subnormal arguments is no
    matter of accuracy.
    """
    found = {who: [oracles.Worst(0.0, 0.0)] * len(orders) for who, orders in functions.items()}
    for x in arguments(name, stride):
        counted = np.abs(x) >= np.finfo(np.float32).tiny
        for order in range(max(map(len, functions.values()))):
            want = oracles.float64(name, x, order)
            for who, orders in functions.items():
                if order < len(orders):
                    errors = oracles.ulps(np.asarray(orders[order](x)), want)
                    here = oracles.worst(np.where(counted & np.isfinite(want), errors, 0.0), x)
                    found[who][order] = max(found[who][order], here, key=lambda w: w.ulps)
    return found


def of_jax(function: Callable[[jax.Array], jax.Array], orders: int) -> list[Callable[..., Any]]:
    return [jax.jit(f) for f in oracles.derivatives(function, orders)]


def ours(name: str) -> Callable[[jax.Array], jax.Array]:
    import jaxlogits as jl

    return getattr(jl, name)


def jax_nn(name: str) -> Callable[[jax.Array], jax.Array]:
    return getattr(jax.scipy.special if name == "logit" else jax.nn, name)


def of_scipy(name: str) -> list[Callable[[np.ndarray], Any]]:
    import scipy.special

    names = {"logit": "logit", "sigmoid": "expit", "log_sigmoid": "log_expit"}
    names["softplus"] = "softplus"
    function = getattr(scipy.special, names.get(name, ""), None)
    if function is None:
        return []

    def quiet(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return function(x)

    return [quiet]


def of_torch(name: str) -> list[Callable[[np.ndarray], Any]]:
    """Values and two derivatives in this process's torch."""
    import torch

    names = {"logit": torch.logit, "sigmoid": torch.sigmoid}
    names["log_sigmoid"] = torch.nn.functional.logsigmoid
    names["softplus"] = torch.nn.functional.softplus
    if name not in names:
        return []

    def derivative(order: int, x: np.ndarray) -> np.ndarray:
        point = torch.from_numpy(x.copy()).requires_grad_(order > 0)
        y = names[name](point)
        for k in range(order):
            (y,) = torch.autograd.grad(y.sum(), point, create_graph=k + 1 < order)
        return y.detach().numpy()

    return [lambda x, k=k: derivative(k, x) for k in range(3)]


def torch_results(stride: int) -> dict[str, Any]:
    import torch

    found = {
        name: sweep(name, {"torch": of_torch(name)}, stride) for name in oracles.FUNCTIONS[:-1]
    }
    return {"version": torch.__version__, "worst": {n: w["torch"] for n, w in found.items()}}


def figure(worst: oracles.Worst | None) -> str:
    if worst is None:
        return "–"
    if worst.ulps < 1e4:
        return f"{worst.ulps:.3g}"
    return "wrong (inf or NaN)" if np.isinf(worst.ulps) else f"{worst.ulps:.1e}"


def float32_section(options: argparse.Namespace, torch: dict[str, Any]) -> list[str]:
    rows = []
    for name in oracles.FUNCTIONS:
        mine = sweep(name, {"ours": of_jax(ours(name), 2)}, options.stride)["ours"]
        peers = {"jax": of_jax(jax_nn(name), 2), "scipy": of_scipy(name)}
        theirs = sweep(name, peers, options.peer_stride)
        for order, worst in enumerate(mine):
            others = [
                *(theirs[who][order] if order < len(theirs[who]) else None for who in peers),
                oracles.Worst(*torch["worst"][name][order]) if name in torch["worst"] else None,
            ]
            row = [f"{name}{chr(39) * order}", f"**{worst.ulps:.2f}**", f"{worst.at:.8g}"]
            row += [budgets.allowed(name, "float32", order), *map(figure, others)]
            rows.append(row)
            print(*row, sep=" | ", flush=True)
    columns = ["function", "ours", "worst at", "budget", "jax.nn", "scipy", "torch"]
    every = "every" if options.stride == 1 else f"every {options.stride}th"
    return [
        "## float32",
        f"Ours: {every} float32 number of size 2^-12 to 90 (logit: 2^-12 to 1), and every "
        f"{max(options.stride, OUTSIDE_STRIDE)}th of all others. Peers: every "
        f"{options.peer_stride}th and {max(options.peer_stride, OUTSIDE_STRIDE)}th. Edges and "
        "subnormal numbers don't count. A prime is a derivative. logit's peer is "
        "jax.scipy.special.logit; scipy has no derivatives, and it and torch have no log1mexp.",
        table(columns, rows),
    ]


def sixteen_bits_section(*_: Any) -> list[str]:
    rows = []
    for name in oracles.FUNCTIONS:
        for order in range(3):
            row: list[Any] = [f"{name}{chr(39) * order}"]
            for dtype in (jnp.bfloat16, jnp.float16):
                x = oracles.every(dtype)
                want = oracles.float64(name, x, order)
                for function in (ours(name), jax_nn(name)):
                    errors = oracles.ulps(of_jax(function, order)[order](x), want)
                    row.append(figure(oracles.worst(np.where(np.isfinite(want), errors, 0.0), x)))
            rows.append(row)
    columns = ["function", "bfloat16, ours", "jax.nn", "float16, ours", "jax.nn"]
    return [
        "## bfloat16 and float16",
        "All 65,536 numbers of each, with budget 0.501.",
        table(columns, rows),
    ]


def float64_section(*_: Any) -> list[str]:
    rows = []
    with jax.enable_x64(True):
        for name in oracles.FUNCTIONS:
            x = points64(name)
            for order in range(3):
                want = [oracles.exact(name, point, order) for point in x]
                row: list[Any] = [f"{name}{chr(39) * order}"]
                row.append(budgets.allowed(name, "float64", order))
                for function in (ours(name), jax_nn(name)):
                    results = np.asarray(of_jax(function, order)[order](x))
                    pairs = zip(results, want, strict=True)
                    row.insert(-1, figure(max_of([oracles.ulps_from_exact(*p) for p in pairs], x)))
                rows.append([row[0], row[1], row[3], row[2]])
    columns = ["function", "ours", "budget", "jax.nn"]
    return ["## float64", "1,000 random numbers against mpmath.", table(columns, rows)]


def points64(name: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    sizes = np.exp(rng.uniform(np.log(1e-12), np.log(80), 1000))
    if name == "logit":
        return rng.beta(0.3, 0.3, 1000)
    return sizes if name == "log1mexp" else sizes * rng.choice([-1.0, 1.0], 1000)


def max_of(errors: list[float], x: np.ndarray) -> oracles.Worst:
    return oracles.worst(np.array(errors), x)


def rows_section(*_: Any) -> list[str]:
    import optax

    import jaxlogits as jl

    def gradient(entropy: Callable[..., Any]) -> Callable[..., Any]:
        return lambda z, labels: jax.grad(lambda z: jnp.sum(entropy(z, labels)))(z)

    def without_labels(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda z, _: function(z)

    def slope(z: Any, label: int) -> Any:
        return ro.softmax(z) - ro.one_hot(label, z.size)

    def naive_log_odds(z: Any) -> Any:
        return jax.scipy.special.logit(jax.nn.softmax(z))

    mine = jl.softmax_cross_entropy_with_integer_labels
    theirs = optax.softmax_cross_entropy_with_integer_labels
    functions = {
        name: (without_labels(a), without_labels(b), lambda z, _, name=name: getattr(ro, name)(z))
        for name, a, b in (
            ("logsumexp", jl.logsumexp, lambda z: jax.nn.logsumexp(z, axis=-1)),
            ("softmax", jl.softmax, jax.nn.softmax),
            ("log_softmax", jl.log_softmax, jax.nn.log_softmax),
            ("class_log_odds", jl.class_log_odds, naive_log_odds),
        )
    }
    functions["cross entropy"] = (mine, theirs, ro.integer_cross_entropy)
    functions["cross entropy'"] = (gradient(mine), gradient(theirs), slope)
    floors = {"logsumexp": 1.0, "class_log_odds": 0.5}
    rows = []
    for name, (ours, peer, oracle) in functions.items():
        row = [name]
        for kind in ("gaps", "10 classes", "64 classes"):
            z = ro.ROWS[kind]
            labels = np.zeros(len(z), np.int32) if kind == "gaps" else np.argmax(z, axis=-1)
            want = ro.of_rows(oracle, z, labels.astype(np.int32))
            for function in (ours, peer):
                got = np.asarray(jax.jit(function)(z, labels.astype(np.int32)))
                error = ro.ulps(got, want, floors.get(name, 0.0))
                row.append(figure(oracles.Worst(error, 0.0)))
        rows.append(row)
        print(*row, sep=" | ", flush=True)
    columns = ["function", "gaps up to 84", "peer", "10 classes", "peer", "64 classes", "peer"]
    return [
        "## Rows",
        "float32 logits whose gaps are exact, against 150 digits: rows of 3 with one or two "
        "classes ahead by 0 to 84, and normal rows with a deviation of 10. The label of the cross "
        "entropy is class 0, or the likeliest. Errors are the worst of all results; those of "
        "logsumexp are in ulp of 1 at least, those of class_log_odds of 0.5. Peers are jax.nn and "
        "optax, and for class_log_odds the logit of the softmax. A prime is the gradient.",
        table(columns, rows),
    ]


SECTIONS = [float32_section, sixteen_bits_section, float64_section, rows_section]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=1, help="for ours")
    parser.add_argument("--peer-stride", type=int, default=17, help="for the others")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--only-torch", action="store_true", help="print torch's errors as JSON")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "accuracy.md")
    options = parser.parse_args()
    if options.only_torch:
        print(json.dumps(torch_results(options.peer_stride)))
        return
    command = [options.torch_python, __file__, "--only-torch"]
    command += ["--peer-stride", str(options.peer_stride)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    torch = json.loads(done.stdout) if done.returncode == 0 else {"worst": {}}
    software = versions("jax", "numpy", "scipy")
    software += f", torch {torch['version']}" if "version" in torch else ""
    paragraphs = [
        "# Accuracy",
        "The largest error in ulp, units in the last place of the exact result: 0.5 is perfect. "
        "The budget is what the tests hold each function to on every run, on the oldest and the "
        "newest JAX, compiled and not, with and without fused multiply-add. All of it is "
        "measured on CPUs, and no budget has been tested on a TPU. There, exp, expm1, log and "
        "log1p are asked for at JAX's highest accuracy; log-odds, sigmoids and their "
        "relatives use none of them. [JAX's own "
        "tables](https://docs.jax.dev/en/latest/accuracy.html) have, for a v5e in float32, "
        "116 ulp for exp and 1772 for expm1 without it, and 1.5 and 2 with it. For log and "
        "log1p they have 4034 without it on a v5e, 3 on a v6e, and no figure with it; the "
        "compiler makes other programs of them then, whose results nobody has compared here. "
        "Nothing can be asked of quotients (198 ulp on a v5e) and powers, and the noise of "
        "draws is JAX's.",
        f"Measured on {machine()}; {software}. Written by `benchmarks/accuracy.py`.",
    ]
    for section in SECTIONS:
        paragraphs += section(options, torch)
    options.output.write_text("\n\n".join(paragraphs) + "\n")
    print(options.output)


if __name__ == "__main__":
    main()
