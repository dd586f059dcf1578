"""The site: what its script computes, and how it behaves in a browser, where there is one."""

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_journeys

import jaxlogits as jl

pytestmark = pytest.mark.newest
ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "_site" / "static" / "logit.js"
PHONE, DESK = (390, 800), (1400, 900)


def test_the_gallery_has_every_figure() -> None:
    shown = re.findall(r"\(figures/(.+?)\)", (ROOT / "docs" / "gallery.md").read_text())
    drawn = [path.name for path in (ROOT / "docs" / "figures").iterdir()]
    assert sorted(shown) == sorted(drawn)


def test_architecture_names_every_module() -> None:
    rooms = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    modules = {path.stem for path in (ROOT / "jaxlogits" / "_src").rglob("[!_]*.py")}
    assert modules <= set(re.findall(r"\w+", rooms))


@pytest.mark.parametrize(("index", "folder"), [("index.md", "."), ("recipes.md", "recipes")])
def test_index_leads_to_every_page(index: str, folder: str) -> None:
    links = re.findall(r"\]\((.+?\.md)\)", (ROOT / "docs" / index).read_text())
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs" / folder).glob("*.md")}
    assert {str(page) for page in pages} - {"index.md"} <= set(links)


def test_index_leads_to_every_example() -> None:
    links = re.findall(r"\]\(\.\./(examples/.+?)\)", (ROOT / "docs" / "index.md").read_text())
    notebooks = set((ROOT / "examples" / "notebooks").glob("*.ipynb"))
    names = {path.stem for path in notebooks}
    programs = {path for path in (ROOT / "examples").glob("[!_]*.py") if path.stem not in names}
    assert {str(path.relative_to(ROOT)) for path in programs | notebooks} == set(links)


def in_node(*calls: tuple[Any, ...]) -> list[Any]:
    """What functions of the script return, each called with arguments."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    program = (
        "const script = require(process.argv[1]);"
        "const calls = JSON.parse(process.argv[2]);"
        "console.log(JSON.stringify(calls.map(([name, ...rest]) => script[name](...rest))));"
    )
    command = ["node", "-e", program, str(SCRIPT), json.dumps(calls)]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return json.loads(output)


X = [-800.0, -40.0, -20.0, -3.0, -0.1, -1e-9, 0.0, 1e-9, 0.1, 3.0, 20.0, 40.0, 800.0]
P = [1e-300, 1e-9, 0.01, 0.25, 0.45, 0.5 - 1e-9, 0.5 + 1e-9, 0.55, 0.75, 0.99, 1 - 1e-9]
ROWS = [[2.0, 1.0, 0.0], [20.0, 0.0, 0.0], [-20.0, 20.0, 20.0], [5.0, 5.0, 5.0], [0.0, 90.0, -9.0]]
ELEMENTWISE = {"sigmoid": (jl.sigmoid, X), "softplus": (jl.softplus, X), "logit": (jl.logit, P)}


@pytest.mark.usefixtures("x64")
def test_elementwise_formulas_are_the_library_s() -> None:
    calls = [(name, x) for name, (_, inputs) in ELEMENTWISE.items() for x in inputs]
    wanted = [np.asarray(fn(jnp.asarray(inputs))) for fn, inputs in ELEMENTWISE.values()]
    # Both are within a few ulp of 2^-53.
    np.testing.assert_allclose(in_node(*calls), np.concatenate(wanted), rtol=2**-49)


@pytest.mark.usefixtures("x64")
def test_formulas_of_rows_are_the_library_s() -> None:
    z = jnp.asarray(ROWS)
    shaped = jl.soft_cap(z, 3.0) / 0.5
    labels = jnp.arange(3)[None].repeat(len(ROWS), 0)
    loss = jax.vmap(jl.softmax_cross_entropy_with_integer_labels, (None, -1), -1)
    wanted = {
        "logsumexp": jl.logsumexp(z),
        "softmax": jl.softmax(z),
        "classLogOdds": jl.class_log_odds(z),
        "crossEntropy": loss(z, labels),
        "shape": shaped,
    }
    calls = [(name, row) for name in ("logsumexp", "softmax", "classLogOdds") for row in ROWS]
    calls += [("crossEntropy", row, label) for row in ROWS for label in range(3)]
    calls += [("shape", row, 3, 0.5) for row in ROWS]
    got = np.concatenate([np.ravel(result) for result in in_node(*calls)])
    want = np.concatenate([np.ravel(value) for value in wanted.values()])
    # A logit of 90 comes with an error of 2^-53 of itself, and an exponential has that as its own.
    np.testing.assert_allclose(got, want, rtol=2**-45)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built anew."""
    pytest.importorskip("furo", reason="what builds the site isn't installed")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-c", "docs", ".", str(target)]
    subprocess.run(command, cwd=ROOT, check=True)
    return target


# What people type, and the page that should answer.
SEARCHES = {
    "ignore_index": "docs/recipes/ignore-index",
    "attention mask": "docs/recipes/ignore-index",
    "perplexity": "docs/recipes/perplexity-and-accuracy",
    "top-k accuracy": "docs/recipes/perplexity-and-accuracy",
    "nucleus": "docs/api/jl.keep_top_p",
    "nucleus sampling": "docs/api/jl.keep_top_p",
    "top-p": "docs/api/jl.keep_top_p",
    "speculative decoding": "docs/api/jl.speculative_sample",
    "standard errors": "docs/api/jl.summarize",
    "repetition penalty": "docs/api/jl.penalize_repetition",
    "ECE": "docs/api/jl.expected_calibration_error",
    "reliability diagram": "docs/api/jl.reliability_curve",
    "temperature scaling": "docs/api/jl.fit_temperature",
    "softmax with temperature": "docs/api/jl.apply_temperature",
    "conformal prediction": "docs/calibration",
    "log-odds": "docs/what-is-a-logit",
    "odds ratio": "docs/regression",
    "logistic regression": "docs/regression",
    "inverse logit": "docs/api/jl.sigmoid",
    "expit": "docs/api/jl.sigmoid",
    "label smoothing": "docs/api/jl.softmax_cross_entropy_with_integer_labels",
    "CrossEntropyLoss": "docs/api/jl.softmax_cross_entropy_with_integer_labels",
    "binary cross entropy": "docs/api/jl.sigmoid_binary_cross_entropy",
    "KL divergence": "docs/api/jl.softmax_kl_divergence",
    "focal loss": "docs/api/jl.sigmoid_focal_loss",
    "class weights": "docs/recipes/class-imbalance",
    "pos_weight": "docs/recipes/class-imbalance",
    "knowledge distillation": "docs/recipes/distillation",
    "gradient accumulation": "docs/recipes/gradient-accumulation",
    "remat": "docs/recipes/gradient-accumulation",
    "fused cross entropy": "docs/linear_head",
    "tensor parallel": "docs/sharding",
    "semantic segmentation": "docs/recipes/segmentation",
    "pandas DataFrame": "docs/recipes/pandas",
    "x64": "docs/recipes/float64",
    "NaN": "docs/my-loss-is-nan",
    "keep_top_p": "docs/api/jl.keep_top_p",
    **test_journeys.QUESTIONS,
}


def test_search_answers_with_the_right_page(site: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    scripts = ["_static/language_data.js", "_static/searchtools.js", "searchindex.js"]
    nothing = (
        "globalThis.window = globalThis; const SPHINX_HIGHLIGHT_ENABLED = false;"
        "const _ready = () => {}, _ = (text) => text;"
        "globalThis.document = {readyState: 'loading', addEventListener() {}, getElementById() {}};"
    )
    ask = (
        "const found = (query) => Search._performSearch(...Search._parseQuery(query));"
        "const pages = (query) => found(query).reverse().map((result) => result[0]);"
        f"console.log(JSON.stringify({json.dumps(list(SEARCHES))}.map(pages)));"
    )
    program = "\n".join([nothing, *((site / script).read_text() for script in scripts), ask])
    output = subprocess.run(["node"], input=program, capture_output=True, check=True, text=True)
    results = dict(zip(SEARCHES, json.loads(output.stdout), strict=True))
    missed = [
        (query, results[query][:4])
        for query, page in SEARCHES.items()
        if page not in list(dict.fromkeys(results[query]))[:3]
    ]
    assert missed == []


@pytest.fixture(scope="module")
def browser(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, which must not have complained in the end."""
    assert site.exists()
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium or chromedriver is not installed")
    webdriver = pytest.importorskip("selenium.webdriver")

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        *("allow-file-access-from-files", f"user-data-dir={profile}"),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    complaints = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    driver.quit()
    assert complaints == []


def at(browser: Any, site: Path, page: str, size: tuple[int, int] = DESK) -> Callable[[str], Any]:
    """Open a page, and find things on it by CSS."""
    # A window of Chromium can't be as narrow as a phone; an emulated screen can.
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get((site / page).as_uri())
    return lambda css: browser.find_element("css selector", css)


def centre(browser: Any, element: Any) -> Any:
    """Scroll it to the middle of the screen, where nothing covers it; its place there."""
    script = (
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'});"
        "return arguments[0].getBoundingClientRect().toJSON()"
    )
    return browser.execute_script(script, element)


def click(browser: Any, css: str, index: int = 0) -> None:
    """Click the one of what CSS finds."""
    element = browser.find_elements("css selector", css)[index]
    centre(browser, element)
    element.click()


def test_a_probability_is_dragged(browser: Any, site: Path) -> None:
    find = at(browser, site, "docs/what-is-a-logit.html")
    said = find("#logit-scale .logit-said")
    assert said.text == "probability 0.550 · odds 1.22 : 1 · logit 0.201"
    find("#logit-p").send_keys("\ue012" * 50)  # 50 steps of 0.001 to the left
    assert said.text == "probability 0.500 · odds 1.00 : 1 · logit 0.000"
    find("#logit-p").send_keys("\ue010")  # the end
    assert said.text == "probability 1.000 · odds 1 : 0 · logit ∞"
    find("#logit-x").send_keys("\ue011")  # the other one's beginning
    assert said.text == "probability 4.5e-5 · odds 1 : 22,026 · logit −10.000"
    assert find("#logit-x").get_attribute("aria-valuetext") == "−10.00"


@pytest.mark.parametrize("means", ["mouse", "finger"])
def test_a_dragged_slider_moves_the_other(browser: Any, site: Path, means: str) -> None:
    find = at(browser, site, "docs/what-is-a-logit.html", PHONE if means == "finger" else DESK)
    slider = find("#logit-p")
    box = centre(browser, slider)
    places = [
        {"x": box["left"] + share * box["width"], "y": box["top"] + box["height"] / 2}
        for share in (0.55, 0.7, 0.8)
    ]
    if means == "finger":
        steps = zip(["Start", "Move", "Move", "End"], [*places, None], strict=True)
        for kind, place in steps:
            event = {"type": f"touch{kind}", "touchPoints": [place] if place else []}
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)
    else:
        steps = zip(["Pressed", "Moved", "Moved", "Released"], [*places, places[-1]], strict=True)
        for kind, place in steps:
            event = {"type": f"mouse{kind}", "button": "left", "buttons": 1, "clickCount": 1}
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", event | place)
    p = float(slider.get_attribute("value"))
    assert p == pytest.approx(0.8, abs=0.02)
    # To the steps of the sliders.
    logit = float(find("#logit-x").get_attribute("value"))
    assert logit == pytest.approx(np.log(p / (1 - p)), abs=0.0051)


def test_three_logits_are_dragged(browser: Any, site: Path) -> None:
    find = at(browser, site, "docs/what-is-a-logit.html")

    def column(number: int) -> list[str]:
        cells = browser.find_elements("css selector", f"#logit-classes td:nth-child({number})")
        return [cell.text for cell in cells]

    said = find("#logit-classes .logit-said")
    assert column(3) == ["0.665", "0.245", "0.090"]
    assert column(5) == ["0.69", "−1.13", "−2.31"]
    assert said.text == "loss −log p of a = 0.408"
    click(browser, "#logit-classes button", 1)  # all + 1 changes nothing but the logits
    assert column(2) == ["3.00", "2.00", "1.00"]
    assert column(3) == ["0.665", "0.245", "0.090"]
    click(browser, "[name=logit-truth]", 2)
    assert said.text == "loss −log p of c = 2.408"
    find("#logit-temperature").send_keys("\ue010")
    assert column(2) == ["0.30", "0.20", "0.10"]
    find("#logit-temperature").send_keys("\ue011")
    assert column(2) == ["30.00", "20.00", "10.00"]
    assert said.text == "loss −log p of c = 20.000"
    find("#logit-cap").send_keys("\ue011")  # 0.5
    assert column(2) == ["5.00", "5.00", "4.82"]
    find("#logit-cap").send_keys("\ue010")
    click(browser, "[name=logit-truth]", 0)
    assert said.text == "loss −log p of a = 4.5e-5"


def test_search_shows_its_results(browser: Any, site: Path) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    at(browser, site, "README.html")("input.sidebar-search").send_keys("ignore_index\n")
    found = lambda driver: [  # noqa: E731
        link.get_attribute("href").split("?")[0].split("#")[0]
        for link in driver.find_elements("css selector", "ul.search li a")
    ]
    links = WebDriverWait(browser, 10).until(found)
    assert links[0].endswith("recipes/ignore-index.html")


def test_a_copied_session_has_no_prompts(browser: Any, site: Path) -> None:
    find = at(browser, site, "docs/frameworks.html")
    assert find(".highlight-python pre").text.startswith(">>> import jax")
    # There is no clipboard to read: keep what the button would write to it.
    watch = "document.execCommand = () => (window.copied = document.activeElement.value, true)"
    browser.execute_script(watch)
    browser.execute_script("document.querySelector('.copybtn').click()")
    code = browser.execute_script("return window.copied")
    assert code.startswith("import jax, jax.numpy as jnp, optax\nimport jaxlogits as jl\n")
    assert ">>>" not in code
    assert "\n..." not in code
    assert "True True" not in code  # its output


def test_examples_of_functions_have_their_imports(site: Path) -> None:
    for name in jl.__all__:
        page = (site / "docs" / "api" / f"jl.{name}.html").read_text()
        text = html.unescape(re.sub("<.+?>", "", page))
        assert (">>> import jax, jax.numpy as jnp, jaxlogits as jl\n>>> " in text) == (
            "jl." in (getattr(jl, name).__doc__ or "")
        ), name


def test_code_can_be_copied_and_output_can_not(browser: Any, site: Path) -> None:
    at(browser, site, "docs/recipes/ignore-index.html")
    count = "return document.querySelectorAll(arguments[0]).length"
    blocks, buttons = (
        browser.execute_script(count, css) for css in (".highlight-python pre", ".copybtn")
    )
    assert blocks == buttons > 3


def test_figures_are_dark_in_the_dark(browser: Any, site: Path) -> None:
    styles = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        find = at(browser, site, "README.html")
        styles.append(find("article img").value_of_css_property("filter"))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert styles[0] == "none"
    assert styles[1].startswith("invert")


def test_figures_can_be_read_on_a_phone(browser: Any, site: Path) -> None:
    """Shown as a whole, and not so small that their font of 9 points or more has under 8 pixels."""
    # 160 dots per inch and 72 points per inch.
    smallest = 8 / (9 * 160 / 72)
    images = "[...document.querySelectorAll('article p > img')]"
    script = f"return {images}.map((image) => [image.width, image.naturalWidth])"
    drawn = 0
    for page in (
        "README",
        "docs/what-is-a-logit",
        "docs/speed",
        "docs/sharding",
        "docs/regression",
    ):
        at(browser, site, f"{page}.html", PHONE)
        for shown, natural in browser.execute_script(script):
            assert smallest * natural <= shown < PHONE[0], page
            drawn += 1
    assert drawn >= 9


def test_pages_say_what_they_are(site: Path) -> None:
    page = (site / "docs" / "recipes" / "distillation.html").read_text()
    assert re.search(r'<meta name="description" content="Hinton et al', page)
    assert re.search(r'<meta property="og:title" content="Distillation', page)
    assert 'href="../../_static/favicon.svg' in page
    assert 'name="twitter:card" content="summary_large_image"' in page


def test_previews_show_the_card() -> None:
    """Where the site's address is known; .ci/check_site.py looks at the card itself."""
    pytest.importorskip("furo", reason="what builds the site isn't installed")
    sys.path.insert(0, str(ROOT / "docs" / "_site"))
    import look

    app = SimpleNamespace(config=SimpleNamespace(html_baseurl="https://example.org/site/"))
    context: dict[str, Any] = {"title": "A page"}
    look.describe(app, "page", "page.html", context, nodes_of("Some text."))
    assert '"og:image" content="https://example.org/site/_static/card.png"' in context["metatags"]


def nodes_of(text: str) -> Any:
    """A document of one paragraph."""
    from docutils import nodes, utils

    document = utils.new_document("page")
    document += nodes.paragraph("", text)
    return document


def test_gallery_has_thumbnails(browser: Any, site: Path) -> None:
    for size in (PHONE, DESK):
        at(browser, site, "docs/gallery.html", size)
        images = browser.find_elements("css selector", "#gallery a img")
        assert len(images) == len(list((ROOT / "docs" / "figures").iterdir()))
        assert all(0 < image.size["height"] < 200 for image in images)


def test_signatures_are_short_and_typed(site: Path) -> None:
    page = (site / "docs" / "api" / "jl.softmax.html").read_text()
    signature = re.search(r"<dt class=.*?</dt>", page, re.DOTALL)[0]
    text = " ".join(html.unescape(re.sub("<.+?>", "", signature)).split())
    assert text.startswith(
        "softmax( logits: ArrayLike, axis: Axis = -1, *, where: ArrayLike | None"
    )
    assert text.endswith("→ Array[source]¶")
    assert "jaxlogits" not in text
    assert not any("ForwardRef" in page.read_text() for page in (site / "docs/api").iterdir())


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_no_page_is_wider_than_the_screen(browser: Any, site: Path, size: tuple[int, int]) -> None:
    width = "return [document.documentElement.scrollWidth, window.innerWidth]"
    for page in sorted(site.rglob("*.html")):
        at(browser, site, str(page.relative_to(site)), size)
        wide, screen = browser.execute_script(width)
        assert wide <= screen == size[0], page


def test_pages_load_nothing_from_elsewhere(browser: Any, site: Path) -> None:
    loaded = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    for page in ("README.html", "docs/what-is-a-logit.html", "docs/migration.html"):
        at(browser, site, page)
        assert all(name.startswith("file:") for name in browser.execute_script(loaded))
