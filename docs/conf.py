"""The site: `python -m sphinx -W -n -c docs . site` builds it from the Markdown files as they are.

The source folder is the repository, so that links between documents, examples and tables lead
somewhere on a code host and on the site alike. What the files don't say is derived from them, in
docs/_site: the contents from docs/index.md, the pages of functions from docs/functions.md and the
docstrings, those of examples from the programs and what they printed.
"""

import sys
from pathlib import Path

from sphinx.application import Sphinx

import jaxlogits as jl

sys.path.insert(0, str(Path(__file__).parent / "_site"))

import look
import pages

project = "jaxlogits"
author = copyright = "The jaxlogits authors"  # noqa: A001
version = release = jl.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "benchmarks/results/*.md"]
exclude_patterns = [".*", "**/.*", "build", "dist", "site"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # cells of a program may begin with any level
highlight_language = "text"
add_module_names = False
autodoc_typehints = "signature"
autodoc_type_aliases = {name: name for name in ("Array", "ArrayLike", "Axis", "AxisName")}
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_use_ivar = True
nitpick_ignore_regex = [("py:class", ".*")]  # the types of signatures, which have no pages

# A copied session is what was typed: no prompts, no output.
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_selector = ":is(.highlight-python, .highlight-bash, .highlight-pycon, .doctest) pre"

html_theme = "furo"
html_title = "jaxlogits"
html_favicon = "_site/static/favicon.svg"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
if pages.REPOSITORY:
    html_baseurl = "https://{}.github.io/{}/".format(*pages.REPOSITORY.split("/"))
templates_path = ["_site/templates"]
html_additional_pages = {"index": "to_start.html"}
html_copy_source = html_show_sphinx = False


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("builder-inited", pages.write_pages)
    app.connect("source-read", pages.add_contents)
    app.connect("autodoc-process-docstring", pages.prepare_docstring, priority=100)
    app.connect("autodoc-process-signature", pages.prepare_signature)
    app.connect("html-page-context", look.describe)
    app.add_html_math_renderer("mathml", (look.formula, None), (look.formula, None))
    app.add_post_transform(look.LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
