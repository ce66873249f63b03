"""Write what is said in the clips of tests/data/demo, and when: demo-references.jsonl.

    python -m tests.data.make_demo_references

In: the texts of `make_demo_clips.py` and espeak-ng's library, which tells the sample at which each
word and sound begins. Out: a manifest for `corpus-asr evaluate`. The times are the speech's own,
not an aligner's; a word ends where the next begins, or where a pause does. Run again only to change
the clips.
"""

import json
import multiprocessing
from typing import Any

from tests.data.espeak_words import speak_by_espeak
from tests.data.make_demo_clips import ENGLISH, ENGLISH_LONG, FOLDER, GERMAN, PAUSE_S, speak
from tests.data.word_times import timed

REFERENCES = FOLDER.parent / "demo-references.jsonl"


def reference(
    name: str, language: str, texts: tuple[str, ...], voice: str, library_voice: str
) -> dict[str, Any]:
    """Return the manifest's row of a clip that says these texts, a pause after each."""
    words: list[dict[str, Any]] = []
    offset_s = 0.0
    for text in texts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            speech = pool.apply(speak_by_espeak, (text, library_voice))
        num_samples = len(speech.samples)
        assert num_samples == len(speak(text, voice, speech.rate_hz)), "not the clip's speech"
        words += timed(speech.words, offset_s)
        offset_s += num_samples / speech.rate_hz + PAUSE_S
    path = f"{FOLDER.name}/{name}"
    return {"path": path, "language": language, "text": " ".join(texts), "words": words}


def main() -> None:
    rows = [
        reference("english.wav", "en", (ENGLISH,), "en-us", "en-us"),
        reference("german.opus", "de", (GERMAN,), "de", "de"),
        reference("longer.mp3", "en", ENGLISH_LONG, "en-gb", "gmw/en"),
    ]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    REFERENCES.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
