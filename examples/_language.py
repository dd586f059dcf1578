"""What the language models of these examples share: the text that they learn, and their sizes.

Every Python brings its own standard library: two million tokens and more of code, comments and
docstrings. A token is a name or a single sign; the most common ones are the vocabulary, and all
others share the number 0.
"""

import argparse
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm


class Sizes(NamedTuple):
    """Of the model, its batches and its training; the defaults take about a minute on two cores."""

    vocabulary: int = 8192
    features: int = 128
    heads: int = 4
    layers: int = 2
    length: int = 64  # tokens that the model sees at once
    batch: int = 16
    accumulate: int = 2  # batches whose gradients make one step of the optimizer
    batches: int = 400
    num_files: int = 300
    tied: bool = True  # the embedding is the head as well
    mixed: bool = True  # computed in bfloat16, with parameters in float32


class Text(NamedTuple):
    """Token numbers: the training text, and pieces of held-out text."""

    train: np.ndarray  # [tokens]
    test: np.ndarray  # [pieces, length + 1]


def read_tokens(num_files: int) -> list[str]:
    """Names and signs of the standard library's sources, in order."""
    root = Path(sysconfig.get_path("stdlib"))
    others = {"site-packages", "test", "tests"}
    files = [path for path in sorted(root.rglob("*.py")) if others.isdisjoint(path.parts)]
    text = "\n".join(path.read_text("utf-8", "ignore") for path in files[:num_files])
    return re.findall(r"[A-Za-z_]\w*|\S", text)


def encode(tokens: list[str], vocabulary_size: int) -> np.ndarray:
    """Each token's rank by frequency, or 0 if it is too rare."""
    ranked = [token for token, _ in Counter(tokens).most_common(vocabulary_size - 1)]
    numbers = {token: number for number, token in enumerate(ranked, start=1)}
    return np.array([numbers.get(token, 0) for token in tokens], np.int32)


def read_text(sizes: Sizes) -> Text:
    """The text as numbers; the last twentieth is held out."""
    tokens = encode(read_tokens(sizes.num_files), sizes.vocabulary)
    train, rest = np.split(tokens, [len(tokens) - len(tokens) // 20])
    return Text(train, draw_pieces(rest, sizes.length, 4 * sizes.batch, seed=0))


def draw_pieces(text: np.ndarray, length: int, number: int, seed: int) -> np.ndarray:
    """Random pieces of text and the token after each, ``[number, length + 1]``."""
    places = np.random.default_rng(seed).integers(len(text) - length, size=number)
    return text[places[:, None] + np.arange(length + 1)]


def draw_batches(text: Text, sizes: Sizes) -> Iterator[np.ndarray]:
    """What is learned, ``[batch, length + 1]`` at a time; the same in every run. With a bar."""
    for seed in tqdm(range(sizes.batches), desc="training", unit="batch"):
        yield draw_pieces(text.train, sizes.length, sizes.batch, seed)


def sizes_from_command_line(description: str) -> Sizes:
    """The default sizes, but for what the command line says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--batches", type=int, default=Sizes().batches)
    parser.add_argument("--untied", action="store_true", help="give the head weights of its own")
    parser.add_argument("--float32", action="store_true", help="compute in float32")
    options = parser.parse_args()
    return Sizes(batches=options.batches, tied=not options.untied, mixed=not options.float32)


def report(losses: list[float], perplexity: float, error: float) -> None:
    """Print a few of the losses, and how the model does on the held-out text."""
    print("loss:", *(f"{loss:.3f}" for loss in losses[:: max(1, len(losses) // 8)]))
    print(f"held out: perplexity {perplexity:.1f}, calibration error {error:.3f}")
