"""What the benchmarks share: fair timing, memory, and the tables they write.

Two functions are compared by calling them in turn in one process, so that whatever else the machine
does slows both; the figure is the median of the ratios of neighbouring calls, with its quartiles.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"


class Timing(NamedTuple):
    """Seconds of one function, and its ratio to the first function of the comparison."""

    seconds: float
    ratio: float
    low: float  # quartiles of the ratio
    high: float
    least: float  # 10th percentile of seconds, to which other programs add little

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f}-{self.high:.2f})"


def interleaved(
    functions: Sequence[Callable[[], Any]],
    *,
    rounds: int = 100,
    budget: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Call each function in turn, for so many rounds or so many seconds; the first is the peer.

    A function has to be compiled, with its arguments bound; what it returns is waited for.
    With ``time.process_time`` for a clock, what else runs on the machine counts for little.
    """
    for _ in range(2 if rounds > 3 else 1):
        for function in functions:
            jax.block_until_ready(function())
    times: list[list[float]] = []
    deadline = time.perf_counter() + budget
    while len(times) < rounds and (time.perf_counter() < deadline or len(times) < 5):
        # Who goes first changes, as the first finds the caches as the last one left them.
        order = range(len(functions)) if len(times) % 2 else reversed(range(len(functions)))
        row = [0.0] * len(functions)
        for i in order:
            start = clock()
            jax.block_until_ready(functions[i]())
            row[i] = clock() - start
        times.append(row)
    seconds = np.array(times)
    ratios = seconds / seconds[:, :1]
    quartiles, least = np.percentile(ratios, [50, 25, 75], axis=0), np.percentile(seconds, 10, 0)
    columns = (np.median(seconds, 0), *quartiles, least)
    return [Timing(*map(float, row)) for row in zip(*columns, strict=True)]


class Compiled(NamedTuple):
    """A compiled function, how long that took, and the temporary memory it asks for."""

    call: Callable[..., Any]
    seconds: float
    temp_bytes: int


def compile_function(function: Callable[..., Any], *args: Any) -> Compiled:
    """Compile for these arguments, from nothing."""
    jax.clear_caches()
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    return Compiled(compiled, seconds, analysis.temp_size_in_bytes if analysis else 0)


def peak_growth(setup: str, run: str) -> int:
    """Bytes by which ``run`` raises the resident memory of a fresh process after ``setup``.

    Both are Python source. ``setup`` makes the arguments and compiles; ``run`` calls and waits.
    This sees what the runtime allocates by itself too. Linux only.
    """
    program = "\n".join(
        [
            setup,
            "import pathlib, re",
            "def _peak(key):",
            "    status = pathlib.Path('/proc/self/status').read_text()",
            "    return 1024 * int(re.search(key + r':\\s+(\\d+)', status)[1])",
            "pathlib.Path('/proc/self/clear_refs').write_text('5')",
            "_before = _peak('VmRSS')",
            run,
            "print(_peak('VmHWM') - _before)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def machine() -> str:
    """The processor, and the accelerator if there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    name = names[0].split(": ")[1] if names else platform.processor()
    cores = len(os.sched_getaffinity(0))
    device = jax.devices()[0]
    accelerator = "" if device.platform == "cpu" else f", {device.device_kind}"
    return f"{name}, {cores} cores{accelerator}"


def versions(*packages: str) -> str:
    """Python and the packages that are installed, with their versions."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def write_result(name: str, *paragraphs: str) -> Path:
    """Write ``benchmarks/results/<name>-<backend>.md`` and say where it is."""
    path = RESULTS / f"{name}-{jax.default_backend()}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n\n".join(paragraphs) + "\n")
    print(path)
    return path
