"""Words in the tables of a whole job, even of a model that says noise."""

from itertools import pairwise
from pathlib import Path

from corpus_asr.pipelines.driver import run
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.corpora import CLIPS, job, tiny_model


def test_every_segment_comes_word_by_word_where_words_are_asked_for(tmp_path: Path) -> None:
    decoding = {
        "temperature": 0.0,
        "logprob_threshold": None,
        "no_speech_threshold": None,
        "word_timestamps": True,
    }
    source = {"uri": str(CLIPS), "exclude": ["*.mp3", "*.flac", "*.opus"]}
    config = job(CLIPS, tiny_model(tmp_path), tmp_path / "output", source=source, decoding=decoding)
    run(config, local=True, progress=None)
    batches = OutputStore(config.output.uri).segments()
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert {Path(row["uri"]).name for row in rows} == {"english.wav"}
    for row in rows:
        words = row["words"]
        assert "".join(word["word"] for word in words) == row["text"]
        assert all(word["start_s"] <= word["end_s"] for word in words)
        assert all(before["start_s"] <= after["start_s"] for before, after in pairwise(words))
        assert all(0.0 <= word["probability"] <= 1.0 for word in words)
