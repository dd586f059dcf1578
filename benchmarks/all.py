"""Run every benchmark that needs no other machine, and list the tables.

Run: python benchmarks/all.py [NAME ...]      (--list only lists the tables that there are)

Each script runs in a process of its own; one that fails is named at the end and stops no other.
It writes benchmarks/results/README.md.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from _measure import RESULTS, table

HERE = Path(__file__).parent
README = RESULTS / "README.md"
SCRIPTS = {
    path.stem: path
    for path in sorted(HERE.glob("[a-z]*.py"))
    if "write_result(" in path.read_text() and path != Path(__file__)
}


def script_of(table_name: str) -> str:
    """The script that writes a table, by its name less what tells the device or the versions."""
    words = table_name.split("-")
    names = ("_".join(words[:size]) + ".py" for size in range(len(words), 0, -1))
    return next(name for name in names if (HERE / name).exists())


def index() -> str:
    """The page: each table, the script that writes it, and the JAX that it ran with."""
    rows = []
    for path in sorted(set(RESULTS.glob("*.md")) - {README}):
        text = path.read_text()
        (title,) = re.findall(r"^# (.+)$", text, re.M)
        version = re.search(r"\bjax ([\d.]+\d)", text)
        rows.append(
            [f"[{title}]({path.name})", script_of(path.stem), version[1] if version else ""]
        )
    return "\n\n".join(
        [
            "# Tables of the benchmarks",
            "`python benchmarks/all.py` runs the scripts that write them, except those for TPUs "
            "and other devices, and lists the tables here. [Speed](../../docs/speed.md) says what "
            "the numbers mean.",
            table(["table", "script", "jax"], rows) + "\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of scripts; all by default")
    parser.add_argument("--list", action="store_true", help="run nothing")
    options = parser.parse_args()
    failed = []
    for name in [] if options.list else options.names or SCRIPTS:
        print(f"\n{name}", flush=True)
        if subprocess.run([sys.executable, str(SCRIPTS[name])], check=False).returncode:
            failed.append(name)
    README.write_text(index())
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
