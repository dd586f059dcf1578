"""Several processes that share one mesh, over loopback."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS = 80  # far more than they take; a process that hangs must not hang the suite


def run(count: int, *options: str) -> list[tuple[int, str]]:
    """The return codes and outputs of ``count`` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "processes.py"), str(port), str(count)]
    processes = [
        subprocess.Popen(
            [*command, str(index), *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, output) for p, output in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_agree_with_one(count: int) -> None:
    for code, output in run(count):
        assert code == 0, output
        assert output.endswith("agrees\n")


def test_a_process_that_dies_is_an_error_for_the_others() -> None:
    for code, output in run(2, "die"):
        assert code != 0, output
