"""Check a built site: every link in it leads somewhere, and every public name has its place."""

import re
import struct
import sys
from pathlib import Path
from urllib.parse import unquote

import jaxlogits as jl


def main(site: Path) -> None:
    """Exit with the links that lead nowhere, and the names that aren't there."""
    pages = {path.resolve(): path.read_text() for path in site.rglob("*.html")}
    anchors = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    links = [
        (path, link)
        for path, text in pages.items()
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text)
        if not re.match(r"[a-z]+:|//", link)
    ]
    problems = [f"{path}: {link}" for path, link in links if not leads(path, link, anchors)]
    problems += card_problems(site, pages)
    known = set.union(*anchors.values())
    problems += [f"{name} has no place" for name in jl.__all__ if f"jaxlogits.{name}" not in known]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(pages)} pages, {len(links)} links, {len(jl.__all__)} names, all there")


def card_problems(site: Path, pages: dict[Path, str]) -> list[str]:
    """What is wrong with the picture that previews show, and with pages that name another."""
    card = site / "_static" / "card.png"
    problems = [] if card.exists() else [f"{card} is missing"]
    # A PNG's first chunk has its width and height.
    if card.exists() and struct.unpack(">II", card.read_bytes()[16:24]) != (1200, 630):
        problems.append(f"{card} is not 1200 by 630 pixels")
    shown = (
        (path, image)
        for path, text in pages.items()
        for image in re.findall(r'"og:image" content="([^"]+)"', text)
    )
    return problems + [
        f"{path}: previews show {image}"
        for path, image in shown
        if not image.endswith("/_static/card.png")
    ]


def leads(path: Path, link: str, anchors: dict[Path, set[str]]) -> bool:
    """Whether a relative link of a page has a target."""
    file, _, anchor = unquote(link).partition("#")
    target = (path.parent / file.split("?")[0]).resolve() if file else path
    if target not in anchors or not anchor:
        return target.exists()
    return anchor in anchors[target]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
