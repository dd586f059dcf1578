"""The notebooks, from the examples of the same names.

Run: python examples/notebooks/make.py   (pip install jupytext)

Edit the example, not the notebook. A line `# %pip ...` of an example is a command in its notebook.
"""

from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent
# Colab takes the kind of machine from here.
MACHINES = {"first_tour": {}, "big_vocabulary_tpu": {"accelerator": "TPU"}, "logits_explained": {}}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook(name: str) -> str:
    """The text of a notebook: the same for the same example, and without results."""
    book = jupytext.read(HERE.parent / f"{name}.py", fmt="py:percent")
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"
    book.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}} | MACHINES[name]
    book.nbformat, book.nbformat_minor = 4, 5
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"


if __name__ == "__main__":
    for name in MACHINES:
        path = HERE / f"{name}.ipynb"
        path.write_text(notebook(name))
        print(path)
