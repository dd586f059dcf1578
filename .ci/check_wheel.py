"""Check what a wheel holds: the package alone, its licence and the metadata that pip reads."""

import re
import sys
import zipfile
from email.parser import Parser
from pathlib import Path


def main(path: Path) -> None:
    """Exit with what is wrong with the wheel, if anything."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(metadata_name).decode())
    info = metadata_name.rsplit("/", maxsplit=1)[0]
    sources = {str(p) for p in Path("jaxlogits").rglob("*.py")} | {"jaxlogits/py.typed"}
    requirements = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    problems = {
        "files missing": sources - set(names),
        "files too many": {n for n in names if n not in sources and not n.startswith(info)},
        "licence missing": {f"{info}/licenses/LICENSE"} - set(names),
        "runtime requirements": {re.match(r"\w+", r)[0] for r in requirements}
        ^ {"jax", "jaxlib", "chex"},
        "extras": set(metadata.get_all("Provides-Extra"))
        ^ {"browser", "dev", "docs", "examples", "oracles", "test", "tpu"},
    }
    found = [f"{problem}: {sorted(what)}" for problem, what in problems.items() if what]
    if found:
        sys.exit("\n".join(found))
    print(f"{path.name}: {len(names)} files, as they should be")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
