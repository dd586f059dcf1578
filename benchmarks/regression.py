"""Time and memory of logistic regression beside statsmodels and scikit-learn.

Writes benchmarks/results/regression-cpu.md, in about three minutes:

    JAX_PLATFORMS=cpu python benchmarks/regression.py
"""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import statsmodels.api as sm
from _measure import (
    compile_function,
    interleaved,
    machine,
    peak_growth,
    table,
    versions,
    write_result,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import jaxlogits as jl

FITS = 1000
SIZES = {(200, 4): 100, (6000, 8): 20}  # rows and features, and how many fits of a peer are timed
TARGETS = {((200, 4), "float32"): ">= 50", ((200, 4), "float64"): ">= 30"}
LARGE = (1_000_000, 20)
TOGETHER = 50


class Data(NamedTuple):
    """What is fitted."""

    features: np.ndarray
    labels: np.ndarray


def sample(rows: int, columns: int) -> Data:
    """An intercept and normal features, with log-odds of about -2 to 2."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=[rows, columns])
    features[:, 0] = 1
    log_odds = features @ rng.normal(size=columns) / columns**0.5
    return Data(features, (rng.uniform(size=rows) < 1 / (1 + np.exp(-log_odds))).astype(float))


def by_statsmodels(data: Data) -> Any:
    return sm.Logit(data.labels, data.features).fit(disp=0).params


def by_sklearn(data: Data) -> Any:
    # The quickest of its solvers here; C = inf is no penalty.
    model = LogisticRegression(C=np.inf, fit_intercept=False, solver="newton-cholesky", tol=1e-6)
    return model.fit(data.features, data.labels).coef_


# A thousand bootstrap fits.


def in_one_vmap(data: Data, weights: jax.Array) -> jax.Array:
    return jax.vmap(lambda w: jl.fit_logistic(*data, weights=w).coefficients)(weights)


def in_small_vmaps(data: Data, weights: jax.Array) -> jax.Array:
    fit = functools.partial(jl.fit_logistic, *data)
    return jax.lax.map(lambda w: fit(weights=w).coefficients, weights, batch_size=TOGETHER)


def measure_bootstrap(size: tuple[int, int], timed: int) -> list[list[str]]:
    data = sample(*size)
    rng = np.random.default_rng(1)
    counts = rng.multinomial(size[0], np.full(size[0], 1 / size[0]), size=FITS)
    chosen = [np.repeat(np.arange(size[0]), count) for count in counts[:timed]]
    resampled = [Data(data.features[rows], data.labels[rows]) for rows in chosen]
    want = np.array([by_statsmodels(one) for one in resampled])
    rows = []
    for dtype in ("float32", "float64"):
        arrays = jax.tree.map(lambda x, dtype=dtype: jnp.asarray(x, dtype), data)
        weights = jnp.asarray(counts, dtype)
        for name, fit in (("one vmap", in_one_vmap), (f"vmaps of {TOGETHER}", in_small_vmaps)):
            compiled = compile_function(fit, arrays, weights)
            calls: list[Callable[[], Any]] = [
                lambda: [by_statsmodels(one) for one in resampled],
                lambda: [by_sklearn(one) for one in resampled],
                lambda c=compiled, a=arrays, w=weights: c.call(a, w),
            ]
            theirs, sklearn, ours = interleaved(calls, rounds=20, budget=12)
            repeat = FITS / timed
            error = np.abs(compiled.call(arrays, weights)[:timed] - want).max()
            row = [f"{size[0]} x {size[1]}", dtype, name]
            row += [f"{t.seconds * repeat * 1e3:.0f}" for t in (theirs, sklearn)]
            row += [f"{ours.seconds * 1e3:.1f}"]
            row += [f"{repeat / ours.ratio:.0f} ({repeat / ours.high:.0f}-{repeat / ours.low:.0f})"]
            row += [TARGETS.get((size, dtype), "") if fit is in_one_vmap else ""]
            row += [f"{sklearn.seconds * repeat / ours.seconds:.0f}"]
            row += [f"{error:.0e}", f"{compiled.seconds:.1f}"]
            rows.append(row)
            print(*row, sep=" | ", flush=True)
    return rows


# One large fit.

SETUP = """
import sys
sys.path.insert(0, {folder!r})
import jax, jax.numpy as jnp, regression as r
jax.config.update("jax_enable_x64", True)
data = r.sample(*r.LARGE)
"""
OURS = """
data = jax.tree.map(lambda x: jnp.asarray(x, {dtype!r}), data)
fit = jax.jit(r.one_fit).lower(data).compile()
"""


def one_fit(data: Data) -> jax.Array:
    return jl.fit_logistic(*data).coefficients


def measure_large() -> list[list[str]]:
    data = sample(*LARGE)
    arrays = {
        dtype: jax.tree.map(lambda x, dtype=dtype: jnp.asarray(x, dtype), data)
        for dtype in ("float64", "float32")
    }
    compiled = {dtype: compile_function(one_fit, given) for dtype, given in arrays.items()}
    calls: dict[str, Callable[[], Any]] = {
        "statsmodels, float64": lambda: by_statsmodels(data),
        "scikit-learn, float64": lambda: by_sklearn(data),
    }
    for dtype, given in arrays.items():
        calls[f"jaxlogits, {dtype}"] = lambda c=compiled[dtype], a=given: c.call(a)
    timings = interleaved(list(calls.values()), rounds=5, budget=60)
    setup = SETUP.format(folder=str(Path(__file__).parent))
    runs = [(setup, "r.by_statsmodels(data)"), (setup, "r.by_sklearn(data)")]
    runs += [(setup + OURS.format(dtype=d), "fit(data).block_until_ready()") for d in arrays]
    want = by_statsmodels(data)
    rows = []
    for (name, call), timing, run in zip(calls.items(), timings, runs, strict=True):
        error = np.abs(np.asarray(call()) - want).max()
        growth = f"{peak_growth(*run) / 2**20:.0f}"
        target = "<= 1" if name == "jaxlogits, float64" else ""
        rows.append([name, f"{timing.seconds:.2f}", str(timing), target, growth, f"{error:.0e}"])
        print(*rows[-1], sep=" | ", flush=True)
    return rows


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", ConvergenceWarning)
    columns = ["rows x features", "dtype", "ours", "statsmodels, ms", "scikit-learn, ms"]
    columns += ["ours, ms", "statsmodels / ours, median (quartiles)", "target"]
    columns += ["scikit-learn / ours", "largest difference", "compile, s"]
    small = [row for size, timed in SIZES.items() for row in measure_bootstrap(size, timed)]
    large = measure_large()
    data_mib = LARGE[0] * LARGE[1] * 8 / 2**20
    write_result(
        "regression",
        "# Logistic regression: time and memory",
        f"{machine()}; {versions('jax', 'statsmodels', 'scikit-learn', 'numpy')}.",
        "Written by `benchmarks/regression.py`. Calls alternate in one process.",
        f"## {FITS} bootstrap fits",
        f"Of the peers' loops the first {' or '.join(map(str, SIZES.values()))} fits are timed and "
        "scaled; they compute in float64 and fit the rows drawn, ours the weights that count them. "
        "The largest difference is that of a coefficient from statsmodels.",
        table(columns, small),
        f"## One fit of {LARGE[0]:,} rows and {LARGE[1]} features",
        f"The features take {data_mib:.0f} MiB in float64. Growth is that of the process's "
        "resident memory while it fits, over what it had with the data and the program.",
        table(
            ["fit", "s", "/ statsmodels", "target", "growth, MiB", "largest difference"],
            large,
        ),
    )


if __name__ == "__main__":
    main()
