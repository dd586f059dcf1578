"""The notebooks are those of their examples, and run."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nbformat", reason="the tools for notebooks aren't installed")
pytest.importorskip("nbclient", reason="the tools for notebooks aren't installed")
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
        wanted, stored = made.notebook(name), json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
        cells = [(cell.id, cell.cell_type, cell.source) for cell in wanted.cells]
        found = [(c["id"], c["cell_type"], "".join(c["source"])) for c in stored["cells"]]
        assert cells == found, "run examples/notebooks/make.py"
        assert wanted.metadata == stored["metadata"]


@pytest.mark.parametrize("name", NAMES)
def test_notebook_has_its_results(name: str) -> None:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(output.get("name") == "stdout" for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = make()
    for variable in ("XLA_FLAGS", "JAX_PLATFORMS", "MPLBACKEND"):
        monkeypatch.setenv(variable, "")  # put back what running sets
    book = made.notebook(name)
    made.run(book, tmp_path)
    printed = "".join(
        output.text
        for cell in book.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stdout"
    )
    assert printed
    if name == "big_vocabulary_tpu":
        # A mesh of two devices, so that what is written for many is seen to run on many.
        assert "2 x cpu" in printed
        sizes = [line.split()[2:] for line in printed.splitlines() if "MiB" in line]
        plain, blockwise = (list(map(float, numbers)) for numbers in sizes)
        assert blockwise[-1] < plain[-1] / 4
        assert blockwise[-1] < 1.3 * blockwise[0]  # it doesn't grow with the tokens


@pytest.mark.parametrize("name", NAMES)
def test_first_cell_installs_from_the_clone(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    book = make().notebook(name)
    first = next(cell.source for cell in book.cells if cell.cell_type == "code")
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        assert not check
        commands.append(command)
        return SimpleNamespace(returncode=len(commands) > 3)

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for place in (NOTEBOOKS, NOTEBOOKS.parents[1], tmp_path):
        monkeypatch.chdir(place)
        exec(first, {})
    *in_clone, elsewhere = commands
    assert [command[5] for command in in_clone] == [str(NOTEBOOKS.parents[1])] * 2
    assert elsewhere[5] == "jaxlogits"
    assert in_clone[0][6:] == in_clone[1][6:] == elsewhere[6:]
    assert "matplotlib" in elsewhere
    exec(first.replace("find_spec(name) is None", "False"), {})  # all is there
    assert len(commands) == 3
    with pytest.raises(RuntimeError, match="open this notebook in a clone"):
        exec(first, {})
