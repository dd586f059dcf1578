"""Check what a wheel and an sdist hold: all that belongs there, nothing else, and the metadata."""

import re
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())
ROOT_FILES = {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO", ".gitignore"}


def main(folder: Path) -> None:
    """Exit with what is wrong with the distributions in a folder, if anything."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    problems = wheel_problems(wheel) | sdist_problems(sdist)
    found = [f"{problem}: {sorted(what)}" for problem, what in problems.items() if what]
    if found:
        sys.exit("\n".join(found))
    print(f"{wheel.name} and {sdist.name} are as they should be")


def wheel_problems(path: Path) -> dict[str, set[str]]:
    """The package alone, its licence and the metadata that pip reads."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(metadata_name).decode())
    info = metadata_name.rsplit("/", maxsplit=1)[0]
    sources = {str(p) for p in Path("jaxlogits").rglob("*.py")} | {"jaxlogits/py.typed"}
    return {
        "files missing in the wheel": sources - names,
        "files too many": {n for n in names if n not in sources and not n.startswith(info)},
        "licence missing": {f"{info}/licenses/LICENSE"} - names,
    } | metadata_problems(metadata)


def metadata_problems(metadata: Message) -> dict[str, set[str]]:
    """What an index shows and pip reads, beside pyproject.toml."""
    project = PROJECT["project"]
    requirements = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    shown = {
        "Name": project["name"],
        "Version": project["version"],
        "License-Expression": project["license"],
        "Requires-Python": project["requires-python"],
        "Description-Content-Type": "text/markdown",
    }
    return {
        "metadata": {field for field, value in shown.items() if metadata[field] != value},
        "classifiers": set(project["classifiers"]) ^ set(metadata.get_all("Classifier")),
        "runtime requirements": {re.match(r"\w+", r)[0] for r in requirements}
        ^ {"jax", "jaxlib", "chex"},
        "extras": set(metadata.get_all("Provides-Extra")) ^ set(project["optional-dependencies"]),
    }


def sdist_problems(path: Path) -> dict[str, set[str]]:
    """Everything to build, test and read, and nothing that a run has left behind."""
    with tarfile.open(path) as sdist:
        names = {name.split("/", maxsplit=1)[1] for name in sdist.getnames()}
    included = [
        Path(name) for name in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
    ]
    files = {str(p) for p in included if p.is_file()} | ROOT_FILES
    kinds = ["py", "md", "ipynb", "png", "svg", "js", "css", "html", "txt", "json", "typed", "yml"]
    patterns = [*(f"*.{kind}" for kind in kinds), "run"]
    files |= {str(p) for folder in included for pattern in patterns for p in folder.rglob(pattern)}
    files = {
        f
        for f in files
        if not re.match(r"docs/api/|docs/examples/|examples/output/|.*__pycache__", f)
    }
    return {
        "files missing in the sdist": files - names,
        "files too many in the sdist": names - files,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
