"""The notebooks, from the examples of the same names, with what their cells print and draw.

Run: python examples/notebooks/make.py   (pip install -e '.[notebooks]')

Edit the example, not the notebook.
"""

import os
from pathlib import Path

import jupytext
import nbclient
import nbformat

HERE = Path(__file__).parent
# Colab takes the kind of machine from here.
MACHINES = {"first_tour": {}, "big_vocabulary_tpu": {"accelerator": "TPU"}, "logits_explained": {}}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook(name: str) -> nbformat.NotebookNode:
    """The cells of an example, without results."""
    book = jupytext.read(HERE.parent / f"{name}.py", fmt="py:percent")
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"
    book.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}} | MACHINES[name]
    book.nbformat, book.nbformat_minor = 4, 5
    nbformat.validate(book)
    return book


def run(book: nbformat.NotebookNode, folder: Path) -> None:
    """Fill in the results, on two devices of the CPU; progress bars aren't among them."""
    metadata = dict(book.metadata)
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(book, timeout=300, resources=resources, coalesce_streams=True)
    client.execute()
    book.metadata = metadata
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


if __name__ == "__main__":
    for name in MACHINES:
        book = notebook(name)
        run(book, HERE)
        path = HERE / f"{name}.ipynb"
        path.write_text(nbformat.writes(book) + "\n")
        print(path)
