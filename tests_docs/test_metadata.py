"""What the package index shows: README and links of the repository that a release is built from."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("hatchling", reason="what builds the package isn't installed")
pytestmark = pytest.mark.newest
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def metadata() -> Any:
    spec = importlib.util.spec_from_file_location("metadata", ROOT / ".ci" / "metadata.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled_in(metadata: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    metadata.Links(str(ROOT), {}).update(fields)
    return fields


def test_a_release_has_no_relative_link(metadata: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/jaxlogits")
    monkeypatch.setenv("GITHUB_REF_NAME", "v0.1.0")
    fields = filled_in(metadata)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", fields["readme"]["text"])
    assert len(links) > 20
    source = "https://github.com/someone/jaxlogits"
    for picture, target in links:
        assert target.startswith(f"{source}/{'raw' if picture else 'blob'}/v0.1.0/")
        assert (ROOT / target.split("/v0.1.0/")[1]).exists()
    assert "\npip install jaxlogits\n" in fields["readme"]["text"]
    assert "From a clone" not in fields["readme"]["text"]
    assert fields["urls"]["Source"] == source
    assert fields["urls"]["Documentation"] == "https://someone.github.io/jaxlogits/"


def test_without_a_repository_readme_stays_as_it_is(
    metadata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    fields = filled_in(metadata)
    assert fields["readme"]["text"] == (ROOT / "README.md").read_text()
    assert "urls" not in fields


def test_the_site_of_a_release_installs_as_the_index_says(
    metadata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("furo", reason="what builds the site isn't installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_site"))
    import pages

    readme = (ROOT / "README.md").read_text()
    app = SimpleNamespace(config=SimpleNamespace(root_doc="README"))
    for ref in ("v0.1.0", "main", None):
        monkeypatch.setattr(pages, "REF", ref)
        source = [readme]
        pages.add_contents(app, "README", source)
        start = metadata.released(readme, ref or "").partition("## ")[0]
        assert source[0].startswith(start), ref


def test_notebooks_of_a_release_open_in_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("furo", reason="what builds the site isn't installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_site"))
    import pages

    colab = r"\(https://colab\.research\.google\.com/github/someone/jaxlogits/blob/v0\.1\.0/(.+?)\)"
    for path in (ROOT / "examples" / "notebooks").glob("*.ipynb"):
        monkeypatch.setattr(pages, "REPOSITORY", "someone/jaxlogits")
        monkeypatch.setattr(pages, "REF", "v0.1.0")
        page = dict(pages.notebook_page(path))[f"{path.stem}.md"].decode()
        assert [ROOT / place for place in re.findall(colab, page)] == [path]
        monkeypatch.setattr(pages, "REPOSITORY", None)  # no release, no link
        page = dict(pages.notebook_page(path))[f"{path.stem}.md"].decode()
        assert "colab.research" not in page
