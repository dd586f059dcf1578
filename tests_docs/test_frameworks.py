"""The same language model in four frameworks: it learns in each, and the losses are the same."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

# Only the newest environment has them: this name is in the summary of those that skip it.
nnx = pytest.importorskip("flax.nnx", reason="the frameworks aren't installed")
eqx = pytest.importorskip("equinox", reason="the frameworks aren't installed")
hk = pytest.importorskip("haiku", reason="the frameworks aren't installed")

from _language import Sizes, draw_batches, read_text  # noqa: E402

SMALL = Sizes(
    vocabulary=64, features=16, heads=2, layers=1, length=8, batch=4, batches=4, num_files=3
)
NAMES = ("flax_nnx", "flax_linen", "haiku", "equinox")
Weights = dict[str, Any]


@pytest.fixture(autouse=True)
def _promotions_of_frameworks() -> Iterator[None]:
    """optax multiplies a step's number by a float, and layers add a bias to a batch."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def example(name: str) -> Any:
    return importlib.import_module(f"{name}_lm")


# The weights of a model in Flax NNX, as the other three have them.


def of_linen(weights: Weights) -> Weights:
    names = {"norm_attention": "LayerNorm_0", "norm_mlp": "LayerNorm_1", "up": "Dense_0"}
    names |= {"down": "Dense_1", "attention": "MultiHeadDotProductAttention_0"}
    rest = {name: layer for name, layer in weights.items() if name != "blocks"}
    blocks = {
        f"blocks_{i}": {names[name]: layer for name, layer in block.items()}
        for i, block in weights["blocks"].items()
    }
    return rest | blocks


def of_haiku(weights: Weights) -> Weights:
    def norm(layer: Weights) -> Weights:
        return {"scale": layer["scale"], "offset": layer["bias"]}

    def numbered(name: str, i: int) -> str:
        return f"language_model/{name}_{i}" if i else f"language_model/{name}"

    params: Weights = {
        f"language_model/{name}": {"embeddings": weights[name]["embedding"]}
        for name in ("embed", "position")
    }
    for i, block in weights["blocks"].items():
        attention = numbered("multi_head_attention", i)
        for name, layer in block["attention"].items():
            inner = "linear" if name == "out" else name
            params[f"{attention}/{inner}"] = {"w": matrix(name, layer)}
        for j, name in enumerate(("norm_attention", "norm_mlp")):
            params[numbered("layer_norm", 2 * i + j)] = norm(block[name])
        for j, name in enumerate(("up", "down")):
            layer = {"w": block[name]["kernel"], "b": block[name]["bias"]}
            params[numbered("linear", 2 * i + j)] = layer
    params[numbered("layer_norm", 2 * len(weights["blocks"]))] = norm(weights["norm"])
    if "head" in weights:
        params["language_model"] = {"head": weights["head"]["kernel"]}
    return params


def of_equinox(model: Any, weights: Weights) -> Any:
    """The model with these weights; its matrices are [out, in]."""

    def arrays(model: Any) -> list[Any]:
        found = [model.embed.weight, model.position, model.norm.weight, model.norm.bias]
        found += [] if model.head is None else [model.head.weight]
        for block in model.blocks:
            attention, layers = block.attention, block.mlp.layers
            projections = [attention.query_proj, attention.key_proj]
            projections += [attention.value_proj, attention.output_proj]
            found += [layer.weight for layer in (*projections, *layers)]
            found += [layer.bias for layer in layers]
            for norm in (block.norm_attention, block.norm_mlp):
                found += [norm.weight, norm.bias]
        return found

    values = [weights[name]["embedding"] for name in ("embed", "position")]
    values += [weights["norm"]["scale"], weights["norm"]["bias"]]
    values += [weights["head"]["kernel"].T] if "head" in weights else []
    for block in weights["blocks"].values():
        heads, layers = block["attention"], [block["up"], block["down"]]
        values += [matrix(name, heads[name]).T for name in ("query", "key", "value", "out")]
        values += [layer["kernel"].T for layer in layers] + [layer["bias"] for layer in layers]
        for name in ("norm_attention", "norm_mlp"):
            values += [block[name]["scale"], block[name]["bias"]]
    assert [x.shape for x in arrays(model)] == [x.shape for x in values]
    return eqx.tree_at(arrays, model, values)


def matrix(name: str, layer: Weights) -> Any:
    """An attention's kernel as [in, out]; Flax keeps the heads apart."""
    kernel = layer["kernel"]
    return (
        kernel.reshape(-1, kernel.shape[-1]) if name == "out" else kernel.reshape(len(kernel), -1)
    )


def four_models(sizes: Sizes) -> tuple[Any, Any, Any, Any]:
    """In Flax NNX, and with its weights: Linen's params, Haiku's params, the model in Equinox."""
    model = example("flax_nnx").LanguageModel(sizes, nnx.Rngs(0))
    # Copies, because training changes the model where it is.
    weights = jax.tree.map(jnp.array, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    other = eqx.filter_eval_shape(example("equinox").LanguageModel, sizes, jax.random.key(0))
    return model, of_linen(weights), of_haiku(weights), of_equinox(other, weights)


def test_the_same_weights_give_the_same_losses() -> None:
    sizes = SMALL._replace(layers=2, mixed=False)
    text = read_text(sizes)
    flax_nnx, flax_linen, haiku, equinox = map(example, NAMES)
    model, linen_params, haiku_params, other = four_models(sizes)
    want = flax_nnx.train(model, text, sizes)
    assert len(want) == sizes.batches
    # A loss is the sum of some hundred terms, each rounded by 6e-8 of itself a few times. From the
    # third batch on it follows from the gradients of the first two as well.
    linen = flax_linen.LanguageModel(sizes)
    losses = flax_linen.train(linen, linen_params, text, sizes)[1]
    assert losses == pytest.approx(want, rel=1e-5)
    losses = haiku.train(haiku.make_model(sizes), haiku_params, text, sizes)[1]
    assert losses == pytest.approx(want, rel=1e-5)
    losses = equinox.train(other, text, sizes)[1]
    assert losses == pytest.approx(want, rel=1e-5)


def test_the_same_weights_give_the_same_loss_without_ties() -> None:
    sizes = SMALL._replace(tied=False, mixed=False)
    tokens = next(draw_batches(read_text(sizes), sizes))
    flax_nnx, flax_linen, haiku, equinox = map(example, NAMES)
    model, linen_params, haiku_params, other = four_models(sizes)

    @nnx.jit
    def losses(model: Any) -> list[jax.Array]:
        logits = model(tokens[:, :-1])
        plain = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return [
            plain.mean(),
            flax_nnx.mean_loss(model, tokens),
            flax_linen.mean_loss(linen_params, flax_linen.LanguageModel(sizes), tokens),
            haiku.mean_loss(haiku_params, haiku.make_model(sizes), tokens),
            equinox.mean_loss(other, tokens),
        ]

    plain, *found = map(float, losses(model))
    assert found == pytest.approx([plain] * 4, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_learns_in_mixed_precision(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example(name).main(SMALL._replace(batches=40, tied=False))
    printed = capsys.readouterr().out
    losses = [float(x) for x in re.search(r"^loss: (.*)$", printed, re.MULTILINE)[1].split()]
    assert len(losses) == 8
    assert np.mean(losses[-2:]) < losses[0] - 0.3
    perplexity, error = re.search(r"perplexity (\S+), calibration error (\S+)", printed).groups()
    assert float(perplexity) < SMALL.vocabulary
    assert 0 < float(error) < 1


@pytest.mark.parametrize("name", NAMES)
def test_is_one_short_file(name: str) -> None:
    assert len(Path(example(name).__file__).read_text().splitlines()) < 150


def test_kernels_are_where_the_document_says() -> None:
    sizes = SMALL._replace(tied=False)
    flax_nnx, flax_linen, _, equinox = map(example, NAMES)
    tokens = jnp.zeros([1, sizes.length], jnp.int32)

    def layers(tokens: jax.Array) -> jax.Array:
        embed = hk.Embed(sizes.vocabulary, sizes.features, name="embed")
        return hk.Linear(sizes.vocabulary, name="head")(embed(tokens))

    scopes = {
        "Flax NNX": lambda: {"model": flax_nnx.LanguageModel(sizes, nnx.Rngs(0))},
        "Flax Linen": lambda: flax_linen.LanguageModel(sizes).init(jax.random.key(0), tokens),
        "Haiku": lambda: {"params": hk.transform(layers).init(jax.random.key(0), tokens)},
        "Equinox": lambda: {"model": equinox.LanguageModel(sizes, jax.random.key(0))},
    }
    text = (Path(__file__).parents[1] / "docs" / "frameworks.md").read_text()
    rows = re.findall(r"^\| ([A-Z][\w ]+) \| `(.+)` \| `(.+)` \|$", text, re.MULTILINE)
    assert [name for name, *_ in rows] == list(scopes)
    for name, *expressions in rows:
        for expression in expressions:
            kernel = jax.eval_shape(lambda e=expression, scope=scopes[name]: eval(e, scope()))
            assert kernel.shape == (sizes.features, sizes.vocabulary)
