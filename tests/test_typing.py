"""What a user's strict type checker says of the library: nothing, but of the user's mistakes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlogits as jl

PROGRAMS = Path(__file__).parent / "typing"
CACHE = Path(os.environ.get("MYPY_CACHE_DIR", PROGRAMS.parents[1] / ".mypy_cache")) / "user"


def test_mypy_finds_the_mistakes_alone() -> None:
    pytest.importorskip("mypy")
    files = ["user.py", "mistakes.py"]
    # Without this project's settings, in a folder from which the library is an installed one.
    options = ["--strict", "--config-file=", "--no-pretty", f"--cache-dir={CACHE}"]
    command = [sys.executable, "-m", "mypy", *options, *files]
    run = subprocess.run(command, cwd=PROGRAMS, capture_output=True, text=True, check=False)
    found = re.findall(r"^(.+?):(\d+): error: .*\[(.+)\]$", run.stdout, re.MULTILINE)
    assert f"Found {len(found)} errors in 1 file (checked 2 source files)" in run.stdout, run.stderr
    expected = [
        (file, str(number), code)
        for file in files
        for number, line in enumerate((PROGRAMS / file).read_text().splitlines(), start=1)
        for code in re.findall(r"  # E: ([\w-]+)$", line)
    ]
    assert found == expected


def test_the_user_calls_all_that_is_public() -> None:
    used = set(re.findall(r"\bjl\.(\w+)", (PROGRAMS / "user.py").read_text()))
    assert used == set(jl.__all__)
