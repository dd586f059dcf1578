"""The comparison page is what its script measures."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import blocks
import jax
import pytest

pytestmark = pytest.mark.newest
ROOT = Path(__file__).parents[1]
STORE = json.loads((ROOT / "benchmarks" / "results" / "comparison.json").read_text())


@pytest.fixture(scope="module")
def script() -> Any:
    """benchmarks/comparison.py as a module."""
    path = ROOT / "benchmarks" / "comparison.py"
    spec = importlib.util.spec_from_file_location("comparison", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # it hides the command line from other libraries
        patch.setattr(sys, "argv", sys.argv[:1])
        spec.loader.exec_module(module)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield module


def test_page_shows_what_was_measured(script: ModuleType) -> None:
    assert (ROOT / "docs" / "comparison.md").read_text() == script.page(STORE)


@pytest.mark.parametrize("library", [name for name in STORE if name != "times"])
def test_installed_libraries_are_what_is_kept(script: ModuleType, library: str) -> None:
    if not script.installed(library):
        pytest.skip(f"{library} isn't installed")
    measured = script.measure(library)
    # Others may have changed, ours may not.
    if library != "jaxlogits" and measured["versions"] != STORE[library]["versions"]:
        pytest.skip(f"{measured['versions']} is installed")
    # Three digits are kept.
    kept = json.dumps(STORE[library]["cells"])
    found = json.dumps(measured["cells"])
    assert blocks.same_output(found, kept, rel=1e-2), "run benchmarks/comparison.py"
