"""The notebooks are those of their examples, and run."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the tools for notebooks aren't installed")
nbclient = pytest.importorskip("nbclient", reason="the tools for notebooks aren't installed")
pytest.importorskip("jupytext", reason="the tools for notebooks aren't installed")
pytest.importorskip("ipykernel", reason="the tools for notebooks aren't installed")

NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def make() -> Any:
    spec = importlib.util.spec_from_file_location("make", NOTEBOOKS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notebooks_are_those_of_their_examples() -> None:
    made = make()
    assert sorted(made.MACHINES) == NAMES
    for name in NAMES:
        text = (NOTEBOOKS / f"{name}.ipynb").read_text()
        assert text == made.notebook(name), "run examples/notebooks/make.py"
        cells = json.loads(text)["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A mesh of two devices, so that what is written for many is seen to run on many.
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    install, *rest = code
    assert install.source.startswith("%pip install -q jaxlogits")
    assert not any("%pip" in cell.source for cell in rest)
    book.cells.remove(install)  # it is installed
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in rest for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    if name == "big_vocabulary_tpu":
        assert "2 x cpu" in printed
        sizes = [line.split()[2:] for line in printed.splitlines() if "MiB" in line]
        plain, blockwise = (list(map(float, numbers)) for numbers in sizes)
        assert blockwise[-1] < plain[-1] / 4
        assert blockwise[-1] < 1.3 * blockwise[0]  # it doesn't grow with the tokens
