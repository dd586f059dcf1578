"""Change the library in one place at a time, and see whether a test notices.

``python tests/mutate.py --count 40 --seed 1 tests/test_log_odds.py tests/regression`` runs these
tests once under coverage.py, draws mutants from the lines that they cover, spread evenly over the
modules (with ``--of losses``, those of a room), and runs for each what covers its line, first the
tests that run little else, up to the first failure. The table says which mutants lived. Nothing
here is changed: tests run in a copy, and share what they compile. With ``--folder`` the copy stays,
and what was measured in it is read from there the next time.

What lives through these meets all parameters of the same tests, also if ``--one-in 3`` measured a
third of them.
"""

import argparse
import ast
import copy
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import coverage
import jax
import pytest

for name in ("mpmath", "optax", "scipy.special", "scipy.stats"):
    importlib.import_module(name)  # once, and not in each child

ROOT = Path(__file__).parents[1]
LIBRARY = Path("jaxlogits/_src")
MEASURED = ".coverage"
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
    """Nodes that run when a function is called, but for annotations, defaults and messages.

    ``x[..., 0]`` stays: another index is clipped to that of a dimension of 1.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            nodes = [each for statement in node.body for each in ast.walk(statement)]
            slices = [each.slice for each in nodes if isinstance(each, ast.Subscript)]
            of_rows = [s.elts for s in slices if isinstance(s, ast.Tuple) and is_of_rows(s)]
            types = [each.annotation for each in nodes if isinstance(each, ast.arg | ast.AnnAssign)]
            types += [each.returns for each in nodes if isinstance(each, ast.FunctionDef)]
            fixed = {id(index) for indices in of_rows for index in indices}
            fixed |= {id(part) for kind in types if kind for part in ast.walk(kind)}
            yield from (each for each in nodes if id(each) not in fixed)
        else:
            yield from executed(node)


def is_of_rows(index: ast.Tuple) -> bool:
    return any(isinstance(part, ast.Constant) and part.value is ... for part in index.elts)


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


class Tests(NamedTuple):
    """What a run of pytest says."""

    failed: str  # the first that fails, if any; not to end in time is a failure too
    output: str


def run(
    where: Path, tests: list[str], *options: str, seconds: float, plugins: tuple[Any, ...] = ()
) -> Tests:
    """pytest in a child of this process, which has imported what every test needs, but no test."""
    log = where / "pytest.log"
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(where)
        with log.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        sys.path.insert(0, str(where))
        code = 1
        try:
            code = int(pytest.main(["-n", "0", "-x", "-q", *options, *tests], plugins))
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    until = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Tests("no end", "")
        time.sleep(0.05)
    text = log.read_text(errors="replace")
    if ended[1] == 0:
        return Tests("", text)
    failed = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return Tests(failed[0].partition(" ")[2].split(" - ")[0] if failed else "crash", text)


class Lines:
    """Records which test runs which lines and branches of the library.

    Each test traces anew what it calls, or its lines would be those of the test before it; the
    parameters of a test share what they trace.
    """

    def __init__(self, where: Path) -> None:
        self.measured = coverage.Coverage(
            str(where / MEASURED), branch=True, source=[str(where / "jaxlogits")], config_file=False
        )
        self.test = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_parse(self) -> None:  # before the library is imported
        self.measured.start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        test = item.nodeid.partition("[")[0]
        if test != self.test:
            jax.clear_caches()
        self.test = test
        self.measured.switch_context(item.nodeid)
        return (yield)

    def pytest_sessionfinish(self) -> None:
        self.measured.stop()
        self.measured.save()


def covering(
    where: Path, tests: list[str], options: list[str], seconds: float
) -> dict[Path, dict[int, list[str]]]:
    """For each module the tests that run each of its lines, first those that run little else."""
    if not (where / MEASURED).exists():
        measured = run(where, tests, *options, seconds=seconds, plugins=(Lines(where),))
        if measured.failed:
            raise SystemExit(
                f"the tests fail before anything is changed:\n{measured.output[-3000:]}"
            )
    data = coverage.CoverageData(str(where / MEASURED))
    data.read()
    files = {Path(file): data.contexts_by_lineno(file) for file in data.measured_files()}
    counts = {
        file: Counter(c for names in lines.values() for c in names if c)
        for file, lines in files.items()
    }
    of_all = sum(counts.values(), Counter[str]())
    found: dict[Path, dict[int, list[str]]] = {}
    for file, lines in files.items():
        module = file.relative_to(where)
        if LIBRARY in module.parents:
            of_this = counts[file]
            found[module] = {
                number: sorted(filter(None, names), key=lambda t: -of_this[t] / of_all[t])
                for number, names in lines.items()
                if any(names)
            }
    return found


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
    parser.add_argument("--most", type=int, default=1000, help="tests for each mutant")
    parser.add_argument("--one-in", type=int, default=1, help="of the parameters of a test")
    parser.add_argument("--folder", type=Path, help="for the copy and what was measured, to stay")
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    given = parser.parse_args()
    command = " ".join(["python", "tests/mutate.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        outcomes: list[Outcome] = []
        for outcome in tried((given.folder or Path(folder)).resolve(), given):
            outcomes.append(outcome)
            print(table([outcome], "").splitlines()[-1], flush=True)
            if given.write:
                given.write.write_text(table(outcomes, command))


def tried(where: Path, given: argparse.Namespace) -> Iterator[Outcome]:
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, where / name, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / name, where / name)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(where / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    sys.dont_write_bytecode = True  # it would outlive its source
    options = ["--one-in", str(given.one_in)]
    lines = covering(where, given.tests, options, seconds=10 * given.seconds)
    for mutant in sample(lines, given.of or ["."], given.count, random.Random(given.seed)):
        (where / mutant.module).write_text(mutant.source)
        tests = lines[mutant.module][mutant.line][: given.most]
        by = run(where, tests, seconds=given.seconds).failed
        if not by:
            whole = dict.fromkeys(test.partition("[")[0] for test in tests)
            by = run(where, list(whole), seconds=given.seconds).failed
        shutil.copy(ROOT / mutant.module, where / mutant.module)
        yield Outcome(mutant, bool(by), by.rpartition("/")[2])


if __name__ == "__main__":
    main()
