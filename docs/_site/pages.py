"""Pages that are made of the code: one for each public function, example and notebook."""

import base64
import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from words import WORDS

import jaxlogits as jl

ROOT = Path(__file__).parents[2]
API, EXAMPLES = ROOT / "docs" / "api", ROOT / "docs" / "examples"
# Known where GitHub builds the site; what isn't known isn't linked.
REPOSITORY, REF = os.environ.get("GITHUB_REPOSITORY"), os.environ.get("GITHUB_REF_NAME")
RELEASED = (
    " From a clone:\n\n```bash\npip install .\n",
    "\n\n```bash\npip install jaxlogits\n",
)
FUNCTION = re.compile(r"^- `(\w+)\(.*?`: (.+)", re.MULTILINE)
IMPORTS = ">>> import jax, jax.numpy as jnp, jaxlogits as jl"
EXAMPLE_LINK = re.compile(r"\]\((?:\.\./)*examples/(?:notebooks/)?([a-z]\w*)\.(?:py|ipynb)\)")


def sections(page: str) -> dict[str, str]:
    """The text under each heading of the second level."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def slug(title: str) -> str:
    """A file's name for a title: what stands before its colon or comma."""
    return re.split("[:,]", title.lower())[0].replace(" ", "-")


def toctree(pages: list[str], *options: str) -> str:
    """Pages in the contents, but not in the text."""
    return "\n".join(["\n```{toctree}", ":hidden:", *options, "", *pages, "```", ""])


def write_pages(app: Sphinx) -> None:
    """All of them; Sphinx reads again only what has changed."""
    del app
    for folder, pages in ((API, dict(api_pages())), (EXAMPLES, dict(example_pages()))):
        folder.mkdir(exist_ok=True)
        for name, content in pages.items():
            path = folder / name
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
        for path in set(folder.iterdir()) - {folder / name for name in pages}:
            path.unlink()


def api_pages() -> Iterator[tuple[str, bytes]]:
    """A page for each section of docs/functions.md, and one for each function and result in it."""
    results = [name for name in jl.__all__ if inspect.isclass(getattr(jl, name))]
    for title, text in sections((ROOT / "docs" / "functions.md").read_text()).items():
        listed = dict(FUNCTION.findall(text))
        homes = {getattr(jl, name).__module__ for name in listed}
        classes = [name for name in results if getattr(jl, name).__module__ in homes]
        lines = [f"- [`{name}`](jl.{name}.md): {what}" for name, what in listed.items()]
        lines += [f"- [`{name}`](jl.{name}.md): what a function here returns." for name in classes]
        page = "\n".join([f"# {title}", "", *lines, ""]) + toctree(
            [f"jl.{name}" for name in [*listed, *classes]]
        )
        yield f"{slug(title)}.md", page.encode()
        for kind, names in (("function", list(listed)), ("class", classes)):
            for name in names:
                about = sentence(listed[name]) + "\n\n" if name in listed else ""
                others = ", ".join(f"`{other}`" for other in [*listed, *classes] if other != name)
                also = f"\n**See also.** [{title}]({slug(title)}.md). {others}\n"
                yield f"jl.{name}.md", f"# {name}\n\n{about}{autodoc(kind, name)}\n{also}".encode()


def sentence(text: str) -> str:
    """The description of a function in a list, as a line of its own."""
    return text[0].upper() + text[1:]


def autodoc(kind: str, name: str) -> str:
    """What Sphinx replaces by the docstring."""
    return f"```{{eval-rst}}\n.. currentmodule:: jaxlogits\n.. auto{kind}:: {name}\n```"


def example_pages() -> Iterator[tuple[str, bytes]]:
    """Each example with what it printed and drew, each notebook with its outputs."""
    notebooks = {path.stem: path for path in (ROOT / "examples" / "notebooks").glob("*.ipynb")}
    for path in sorted((ROOT / "examples").glob("[!_]*.py")):
        if path.stem in notebooks:
            yield from notebook_page(notebooks[path.stem])
        else:
            yield f"{path.stem}.md", example_page(path).encode()


def example_page(path: Path) -> str:
    """The cells of a program as text and code, with its output after the first text."""
    cells = re.split(r"^# %%(.*)\n", path.read_text(), flags=re.MULTILINE)[1:]
    texts = [
        re.sub(r"^# ?", "", cell, flags=re.MULTILINE) if "markdown" in kind else code(cell)
        for kind, cell in zip(cells[::2], cells[1::2], strict=True)
    ]
    download = f"Download {{download}}`{path.name} <../../examples/{path.name}>`."
    output, figure = ROOT / "docs" / "outputs" / f"{path.stem}.txt", figure_of(path)
    shown = [download]
    if output.exists() or figure:
        shown.append("## What it shows")
    if output.exists():
        shown.append(fenced("text", output.read_text()))
    if figure:
        shown.append(f"![The figure that the example draws](../figures/{figure})")
    return "\n\n".join([texts[0].strip(), *shown, *texts[1:]]) + "\n"


def figure_of(path: Path) -> str | None:
    """The figure in docs/figures that an example draws, if any."""
    drawn = re.search(r"examples/output/(\w+\.png)", path.read_text())
    return drawn[1] if drawn and (ROOT / "docs" / "figures" / drawn[1]).exists() else None


def notebook_page(path: Path) -> Iterator[tuple[str, bytes]]:
    """The cells of a notebook with their outputs, whose pictures are files beside the page."""
    download = f"Download {{download}}`{path.name} <../../examples/notebooks/{path.name}>`."
    if REPOSITORY and REF:
        place = f"{REPOSITORY}/blob/{REF}/{path.relative_to(ROOT)}"
        download += f" [Open it in Colab](https://colab.research.google.com/github/{place})."
    parts: list[str] = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else code(source))
        for number, output in enumerate(cell.get("outputs", [])):
            picture = output.get("data", {}).get("image/png")
            if picture:
                name = f"{path.stem}-{cell['id']}-{number}.png"
                yield name, base64.b64decode("".join(picture))
                parts.append(f"![Output of the cell above]({name})")
            elif output.get("name") == "stdout":
                parts.append(fenced("text", "".join(output["text"])))
    parts.insert(1, download)
    yield f"{path.stem}.md", ("\n\n".join(parts) + "\n").encode()


def code(text: str) -> str:
    """A cell of Python."""
    return fenced("python", text.strip("\n") + "\n") if text.strip() else ""


def fenced(language: str, text: str) -> str:
    """A block as Markdown."""
    return f"```{language}\n{text.rstrip()}\n```"


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """The links of docs/index.md are the contents of the site; recipes and functions are added."""
    if docname == app.config.root_doc:
        if re.match(r"v\d", REF or ""):  # as .ci/metadata.py has it on the index
            source[0] = source[0].replace(*RELEASED)
        source[0] += "".join(contents())
    if docname == "docs/speed":
        source[0] += toctree(["../benchmarks/results/*"], ":glob:")
    if docname == "docs/gallery":  # thumbnails, which lead to the figure
        source[0] = re.sub(r"(!\[[^\]]+\])\((figures/.+?)\)", r"[\1(\2)](\2)", source[0])
    source[0] = EXAMPLE_LINK.sub(r"](/docs/examples/\1.md)", source[0])
    if docname in WORDS:
        entries = ", ".join(f"! {word}" for word in WORDS[docname])
        title, rest = source[0].split("\n", 1)
        source[0] = f"{title}\n\n```{{index}} {entries}\n```\n{rest}"


def contents() -> Iterator[str]:
    """A list of pages for each section of docs/index.md."""
    docs = ROOT / "docs"
    added = {
        "Recipes": re.findall(
            r"\[([^\]]+)\]\((recipes/.+?)\.md\)", (docs / "recipes.md").read_text()
        ),
        "API": [(t, f"api/{slug(t)}") for t in sections((docs / "functions.md").read_text())],
    }
    for title, text in sections((docs / "index.md").read_text()).items():
        with_pages = EXAMPLE_LINK.sub(r"](examples/\1.md)", text)
        links = re.findall(r"\[([^\]]+?)\]\(([^)#]+)\.md\)", with_pages) + added.get(title, [])
        places = [(name, (docs / page).resolve().relative_to(ROOT)) for name, page in links]
        yield toctree([f"{name} </{place}>" for name, place in places], f":caption: {title}")
    yield toctree(["/docs/index"])


def prepare_docstring(
    app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text with ``code``; what looks like other markup is none."""
    del app, what, name, thing, options
    text = "\n".join(lines).split("Example:")
    text[0] = re.sub(r"(``.+?``)|([*|\\]|_\b|\b_)", lambda m: m[1] or f"\\{m[2]}", text[0])
    # Napoleon would take what stands before a colon for a type.
    text[0] = re.sub(r"^Returns:\n +", ":returns: ", text[0], flags=re.MULTILINE)
    # "Accuracy: ..." begins a paragraph whose other lines are indented.
    text[0] = re.sub(
        r"^(Accuracy|Transforms|Reference): (.+(?:\n +.+)*)",
        lambda m: f"\n**{m[1]}.** " + re.sub(r"\n +", "\n", m[2]),
        text[0],
        flags=re.MULTILINE,
    )
    # help() needs no imports, but what is copied does.
    text[1:] = [re.sub(r"^\n( +)", rf"\n\1{IMPORTS}\n\1", example) for example in text[1:]]
    lines[:] = "Example:".join(text).splitlines()


def prepare_signature(
    app: Sphinx, what: str, name: str, thing: object, options: Any, signature: str, result: str
) -> tuple[str, str]:
    """Types by their short names, also inside a union."""
    del app, what, name, thing, options
    return tuple(
        text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text)
        for text in (signature, result)
    )
