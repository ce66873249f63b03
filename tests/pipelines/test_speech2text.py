"""A tiny Speech2Text checkpoint through the same stages as Whisper, beside transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from corpus_asr.config.load import load_config
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.pipelines.driver import run
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.transcription.speech2text import DEFAULT_WINDOW_S, Speech2TextTranscriber
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ
from tests.support.checkpoints import tiny_speech2text
from tests.support.corpora import CLIPS, job, outcomes_in
from tests.support.references import read_audio
from tests.support.tables import rows_of, stored_segments
from tests.support.tokenizers import TARGETS, tiny_speech2text_tokenizer

# One greedy try per window, that says no two tokens twice: random weights else say one for ever.
ONCE: dict[str, Any] = {
    "beam_size": 1,
    "temperature": 0.0,
    "logprob_threshold": None,
    "compression_ratio_threshold": None,
    "no_repeat_ngram_size": 2,
    "stop_loops": False,
}
# Random weights find no end: what a window may say is what it costs.
MOST_TOKENS = 16
BRIEF: dict[str, Any] = {"max_target_positions": MOST_TOKENS, "spread": 0.2}
LONGER = str(CLIPS / "longer.mp3")


@pytest.fixture(scope="module")
def translating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that writes eight languages."""
    folder = tmp_path_factory.mktemp("translating")
    tokenizer = tiny_speech2text_tokenizer(
        folder / "tokenizer", languages=TARGETS, lang_codes="mustc"
    )
    return tiny_speech2text(folder / "model", tokenizer=tokenizer, seed=1, **BRIEF)


@pytest.fixture(scope="module")
def transcriber(translating: Path) -> Iterator[Transcriber]:
    with Transcriber.from_pretrained(
        str(translating), slots=3, compute_type="float32", target_language="fr", **ONCE
    ) as loaded:
        yield loaded


def test_segments_say_what_transformers_generates_for_the_same_audio(
    transcriber: Transcriber, translating: Path
) -> None:
    found = transcriber.transcribe(LONGER, language="en")
    assert len(found.segments) > 2
    model = transformers.Speech2TextForConditionalGeneration.from_pretrained(translating)
    processor = transformers.Speech2TextProcessor.from_pretrained(translating)
    samples = read_audio(Path(LONGER))
    for segment in found.segments:
        start, end = (round(at_s * 100) * HOP_SAMPLES for at_s in (segment.start_s, segment.end_s))
        inputs = processor(samples[start:end], sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        ids = model.generate(
            inputs.input_features,
            attention_mask=inputs.attention_mask,
            forced_bos_token_id=processor.tokenizer.lang_code_to_id["fr"],
            no_repeat_ngram_size=2,
            max_length=MOST_TOKENS,
        )
        assert segment.text == " " + processor.decode(ids[0], skip_special_tokens=True)
        assert (segment.task, segment.language) == ("translate", "en")


@pytest.fixture(scope="module")
def writing_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that writes one language."""
    folder = tmp_path_factory.mktemp("one")
    tokenizer = tiny_speech2text_tokenizer(folder / "tokenizer")
    return tiny_speech2text(folder / "model", tokenizer=tokenizer, seed=4, **BRIEF)


def config_of(corpus: Path, model: Path, output: Path, **decoding: Any) -> RunConfig:
    return job(corpus, model, output, decoding=ONCE | {"word_timestamps": True} | decoding)


@pytest.mark.long
def test_a_run_accounts_for_every_recording(
    corpus: Path, writing_one: Path, tmp_path: Path
) -> None:
    config = config_of(corpus, writing_one, tmp_path / "output", language="en")
    summary = run(config, local=True, progress=None)
    assert (summary.listed, summary.done, summary.failed) == (5, 4, 1)
    outcomes = outcomes_in(tmp_path / "output")
    assert outcomes["silence.flac", 0]["status"] == "no_speech"
    assert outcomes["broken.mp3", 0]["status"] == "failed"
    assert {row["language"] for row in outcomes.values() if row["status"] == "ok"} == {"en"}
    assert max(part for name, part in outcomes if name == "longer.mp3") > 0
    rows = rows_of(stored_segments(OutputStore(str(tmp_path / "output"))))
    assert len(rows) == summary.segments > 3
    for row in rows:
        assert (row["task"], row["language"]) == ("transcribe", "en")
        assert row["no_speech_prob"] is None
        assert row["language_probability"] is None
        assert row["speech_fraction"] > 0.5
        assert 0 <= row["confidence"] <= 1
        assert "".join(word["word"] for word in row["words"]) == row["text"]
    # Nothing is left to do, and another target or window would be other results.
    assert run(config, local=True, progress=None).processed == 0
    other = config_of(corpus, writing_one, tmp_path / "output", language="en", window_s=5)
    with pytest.raises(ConfigError, match=r"decoding\.window_s"):
        run(other, local=True, progress=None)


def test_the_example_is_a_job_for_such_a_checkpoint(translating: Path) -> None:
    shown = load_config(
        Path(__file__).parents[2] / "configs" / "speech2text.yaml"
    ).decoding.settings()
    Speech2TextTranscriber.from_folder(translating).check(shown)
    assert shown.window_s == DEFAULT_WINDOW_S


def test_a_run_with_a_wrong_target_ends_before_anything_is_written(
    corpus: Path, translating: Path, tmp_path: Path
) -> None:
    config = config_of(corpus, translating, tmp_path / "output", target_language="xx")
    with pytest.raises(ConfigError, match=r"found xx, expected de"):
        run(config, local=True, progress=None)
    assert outcomes_in(tmp_path / "output") == {}
