"""Rare words with hotwords and without, on real speech: recall, precision, error rate, cost.

    python -m benchmarks.hotwords run --data FOLDER... --model FOLDER --results FILE
        --way none boost prompt --distractors 20 100 1000 --beams 1 5 --half test
    python -m benchmarks.hotwords show --data FOLDER... --results FILE [--json FILE]
    python -m benchmarks.hotwords cost --data FOLDER... --model FOLDER --file FILE --number 1000

DATA holds recordings and a manifest.jsonl with their texts. A recording's hotwords are the rare
words of its own text, then distractors: rare words of other texts, the same at each run. A word is
rare if Whisper's tokenizer needs three tokens or more for it in each case, two for a distractor.
RESULTS gets a line per recording and setting; an interrupted run continues. Of the recordings
every other one is of the half `tune`, by which the bonus was chosen, the others of `test`.

Recall counts the rare words of the texts, precision the hotwords that were recognized, both after
Whisper's normalizer. `cost` compares CPU seconds without hotwords and with ones of next to no
weight, so that the text is the same, in turns.

Source of the protocol: Le et al. 2021, "Contextualized Streaming End-to-End Speech Recognition with
Trie-Based Deep Biasing and Shallow Fusion", section 4.
"""

import argparse
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import markdown
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.report.accuracy.scoring import Hypothesis, Reference, normalized, score
from corpus_asr.runtime.transcriber import Transcriber

WORDS = re.compile(r"[^\W\d_]{5,}")
NEXT_TO_NO_WEIGHT = 1e-9
CLIP = "0,100"
"""Seconds whose cost is measured."""
Setting = tuple[str, int, str, int]
"""Model, beams, way, distractors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A recording and the rare words of its text."""

    name: str
    path: str
    text: str
    rare: tuple[str, ...]


def main() -> None:
    arguments = _arguments()
    tokenizer = WhisperTokenizer.from_pretrained(arguments.tokenizer)
    texts = [each for folder in arguments.data for each in _texts(folder)]
    others = [each for folder in arguments.others or arguments.data for each in _texts(folder)]
    words = sorted({word for _, text in others for word in rare_words(text, tokenizer, least=2)})
    if arguments.command == "cost":
        _cost(arguments, words)
        return
    items = _items(texts, tokenizer, arguments)
    if arguments.command == "run":
        _run(arguments, items, words)
    _show(arguments, items, words)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "show", "cost"):
        command = commands.add_parser(name)
        command.add_argument("--data", required=True, type=Path, nargs="+")
        command.add_argument("--others", type=Path, nargs="+", help="texts of distractors: DATA")
        command.add_argument("--tokenizer", default="whisper-tiny.en", help="that tells rare words")
        command.add_argument("--beams", type=int, nargs="+", default=[1])
        if name != "show":
            command.add_argument("--model", required=True)
        if name == "cost":
            command.add_argument("--file", required=True)
            command.add_argument("--number", type=int, default=1000)
            command.add_argument("--pairs", type=int, default=8)
            command.add_argument("--strategy", default="auto")
            continue
        command.add_argument("--results", required=True, type=Path)
        command.add_argument("--json", type=Path)
        command.add_argument("--most", type=int, default=120, help="recordings of each folder")
        command.add_argument("--half", choices=("tune", "test"), default="test")
        if name == "run":
            command.add_argument("--way", nargs="+", default=["none", "boost", "prompt"])
            command.add_argument("--distractors", type=int, nargs="+", default=[100])
    return parser.parse_args()


def _texts(folder: Path) -> Iterator[tuple[Path, str]]:
    with (folder / "manifest.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row.get("language") == "en" and row.get("text"):
                # A text in capitals does not say how its words are written.
                text = row["text"].lower() if row["text"].isupper() else row["text"]
                yield folder / row["path"], text


def rare_words(text: str, tokenizer: WhisperTokenizer, *, least: int = 3) -> list[str]:
    """Return the rare words of a text, each once, as it writes them."""

    def fewest(word: str) -> int:
        forms = {word, word.lower(), word.capitalize()}
        return min(len(tokenizer.get_prompt_ids(form, return_tensors=None)) - 1 for form in forms)

    return [word for word in dict.fromkeys(WORDS.findall(text)) if fewest(word) >= least]


def _items(
    texts: Sequence[tuple[Path, str]], tokenizer: WhisperTokenizer, arguments: argparse.Namespace
) -> list[Item]:
    items: list[Item] = []
    of_folder: Counter[Path] = Counter()
    for path, text in texts:
        folder = next(folder for folder in arguments.data if path.is_relative_to(folder))
        rare = tuple(rare_words(text, tokenizer))
        if rare and of_folder[folder] < arguments.most:
            of_folder[folder] += 1
            name = f"{path.parent.name}/{path.stem}"
            items.append(Item(name=name, path=str(path), text=text, rare=rare))
    return items[0 if arguments.half == "tune" else 1 :: 2]


def hotwords(item: Item, words: Sequence[str], number: int) -> list[str]:
    """The rare words of a recording and so many others."""
    others = [word for word in words if word.lower() not in item.text.lower()]
    return [*item.rare, *random.Random(item.name).sample(others, number)]


def _read(path: Path) -> dict[Setting, dict[str, str]]:
    found: dict[Setting, dict[str, str]] = {}
    if path.exists():
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            found.setdefault(tuple(row["setting"]), {})[row["recording"]] = row["text"]
    return found


def _run(arguments: argparse.Namespace, items: Sequence[Item], words: Sequence[str]) -> None:
    done = _read(arguments.results)
    with Transcriber(arguments.model, device="cpu") as transcriber:
        for beams in arguments.beams:
            for way in arguments.way:
                for number in arguments.distractors if way != "none" else (0,):
                    setting = (Path(arguments.model).name, beams, way, number)
                    for item in items:
                        if item.name in done.get(setting, ()):
                            continue
                        options: dict[str, Any] = {"language": "en", "beam_size": beams}
                        if way != "none":
                            options["hotwords"] = hotwords(item, words, number)
                            options["hotwords_mode"] = way
                        text = transcriber.transcribe(item.path, **options).text
                        row = {"setting": setting, "recording": item.name, "text": text}
                        with arguments.results.open("a", encoding="utf-8") as out:
                            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _show(arguments: argparse.Namespace, items: Sequence[Item], words: Sequence[str]) -> None:
    found = _read(arguments.results)
    # Of recordings that every setting of the model has: an interrupted run compares these.
    both = {
        model: set.intersection(*(set(texts) for (own, *_), texts in found.items() if own == model))
        for model, *_ in found
    }
    rows = [
        {"model": model, "beams": beams, "way": way, "distractors": number}
        | _figures([item for item in items if item.name in both[model]], texts, words, number)
        for (model, beams, way, number), texts in sorted(found.items())
    ]
    print(
        "\n".join(markdown(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _figures(
    items: Sequence[Item], texts: dict[str, str], words: Sequence[str], number: int
) -> dict[str, Any]:
    errors = length = right = said = there = 0
    for item in items:
        reference = Reference(uri=item.name, text=item.text, language="en")
        hypothesis = Hypothesis(text=texts[item.name], language="en", duration_s=1.0)
        found = score(reference, hypothesis).words
        errors, length = errors + found.errors, length + found.reference_length
        in_text, in_found = (
            Counter(normalized(text, "en").split()) for text in (item.text, texts[item.name])
        )
        rare = {normalized(word, "en") for word in item.rare}
        listed = rare | {normalized(word, "en") for word in hotwords(item, words, number)}
        right += sum(min(in_text[word], in_found[word]) for word in rare)
        there += sum(in_text[word] for word in rare)
        said += sum(in_found[word] for word in listed)
    return {
        "recordings": len(items),
        "words": length,
        "rare": there,
        "WER %": round(100 * errors / length, 2),
        "recall %": round(100 * right / there, 1),
        "precision %": round(100 * right / said, 1),
    }


def _cost(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    chosen = random.Random(0).sample(words, arguments.number)
    listed = [{"phrase": word, "weight": NEXT_TO_NO_WEIGHT} for word in chosen]
    more, plain = [], []
    with Transcriber(
        arguments.model, device="cpu", num_threads=1, temperature=0, strategy=arguments.strategy,
        beam_size=arguments.beams[0],
    ) as transcriber:  # fmt: skip

        def taken_s(given: Any) -> float:
            began_s = time.process_time()
            transcriber.transcribe(arguments.file, hotwords=given, clip_timestamps=CLIP)
            return time.process_time() - began_s

        for given in (None, listed):
            taken_s(given)
        for pair in range(arguments.pairs):
            order = (None, listed) if pair % 2 else (listed, None)
            first, second = (taken_s(given) for given in order)
            without, with_them = (first, second) if pair % 2 else (second, first)
            plain.append(without)
            more.append(with_them - without)
    median_s = statistics.median(plain)
    print(f"{median_s:.2f} CPU s, with hotwords {100 * statistics.median(more) / median_s:+.1f}%")


if __name__ == "__main__":
    main()
