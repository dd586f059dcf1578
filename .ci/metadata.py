"""What the index shows of a release: links that lead to the repository it is built from.

A build in GitHub Actions knows the repository and the tag; any other has no links to show, and
keeps README's own, which are relative.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

README = Path(__file__).parents[1] / "README.md"
FROM_CLONE = " From a clone:\n\n```bash\npip install .\n"
FROM_INDEX = "\n\n```bash\npip install jaxlogits\n"


class Links(MetadataHookInterface):
    """Fills in what pyproject.toml calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme, and the URLs where they are known."""
        repository, ref = os.environ.get("GITHUB_REPOSITORY"), os.environ.get("GITHUB_REF_NAME")
        text = README.read_text(encoding="utf-8")
        if repository and ref:
            metadata["urls"] = urls(repository)
            text = absolute(released(text, ref), repository, ref)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def urls(repository: str) -> dict[str, str]:
    """Under which names the index lists them."""
    owner, name = repository.split("/")
    source = f"https://github.com/{repository}"
    return {
        "Documentation": f"https://{owner}.github.io/{name}/",
        "Source": source,
        "Issues": f"{source}/issues",
        "Changelog": f"{source}/blob/main/CHANGELOG.md",
    }


def released(text: str, ref: str) -> str:
    """The same README, which installs from the index once the build is that of a release."""
    return text.replace(FROM_CLONE, FROM_INDEX) if re.match(r"v\d", ref) else text


def absolute(text: str, repository: str, ref: str) -> str:
    """The same Markdown, whose relative links lead to the repository as it is at the ref."""

    def whole(link: re.Match[str]) -> str:
        kind = "raw" if link[1] else "blob"
        return f"{link[1]}[{link[2]}](https://github.com/{repository}/{kind}/{ref}/{link[3]})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)", whole, text)
