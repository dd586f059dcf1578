"""The package as a whole: what it exports, imports and promises about each public function."""

import ast
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxlogits as jl

pytestmark = pytest.mark.newest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxlogits"
SOURCES = sorted(PACKAGE.glob("**/*.py"))
README = (ROOT / "README.md").read_text()

# In the order in which a reader meets them.
SECTIONS = ["Args", "Returns", "Raises", "Accuracy", "Transforms", "Reference", "Example"]
# A reference belongs only where there is a paper, errors and transforms only where conventions.md
# doesn't say what holds; `checked` has no numbers of its own.
OPTIONAL = {"Raises", "Transforms", "Reference"}
OPTIONAL_IN_CHECKS = OPTIONAL | {"Accuracy"}

# Besides functions there are the NamedTuples that some of them return.
FUNCTIONS = [name for name in jl.__all__ if not inspect.isclass(getattr(jl, name))]
RESULTS = sorted(set(jl.__all__) - set(FUNCTIONS))

each_function = pytest.mark.parametrize("name", FUNCTIONS)


def home(name: str) -> Path:
    """The module of a public name, from its floor down: ``losses/classes.py``."""
    module = getattr(jl, name).__module__.removeprefix("jaxlogits._src.")
    return Path(*module.split(".")).with_suffix(".py")


def call(name: str) -> str:
    """A public function with its parameters, without annotations."""
    signature = inspect.signature(getattr(jl, name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return f"{name}{inspect.Signature(bare)}"


def test_public_names_are_sorted_and_complete() -> None:
    assert jl.__all__ == sorted(set(jl.__all__))
    namespace = {name for name, value in vars(jl).items() if not inspect.ismodule(value)}
    assert {name for name in namespace if not name.startswith("_")} == set(jl.__all__)
    assert dir(jl) == jl.__all__


@each_function
def test_docstring_has_its_sections_in_order(name: str) -> None:
    docstring = inspect.getdoc(getattr(jl, name))
    assert docstring is not None
    found = re.findall(r"^([A-Z]\w+):", docstring, flags=re.MULTILINE)
    assert found == [section for section in SECTIONS if section in found]
    optional = OPTIONAL_IN_CHECKS if name == "checked" else OPTIONAL
    assert set(SECTIONS) - set(found) <= optional
    example = docstring.split("Example:")[1]
    assert f"jl.{name}" in example, "the example doesn't call the function"


@each_function
def test_docstring_is_short(name: str) -> None:
    source = ast.parse((PACKAGE / "_src" / home(name)).read_text())
    functions = [node for node in source.body if isinstance(node, ast.FunctionDef)]
    body = next(node for node in functions if node.name == name).body[0]
    assert body.end_lineno - body.lineno + 1 <= 35


@each_function
def test_docstring_names_every_argument(name: str) -> None:
    docstring = inspect.getdoc(getattr(jl, name))
    arguments = docstring.split("Args:")[1].split("Returns:")[0]
    for parameter in inspect.signature(getattr(jl, name)).parameters:
        assert re.search(rf"^ +([\w, ]+, )?{parameter}(, [\w, ]+)?:", arguments, re.MULTILINE)


def test_results_are_named_tuples_that_say_what_each_field_is() -> None:
    for name in RESULTS:
        result = getattr(jl, name)
        assert issubclass(result, tuple)
        assert all(re.search(rf"\b{field}\b", result.__doc__) for field in result._fields)


@pytest.mark.parametrize("name", jl.__all__)
def test_has_a_test(name: str) -> None:
    module = home(name)
    tests = (ROOT / "tests" / module.parent / f"test_{module.name}").read_text()
    assert re.search(rf"\b{name}\b", tests)


@each_function
def test_everything_with_a_default_but_axis_is_keyword_only(name: str) -> None:
    for parameter in inspect.signature(getattr(jl, name)).parameters.values():
        has_default = parameter.default is not inspect.Parameter.empty
        is_keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert has_default == (is_keyword_only or parameter.name == "axis")


def test_docs_list_every_function_once_as_it_is_called() -> None:
    listed = re.findall(r"^- `(.+?)`:", (ROOT / "docs" / "functions.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(map(call, FUNCTIONS))


@pytest.mark.parametrize("name", jl.__all__)
def test_changelog_mentions_it(name: str) -> None:
    assert re.search(rf"`{name}`", (ROOT / "CHANGELOG.md").read_text())


def test_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert jl.__version__ == project["version"]
    assert f"\nversion: {jl.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_changelog_keeps_its_form() -> None:
    headings = re.findall(r"^##+ .+$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "## [Unreleased]"
    kinds = "Added|Changed|Deprecated|Removed|Fixed|Security"
    form = rf"## \[Unreleased\]|## \[\d+\.\d+\.\d+\] - \d{{4}}-\d\d-\d\d|### ({kinds})"
    assert all(re.fullmatch(form, heading) for heading in headings)


def test_a_release_needs_its_version_everywhere(tmp_path: Path) -> None:
    def release() -> int:
        command = [sys.executable, ROOT / ".ci" / "check_release.py", f"v{jl.__version__}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode

    for file in ("pyproject.toml", "jaxlogits/__init__.py", "CITATION.cff", "CHANGELOG.md"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text((ROOT / file).read_text())
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n")
    assert release() != 0
    (tmp_path / "CHANGELOG.md").write_text(f"## [{jl.__version__}] - 2000-01-31\n")
    assert release() == 0
    (tmp_path / "CITATION.cff").write_text("version: 0.0.0\n")
    assert release() != 0


def test_readme_has_the_commands() -> None:
    assert "pip install -e '.[examples]' && python examples/digits.py" in README
    assert "pip install -e '.[test]' && pytest" in README


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_imports_only_the_runtime_dependencies(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module)
    # numpy is what jax itself stands on.
    allowed = sys.stdlib_module_names | {"jax", "jaxlib", "chex", "numpy", "jaxlogits"}
    assert {name.split(".")[0] for name in imported} <= allowed


def test_import_adds_little_to_that_of_its_dependencies() -> None:
    # Processor time, which other programs hardly disturb, over that of what has to be imported
    # anyway, so that it is the same on a slow machine; about 1/12. The first run may have to
    # compile, which it must be able to keep.
    keeping = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    program = (
        "import time; start = time.process_time(); import jax, chex; before = time.process_time(); "
        "import jaxlogits; print((time.process_time() - before) / (before - start))"
    )
    command = [sys.executable, "-c", program]
    runs = [
        subprocess.run(command, cwd=ROOT, env=keeping, capture_output=True, check=True)
        for _ in range(5)
    ]
    ratios = [float(run.stdout) for run in runs]
    assert min(ratios) < 0.15, ratios
