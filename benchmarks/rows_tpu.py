"""Memory and traffic of functions of rows on TPUs, from their compiler, without a TPU.

Run: python benchmarks/rows_tpu.py   (pip install optax libtpu; Python 3.12 or newer)

It compiles for one device of a v5e and of a v6e and writes benchmarks/results/rows-tpu.md.
Nothing runs: `_tpu.py` says how times are modelled.
"""

import math
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU machine to ask about itself

import jax
import jax.numpy as jnp
import optax
from _cases import TOP_P, top_p_by_sort
from _measure import RESULTS, table, versions
from _tpu import CHIPS, SHARE, Chip, compile_for, seconds

import jaxlogits as jl

MIB = 2**20
ROWS, CLASSES = 8192, 128256
KEY = jax.random.key(0)
LOGITS = jax.ShapeDtypeStruct((ROWS, CLASSES), jnp.bfloat16)
MASK = jax.ShapeDtypeStruct((ROWS, CLASSES), jnp.bool_)
LABELS = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
Case = tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]


def _keys(logits: Any) -> Any:
    return jax.random.split(KEY, len(logits))


def _gradient(loss: Callable[..., Any], argnum: int = 0) -> Callable[..., Any]:
    return jax.value_and_grad(lambda *args: loss(*args).mean(), argnum)


ONE, TWO, WITH_LABELS = (LOGITS,), (LOGITS, LOGITS), (LOGITS, LABELS)
SECTIONS: dict[str, dict[str, Case]] = {
    "Which classes stay": {
        "keep_top_k": (lambda z: jl.keep_top_k(z, 50), ONE),
        "keep_top_p": (lambda z: jl.keep_top_p(z, TOP_P), ONE),
        "keep_top_p, where": (
            lambda z, where: jl.keep_top_p(z, TOP_P, where=where),
            (LOGITS, MASK),
        ),
        "vmap of keep_top_p": (jax.vmap(lambda z: jl.keep_top_p(z, TOP_P)), ONE),
        "top-p by a sort": (top_p_by_sort, ONE),
        "keep_typical": (lambda z: jl.keep_typical(z, TOP_P), ONE),
        "keep_min_p": (lambda z: jl.keep_min_p(z, 0.1), ONE),
        "keep_top_n_sigma": (lambda z: jl.keep_top_n_sigma(z, 1.0), ONE),
        "keep_epsilon": (lambda z: jl.keep_epsilon(z, 1e-4), ONE),
        "keep_eta": (lambda z: jl.keep_eta(z, 1e-4), ONE),
    },
    "Draws": {
        "sample": (lambda z: jl.sample(KEY, z), ONE),
        "sample, where": (lambda z, where: jl.sample(KEY, z, where=where), (LOGITS, MASK)),
        "sample, a key for each row": (lambda z: jax.vmap(jl.sample)(_keys(z), z), ONE),
        "sample_with_log_prob": (lambda z: jl.sample_with_log_prob(KEY, z), ONE),
        "sample_without_replacement": (lambda z: jl.sample_without_replacement(KEY, z, 4), ONE),
        "jax.random.categorical": (lambda z: jax.random.categorical(KEY, z), ONE),
        'jax.random.categorical, mode="high"': (
            lambda z: jax.random.categorical(KEY, z, mode="high"),
            ONE,
        ),
    },
    "Softmax and losses": {
        "softmax": (jl.softmax, ONE),
        "jax.nn.softmax": (jax.nn.softmax, ONE),
        "logsumexp": (jl.logsumexp, ONE),
        "cross entropy, value and gradient": (
            _gradient(jl.softmax_cross_entropy_with_integer_labels),
            WITH_LABELS,
        ),
        "optax's": (
            _gradient(optax.softmax_cross_entropy_with_integer_labels),
            WITH_LABELS,
        ),
        "entropy": (jl.entropy, ONE),
        "softmax_kl_divergence": (jl.softmax_kl_divergence, TWO),
        "the same, value and gradient": (_gradient(jl.softmax_kl_divergence, 1), TWO),
        "jensen_shannon_divergence": (jl.jensen_shannon_divergence, TWO),
    },
}


def measure(name: str, case: Case, kind: str, chip: Chip) -> list[str]:
    """Temporary MiB, the traffic in main memory in arrays of logits, and modelled ms."""
    fn, types = case
    try:
        program = compile_for(fn, chip, *types)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return [name, kind, "more than there is", "", ""]
    time = seconds(program.as_text(), chip)
    array = math.prod(LOGITS.shape) * LOGITS.dtype.itemsize
    passes = time * SHARE * chip.bandwidth / array
    temporary = program.memory_analysis().temp_size_in_bytes / MIB
    return [name, kind, f"{temporary:.0f}", f"{passes:.1f}", f"{1e3 * time:.1f}"]


def main() -> None:
    paragraphs = [
        "# Functions of rows on one TPU: memory and traffic",
        f"{versions('jax', 'libtpu', 'jaxlogits', 'optax')}; {ROWS} rows of {CLASSES} classes in "
        f"bfloat16, which are {math.prod(LOGITS.shape) * 2 // MIB} MiB. Compiled for the TPU, not "
        "run. MiB are temporary memory beyond arguments and results, from the compiler's memory "
        "analysis. Passes are the bytes that are read from main memory and written to it, over "
        "those of the logits: a map that reads them once has 2.",
        f"The time is that of these bytes at {SHARE} of the bandwidth: what is computed in between "
        "isn't modelled, which may take longer, above all where a row is searched in fast memory; "
        "a sort counts as one pass. No chip was there to compare with.",
    ]
    for title, cases in SECTIONS.items():
        rows = []
        for name, case in cases.items():
            for kind, chip in CHIPS.items():
                rows.append(measure(name, case, kind, chip))
                print(*rows[-1], sep=" | ", flush=True)
        paragraphs += [f"## {title}", table(["", "TPU", "MiB", "passes", "ms"], rows)]
    path = RESULTS / "rows-tpu.md"
    path.write_text("\n\n".join(paragraphs) + "\n")
    print(path)


if __name__ == "__main__":
    main()
