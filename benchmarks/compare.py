"""What became faster or slower from one commit to another, or to the working tree.

Run: python benchmarks/compare.py A [B] [--cases sample softmax ...] [--sizes 1x32000 256x1000]

B is the working tree if it isn't given. Each commit's library answers in a process of its own; the
two are asked in turn, so that whatever else the machine does slows both. A ratio is the median over
the pairs, with the 99 % interval of that median. A change is named if this interval is beyond
``--beyond`` (0.05, which covers how two processes of one commit differ: try A against A).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
KINDS = ("value", "gradient", "eager")
SAMPLE = 0.01  # seconds that a time is taken of, at least


class Side:
    """One commit's library, in its process."""

    def __init__(self, folder: Path) -> None:
        """Start it; ``folder`` has the package."""
        command = [sys.executable, __file__, "--answer"]
        env = os.environ | {"PYTHONPATH": str(folder)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env, text=True)
        place = self.ask({})["library"]
        if Path(place).parents[1] != folder:
            raise RuntimeError(f"{place} isn't in {folder}")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One answer to one request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def seconds(self, calls: int) -> float:
        """Of one call, as the mean of so many."""
        return float(self.ask({"calls": calls})["seconds"])


def answer() -> None:
    """Compile what is asked for, then call it as often as is asked for."""
    import jax
    from _cases import BY_NAME, arrays, programs
    from _measure import compile_function

    import jaxlogits as jl

    call, args = None, []
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {"library": jl.__file__}
        if "case" in request:
            case, kind = BY_NAME[request["case"]], request["kind"]
            try:
                args = arrays(case.args, *request["size"], request["dtype"])
                if kind == "eager":
                    call, reply["compile"] = case.ours, 1.0
                else:
                    compiled = compile_function(programs(case, case.ours)[kind], *args)
                    call, reply["compile"] = compiled.call, compiled.seconds
                jax.block_until_ready(call(*args))
            except Exception as error:  # an older commit may lack the function or an option
                reply = {"error": type(error).__name__}
        if "calls" in request:
            start = time.perf_counter()
            for _ in range(request["calls"]):
                jax.block_until_ready(call(*args))
            reply["seconds"] = (time.perf_counter() - start) / request["calls"]
        print(json.dumps(reply), flush=True)


@contextlib.contextmanager
def checked_out(commit: str | None) -> Iterator[Path]:
    """A folder that has the package as the commit has it."""
    if commit is None:
        yield ROOT
        return
    command = ["git", "-C", str(ROOT), "archive", commit, "jaxlogits"]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder).resolve()


def paired(sides: list[Side], budget: float) -> np.ndarray:
    """Seconds ``[pairs, 2]`` of calls in turn."""
    calls = max(1, int(SAMPLE / max(side.seconds(1) for side in sides)))
    times: list[list[float]] = []
    deadline = time.perf_counter() + budget
    while len(times) < 60 and (time.perf_counter() < deadline or len(times) < 9):
        pair = [0.0, 0.0]
        for i in (0, 1) if len(times) % 2 else (1, 0):
            pair[i] = sides[i].seconds(calls)
        times.append(pair)
    return np.array(times)


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """The median, and its 99 % interval from the ranks alone."""
    ranked = np.sort(ratios)
    n = len(ranked)
    away = int(np.ceil(0.5 * 2.576 * n**0.5))
    low, high = max(0, n // 2 - away), min(n - 1, n // 2 + away)
    return float(np.median(ranked)), float(ranked[low]), float(ranked[high])


def compare(sides: list[Side], request: dict[str, Any], options: Any) -> list[str]:
    """A row of the table."""
    shape = f"[{request['size'][0]},{request['size'][1]}]"
    cells = [request["case"], shape, request["dtype"], request["kind"]]
    answers = [side.ask(request) for side in sides]
    if any("error" in reply for reply in answers):
        errors = [reply.get("error", "runs") for reply in answers]
        return [*cells, *errors, "", "", "" if errors[0] == errors[1] else "differs"]
    times = paired(sides, options.seconds)
    ratio, low, high = interval(times[:, 1] / times[:, 0])
    verdict = "slower" if low > 1 + options.beyond else ""
    verdict = "faster" if high < 1 / (1 + options.beyond) else verdict
    cells += [f"{1e3 * t:.3g}" for t in np.median(times, axis=0)]
    compile_time = answers[1]["compile"] / answers[0]["compile"]
    return [*cells, f"{ratio:.2f} ({low:.2f}-{high:.2f})", f"{compile_time:.2f}", verdict]


def requests(options: Any) -> Iterator[dict[str, Any]]:
    """All that is asked for."""
    from _cases import BY_NAME

    for name in options.cases or BY_NAME:
        for size in options.sizes:
            for dtype in options.dtypes:
                for kind in options.kinds:
                    if kind != "gradient" or BY_NAME[name].has_gradient:
                        numbers = [int(n) for n in size.split("x")]
                        yield {"case": name, "size": numbers, "dtype": dtype, "kind": kind}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commits", nargs="*", help="A and B; B is the working tree if left out")
    parser.add_argument("--cases", nargs="+", help="names of functions; all by default")
    parser.add_argument("--sizes", nargs="+", default=["256x1000"], help="rows x classes")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:2])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each comparison")
    parser.add_argument("--beyond", type=float, default=0.05, help="a change that is named")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        answer()
        return
    if not 1 <= len(options.commits) <= 2:
        parser.error("say one commit or two")

    from _measure import machine, table, versions

    first, second = (*options.commits, None)[:2]
    rows = []
    with checked_out(first) as one, checked_out(second) as other:
        sides = [Side(folder) for folder in (one, other)]
        for request in requests(options):
            rows.append(compare(sides, request, options))
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
        for side in sides:
            side.process.communicate()
    columns = ["function", "shape", "dtype", "what", "A, ms", "B, ms", "B / A (99 %)"]
    print(f"A is {first}, B is {second or 'the working tree'}. {machine()}; {versions('jax')}.\n")
    print(table([*columns, "compile time, B / A", "change"], rows))
    changed = [row for row in rows if row[-1]]
    print(f"\n{len(changed)} of {len(rows)} changed.")
    for row in changed:
        print(*row, sep=" | ")


if __name__ == "__main__":
    main()
