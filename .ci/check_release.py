"""Check that a tag such as v0.1.0 is the version in all files, with its date in the changelog."""

import re
import sys
import tomllib
from pathlib import Path


def main(tag: str) -> None:
    """Exit with the files that say something else."""
    version = tag.removeprefix("v")
    dated = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    said = {
        "pyproject.toml": version_in_pyproject() == version,
        "jaxlogits/__init__.py": f'\n__version__ = "{version}"\n' in read("jaxlogits/__init__.py"),
        "CITATION.cff": f"\nversion: {version}\n" in read("CITATION.cff"),
        "CHANGELOG.md": re.search(dated, read("CHANGELOG.md"), re.MULTILINE) is not None,
    }
    if not all(said.values()):
        sys.exit(f"not {version}: {', '.join(file for file, right in said.items() if not right)}")
    print(f"{version}, as all of {', '.join(said)} say")


def read(file: str) -> str:
    """The text of a file."""
    return Path(file).read_text()


def version_in_pyproject() -> str:
    """The version of the project."""
    return tomllib.loads(read("pyproject.toml"))["project"]["version"]


if __name__ == "__main__":
    main(sys.argv[1])
