"""The comparison page is what its script measures."""

import importlib.util
import re
from pathlib import Path

import blocks
import jax
import pytest

pytest.importorskip("statsmodels", reason="what is compared isn't installed")
pytestmark = pytest.mark.newest
ROOT = Path(__file__).parents[1]


def test_page_is_what_is_measured() -> None:
    path = ROOT / "benchmarks" / "comparison.py"
    spec = importlib.util.spec_from_file_location("comparison", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        measured = script.page()
    shown = (ROOT / "docs" / "comparison.md").read_text()
    versions = [re.search(r"^Measured with (.+)$", page, re.M)[1] for page in (measured, shown)]
    if versions[0] == versions[1]:
        # Three digits are shown.
        assert blocks.same_output(measured, shown, rel=1e-2), "run benchmarks/comparison.py"
    else:  # others may have changed, ours may not
        ours = [
            [row.split(" | ")[:3] for row in page.splitlines() if row.startswith("| ")]
            for page in (measured, shown)
        ]
        assert blocks.same_output(str(ours[0]), str(ours[1]), rel=1e-2)
