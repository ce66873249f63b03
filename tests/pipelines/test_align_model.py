"""A checkpoint of CTC times the words of models of every family, in jobs and in `Transcriber`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr import Transcriber
from corpus_asr.config.load import load_config
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.formats.transcript import Transcript
from corpus_asr.pipelines.driver import run
from corpus_asr.storage.model_files import model_revision
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.audio import read_clip, wav_bytes
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.corpora import CLIPS
from tests.support.parakeet import parakeet_checkpoint
from tests.support.qwen3_asr import qwen3_asr_pair
from tests.support.tables import rows_of, run_config, stored_segments
from tests.support.tokenizers import tiny_speech2text_tokenizer, tiny_tokenizer

SPEECH = read_clip(CLIPS / "english.wav")
RATE_HZ = 16_000
# Of random networks every text passes, and is short.
SHORT: dict[str, Any] = {"max_target_positions": 24}
USUAL: dict[str, Any] = {
    "temperature": 0.0, "logprob_threshold": None, "no_speech_threshold": None,
    "compression_ratio_threshold": None, "language": "en", "vad_filter": False,
}  # fmt: skip
UNTIMED = "tests.support.recognizers:Untimed"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    tiny_tokenizer(folder / "tokenizer")
    tiny_speech2text_tokenizer(folder / "pieces")
    found = {
        "Whisper": tiny_whisper(folder / "w", tokenizer=folder / "tokenizer", **SHORT),
        "Speech2Text": tiny_speech2text(folder / "s", tokenizer=folder / "pieces", **SHORT),
    }
    found["Qwen3-ASR"] = qwen3_asr_pair(folder / "q", seed=4, ends=3.0).folder
    # By these seeds they say words, and no more than there are positions.
    for name, seed in (("CTC", 7), ("other CTC", 2), ("TDT", 1)):
        found[name] = parakeet_checkpoint(name[-3:], folder / name, seed=seed).folder
    return found


def assert_timed(found: Transcript) -> None:
    words = [word for one in found.segments for word in one.words or ()]
    assert words
    times = [each for word in words for each in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= found.duration_s
    for one in found.segments:
        assert one.words
        assert "".join(word.word for word in one.words) == one.text
        assert (one.start_s, one.end_s) == (one.words[0].start_s, one.words[-1].end_s)
    # Times of CTC are those of its positions.
    assert all(word.start_s / 0.08 == pytest.approx(round(word.start_s / 0.08)) for word in words)


@pytest.mark.long
@pytest.mark.parametrize("name", ["Whisper", "Speech2Text", "TDT", "Qwen3-ASR"])
def test_words_of_every_family_are_timed(models: dict[str, Path], name: str) -> None:
    options = USUAL if name == "Whisper" else {"vad_filter": False}
    clip = SPEECH[: 5 * RATE_HZ]
    with Transcriber(str(models[name]), **options, align_model=str(models["CTC"])) as made:
        plain = made.transcribe(clip, sampling_rate=RATE_HZ)
        timed = made.transcribe(clip, sampling_rate=RATE_HZ, word_timestamps=True)
        assert_timed(timed)
        assert timed.text == plain.text
        assert all(one.words is None for one in plain.segments)
        assert list(made.stream(clip, sampling_rate=RATE_HZ, word_timestamps=True)) == [
            *timed.segments
        ]
        # What the model says is a text that it is found in.
        aligned = made.align(clip, timed.text, sampling_rate=RATE_HZ)
        assert "".join(one.text for one in aligned.segments).split() == timed.text.split()
        assert aligned.missing == ()


def test_checkpoints_of_other_kinds_are_refused(models: dict[str, Path]) -> None:
    for name, family in (("Whisper", "whisper"), ("TDT", "parakeet_tdt")):
        with pytest.raises(
            ConfigError,
            match=rf"align\.model: .* of the family {family}, expected an aligner \(",
        ):
            Transcriber(str(models["Whisper"]), align_model=str(models[name]))
    with pytest.raises(ConfigError, match=r"align.model: found decoding.task translate, expected"):
        Transcriber(
            str(models["Whisper"]), align_model=str(models["CTC"]),
            task="translate", word_timestamps=True,
        )  # fmt: skip


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for seconds in (2, 4):
        data = wav_bytes(SPEECH[None, : seconds * RATE_HZ], rate_hz=RATE_HZ)
        (folder / f"{seconds}.wav").write_bytes(data)
    lines = [
        {"uri": f"{seconds}.wav", "text": f"{seconds} seconds, and no word more"}
        for seconds in (2, 4)
    ]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def job(recordings: Path, models: dict[str, Path], **sections: Any) -> RunConfig:
    usual: dict[str, Any] = {
        "model": {"recognizer": UNTIMED},
        "extract": {"vad_filter": False},
        "decoding": {"word_timestamps": True},
        "align": {"model": str(models["CTC"])},
    }
    return run_config(recordings / "*.wav", recordings.parent / "out", **usual | sections)


def segments_of(config: RunConfig) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(stored_segments(OutputStore(config.output.uri))):
        found.setdefault(Path(row["uri"]).stem, []).append(row)
    return found


@pytest.mark.long
def test_a_job_has_words_of_a_model_that_times_none(
    recordings: Path, models: dict[str, Path]
) -> None:
    config = job(recordings, models)
    run(config, local=True, progress=None)
    for name, (row,) in segments_of(config).items():
        assert [word["word"] for word in row["words"]] == [f" {name}", " s"]
        assert row["words"][0]["probability"] > 0
    assert run(config, local=True, progress=None).processed == 0
    kept = json.loads((Path(config.output.uri) / "_run" / "fingerprint.json").read_text())
    assert kept["fingerprint"].endswith(f",align={model_revision(models['CTC'])}")
    with pytest.raises(ConfigError, match=r"align.model: was .*, now null"):
        run(config.model_copy(update={"align": RunConfig.model_fields["align"].get_default(
            call_default_factory=True)}), local=True, progress=None)  # fmt: skip
    other = models["other CTC"]
    with pytest.raises(ConfigError, match=r"align.model: was .*, now .*other.*, model weights: w"):
        run(job(recordings, {"CTC": other}), local=True, progress=None)


def test_a_job_aligns_texts_with_any_model(recordings: Path, models: dict[str, Path]) -> None:
    texts = {"manifest": str(recordings / "texts.jsonl")}
    config = job(recordings, models, source=texts, decoding={"align": True})
    run(config, local=True, progress=None)
    for name, rows in segments_of(config).items():
        words = [word["word"] for row in rows for word in row["words"]]
        assert words[0] == f" {name}"
        assert set(words) <= {
            f" {name}",
            *" seconds, and no word more".replace(" ", "| ").split("|"),
        }


def test_a_job_that_wants_no_words_is_refused(
    recordings: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    written = tmp_path / "job.yaml"
    written.write_text(
        f"source: {{uri: {recordings}}}\noutput: {{uri: {tmp_path / 'out'}}}\n"
        f"align: {{model: {models['CTC']}}}\n"
    )
    with pytest.raises(ConfigError, match=r"align.model: found a checkpoint for word times"):
        load_config(written)
    assert load_config(written, ["decoding.word_timestamps=true"]).align.model
    refused = job(recordings, {"CTC": models["Whisper"]})
    with pytest.raises(ConfigError, match="of the family whisper, expected an aligner"):
        run(refused, local=True, progress=None)
    assert not np.array([*Path(tmp_path).glob("out/segments/*")]).size
