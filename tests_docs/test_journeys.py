"""Eight things that people come for, each done with the pages alone.

A journey begins with the words that its user types; the site's index says which page answers them,
and test_site.py asks the site's search, too. The code of that page is run as its copy button gives
it, then the user's own next line, and the outcome is compared with another library's, or float64's.
"""

import contextlib
import doctest
import re
import sys
from pathlib import Path
from typing import Any

import blocks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlogits as jl

pytestmark = pytest.mark.newest
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_site"))

from words import WORDS  # noqa: E402

# What is typed, and the page that has to answer.
QUESTIONS = {
    "migrate from optax": "docs/migration",
    "Hugging Face": "docs/recipes/ignore-index",
    "DPO": "docs/policy-and-preference-losses",
    "GRPO": "docs/policy-and-preference-losses",
    "sampling loop": "docs/recipes/sampling-loop",
    "pandas DataFrame": "docs/recipes/pandas",
    "reliability plot": "docs/recipes/reliability-diagram",
    "conformal prediction": "docs/calibration",
    "FSDP": "docs/sharding",
    "NaN gradient": "docs/my-loss-is-nan",
}


@pytest.fixture(autouse=True)
def _as_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """JAX's defaults, in a directory for the files that a page writes."""
    monkeypatch.chdir(tmp_path)
    with (
        jnp.printoptions(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def page_for(question: str) -> str:
    """The text of the page that the site's index names for these words."""
    (page,) = (page for page, words in WORDS.items() if question in words)
    assert page == QUESTIONS[question]
    return (ROOT / f"{page}.md").read_text()


def names_after(page: str) -> dict[str, Any]:
    """Paste all code of a page and press enter; what is shown as an error may be one."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        session = doctest.DocTestParser().get_examples(block)
        for source, shown_error in [(e.source, e.exc_msg) for e in session] or [(block, None)]:
            allowed = (Exception,) if shown_error else ()
            with contextlib.suppress(*allowed):
                blocks.run(source, "page", names)
    return names


def test_the_loss_of_optax_is_replaced() -> None:
    """In somebody's training program with Flax NNX, by the row of the table that has its call."""
    nnx = pytest.importorskip("flax.nnx", reason="Flax isn't installed")
    page = page_for("migrate from optax")
    call = "softmax_cross_entropy_with_integer_labels"
    assert f"| `optax.{call}(logits, labels)` | `jl.{call}(logits, labels)` |" in page
    rng = np.random.default_rng(0)
    images, classes = rng.normal(size=[64, 8, 8, 1]).astype("float32"), rng.integers(0, 10, 64)
    program = """
class Model(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.head = nnx.Linear(8 * 8 * 8, 10, rngs=rngs)

    def __call__(self, images):
        return self.head(nnx.relu(self.conv(images)).reshape(len(images), -1))

def mean_loss(model, images, labels):
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

@nnx.jit
def step(model, optimizer, images, labels):
    loss, gradients = nnx.value_and_grad(mean_loss)(model, images, labels)
    optimizer.update(model, gradients)
    return loss

model = Model(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
losses = [step(model, optimizer, images, classes) for _ in range(20)]
accuracy = (model(images).argmax(axis=-1) == classes).mean()
"""
    runs = []
    for text in (program, program.replace(f"optax.{call}", f"jl.{call}")):
        runs.append({"optax": optax, "jl": jl, "nnx": nnx, "images": images, "classes": classes})
        exec(text, runs[-1])
    there, here = runs
    assert there["losses"][-1] < 0.5 * there["losses"][0]
    # Adam divides by the size of the gradient: a rounding error grows from step to step.
    np.testing.assert_allclose(here["losses"], there["losses"], rtol=1e-3)
    assert here["accuracy"] == there["accuracy"]
    # The targets may have been one-hot: the error names the function that takes them.
    one_hot = jax.nn.one_hot(classes, 10)
    with pytest.raises(TypeError, match=r"labels must .* softmax_cross_entropy\b"):
        jl.softmax_cross_entropy_with_integer_labels(one_hot, one_hot)


def test_a_language_model_ignores_its_padding() -> None:
    """A head tied to its embedding, labels of -100 and an attention mask of integers."""
    names = names_after(page_for("Hugging Face"))
    hidden, embedding, labels = names["hidden"], names["embedding"], names["labels"]
    keep = labels != -100
    plain = optax.softmax_cross_entropy_with_integer_labels(
        hidden @ embedding.T, jnp.maximum(labels, 0)
    )
    np.testing.assert_allclose(names["loss"], plain.mean(where=keep), rtol=1e-6)
    low = (hidden.astype(jnp.bfloat16), embedding.T.astype(jnp.bfloat16))
    loss = jl.linear_softmax_cross_entropy(*low, labels, where=keep)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, names["loss"], rtol=2**-7)  # of bfloat16's inputs
    # What is forgotten is named in the words of the one who forgot it.
    with pytest.raises(ValueError, match=r"kernel must .*\[50,16\]"):
        jl.linear_softmax_cross_entropy(hidden, embedding, labels, where=keep)
    with pytest.raises(TypeError, match=r"where must be boolean.*== 1|where must be boolean.*!= 0"):
        jl.linear_softmax_cross_entropy(hidden, embedding.T, labels, where=keep.astype(int))


@pytest.mark.parametrize("question", ["DPO", "GRPO"])
def test_a_policy_learns_from_padded_answers(question: str) -> None:
    names = names_after(page_for(question))
    hidden, kernel, tokens, where = (names[n] for n in ("hidden", "kernel", "tokens", "where"))
    assert bool((tokens == -100).any())

    def loss(hidden: Any, kernel: Any) -> Any:
        log_probs = jl.linear_log_probs(hidden, kernel, tokens, where=where)
        old = names["old_log_probs"]
        if question == "GRPO":
            losses = names["grpo"](log_probs, old, old, names["advantages"])
            return names["reduced"](losses, where, per="sequence")
        ours, theirs = log_probs.sum(axis=-1), old.sum(axis=-1)
        return names["dpo"](ours[:2], ours[2:], theirs[:2], theirs[2:]).mean()

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(hidden, kernel)
    assert all(bool(jnp.isfinite(x).all()) for x in (value, *gradients))
    assert not gradients[0][~where].any()  # padding has no say

    h, w, old_w = (np.asarray(x, np.float64) for x in (hidden, kernel, names["old_kernel"]))
    z, old_z = h @ w, h @ old_w
    picked = np.maximum(np.asarray(tokens), 0)[..., None]
    new, old = (
        np.take_along_axis(z - np.log(np.exp(z).sum(-1, keepdims=True)), picked, -1)[..., 0]
        for z in (z, old_z)
    )
    keep = np.asarray(where)
    if question == "GRPO":
        gain = np.asarray(names["advantages"], np.float64)[:, None]
        ratio = np.exp(new - old)
        losses = -np.minimum(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain)
        losses += 0.04 * (np.expm1(old - new) - (old - new))
        want = np.mean((losses * keep).sum(-1) / keep.sum(-1))
    else:
        gap = ((new - old) * keep).sum(-1)
        want = np.mean(np.log1p(np.exp(-0.1 * (gap[:2] - gap[2:]))))
    # Log probabilities of about 3, each rounded a few times.
    np.testing.assert_allclose(value, want, rtol=2**-18)


def test_requests_are_sampled_by_rules_of_their_own() -> None:
    names = names_after(page_for("sampling loop"))
    generate, options, banned = names["generate"], names["options"], names["banned"]
    prompt, keys = jnp.array([7, 7, 7]), jax.random.split(jax.random.key(2), 3)
    table = np.asarray(names["table"])
    greedy, anything, ruled = np.asarray(generate(keys, prompt, banned, options))
    expected, token = [], 7
    for _ in greedy:
        token = int(table[token].argmax())
        expected.append(token)
    assert greedy.tolist() == expected
    assert not np.asarray(banned)[2, ruled].any()
    alone = generate(keys[2:], prompt[2:], banned[2:], {k: x[2:] for k, x in options.items()})
    assert alone[0].tolist() == ruled.tolist()
    compiled = generate._cache_size()
    off = options | {"temperature": jnp.ones(3), "top_p": jnp.array([1.0, 0.5, 0.9])}
    assert generate(keys, prompt, banned, off).shape == (3, len(anything))
    assert generate._cache_size() == compiled  # other values are no other program
    # With every rule off, the share of each token is its probability.
    count = 4000
    every = {name: jnp.full(count, values[1]) for name, values in options.items()}
    free = jnp.zeros([count, table.shape[1]], bool)
    many = jax.random.split(jax.random.key(3), count)
    drawn = generate(many, jnp.full(count, 7), free, every)[:, 0]
    p = np.exp(table[7] - table[7].max())
    p /= p.sum()
    share = np.bincount(np.asarray(drawn), minlength=len(p)) / count
    assert np.all(np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / count) + 1 / count)


def test_a_data_frame_is_regressed() -> None:
    sm = pytest.importorskip("statsmodels.api", reason="statsmodels isn't installed")
    names = names_after(page_for("pandas DataFrame"))
    design, table, fit = names["design"], names["table"], names["fit"]
    theirs = sm.Logit(np.asarray(names["labels"], float), design.astype(float)).fit(disp=0)
    assert table.index.tolist() == theirs.params.index.tolist()
    np.testing.assert_allclose(table["coefficient"], theirs.params, rtol=1e-3)
    np.testing.assert_allclose(table["std error"], theirs.bse, rtol=1e-3)
    np.testing.assert_allclose(table["odds ratio"], np.exp(theirs.params), rtol=1e-3)
    np.testing.assert_allclose(table[["2.5 %", "97.5 %"]], theirs.conf_int(), rtol=5e-3)
    new = names["new"].astype(float)
    prediction = theirs.get_prediction(new).summary_frame()
    # The interval of a probability is one call on the page about regression.
    features = jnp.asarray(new.to_numpy(dtype="float32"))
    value, error = jl.delta_method(lambda fit: jl.predict_probs(fit, features), fit)
    np.testing.assert_allclose(value, prediction["predicted"], rtol=1e-4)
    np.testing.assert_allclose(error, prediction["se"], rtol=1e-3)
    summary = jl.summarize(fit)
    np.testing.assert_allclose(summary.aic, theirs.aic, rtol=1e-4)
    np.testing.assert_allclose(summary.likelihood_ratio.statistic, theirs.llr, rtol=1e-3)


def test_a_classifier_is_calibrated(tmp_path: Path) -> None:
    names = names_after(page_for("reliability plot"))
    logits, labels, fit, test = (names[n] for n in ("logits", "labels", "fit", "test"))
    before, after = (
        float(jl.expected_calibration_error(z[test], labels[test]))
        for z in (logits, logits / fit.temperature)
    )
    assert after < before / 5
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    names = names_after(page_for("conformal prediction"))
    # 0.9 were promised; a thousand rows for the threshold have an error of 1 %.
    assert abs(float(names["holds"].mean()) - 0.9) < 0.04
    binary = names["too_sure"], names["rained"]
    assert jl.binary_calibration_error(*binary) > 0.05
    fit = names["fit"]
    assert fit.temperature > 2.5


def test_a_head_is_split_over_eight_devices() -> None:
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    if jax.device_count() < 8:
        pytest.skip("there are fewer than eight devices")
    names = names_after(page_for("FSDP"))
    rng = np.random.default_rng(0)
    hidden, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 16), (16, 24)))
    labels = jnp.asarray(rng.integers(0, 24, 8))

    def plain(hidden: Any, kernel: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels).mean()

    want = jax.value_and_grad(plain, argnums=(0, 1))(hidden, kernel)

    def same(value: Any, gradients: Any) -> None:
        np.testing.assert_allclose(value, want[0], rtol=1e-5)
        for got, whole in zip(gradients, want[1], strict=True):
            np.testing.assert_allclose(got, whole, rtol=1e-4, atol=1e-6)

    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    of_tensor = names["local"], (P("data"), P(None, "model"), P("data"))
    of_fsdp = names["fully_sharded"], names["specs"]
    for local, specs in (of_tensor, of_fsdp):
        mean = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
        same(*jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))(hidden, kernel, labels))

    def head(hidden: Any, kernel: Any, labels: Any) -> Any:
        return jl.linear_softmax_cross_entropy(hidden, kernel, labels)

    for kind in (AxisType.Auto, AxisType.Explicit):  # nothing is written for these
        mesh = jax.make_mesh((4, 2), ("data", "model"), (kind,) * 2)
        arrays = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip((hidden, kernel, labels), of_fsdp[1], strict=True)
        ]
        value, gradients = jax.jit(jax.value_and_grad(head, argnums=(0, 1)))(*arrays)
        same(value, gradients)
    assert jax.typeof(gradients[1]) == jax.typeof(arrays[1])  # split as its argument is


def test_the_reason_of_a_nan_is_found() -> None:
    page = page_for("NaN gradient")
    names = names_after(page)
    z, labels = jnp.zeros([4, 3]), jnp.array([0, 1, 2, 0])
    loss = jl.softmax_cross_entropy_with_integer_labels
    causes = {
        r"labels must be in \[0, 3\), got -100 in row 3": lambda: jl.checked(loss)(
            z, labels.at[3].set(-100)
        ),
        r"class_weights must .*nan": lambda: jl.checked(lambda w: loss(z, labels, class_weights=w))(
            jnp.array([1.0, jnp.nan, 1.0])
        ),
        r"logits must .*inf.* in row 1": lambda: jl.checked(loss)(z.at[1, :2].set(jnp.inf), labels),
        r"labels .*where.* in row 2": lambda: jl.checked(lambda m: loss(z, labels, where=m))(
            jnp.ones([4, 3], bool).at[2, 2].set(False)
        ),
    }
    for said, call in causes.items():
        with pytest.raises(ValueError, match=said):
            call()
    # A NaN that other code made: checkify has its line, as the page says.
    error, _ = names["checkify"].checkify(
        jax.jit(lambda x: loss(z, labels).mean() + jnp.log(x)),
        errors=names["checkify"].float_checks,
    )(-1.0)
    assert "nan generated by primitive: log" in error.get()
    # And the loss of the page is finite in the end.
    assert float(names["loss"](names["kernel"], names["hidden"], names["labels"])) == pytest.approx(
        np.log(3), rel=1e-6
    )
