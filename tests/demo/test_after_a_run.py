"""Screens, subtitles, search and training data made of the demo's transcripts are right."""

import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pysubs2
import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.config.run import PseudoLabelConfig
from corpus_asr.pipelines.pseudo_label import label
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.text.normalize import numbers_in_figures
from corpus_asr.view.catalogue import Library
from corpus_asr.view.search import Filters, find, parse_query
from tests.demo.conftest import Heard
from tests.demo.test_transcripts import MAX_WER
from tests.support.spoken import NAMES, REFERENCES, Sentence, error_rate, spoken

SPOKEN = spoken()
pytestmark = pytest.mark.usefixtures("heard")


def call(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_the_screen_shows_the_texts(name: str, output: Path, heard: Heard) -> None:
    heading, *lines = call("show", str(output), "--uri", f"*{name}").splitlines()
    assert heading == f"{SPOKEN[name].path}:"
    texts = [re.sub(r"^\[[\d:.]+ --> [\d:.]+\] ", "", line) for line in lines]
    assert texts == [segment.text.strip() for segment in heard[name]]


@pytest.mark.parametrize("name", NAMES)
def test_subtitles_are_short_and_shown_when_they_are_said(
    name: str, output: Path, tmp_path: Path
) -> None:
    rules = ("--max-line-chars", "42", "--max-lines", "2", "--max-duration-s", "7")
    call("export", str(output), "--to", str(tmp_path), "--format", "srt", *rules)
    cues = list(pysubs2.load(str((tmp_path / name).with_suffix(".srt"))))
    said = " ".join(cue.plaintext.replace("\n", " ") for cue in cues)
    assert error_rate([SPOKEN[name].text], [said]) <= MAX_WER
    assert all(len(line) <= 42 for cue in cues for line in cue.plaintext.splitlines())
    assert all(cue.duration <= 7000 for cue in cues)
    # Somebody speaks in the middle of nearly every cue.
    middles = [(cue.start + cue.end) / 2000 for cue in cues]
    assert np.mean([said_at(name, at_s) is not None for at_s in middles]) > 0.9


def said_at(name: str, at_s: float) -> Sentence | None:
    return next((one for one in SPOKEN[name].sentences if one.start_s <= at_s <= one.end_s), None)


def test_long_words_are_found_where_they_are_said(output: Path) -> None:
    found = wanted = 0
    with closing(Library(OutputStore(str(output)))) as library:
        view = library.wait()
        assert view.texts is not None
        for name in NAMES:
            for word in SPOKEN[name].words:
                in_figures = any(map(str.isdigit, numbers_in_figures(word["word"].lower())))
                if len(word["word"]) < 7 or in_figures:
                    continue
                wanted += 1
                query = parse_query(word["word"], whole_words=True)
                hits = find(view.catalogue.recordings, view.texts, query, Filters()).hits
                middle_s = (word["start_s"] + word["end_s"]) / 2
                found += any(hit.start_s <= middle_s <= hit.end_s for hit in hits)
    assert wanted > 30
    assert found / wanted >= 1 - 2 * MAX_WER  # long words are harder


def test_what_is_kept_as_training_data_is_right(output: Path, tmp_path: Path) -> None:
    settings = {
        "pipeline": "pseudo_label",
        "source": {"uri": str(REFERENCES.parent / "spoken")},
        "model": {"checkpoint": "whisper-tiny.en"},
        "output": {"uri": str(output)},
        "selection": {"references": str(REFERENCES), "max_wer": 0.1},
        "dataset": {"uri": str(tmp_path / "set"), "examples": "clips", "workers": 1,
                    "validation_fraction": 0.0},
    }  # fmt: skip
    label(PseudoLabelConfig.model_validate(settings))
    rows = pq.read_table(tmp_path / "set" / "data").to_pylist()
    assert len(rows) >= 15
    said = []
    for row in rows:
        name = Path(row["uri"]).name
        words = [
            word["word"]
            for word in SPOKEN[name].words
            if row["start_s"] < (word["start_s"] + word["end_s"]) / 2 < row["end_s"]
        ]
        said.append(" ".join(words))
    assert error_rate(said, [row["text"] for row in rows]) <= 0.15
