"""Random valid and nearly valid calls of the library's functions, against float64.

    python tests/fuzz.py --seconds 60 --seed 0
    python tests/fuzz.py --only softmax --case 1234567

Programs are compiled for few shapes and then used for thousands of cases. A failure is printed in
one line, which runs it again. ``test_fuzz.py`` runs this for some seconds.
"""

import argparse
import functools
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

# For what runs on a mesh; before JAX looks for devices.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import fuzz_fits
import fuzz_heads
import fuzz_mesh
import fuzz_rows
import jax

CHECKS: dict[str, Callable[[str, int], list[str]]] = {
    **dict.fromkeys(fuzz_rows.BY_NAME, fuzz_rows.check),
    **dict.fromkeys(fuzz_heads.TARGETS, fuzz_heads.check),
    **dict.fromkeys(fuzz_fits.TARGETS, fuzz_fits.check),
    **dict.fromkeys(fuzz_mesh.TARGETS, fuzz_mesh.check),
}


# Calls, each with a few programs, until they are let go: a process has 65,530 maps of memory.
PROGRAMS = 1000


class Report(NamedTuple):
    cases: Counter[str]
    failures: list[str]


def fuzz(
    seconds: float, seed: int = 0, only: tuple[str, ...] = (), say: Callable[[str], Any] = len
) -> Report:
    """Cases in turn of each function until the time is over; ``say`` is told each failure."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    deadline = time.monotonic() + seconds
    rounds = seed * 9 * 10**6
    while True:
        for name in only or CHECKS:
            if time.monotonic() > deadline:
                return Report(counts, failures)
            for failure in check(name, rounds):
                failures.append(failure)
                say(failure)
            counts[name] += 1
            if counts.total() % PROGRAMS == 0:
                jax.clear_caches()
        rounds += 1


def check(name: str, seed: int) -> list[str]:
    """What is wrong with one case, in a line that runs it again."""
    return CHECKS[name](name, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--case", type=int, help="run this one case of --only")
    given = parser.parse_args()
    fuzz_heads.narrow_tiles()
    if given.case is not None:
        print(*check(given.only[0], given.case) or ["fine"], sep="\n")
        return
    report = fuzz(
        given.seconds, given.seed, tuple(given.only), functools.partial(print, flush=True)
    )
    of_rows = sum(report.cases[name] for name in (*fuzz_rows.BY_NAME, *fuzz_mesh.ROWS))
    calls = report.cases.total()
    cases = calls + of_rows * (fuzz_rows.N - 1)
    print(f"{cases} cases in {calls} calls, {len(report.failures)} failures")


if __name__ == "__main__":
    main()
