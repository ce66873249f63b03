"""Checkpoints in the layouts of other engines, written by a process of its own.

In: an `Order`. Out: a file or folder in its scratch folder, made once for all workers of a table.
Converting takes the memory of two copies and of torch, which must not be counted as the engine's.
"""

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from corpus_asr.benchmark.orders import Order
from corpus_asr.errors import EngineError

_NAMES = {"ctranslate2": "ctranslate2", "openai": "openai.pt"}
_COPIED = ("tokenizer.json", "preprocessor_config.json")


def converted(layout: str, order: Order) -> Path:
    """Return the checkpoint in `ctranslate2`'s or `openai`'s layout.

    Raises:
        EngineError: it cannot be converted.
    """
    target = Path(order.scratch) / _NAMES[layout]
    if target.exists():
        return target
    command = [sys.executable, "-P", "-m", "corpus_asr.benchmark.engines.conversion"]
    done = subprocess.run(
        [*command, layout, order.model, str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(
            f"converting {order.model} to {layout}'s layout: {last}; leave {order.engine} out, or "
            "convert the checkpoint by hand to see why"
        )
    return target


def _to_ctranslate2(source: Path, target: Path) -> None:
    library = importlib.import_module("ctranslate2.converters")
    converter = library.TransformersConverter(
        str(source), copy_files=[name for name in _COPIED if (source / name).is_file()]
    )
    vocabulary = source / "vocabulary.txt"
    if vocabulary.is_file():  # a checkpoint of noise, which has no tokenizer
        tokens = vocabulary.read_text(encoding="utf-8").split("\n")
        converter.load_tokenizer = lambda *_, **__: _Vocabulary(tokens)
    converter.convert(str(target))


class _Vocabulary:
    """As much of a tokenizer as the converter looks at."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._ids = {token: number for number, token in enumerate(tokens)}

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        return self._ids


def _to_openai(source: Path, target: Path) -> None:
    from corpus_asr.models.convert.folder import convert

    convert(source, target)


if __name__ == "__main__":
    write = {"ctranslate2": _to_ctranslate2, "openai": _to_openai}[sys.argv[1]]
    final = Path(sys.argv[3])
    unfinished = final.with_name(f"unfinished-{final.name}")
    write(Path(sys.argv[2]), unfinished)
    unfinished.rename(final)
