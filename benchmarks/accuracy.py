"""Error rates, languages and word times of four engines with the same weights.

    python -m benchmarks.accuracy run --results FOLDER --data FOLDER...
        --model FOLDER...
    python -m benchmarks.accuracy show --results FOLDER --data FOLDER...
    python -m benchmarks.accuracy differ --results FOLDER --data FOLDER...
        --engine NAME NAME

DATA holds recordings and a manifest.jsonl with their texts, and `words` where they are known.
RESULTS gets a file per engine, a line per recording: an interrupted run continues, and a file that
is deleted is written again. Greedy runs time words where a manifest has them for all recordings.
English is given, other languages are detected; languages that a checkpoint does not know are
skipped.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.recognizers import RECOGNIZERS, Hypothesis, Mode, manifest
from benchmarks.tables import markdown
from corpus_asr.report import scoring
from corpus_asr.report.scoring import Errors, Reference, Score, TimedWord, score, total

MODES: tuple[Mode, ...] = ("default", "greedy")
WITHIN_MS = (50, 100, 200)
Key = tuple[str, str, str, str]
"""Checkpoint, mode, set, recording."""


def main() -> None:
    arguments = _arguments()
    if arguments.command == "run":
        _run(arguments)
    elif arguments.command == "differ":
        _differ(arguments)
    else:
        _show(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run, show = commands.add_parser("run"), commands.add_parser("show")
    differ = commands.add_parser("differ")
    for command in (run, show, differ):
        command.add_argument("--results", required=True, type=Path)
        command.add_argument("--data", required=True, type=Path, nargs="+")
    for command in (run, differ):
        command.add_argument("--engine", choices=RECOGNIZERS, nargs="+", default=list(RECOGNIZERS))
        command.add_argument("--mode", choices=MODES, nargs="+", default=list(MODES))
    show.add_argument("--json", type=Path, help="write the error rates there")
    run.add_argument("--model", required=True, type=Path, nargs="+")
    run.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _items(folder: Path, known: Sequence[str]) -> list[dict[str, Any]]:
    """Return the recordings in languages that are known, each with its `code` of it."""
    items = list(manifest(folder))
    timed = all("words" in item for item in items)
    return [item | {"timed": timed} for item in items if item["code"] in known]


def _languages(model: Path) -> list[str]:
    config = json.loads((model / "generation_config.json").read_text())
    return [token.strip("<|>") for token in config.get("lang_to_id", ("en",))]


def _run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    arguments.results.mkdir(parents=True, exist_ok=True)
    for name in arguments.engine:
        done = _results(arguments.results, name)
        for model in arguments.model:
            with tempfile.TemporaryDirectory() as scratch:
                for mode in arguments.mode:
                    _run_mode(arguments, name, model, Path(scratch), mode, done)


def _run_mode(
    arguments: argparse.Namespace,
    name: str,
    model: Path,
    scratch: Path,
    mode: Mode,
    done: dict[Key, Hypothesis],
) -> None:
    wanted = {
        (model.name, mode, folder.name, item["id"]): item
        for folder in arguments.data
        for item in _items(folder, _languages(model))
    }
    if wanted.keys() <= done.keys():
        return
    recognize = RECOGNIZERS[name](model, scratch, mode)
    with (arguments.results / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        for key, item in wanted.items():
            if key in done:
                continue
            found = recognize(
                item["file"],
                language="en" if item["code"] == "en" else None,
                word_times=mode == "greedy" and item["timed"],
            )
            words = [[word.word, word.start_s, word.end_s] for word in found.words]
            row = {"key": key, "text": found.text, "language": found.language, "words": words}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()


def _results(folder: Path, name: str) -> dict[Key, Hypothesis]:
    file = folder / f"{name}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {
        tuple(row["key"]): Hypothesis(
            text=row["text"],
            language=row["language"],
            words=tuple(TimedWord(*word) for word in row["words"]),
        )
        for row in rows
    }


def _show(arguments: argparse.Namespace) -> None:
    items = _by_id(arguments.data)
    every = {name: _results(arguments.results, name) for name in RECOGNIZERS}
    groups: dict[tuple[str, str, str], dict[str, set[Key]]] = defaultdict(dict)
    for name, results in every.items():
        for key in results:
            if key[2:] in items:
                groups[key[:3]].setdefault(name, set()).add(key)
    rates: list[dict[str, Any]] = []
    for (model, mode, data), engines in sorted(groups.items()):
        keys = sorted(set.intersection(*engines.values()))
        print(f"\n{model}, {mode}, {data}: {len(keys)} recordings that all engines have done\n")
        if keys:
            found = {name: {key: every[name][key] for key in keys} for name in engines}
            rates += [
                {"model": model, "mode": mode, "set": data, "engine": name, "recordings": len(keys)}
                | {"wer": float(_percent(_words(mine, items)))}
                for name, mine in found.items()
            ]
            print("\n".join((*_table(found, items), *_table_of_times(found, items))))
    if arguments.json is not None:
        kept = {"date": datetime.now(UTC).date().isoformat(), "rows": rates}
        arguments.json.write_text(f"{json.dumps(kept, indent=1)}\n")


Found = dict[str, dict[Key, Hypothesis]]


def _table(found: Found, items: dict[tuple[str, ...], dict[str, Any]]) -> list[str]:
    columns = ("WER %", "sub", "del", "ins", "CER %", "= openai-whisper", "= transformers")
    rows = []
    for name, mine in found.items():
        scores = [_score(items[key[2:]], one) for key, one in mine.items()]
        words = _words(mine, items)
        letters = total(one.characters for one in scores)
        same = (
            str(sum(_same(one, found[other][key]) for key, one in mine.items()))
            if other in found
            else ""
            for other in ("openai-whisper", "transformers")
        )
        right = sum(items[key[2:]]["code"] == one.language for key, one in mine.items())
        counts = (words.substitutions, words.deletions, words.insertions)
        rows.append((name, _percent(words), *counts, _percent(letters), *same, right))
    return markdown(("", *columns, "language"), rows)


def _table_of_times(found: Found, items: dict[tuple[str, ...], dict[str, Any]]) -> list[str]:
    if not any(one.words for mine in found.values() for one in mine.values()):
        return []
    limits = [f"in {limit} ms" for limit in WITHIN_MS]
    edges = [[f"{edge}: median ms", "90 % within ms", *limits] for edge in ("start", "end")]
    rows = []
    for name, mine in found.items():
        scores = [_score(items[key[2:]], one) for key, one in mine.items()]
        errors_ms = 1000 * np.abs([pair for one in scores for pair in one.time_errors_s])
        cells = [name, str(len(errors_ms))]
        for edge_ms in errors_ms.T:
            cells += [f"{np.quantile(edge_ms, share):.0f}" for share in (0.5, 0.9)]
            cells += [f"{np.mean(edge_ms <= limit):.0%}" for limit in WITHIN_MS]
        rows.append(cells)
    return ["", *markdown(("", "words", *edges[0], *edges[1]), rows)]


def _by_id(folders: Sequence[Path]) -> dict[tuple[str, ...], dict[str, Any]]:
    return {(folder.name, item["id"]): item for folder in folders for item in manifest(folder)}


def _words(mine: dict[Key, Hypothesis], items: dict[tuple[str, ...], dict[str, Any]]) -> Errors:
    return total(_score(items[key[2:]], one).words for key, one in mine.items())


def _score(item: dict[str, Any], found: Hypothesis) -> Score:
    reference = Reference(
        uri=item["id"],
        text=item["text"],
        language=item["code"],
        words=tuple(TimedWord(w["word"], w["start"], w["end"]) for w in item.get("words", ())),
    )
    hypothesis = scoring.Hypothesis(
        text=found.text, language=found.language, duration_s=item["duration_s"], words=found.words
    )
    return score(reference, hypothesis)


def _same(one: Hypothesis, other: Hypothesis) -> bool:
    return one.text.split() == other.text.split()


def _percent(errors: Errors) -> str:
    assert errors.rate is not None, "references have words"
    return f"{100 * errors.rate:.2f}"


def _differ(arguments: argparse.Namespace) -> None:
    """Print each recording whose text is not the same in two engines."""
    first, second = arguments.engine
    ones, others = (_results(arguments.results, name) for name in (first, second))
    items = _by_id(arguments.data)
    for key, one in ones.items():
        other = others.get(key)
        if other is None or key[1] not in arguments.mode or key[2:] not in items:
            continue
        if not _same(one, other):
            print(f"\n{' '.join(key)} ({items[key[2:]]['duration_s']:.1f} s)")
            print(f"  {'reference':<16}{items[key[2:]]['text']}")
            print(f"  {first:<16}{one.language} {one.text}")
            print(f"  {second:<16}{other.language} {other.text}")


if __name__ == "__main__":
    main()
