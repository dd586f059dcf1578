"""Change the library in one place at a time, and see whether a test notices.

``python tests/mutate.py --count 40 --seed 1 tests/test_log_odds.py tests/regression`` runs these
tests once under coverage.py, draws mutants from the lines that they cover, spread evenly over the
modules (with ``--of losses``, those of a room), and runs for each what covers its line, up to the
first failure. A line counts as covered
by the test that traced it first, as JAX keeps what is traced; so what a mutant survives there is
followed by all that was named. The table says which mutants lived. Nothing here is changed: tests
run in a copy, and share what they compile.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LIBRARY = Path("jaxlogits/_src")
NEEDED = ("jaxlogits", "tests", "examples", "benchmarks", "docs", "conftest.py", "pyproject.toml")

COMPARED: dict[type, type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
COMPUTED: dict[type, type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
CALLED = {"maximum": "minimum", "minimum": "maximum", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    module: Path
    line: int
    before: str
    after: str
    source: str  # of the whole module


class Outcome(NamedTuple):
    mutant: Mutant
    killed: bool
    by: str


def altered(node: ast.AST) -> ast.expr | None:
    """The expression with one thing changed in it, if there is something to change."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op]) if type(op) in COMPARED:
            new.ops = [COMPARED[type(op)]()]
        case ast.BinOp(op=op) if type(op) in COMPUTED:
            new.op = COMPUTED[type(op)]()
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            return new.operand
        case ast.BoolOp():
            new.op = ast.Or() if isinstance(new.op, ast.And) else ast.And()
        case ast.Constant(value=bool()):
            new.value = not new.value
        case ast.Constant(value=int() | float()):
            new.value = new.value + 1
        case ast.Call(func=ast.Attribute(attr="where"), args=[_, chosen, _]):
            return chosen
        case ast.Call(func=ast.Attribute(attr=name)) if name in CALLED:
            new.func.attr = CALLED[name]
        case _:
            return None
    return new if isinstance(new, ast.expr) else None


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when a function is called, but for annotations, defaults and messages."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            for statement in node.body:
                yield from ast.walk(statement)
        else:
            yield from executed(node)


def mutants(module: Path, covered: set[int]) -> list[Mutant]:
    source = (ROOT / module).read_text()
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in executed(ast.parse(source)):
        new = altered(node) if getattr(node, "lineno", None) in covered else None
        if new is None:
            continue
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[node.end_lineno - 1] + node.end_col_offset
        text = source.encode()
        before, after = text[first:last].decode(), ast.unparse(new)
        changed = text[:first] + f"({after})".encode() + text[last:]
        found.append(Mutant(module, node.lineno, before, after, changed.decode()))
    return found


def pytest(where: Path, tests: list[str], *under: str, seconds: float) -> str:
    """The first test that fails, if any; not to end in time is a failure too."""
    command = [sys.executable, *under, "-m", "pytest", "-n", "0", "-x", "-q", *tests]
    env = os.environ | {
        "PYTHONPATH": str(where),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(where / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    try:
        run = subprocess.run(
            command,
            cwd=where,
            env=env,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no end"
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "" if run.returncode == 0 else (failed or [run.stdout[-300:]])[0].split(" - ")[0]


def covering(where: Path, tests: list[str], seconds: float) -> dict[Path, dict[int, list[str]]]:
    """For each module the tests that run each of its lines."""
    from coverage import CoverageData

    settings = where / "coverage.ini"
    settings.write_text("[run]\ndynamic_context = test_function\nsource = jaxlogits\n")
    under = ("-m", "coverage", "run", f"--rcfile={settings}")
    failure = pytest(where, tests, *under, seconds=seconds)
    if failure:
        raise SystemExit(f"the tests fail before anything is changed: {failure}")
    data = CoverageData(str(where / ".coverage"))
    data.read()
    found: dict[Path, dict[int, list[str]]] = {}
    for file in data.measured_files():
        module = Path(file).relative_to(where)
        lines = data.contexts_by_lineno(file)
        by = {n: sorted({node_id(c) for c in names if c}) for n, names in lines.items()}
        if LIBRARY in module.parents:
            found[module] = {n: names for n, names in by.items() if names}
    return found


def node_id(context: str) -> str:
    """tests/room/test_module.py::test_name of coverage.py's tests.room.test_module.test_name."""
    module, _, name = context.rpartition(".")
    return f"{module.replace('.', '/')}.py::{name}"


def sample(
    lines: dict[Path, dict[int, list[str]]], rooms: list[str], count: int, rng: random.Random
) -> Iterator[Mutant]:
    """One of each module in turn, no line twice."""
    chosen = [m for m in lines if any(m.is_relative_to(LIBRARY / room) for room in rooms)]
    of = {module: mutants(module, set(lines[module])) for module in chosen}
    for found in of.values():
        rng.shuffle(found)
    seen: dict[Path, set[int]] = defaultdict(set)
    while count and any(of.values()):
        for module in rng.sample(sorted(of), len(of)):
            while of[module] and of[module][-1].line in seen[module]:
                of[module].pop()
            if count and of[module]:
                mutant = of[module].pop()
                seen[module].add(mutant.line)
                count -= 1
                yield mutant


def table(outcomes: list[Outcome], command: str) -> str:
    killed = sum(outcome.killed for outcome in outcomes)
    rows = [
        f"| {m.module.relative_to(LIBRARY)}:{m.line} | `{shown(m.before)}` | `{shown(m.after)}` | "
        f"{'killed' if outcome.killed else 'survived'} | {outcome.by} |"
        for outcome in outcomes
        for m in [outcome.mutant]
    ]
    head = "| line | was | became | | by |\n|---|---|---|---|---|"
    title = f"# Mutants\n\n`{command}`: {killed} of {len(outcomes)} killed.\n\n"
    return title + "\n".join([head, *rows]) + "\n"


def shown(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:60]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="*", default=["tests"])
    parser.add_argument("--of", action="append", help="a room or a module, all if none is given")
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900, help="for each run of pytest")
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    given = parser.parse_args()
    given.of = given.of or ["."]
    command = " ".join(["python", "tests/mutate.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder).resolve()
        for name in NEEDED:
            make = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            make(ROOT / name, where / name)
        lines = covering(where, given.tests, seconds=10 * given.seconds)
        outcomes: list[Outcome] = []
        for mutant in sample(lines, given.of, given.count, random.Random(given.seed)):
            (where / mutant.module).write_text(mutant.source)
            by = pytest(where, lines[mutant.module][mutant.line], seconds=given.seconds)
            by = by or pytest(where, given.tests, seconds=given.seconds)
            shutil.copy(ROOT / mutant.module, where / mutant.module)
            outcomes.append(Outcome(mutant, bool(by), by.rpartition("/")[2]))
            print(table(outcomes[-1:], "").splitlines()[-1], flush=True)
            if given.write:
                given.write.write_text(table(outcomes, command))


if __name__ == "__main__":
    main()
