"""Error rates of a run over real speech are those that jiwer and openai-whisper's rules give."""

import json
from pathlib import Path
from typing import Any

import jiwer
import pandas as pd
import pytest
from typer.testing import CliRunner
from whisper.normalizers import EnglishTextNormalizer

from corpus_asr.cli import main as cli
from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines.driver import run

pytestmark = [
    pytest.mark.slow,
    # openai-whisper leaves its spellings open.
    pytest.mark.filterwarnings("ignore:.*english[.]json:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*english[.]json:pytest.PytestUnraisableExceptionWarning"),
]


def clips(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return references of the shortest clips of a folder."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    rows.sort(key=lambda row: (row["duration_s"], row["id"]))
    return [
        {
            "uri": str(folder / row["path"]),
            "set": folder.name,
            **{name: row[name] for name in ("text", "language", "words") if name in row},
        }
        for row in rows[:count]
    ]


def test_rates_are_those_of_other_tools_over_the_tables(tmp_path: Path, speech: Path) -> None:
    references = clips(speech / "english_short", 5) + clips(speech / "timings", 4)
    manifest = tmp_path / "references.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in references))
    config = RunConfig.model_validate(
        {
            "source": {"manifest": str(manifest)},
            "model": {"checkpoint": "whisper-tiny.en", "dtype": "float32"},
            "decoding": {"temperature": 0.0, "logprob_threshold": None, "padding_s": 1.0,
                         "no_speech_threshold": None, "word_timestamps": True},
            "output": {"uri": str(tmp_path / "output")},
        }
    )  # fmt: skip
    run(config, local=True, progress=None)
    command = ["evaluate", config.output.uri, "--references", str(manifest), "--json"]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)

    segments = pd.read_parquet(tmp_path / "output" / "segments")
    segments = segments.sort_values(["uri", "part", "segment"])
    heard = segments.groupby("uri")["text"].agg(lambda texts: " ".join(map(str.strip, texts)))
    normalise = EnglishTextNormalizer()
    for name in (None, "english_short", "timings"):
        rows = [row for row in references if name in (None, row["set"])]
        said = [normalise(row["text"]) for row in rows]
        ours = [normalise(heard.get(row["uri"], "")) for row in rows]
        group = found
        if name is not None:
            [group] = (one for one in found["by"]["set"] if one["name"] == name)
        assert group["recordings"] == len(rows)
        assert group["wer"] == pytest.approx(jiwer.wer(said, ours), abs=1e-6)
        assert group["cer"] == pytest.approx(jiwer.cer(said, ours), abs=1e-6)
    assert 0 < found["wer"] < 0.5, "neither perfect nor noise: something was compared"
    times = found["word_times"]
    assert times["compared"] > 5
    assert times["start_median_s"] < 0.2
