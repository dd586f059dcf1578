"""What every test and doctest runs under, those of the documents too."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from without_xla import use_numpy

import jaxlogits as jl

# Read by matplotlib when an example imports it: figures need no display.
os.environ.setdefault("MPLBACKEND", "Agg")

# A worker that holds more gives back what it has compiled after each file.
_MOST_RESIDENT = 2**31

# A promotion or a broadcast that nobody wrote is an error.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# For tests of meshes; everything else runs on the first of them.
jax.config.update("jax_num_cpu_devices", 8)

# The compiler for TPUs alone is used, which several workers may load at a time.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

# No test reads the tracebacks of operations, and lowering with them takes processor time.
jax.config.update("jax_traceback_in_locations_limit", 0)


# Tracing makes many objects that live long, which garbage collection would visit over and over.
gc.freeze()
gc.set_threshold(50_000, 20, 100)

_TESTS = Path(__file__).parent / "tests"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--compiled``, for a run that asks nothing of numpy."""
    parser.addoption("--compiled", action="store_true", help="let XLA compile every program")


@pytest.hookimpl(tryfirst=True)  # before fixtures, which compile too
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run programs in tests/ with numpy, or compile them without LLVM's optimisations.

    XLA makes the same program, in the same memory, of what it is given; only the machine code is
    another. Tests of rounding are marked ``optimized`` and have that of users, as doctests do;
    tests of what XLA makes of a program are marked ``compiled``.
    """
    is_test = _TESTS in item.path.parents
    quickly = is_test and item.get_closest_marker("optimized") is None
    is_compiled = item.config.getoption("compiled") or item.get_closest_marker("compiled")
    use_numpy(quickly and not is_compiled)
    if jax.config.read("jax_disable_most_optimizations") and not quickly:
        jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 for this test only."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled() -> Iterator[None]:
    """Give back what was compiled once it is much: over the whole suite it is gigabytes."""
    yield
    if _resident_bytes() > _MOST_RESIDENT:
        jax.clear_caches()


def _resident_bytes() -> int:
    """Of this process; 0 where the system doesn't say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace: dict[str, Any]) -> None:
    """What a docstring's example may use without an import."""
    doctest_namespace.update(jax=jax, jnp=jnp, jl=jl)
