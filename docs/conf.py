"""The site: `python -m sphinx -W -n -c docs . site` builds it from the Markdown files as they are.

The source folder is the repository, so that links between documents, examples and tables lead
somewhere on a code host and on the site alike. What the files don't say is derived from them: the
contents from docs/index.md, the pages of the API from docs/functions.md and the docstrings.
"""

import inspect
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

import jaxlogits as jl

ROOT = Path(__file__).parents[1]
API = ROOT / "docs" / "api"

project = "jaxlogits"
author = copyright = "The jaxlogits authors"  # noqa: A001
version = release = jl.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "benchmarks/results/*.md"]
exclude_patterns = [".*", "**/.*", "build", "dist", "site"]

myst_heading_anchors = 3
highlight_language = "text"
add_module_names = False
autodoc_typehints = "none"  # the docstrings say more
napoleon_use_ivar = True
nitpick_ignore = [("py:class", "jax.Array")]  # what the fields of results are

html_theme = "furo"
html_title = "jaxlogits"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_additional_pages = {"index": "to_start.html"}
html_copy_source = html_show_sphinx = False

FUNCTION = re.compile(r"^- `(\w+)\(", re.MULTILINE)


def sections(page: str) -> dict[str, str]:
    """The text under each heading of the second level."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def write_api_pages(app: Sphinx) -> None:
    """One page for each section of docs/functions.md, with the docstrings of what it lists."""
    del app
    API.mkdir(exist_ok=True)
    results = [name for name in jl.__all__ if inspect.isclass(getattr(jl, name))]
    functions = (ROOT / "docs" / "functions.md").read_text()
    outdated = set(API.glob("*.md"))
    for title, text in sections(functions).items():
        names = FUNCTION.findall(text)
        homes = {getattr(jl, name).__module__ for name in names}
        classes = [name for name in results if getattr(jl, name).__module__ in homes]
        lines = [f"# {title}", "", "```{eval-rst}", ".. currentmodule:: jaxlogits", ""]
        lines += [f".. autofunction:: {name}" for name in names]
        lines += [f".. autoclass:: {name}" for name in classes]
        page, new = API / f"{slug(title)}.md", "\n".join([*lines, "```", ""])
        outdated.discard(page)
        if not page.exists() or page.read_text() != new:
            page.write_text(new)
    for page in outdated:
        page.unlink()


def slug(title: str) -> str:
    """A file's name for a title: what stands before its colon or comma."""
    return re.split("[:,]", title.lower())[0].replace(" ", "-")


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """The links of docs/index.md are the contents of the site, and each layer has its page."""
    del app
    if docname == root_doc:
        for title, text in sections(source[0]).items():
            links = re.findall(r"^- \[(.+?)\]\(([^)#]+)\.md\)", text, re.MULTILINE)
            pages = [f"{name} <{page}>" for name, page in links]
            source[0] += toctree(pages, f":caption: {title}")
    if docname == "docs/functions":
        source[0] += toctree([f"api/{slug(title)}" for title in sections(source[0])])
    if docname == "docs/speed":
        source[0] += toctree(["../benchmarks/results/*"], ":glob:")


def toctree(pages: list[str], *options: str) -> str:
    """Pages in the contents, but not in the text."""
    return "\n".join(["\n```{toctree}", ":hidden:", *options, "", *pages, "```", ""])


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
    lines[:] = "Example:".join(text).splitlines()


class LinkNames(SphinxPostTransform):
    """A public name that stands as code, anywhere, leads to its docstring."""

    default_priority = 5  # before references are resolved

    def run(self, **kwargs: Any) -> None:
        """Wrap what is found in references."""
        del kwargs
        for code in list(self.document.findall(nodes.literal)):
            name = re.match(r"(?:jl\.)?(\w+)(?:\(.*)?$", code.astext())
            inside = isinstance(code.parent, nodes.reference | pending_xref)
            if name and name[1] in jl.__all__ and not inside:
                link = pending_xref(
                    "",
                    refdomain="py",
                    reftype="obj",
                    reftarget=f"jaxlogits.{name[1]}",
                    refexplicit=True,
                    refdoc=self.env.docname,
                )
                code.replace_self(link)
                link += code


def add_files(app: Sphinx, pagename: str, *_: Any) -> None:
    """Two pages have something of their own."""
    if pagename == "docs/what-is-a-logit":
        app.add_js_file("logit.js", loading_method="defer")
        app.add_css_file("logit.css")
    if pagename == "docs/migration":
        app.add_css_file("migration.css")


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("builder-inited", write_api_pages)
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", prepare_docstring, priority=100)
    app.connect("html-page-context", add_files)
    app.add_post_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
