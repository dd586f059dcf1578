"""What pages look like: linked names, formulas, and what search engines and previews are told."""

import html
import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

import jaxlogits as jl


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


def formula(translator: Any, node: nodes.math) -> None:
    """A formula as MathML, which browsers draw without a script."""
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def describe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """The first sentences as description and preview; three pages have files of their own."""
    del templatename
    if doctree is not None:
        paragraphs = (p.astext() for p in doctree.findall(nodes.paragraph))
        text = " ".join(next(paragraphs, "").split())
        short = text if len(text) <= 200 else text[:200].rsplit(" ", 1)[0] + " …"
        title = re.sub("<.+?>", "", context.get("title", ""))
        tags = {"og:title": title, "og:description": html.escape(short), "og:type": "website"}
        if app.config.html_baseurl:  # a preview's picture needs a whole address
            tags["og:image"] = f"{app.config.html_baseurl.rstrip('/')}/_static/card.png"
            tags |= {"og:image:width": "1200", "og:image:height": "630"}
        lines = [f'<meta name="description" content="{tags["og:description"]}">']
        lines += [f'<meta property="{name}" content="{text}">' for name, text in tags.items()]
        lines.append('<meta name="twitter:card" content="summary_large_image">')
        context["metatags"] = context.get("metatags", "") + "\n".join(lines)
    if pagename == "docs/what-is-a-logit":
        app.add_js_file("logit.js", loading_method="defer")
        app.add_css_file("logit.css")
    for name in ("migration", "gallery"):
        if pagename == f"docs/{name}":
            app.add_css_file(f"{name}.css")
