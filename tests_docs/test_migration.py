"""docs/migration.md is run: both calls of each row give the same value and the same gradients."""

import contextlib
import functools
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import jaxlogits as jl

pytestmark = pytest.mark.newest
PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text()
Arrays = dict[str, np.ndarray]
Names = dict[str, Any]


class Row(NamedTuple):
    """The two calls of a row, and what the third cell says is different."""

    there: str
    here: str
    difference: str


class Table(NamedTuple):
    """One library: what its section imports, and its rows."""

    imports: str
    rows: list[Row]


def read(page: str) -> dict[str, Table]:
    """The tables of calls by the name in their first column."""
    tables = {}
    for section in re.split(r"^#+ ", page, flags=re.MULTILINE)[1:]:
        head = re.search(r"^\| (.+?) \| jaxlogits \| difference \|$", section, re.MULTILINE)
        if head:
            cells = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (.*?) *\|$", section, re.MULTILINE)
            assert len(cells) == section.count("\n|") - 2, f"a row of {head[1]} can't be read"
            imports = re.search(r"^With `(.+?)`", section, re.MULTILINE)[1]
            tables[head[1]] = Table(imports, [Row(*row) for row in cells])
    return tables


TABLES = read(PAGE)


def inputs() -> Arrays:
    """What the page's own table lists, under the same names."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(scale=2, size=shape).astype(np.float32)

    def classes(*shape: int) -> np.ndarray:
        return rng.integers(5, size=shape).astype(np.int32)

    kernel, labels, x = normal(3, 5), classes(6), normal(6, 5)
    keep = np.arange(6) % 3 != 1
    return {
        "logits": normal(6, 5),
        "teacher": normal(6, 5),
        "labels": labels,
        "padded": np.where(keep, labels, -100).astype(np.int32),
        "keep": keep,
        "targets": rng.dirichlet(np.ones(5), size=6).astype(np.float32),
        "weights": rng.uniform(0.5, 2, size=5).astype(np.float32),
        "classes": np.array([True, True, False, True, True]),
        "x": x,
        "binary": (normal(6, 5) > 0).astype(np.float32),
        "probs": (1 / (1 + np.exp(-x))).astype(np.float32),
        "pos_weight": rng.uniform(0.5, 2, size=5).astype(np.float32),
        "sequences": normal(2, 4, 5),
        "tokens": classes(2, 4),
        "images": normal(2, 5, 2, 3),
        "pixels": classes(2, 2, 3),
        "hidden": normal(6, 3),
        "kernel": kernel,
        "embedding": kernel.T.copy(),
    }


MODELS = ["logits", "teacher", "x", "probs", "sequences", "images", "hidden", "kernel", "embedding"]


# Each runs calls in its library and gives a value, and the gradients of its sum in ``models``.


def run_jax(cells: list[str], names: Names, arrays: Arrays, models: list[str]) -> list[Any]:
    inputs = {name: jnp.asarray(array) for name, array in arrays.items()}
    varied = {name: inputs.pop(name) for name in models}

    def call(varied: Names, cell: str) -> tuple[Any, Any]:
        value = eval(cell, {**names, **inputs, **varied, "key": jax.random.key(0)})
        return value.sum(dtype=jnp.float32), value

    def everything(varied: Names) -> list[Any]:
        return [jax.grad(call, has_aux=True)(varied, cell)[::-1] for cell in cells]

    return jax.jit(everything)(varied)


def run_numpy(cells: list[str], names: Names, arrays: Arrays, models: list[str]) -> list[Any]:
    del models
    return [(eval(cell, {**names, **arrays}), None) for cell in cells]


def run_torch(cells: list[str], names: Names, arrays: Arrays, models: list[str]) -> list[Any]:
    import torch

    torch.manual_seed(0)

    def call(cell: str) -> tuple[Any, Any]:
        inputs = {name: torch.tensor(array) for name, array in arrays.items()}
        inputs |= {n: t.long() for n, t in inputs.items() if t.dtype == torch.int32}
        varied = {name: inputs[name].requires_grad_() for name in models}
        value = eval(cell, {**names, **inputs})
        if value.requires_grad:
            value.sum().backward()
        zeros = torch.zeros_like
        grads = {n: zeros(t) if t.grad is None else t.grad for n, t in varied.items()}
        return value.detach().numpy(), grads

    return [call(cell) for cell in cells]


def run_tensorflow(cells: list[str], names: Names, arrays: Arrays, models: list[str]) -> list[Any]:
    import tensorflow as tf

    tf.random.set_seed(0)
    inputs = {name: tf.constant(array) for name, array in arrays.items()}
    varied = {name: inputs[name] for name in models}

    def call(cell: str) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(varied)
            value = eval(cell, {**names, **inputs})
        if not value.dtype.is_floating:
            return value.numpy(), None
        return value.numpy(), tape.gradient(value, varied, unconnected_gradients="zero")

    return [call(cell) for cell in cells]


RUNNERS = {
    "optax": run_jax,
    "jax": run_jax,
    "scipy": run_numpy,
    "torch": run_torch,
    "tensorflow": run_tensorflow,
    "tokamax": run_jax,
    "jax-cce": run_jax,
    "cut-cross-entropy": run_torch,
    "liger-kernel": run_torch,
}


@contextlib.contextmanager
def leniently() -> Iterator[None]:
    """Other libraries may warn, convert and broadcast silently, and read the command line."""
    with (
        mock.patch.object(sys, "argv", sys.argv[:1]),
        warnings.catch_warnings(action="ignore"),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@functools.cache
def imported(library: str) -> Names:
    """What the section of a library imports, or the test is skipped."""
    names: Names = {}
    with leniently():
        try:
            exec(TABLES[library].imports, names)
        except ImportError as error:
            pytest.skip(f"{library}: {error}")
    return {"jax": jax, "jnp": jnp} | names


def run_there(library: str, cells: list[str], arrays: Arrays, models: list[str]) -> list[Any]:
    names = imported(library)
    with leniently():
        return RUNNERS[library](cells, names, arrays, models)


def run_here(cells: list[str], arrays: Arrays, models: list[str]) -> list[Any]:
    return run_jax(cells, {"jax": jax, "jnp": jnp, "jl": jl}, arrays, models)


def test_page_has_the_tables() -> None:
    assert TABLES.keys() == RUNNERS.keys()
    assert all(table.rows for table in TABLES.values())


@pytest.mark.parametrize("library", TABLES)
def test_values_and_gradients(library: str) -> None:
    rows = [row for row in TABLES[library].rows if row.difference != DRAWS]
    here = [row.here for row in rows]
    # What can't be compared is traced at least, before the test is skipped.
    jax.eval_shape(lambda: run_here(here, inputs(), []))
    there = run_there(library, [row.there for row in rows], inputs(), MODELS)
    # Some subtract numbers of up to 16 from each other, in float32, and add up to 30 of them.
    close = functools.partial(np.testing.assert_allclose, rtol=2**-17, atol=2**-17)
    compared = zip(rows, there, run_here(here, inputs(), MODELS), strict=True)
    for row, (theirs, their_grads), (ours, our_grads) in compared:
        assert np.shape(theirs) == np.shape(ours), row
        close(ours, theirs, err_msg=str(row))
        for name, grad in (their_grads or {}).items():
            close(our_grads[name], grad, err_msg=f"{row} by {name}")


# What the third cells say. A call there or here takes some inputs; the others are as above.

Call = Callable[..., np.ndarray]
DIFFERENCES: dict[str, Callable[[Call, Call], None]] = {}
DRAWS = "other draws, at the same rates"
ZEROS = np.zeros([6, 5], np.float32)


def difference(case: str) -> Callable[[Callable[[Call, Call], None]], Any]:
    return lambda check: DIFFERENCES.setdefault(case, check)


def with_column(array: np.ndarray, value: float) -> np.ndarray:
    """The same with another second column."""
    return np.where(np.arange(5) == 1, value, array).astype(np.float32)


@difference("a logit of -inf with target 0: NaN there, counts nothing here")
def minus_inf(there: Call, here: Call) -> None:
    arrays = inputs()
    targets = with_column(arrays["targets"], 0)
    changed = {"logits": with_column(arrays["logits"], -np.inf), "targets": targets}
    assert np.isnan(there(**changed)).all()
    assert np.isfinite(here(**changed)).all()


@difference("one logit is +inf: NaN there, probability 1 here")
def plus_inf(there: Call, here: Call) -> None:
    logits = with_column(inputs()["logits"], np.inf)
    assert np.isnan(there(logits=logits)).any(axis=-1).all()
    assert (here(logits=logits) == with_column(ZEROS, 1)).all()


@difference("infinite and right: NaN there, 0 here")
def infinite(there: Call, here: Call) -> None:
    changed = {"x": ZEROS + np.float32(np.inf), "binary": ZEROS + np.float32(1)}
    assert np.isnan(there(**changed)).all()
    assert (here(**changed) == 0).all()


@difference("right by a margin of 20: 0 there, 8e-9 here")
def sure(there: Call, here: Call) -> None:
    changed = {"logits": with_column(ZEROS, 20), "labels": np.ones(6, np.int32)}
    assert (there(**changed) == 0).all()
    np.testing.assert_allclose(here(**changed), 4 * np.exp(-20), rtol=1e-6)


@difference("a margin of 20: 0 there, -8e-9 here")
def sure_log(there: Call, here: Call) -> None:
    logits = with_column(ZEROS, 20)
    assert (there(logits=logits)[:, 1] == 0).all()
    np.testing.assert_allclose(here(logits=logits)[:, 1], -4 * np.exp(-20), rtol=1e-6)


@difference("targets that don't sum to 1: the gradient is wrong there")
def unnormalised(there: Call, here: Call) -> None:
    targets = 2 * inputs()["targets"]
    np.testing.assert_allclose(there(targets=targets), here(targets=targets), rtol=2**-20)
    # The loss is linear in the targets.
    twice = 2 * there("logits")
    np.testing.assert_allclose(here("logits", targets=targets), twice, atol=2**-20)
    assert np.abs(there("logits", targets=targets) - twice).max() > 0.1


@difference("a label that is no class: IndexError there, NaN here")
def no_class(there: Call, here: Call) -> None:
    labels = np.full(6, 5, np.int32)
    with pytest.raises(IndexError):
        there(labels=labels)
    assert np.isnan(here(labels=labels))


@difference("no example counts: NaN there, 0 here")
def nothing(there: Call, here: Call) -> None:
    none = {"padded": np.full(6, -100, np.int32), "keep": np.zeros(6, bool)}
    assert np.isnan(there(**none))
    assert here(**none) == 0


@difference(DRAWS)
def draws(there: Call, here: Call) -> None:
    expected = 4000 * scipy.special.softmax(inputs()["logits"].astype(float), axis=-1)
    for drawn in (there(), here()):
        by_row = np.moveaxis(drawn, drawn.shape.index(4000), -1)
        counts = [np.bincount(row, minlength=5) for row in by_row]
        # Each row's counts add up to 4000. A false alarm in a million.
        test = scipy.stats.chisquare(np.ravel(counts), np.ravel(expected), ddof=5)
        assert test.pvalue > 1e-6


@pytest.mark.parametrize(
    ("library", "row"),
    [(library, row) for library, t in TABLES.items() for row in t.rows if row.difference],
    ids=lambda value: value if isinstance(value, str) else value.difference,
)
def test_differences(library: str, row: Row) -> None:
    there = functools.partial(run_there, library)
    DIFFERENCES[row.difference](single(there, row.there), single(run_here, row.here))


def single(run: Callable[..., list[Any]], cell: str) -> Call:
    """One call as a function of inputs: its value, or the gradient of its sum in one of them."""

    def call(gradient: str | None = None, **changed: np.ndarray) -> np.ndarray:
        value, grads = run([cell], inputs() | changed, [gradient] if gradient else [])[0]
        return np.asarray(grads[gradient] if gradient else value)

    return call


def test_every_difference_is_on_the_page() -> None:
    rows = [row for table in TABLES.values() for row in table.rows]
    assert {row.difference for row in rows} - {""} == DIFFERENCES.keys()
