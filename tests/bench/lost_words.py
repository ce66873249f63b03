"""True words that engines lose: deletions, with substitutions and insertions, on real speech.

    python -m tests.bench.lost_words --model FOLDER --speech FOLDER... --results FILE.json
    python -m tests.bench.lost_words --show FILE.json...

Each folder holds recordings and a manifest.jsonl with their texts. Every engine runs with its
defaults; texts are compared after Whisper's normalizer.
"""

import argparse
import json
import tempfile
from pathlib import Path

from corpus_asr.report.accuracy import Errors, aligned, normalised, total
from tests.bench.default_engines import ENGINES
from tests.support.accuracy import manifest


def main() -> None:
    arguments = _arguments()
    if not arguments.show:
        _measure(arguments)
    rows = [row for path in arguments.show or [arguments.results]
            for row in json.loads(path.read_text())]  # fmt: skip
    print("| model | set | engine | recordings | words | WER | sub | del | ins |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for key in dict.fromkeys((row["model"], row["set"], row["engine"]) for row in rows):
        own = [row for row in rows if (row["model"], row["set"], row["engine"]) == key]
        counts = total(_errors(row["reference"], row["text"]) for row in own)
        print(f"| {' | '.join(key)} | {len(own)} | {counts.said} | {counts.rate or 0:.2%} | "
              f"{counts.substitutions} | {counts.deletions} | {counts.insertions} |")  # fmt: skip


def _measure(arguments: argparse.Namespace) -> None:
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as scratch:
        for engine in arguments.engines:
            transcribe = ENGINES[engine](arguments.model, Path(scratch))
            for folder in arguments.speech:
                for item in manifest(folder):
                    rows.append(
                        {
                            "model": arguments.model.name, "set": folder.name, "engine": engine,
                            "id": item["id"], "reference": item["text"],
                            "text": transcribe(item["file"]).strip(),
                        }
                    )  # fmt: skip
                    arguments.results.write_text(json.dumps(rows, ensure_ascii=False, indent=1))


def _errors(reference: str, text: str) -> Errors:
    said, found = normalised(reference, "en").split(), normalised(text, "en").split()
    if not found:
        return Errors(deletions=len(said))
    result = aligned(said, found)
    return Errors(result.hits, result.substitutions, result.deletions, result.insertions)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="checkpoint folder")
    parser.add_argument("--speech", type=Path, nargs="+", help="folders with a manifest.jsonl")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--results", type=Path, help="json file to write")
    parser.add_argument("--show", type=Path, nargs="+", default=[], help="print earlier results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
