"""The documents as programs: their code blocks, run in the order of the page.

`python tests_docs/blocks.py docs/recipes/*.md` writes the output that each block shows anew.
"""

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

_BLOCK = re.compile(
    r"^```python\n(?P<code>(?!>>> ).*?)^```\n(?:\n*^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?")


def programs(page: str) -> list[tuple[str, str]]:
    """The code of each block without a prompt, and the output that the page shows below it."""
    return [(block["code"], block["output"] or "") for block in _BLOCK.finditer(page)]


def run(code: str, name: str, namespace: dict[str, Any]) -> str:
    """What a block prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, name, "exec"), namespace)
    return output.getvalue()


def same_output(printed: str, shown: str, rel: float) -> bool:
    """The same words, and numbers that are the same but for another machine's rounding."""
    words = [" ".join(_NUMBER.sub("#", text).split()) for text in (printed, shown)]
    numbers = [[float(number) for number in _NUMBER.findall(text)] for text in (printed, shown)]
    close = all(abs(a - b) <= rel * abs(b) for a, b in zip(*numbers, strict=False))
    return words[0] == words[1] and len(numbers[0]) == len(numbers[1]) and close


def show(path: Path, namespace: dict[str, Any]) -> str:
    """The page with the output of its blocks written anew."""
    page = path.read_text()

    def anew(block: re.Match[str]) -> str:
        output = run(block["code"], path.name, namespace)
        code = f"```python\n{block['code']}```\n"
        return f"{code}\n```text\n{output}```" if output else code

    return _BLOCK.sub(anew, page)


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        file.write_text(show(file, {}))
