"""Time and memory of the fits beside statsmodels, scikit-learn, firthmodels and SciPy.

Writes benchmarks/results/regression-cpu.md, in about five minutes, with the packages of the extras
`test` and `oracles`. All compute on one processor, of which the time is measured:

    export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 JAX_PLATFORMS=cpu
    taskset -c 0 python benchmarks/regression.py
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from _measure import (
    compile_function,
    interleaved,
    machine,
    peak_growth,
    table,
    versions,
    write_result,
)
from bootstrap_fits import KINDS, Data, Kind, binary_rows, by_sklearn, by_statsmodels
from sklearn.exceptions import ConvergenceWarning

import jaxlogits as jl
from jaxlogits._src.regression import design, likelihood
from jaxlogits._src.regression.coordinates import Coordinates

FITS = 1000
LARGE = (1_000_000, 20)
TOGETHER = 50

# A thousand bootstrap fits.


def in_one_vmap(kind: Kind) -> Callable[[Data, jax.Array], jax.Array]:
    return lambda data, weights: jax.vmap(lambda w: kind.ours(data, w))(weights)


def in_small_vmaps(kind: Kind) -> Callable[[Data, jax.Array], jax.Array]:
    def fits(data: Data, weights: jax.Array) -> jax.Array:
        return jax.lax.map(lambda w: kind.ours(data, w), weights, batch_size=TOGETHER)

    return fits


def in_dtype(data: Data, dtype: str) -> Data:
    """Classes stay integers."""
    features, labels = data
    is_class = labels.dtype.kind == "i"
    return Data(jnp.asarray(features, dtype), jnp.asarray(labels, "int32" if is_class else dtype))


def target_of(kind: Kind, dtype: str) -> float | None:
    """How many times as fast as the quickest peer a thousand fits are to be."""
    if len(kind.data.labels) > 200 or not kind.peers:
        return None
    if dtype == "float32":
        return 50
    return 100 if kind.name == "fit_logistic" else None


def measure_bootstrap(kind: Kind) -> Iterator[list[str]]:
    """A row of the table for each dtype."""
    num_rows = len(kind.data.labels)
    rng = np.random.default_rng(1)
    counts = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=FITS)
    drawn = [np.repeat(np.arange(num_rows), count) for count in counts[: kind.timed]]
    resampled = [Data(*(array[rows] for array in kind.data)) for rows in drawn]
    loops: list[Callable[[], Any]] = [
        lambda peer=peer: [peer(one) for one in resampled] for peer in kind.peers.values()
    ]
    want = np.array(loops[0]()) if loops else None
    for dtype in ("float32", "float64"):
        given = (in_dtype(kind.data, dtype), jnp.asarray(counts, dtype))
        compiled = compile_function(in_one_vmap(kind), *given)
        ours: list[Callable[[], Any]] = [lambda c=compiled, a=given: c.call(*a)]
        if num_rows > 200:
            small = compile_function(in_small_vmaps(kind), *given)
            ours.append(lambda c=small, a=given: c.call(*a))
        timings = interleaved([*loops, *ours], rounds=30, budget=10, clock=time.process_time)
        times = [1e3 * timing.least for timing in timings]
        theirs, (whole, *parts) = times[: len(loops)], times[len(loops) :]
        theirs = [ms * FITS / kind.timed for ms in theirs]
        shape = " x ".join(map(str, kind.data.features.shape))
        names = zip(kind.peers, theirs, strict=True)
        row = [kind.name, shape, dtype, ", ".join(f"{name} {ms:.0f}" for name, ms in names)]
        row += [f"{whole:.1f}", *([f"{ms:.1f}" for ms in parts] or [""])]
        if want is None:
            row += ["", "", ""]
        else:
            error = np.abs(compiled.call(*given)[: kind.timed] - want).max()
            target = target_of(kind, dtype)
            row += [f"{min(theirs) / whole:.0f}", f">= {target}" if target else "", f"{error:.0e}"]
        yield row


# One large fit.

SETUP = """
import sys
sys.path.insert(0, {folder!r})
import jax, jax.numpy as jnp, regression as r
jax.config.update("jax_enable_x64", True)
data = r.binary_rows(*r.LARGE)
"""
OURS = """
data = jax.tree.map(lambda x: jnp.asarray(x, {dtype!r}), data)
fit = jax.jit(r.one_fit).lower(data).compile()
"""


def one_fit(data: Data) -> jax.Array:
    return jl.fit_logistic(*data).coefficients


@contextlib.contextmanager
def uncentred() -> Iterator[None]:
    """Fits in the features as they are, instead of centred ones of size 1."""

    def none(features: jax.Array, counts: jax.Array) -> Coordinates:  # noqa: ARG001
        zeros = jnp.zeros_like(features[0])
        return Coordinates(zeros, zeros, zeros + 1)

    with (
        mock.patch.object(design, "coordinates", none),
        mock.patch.object(likelihood, "centred", lambda rows, _: rows.features),
    ):
        yield


def measure_large() -> list[list[str]]:
    data = binary_rows(*LARGE)
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
    with uncentred():
        for dtype, given in arrays.items():
            plain = compile_function(one_fit, given)
            calls[f"the same without centring, {dtype}"] = lambda c=plain, a=given: c.call(a)
    timings = interleaved(list(calls.values()), rounds=10, budget=60, clock=time.process_time)
    setup = SETUP.format(folder=str(Path(__file__).parent))
    runs = [(setup, "r.by_statsmodels(data)"), (setup, "r.by_sklearn(data)")]
    runs += [(setup + OURS.format(dtype=d), "fit(data).block_until_ready()") for d in arrays]
    want = by_statsmodels(data)
    rows = []
    growths = [f"{peak_growth(*run) / 2**20:.0f}" for run in runs] + ["", ""]
    for (name, call), timing, growth in zip(calls.items(), timings, growths, strict=True):
        error = np.abs(np.asarray(call()) - want).max()
        ratio = f"{timing.least / timings[0].least:.2f}"
        target = "<= 1" if name == "jaxlogits, float64" else ""
        rows.append([name, f"{timing.least:.2f}", ratio, target, growth, f"{error:.0e}"])
        print(*rows[-1], sep=" | ", flush=True)
    return rows


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", ConvergenceWarning)
    small = []
    for kind in KINDS:
        for row in measure_bootstrap(kind):
            small.append(row)
            print(*row, sep=" | ", flush=True)
    large = measure_large()
    data_mib = LARGE[0] * LARGE[1] * 8 / 2**20
    columns = ["fit", "rows x features", "dtype", "peers, ms", "one vmap, ms"]
    columns += [f"vmaps of {TOGETHER}, ms", "quickest peer / one vmap", "target"]
    columns += ["largest difference"]
    packages = ("jax", "statsmodels", "scikit-learn", "firthmodels", "scipy", "numpy")
    write_result(
        "regression",
        "# The fits: time and memory",
        f"{machine()}; {versions(*packages)}.",
        "Written by `benchmarks/regression.py`. Calls alternate in one process, which has one "
        "processor: times are those that it computed, 10th percentiles, to which other programs on "
        "the machine add little. With more processors ours are faster, and loops over small fits "
        "aren't.",
        f"## {FITS} bootstrap fits of each kind",
        "The peers' loops fit the rows drawn, in float64, and ours weights that count them. Of a "
        "loop the first 20 to 100 fits are timed and scaled. Features are logits in "
        "`fit_temperature` and `fit_vector_scaling`, and scores in `fit_platt`. The largest "
        "difference is that of a number from the first peer's, which stops at its own tolerance. "
        "All fits of a vmap take as many steps as the slowest of them. For the multinomial fit "
        "with Firth's penalty we know no peer in Python.",
        table(columns, small),
        f"## One fit of {LARGE[0]:,} rows and {LARGE[1]} features",
        f"The features take {data_mib:.0f} MiB in float64. Growth is that of the process's "
        "resident memory while it fits, over what it had with the data and the program. Without "
        "centring, float32 is right only for columns like these, which are around 0.",
        table(
            ["fit", "s", "/ statsmodels", "target", "growth, MiB", "largest difference"],
            large,
        ),
    )


if __name__ == "__main__":
    main()
