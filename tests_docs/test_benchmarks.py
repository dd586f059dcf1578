"""Benchmarks whose numbers nobody sees on the machine that runs the tests still run."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.newest
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# A loop of three rounds: a product, and a row written into an array that stays where it is.
PROGRAM = """
%update (big: f32[64,128], row: f32[1,128], i: s32[]) -> f32[64,128] {
  %big = f32[64,128]{1,0:T(8,128)} parameter(0)
  %row = f32[1,128]{1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  ROOT %new = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%big, %row, %i, %i)
}

%multiply (a: bf16[8,8], b: bf16[8,8]) -> f32[1,128] {
  %a = bf16[8,8]{1,0} parameter(0)
  %b = bf16[8,8]{1,0} parameter(1)
  ROOT %dot = f32[1,128]{1,0} convolution(%a, %b)
}

%body (state: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %state = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %all = f32[64,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %x = f32[1,128]{1,0:T(8,128)} fusion(%n, %n), calls=%multiply, "estimated_cycles":"500"
  ROOT %put = f32[64,128]{1,0:T(8,128)} fusion(%all, %x, %n), calls=%update
}

%condition (state: (s32[], f32[64,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
}

ENTRY %main (given: f32[64,128]) -> f32[64,128] {
  %given = f32[64,128]{1,0:T(8,128)} parameter(0)
  %fast = f32[64,128]{1,0:T(8,128)S(1)} fusion(%given), calls=%copied
  ROOT %loop = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) while(%fast), condition=%condition, body=%body
}

%copied (one: f32[64,128]) -> f32[64,128] {
  %one = f32[64,128]{1,0} parameter(0)
  ROOT %other = f32[64,128]{1,0} copy(%one)
}
"""  # noqa: E501


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a script as when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", sys.argv[:1])

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_time_of_a_tpu_program(load) -> None:
    tpu = load("_tpu")
    chip = tpu.Chip("", clock=1.0, peak=1.0, bandwidth=1.0)
    products = 3 * 500  # cycles
    rows = 3 * (2 * 4 * 128)  # read and written, not the whole array
    fast = 4 * 64 * 128  # read once; what it becomes is in a faster memory
    assert tpu.seconds(PROGRAM, chip) == pytest.approx(products + (rows + fast) / tpu.SHARE)


@pytest.mark.parametrize("part", ["head", "rows"])
def test_script_for_a_device(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str
) -> None:
    """At sizes that any machine has; what fails is in the table by the name of its error."""
    device = load("device")
    small = {
        "HEADS": ((8, 4, 32),),
        "BLOCK_SIZES": (4,),
        "DTYPES": ("bfloat16",),
        "SMALL": device.linear_head.Shape(8, 4, 32, 1),
        "ROWS": ((4, 8),),
        "SMALL_ROWS": (4, 8),
        "FUNCTIONS": ("logsumexp", "softmax_cross_entropy_with_integer_labels", "sample"),
    }
    for name, value in small.items():
        monkeypatch.setattr(device, name, value)
    monkeypatch.setattr(device, "interleaved", once)
    device.main([part, "--out", str(tmp_path)])
    (page,) = tmp_path.glob(f"device-cpu-{part}.md")
    text = page.read_text()
    assert "Error |" not in text
    for name in ("optax", "products alone") if part == "head" else small["FUNCTIONS"]:
        assert name in text


def once(functions, **_):
    """In place of the timing, of which nothing is looked at."""
    for function in functions:
        function()
    return [importlib.import_module("_measure").Timing(1.0, 1.0, 1.0, 1.0, 1.0)] * len(functions)


def test_commits_are_compared(load, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    if not (BENCHMARKS.parent / ".git").exists():
        pytest.skip("there are no commits")
    compare = load("compare")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    options = ["--cases", "softmax", "--sizes", "4x8", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", ["compare.py", "HEAD", *options])
    compare.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| softmax |") for line in lines) == 2


def test_all_tables_are_listed(load) -> None:
    runner = load("all")
    assert runner.README.read_text() == runner.index(), "run benchmarks/all.py --list"
