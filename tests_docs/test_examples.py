"""What the documents show is run: the example programs and every code block."""

import contextlib
import doctest
import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import blocks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.newest
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
DOCUMENTS = [path for path in DOCUMENTS if path.parent.name not in ("api", "examples")]  # generated


def load(name: str) -> ModuleType:
    """An example program as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, str, Path]:
    """Accuracy, output and figure of the digits example as README runs it."""
    figure = tmp_path_factory.mktemp("digits") / "new" / "digits.png"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        accuracy = load("digits").main(figure=figure)
    return accuracy, output.getvalue(), figure


def test_digits_learns(digits: tuple[float, str, Path]) -> None:
    accuracy, output, figure = digits
    assert accuracy >= 0.95
    assert "argmax of logits = argmax of probabilities: 360 of 360 images" in output
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert str(figure) in output


def test_digits_prints_what_its_page_shows(digits: tuple[float, str, Path]) -> None:
    shown = (ROOT / "docs" / "outputs" / "digits.txt").read_text().rsplit("figure:", maxsplit=1)[0]
    printed = digits[1].rsplit("figure:", maxsplit=1)[0]
    # Training is repeatable on one machine; another one rounds differently, and 400 steps and a
    # factor of 6 in an exponent make that visible: 75 * 400 * 2^-24 is 2e-3.
    assert blocks.same_output(printed, shown, rel=1e-2), printed


def test_every_output_is_that_of_an_example() -> None:
    outputs = {path.stem for path in (ROOT / "docs" / "outputs").iterdir()}
    assert outputs <= {path.stem for path in (ROOT / "examples").glob("*.py")}


def test_digits_learns_little_in_a_few_steps(tmp_path: Path) -> None:
    assert 0.1 < load("digits").main(steps=3, figure=tmp_path / "digits.png") < 0.95


def test_calibrate_keeps_its_promises(tmp_path: Path) -> None:
    figure = tmp_path / "calibrate.png"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        fit = load("calibrate").main(figure=figure)
    assert fit.converged
    assert fit.temperature > 1.5  # the network is too sure
    printed = output.getvalue()
    before, after = map(float, re.search(r"calibration error +(\S+) +(\S+)", printed).groups())
    assert after < before / 2
    of_nines = printed[printed.index("is it a nine?") :]
    before, after = map(float, re.search(r"calibration error +(\S+) +(\S+)", of_nines).groups())
    assert after < before
    slopes = re.search(r"calibration slope +(\S+) ± \S+ +(\S+) ±", of_nines).groups()
    assert float(slopes[0]) < float(slopes[1]) < 1
    sets = re.findall(r"^(?:-log p|adaptive) +(\S+) +(\S+) +\S+$", printed, re.MULTILINE)
    assert len(sets) == 6
    for promised, covered in sets:
        # 600 and 1097 images leave a standard error of at most 1.5 %.
        assert abs(float(promised) - float(covered)) < 0.05
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert str(figure) in printed


def test_big_vocabulary_gives_the_same_with_less(tmp_path: Path) -> None:
    example, figure = load("big_vocabulary"), tmp_path / "big_vocabulary.png"
    budget = 200 * example.MIB
    sizes = {"vocabulary_size": 4096, "features": 16, "batch_size": 4096, "largest_batch": 8192}
    options = example.Options(num_files=20, steps=3, budget=budget, **sizes)
    with jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(io.StringIO()) as output:
        difference = example.main(options, figure)
    assert difference < 1e-5
    assert "<- plain doesn't fit" in output.getvalue()
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_mesh_gives_the_same_losses(tmp_path: Path) -> None:
    example, figure = load("mesh"), tmp_path / "mesh.png"
    options = example.Options(
        num_files=20, vocabulary_size=512, features=16, batch_size=64, steps=5
    )
    # optax multiplies a step's number, an integer, by a float.
    with jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(io.StringIO()) as output:
        difference = example.main(options, figure)
    assert difference < 2e-6
    first, last = re.search(r"^8 devices: loss (\S+) -> (\S+)$", output.getvalue(), re.M).groups()
    assert float(last) < float(first) - 0.1
    assert re.search(r"1 device: .*\n .* sent in a step: nothing", output.getvalue())
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_decode_writes_by_every_rule(tmp_path: Path) -> None:
    example, figure = load("decode"), tmp_path / "decode.png"
    options = example.Options(features=4, width=32, steps=200, batch_size=32, length=10)
    # optax multiplies a step's number, an integer, by a float.
    with jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(io.StringIO()) as output:
        results = example.main(options, figure)
    printed = output.getvalue()
    first, last = map(float, re.search(r"loss (\S+) -> (\S+) nats", printed).groups())
    assert last < first - 0.5
    assert all(f"\n{name}: " in printed for name in example.RULES)
    kept = {name: np.asarray(written.num_kept) for name, written in results.items()}
    assert np.all(kept["greedy"] == 1)
    assert np.all(np.asarray(results["greedy"].entropy) == 0)
    assert np.all(kept["top-k, 5"] == 5)
    assert np.mean(kept["top-p, 0.8"]) < np.mean(kept["no rule"])
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_policy_learns_to_close_brackets(tmp_path: Path) -> None:
    example, figure = load("policy"), tmp_path / "policy.png"
    options = example.Options(depth=2, width=64, steps=80)
    # optax multiplies a step's number, an integer, by a float.
    with jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(io.StringIO()) as output:
        before, after = example.main(options, figure)
    # By chance one of 64 answers is right.
    assert before < 0.1
    assert after > 0.5
    assert f"all right: {before:.1%} -> {after:.1%} of answers" in output.getvalue()
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_odds_reads_a_logits_layer_as_a_regression(tmp_path: Path) -> None:
    figure = tmp_path / "odds.png"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        fit, kernel = load("odds").main(resamples=200, figure=figure)
    assert fit.converged
    # A thousand steps leave what gradients of float32 can tell apart.
    assert kernel.tolist() == pytest.approx(fit.coefficients.tolist(), rel=1e-3)
    printed = output.getvalue()
    assert re.search(r"mean radius +│ +4.501 │ +0.564 │ +7.98 │ 1.5e-15 │", printed)
    assert "200 of 200 bootstrap fits converged" in printed
    assert re.search(r"likelihood ratio 589\.\d, p = 10\^-126 \(4 d\.f\.\)", printed)
    assert "endometrial cancer: separated is True" in printed
    assert re.search(r"new vessels +\d+\.\d+ +nan +2\.929 +1\.551\n", printed)
    assert re.search(r"by Wald: +-0\.11 to 5\.97, p = 0\.059\n", printed)
    assert re.search(r"by the profile likelihood: +0\.61 to 7\.85, p = 0\.009\n", printed)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert str(figure) in printed


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_code_blocks(path: Path, doctest_namespace: dict[str, object]) -> None:
    # Fences become blank lines, at which doctest ends the expected output.
    text = re.sub(r"^```.*$", "", path.read_text(), flags=re.MULTILINE)
    parser = doctest.DocTestParser()
    blocks = parser.get_doctest(text, dict(doctest_namespace), path.name, str(path), 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jnp.printoptions())  # put back what a block sets
        if path.stem == "frameworks":
            for name in ("flax", "haiku", "equinox"):
                pytest.importorskip(name, reason="the frameworks aren't installed")
            # Their layers add a bias to a batch, and optax a float to a step's number.
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        runner.run(blocks, out=report.append)
    assert not report, "\n".join(report)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_programs_print_what_is_shown(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that they write
    namespace: dict[str, Any] = {}
    with (
        jnp.printoptions(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        for code, shown in blocks.programs(path.read_text()):
            printed = blocks.run(code, path.name, namespace)
            # The last digits shown are a few ulp of float32; memory is the compiler's to choose.
            assert blocks.same_output(printed, shown, rel=1e-2), printed


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_code_can_be_pasted_with_its_imports(path: Path) -> None:
    text = path.read_text()
    sessions = re.findall(r"^```python\n(>>> .*?)^```", text, re.MULTILINE | re.DOTALL)
    if sessions:  # share the names of the page
        assert "import jaxlogits as jl" in sessions[0]
        assert "import jax" in sessions[0]
    for code, _ in blocks.programs(text)[:1]:
        assert "import jaxlogits as jl" in code


def test_a_wrong_output_is_seen() -> None:
    page = "```python\nprint('a', 2.0)\n```\n\n```text\na {}\n```\n"
    for shown, right in (("2.0", True), ("2.001", True), ("2.1", False), ("2.0 3", False)):
        ((code, output),) = blocks.programs(page.format(shown))
        assert blocks.same_output(blocks.run(code, "page", {}), output, rel=1e-2) == right


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
