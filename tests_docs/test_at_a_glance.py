"""Figures of README and docs/speed.md are drawn from tables, and README says what these say."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.newest
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def load(name: str) -> Any:
    """A script that draws, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def glance() -> Any:
    return load("at_a_glance")


def test_draws_what_readme_shows(glance: Any, tmp_path: Path) -> None:
    glance.main(tmp_path)
    shown = re.findall(r"docs/figures/(glance-\w+\.png)", README)
    assert sorted(shown) == sorted(path.name for path in tmp_path.iterdir())
    for name in shown:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_others_lose_all_digits_at_a_margin_of_20(glance: Any) -> None:
    found = glance.measure_accuracy(np.array([-20.0, 0.0, 20.0, 60.0]))
    # Ten terms, each an exponential and a sum of some roundings of 6e-8.
    assert max(np.max(errors) for errors in found["jaxlogits"]) < 1e-6
    for peer in ("optax", "jax.nn"):
        assert np.all(found[peer].loss[2:] == 1)
        assert np.all(found[peer].gradient[2:] == 1)


def test_readme_says_what_the_tables_say(glance: Any) -> None:
    memory = glance.read_table("Memory over rows")
    times = re.findall(r"^\| jaxlogits \| (\d\.\d\d) \(", glance.RESULTS.read_text(), re.MULTILINE)
    sizes = [memory[name]["16384"] for name in ("jaxlogits", glance.PLAIN)]
    text = " ".join(README.split())
    assert f"it takes {sizes[0]} MiB instead of {sizes[1]}," in text
    assert f"and {min(times)} to {max(times)} of the time that optax takes" in text


def test_survives_every_transform(glance: Any) -> None:
    table = glance.read_table("Transforms")
    assert len(table) == 11
    for cells in table.values():
        assert len(cells) == 6
        assert cells["jaxlogits"] == cells[glance.PLAIN] == "yes"


def test_the_figure_of_speed_has_every_ratio_of_its_table(tmp_path: Path) -> None:
    speed = load("speed")
    found = speed.read_ratios()
    ratios = [ratio for shapes in found.values() for ratio in shapes.values()]
    assert len(ratios) == speed.RESULTS.read_text().count("\n| [")
    assert all(low <= median <= high for median, low, high in ratios)
    speed.draw(tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
