"""Words that engines write where nobody speaks, and whether they find three seconds of speech.

    python -m benchmarks.invented_words --models FOLDER... --speech FOLDER --clip ID \
        --results FILE.json
    python -m benchmarks.invented_words --show FILE.json...

Nine sounds (tests/support/audio.py) through each engine's defaults. SPEECH holds recordings and
a manifest.jsonl: the crowd's voices, of which one is also the clip to be found in noise.
"""

import argparse
import json
import tempfile
import time
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recognizers import Recognizer, faster_whisper, openai, ours
from benchmarks.tables import markdown
from corpus_asr.report.accuracy.scoring import normalized
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import murmur, read_clip, read_manifest, speech_in_noise, wordless_sounds

ENGINES: dict[str, Callable[[Path, Path], Recognizer]] = {
    "corpus-asr": partial(ours, mode="default", compute_type="auto"),
    "corpus-asr, no detection": partial(
        ours, mode="default", compute_type="auto", vad_filter=False
    ),
    "openai-whisper": partial(openai, mode="default"),
    # Its detector is off by default.
    "faster-whisper": partial(faster_whisper, mode="default", vad_filter=True),
}
SPEECH = "speech in noise"
SHOWN_LETTERS = 40


def main() -> None:
    arguments = _arguments()
    if not arguments.show:
        _measure(arguments)
    rows = [row for path in arguments.show or [arguments.results]
            for row in json.loads(path.read_text())]  # fmt: skip
    _print(rows)


def _measure(arguments: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        items = {item["id"]: item for item in read_manifest(arguments.speech)}
        sounds = _write_sounds(arguments, items, Path(scratch))
        for model in arguments.models:
            for engine in arguments.engines:
                own = Path(scratch) / model.name
                own.mkdir(exist_ok=True)
                recognize = ENGINES[engine](model, own)
                for name, path in sounds.items():
                    started = time.monotonic()
                    text = recognize(path, language=None, word_times=False).text.strip()
                    found = {
                        "engine": engine, "model": model.name, "sound": name,
                        "audio_s": round(_seconds(path)),
                        "words": len(normalized(text, "en").split()),
                        "wanted": items[arguments.clip]["text"] if name == SPEECH else "",
                        "text": text, "wall_s": round(time.monotonic() - started, 1),
                    }  # fmt: skip
                    rows.append(found)
                    print(json.dumps(found, ensure_ascii=False), flush=True)
                    arguments.results.write_text(json.dumps(rows, ensure_ascii=False, indent=1))


def _write_sounds(
    arguments: argparse.Namespace, items: dict[str, dict[str, Any]], folder: Path
) -> dict[str, Path]:
    clips = {id: read_clip(arguments.speech / item["path"]) for id, item in items.items()}
    sounds = wordless_sounds(arguments.seconds)
    sounds["murmur"] = murmur(list(clips.values()), arguments.seconds)
    sounds[SPEECH] = speech_in_noise(clips[arguments.clip], arguments.seconds / 2)
    paths = {}
    for name, samples in sounds.items():
        if arguments.sounds and name not in arguments.sounds:
            continue
        paths[name] = folder / f"{name}.wav"
        with wave.open(str(paths[name]), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
            file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return paths


def _seconds(path: Path) -> float:
    with wave.open(str(path), "rb") as file:
        return file.getnframes() / SAMPLE_RATE_HZ


def _print(rows: list[dict[str, Any]]) -> None:
    lines = []
    sounds = list(dict.fromkeys(row["sound"] for row in rows))
    for row in sorted(rows, key=lambda row: (sounds.index(row["sound"]), row["model"])):
        text = row["text"][:SHOWN_LETTERS] + ("..." if len(row["text"]) > SHOWN_LETTERS else "")
        words = str(row["words"])
        if row["wanted"]:
            right = normalized(row["text"], "en") == normalized(row["wanted"], "en")
            words += " (all, and no other)" if right else " (not the right ones)"
        lines.append([*(row[key] for key in ("sound", "model", "engine", "audio_s")), words, text])
    titles = ("sound", "model", "engine", "audio, s", "words", "text")
    print("\n".join(markdown(titles, lines, left=(0, 1, 2, 5))))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, nargs="+", default=[], help="checkpoint folders")
    parser.add_argument("--speech", type=Path, help="folder of clips with a manifest.jsonl")
    parser.add_argument("--clip", help="id of the clip to be found in noise")
    parser.add_argument("--seconds", type=float, default=600.0, help="of each sound; half of "
                        "it for the speech in noise")  # fmt: skip
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--sounds", nargs="+", default=[], help="only these")
    parser.add_argument("--results", type=Path, help="json file to write")
    parser.add_argument("--show", type=Path, nargs="+", default=[], help="print earlier results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
