"""Chapters become recordings: one of every speaker first, nothing too short or too long."""

import json
import wave
from pathlib import Path

from benchmarks.audio import joined, main

CLIP = Path(__file__).parents[1] / "data" / "clips" / "english.wav"


def utterances(chapter: str, count: int, seconds: float) -> list[dict]:
    ids = (f"{chapter}-{number:04}" for number in range(count))
    return [{"id": each, "corpus": "librispeech-dev-clean", "duration_s": seconds} for each in ids]


def test_speakers_take_turns_and_chapters_end_within_six_minutes():
    long, short = utterances("ls_2-7", 50, 10.0), utterances("ls_1-3", 10, 10.0)
    more = [*utterances("ls_1-1", 20, 10.0), *utterances("ls_1-2", 20, 10.0)]
    found = list(joined([*long, *short, *more]))
    assert [name for name, _ in found] == ["ls_1-1", "ls_2-7", "ls_1-2"]
    assert len(found[1][1]) == 35
    assert found[1][1] == long[:35]


def test_files_have_the_samples_and_texts_of_their_utterances(tmp_path):
    rows = [
        {"id": f"ls_1-1-{number}", "corpus": "librispeech-dev-clean", "path": str(CLIP),
         "text": f"text {number}", "duration_s": 9.458}
        for number in range(20)
    ]  # fmt: skip
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    clips = tmp_path / "clips.jsonl"
    clips.write_text(json.dumps(rows[0] | {"id": "clip"}))
    main([str(tmp_path / "out"), "--joined", str(manifest), "--clips", str(clips)])
    (row,) = map(json.loads, (tmp_path / "out/long/manifest.jsonl").read_text().splitlines())
    assert row["text"].startswith("text 0 text 1 ")
    with wave.open(str(tmp_path / "out" / "long" / row["path"])) as file:
        assert file.getframerate() == 16_000
        assert abs(file.getnframes() / 16_000 - row["duration_s"]) < 0.001
        assert abs(row["duration_s"] - (20 * 9.458 + 19 * 0.25)) < 0.1
    assert (tmp_path / "out" / "short" / "clip.wav").is_file()
    assert (tmp_path / "out" / "warm_up.wav").is_file()
