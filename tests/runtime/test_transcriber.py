"""A transcriber around a tiny checkpoint: files in, transcripts out, whatever shares the slots."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.confidence import DEFAULT_MODEL, ConfidenceModel, segment_evidence
from corpus_asr.errors import ConfigError, DecodeError, ItemError
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.storage.run_state.run_files import write_calibration
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.transcription.engine import PartTranscript
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise, tone, wav_bytes
from tests.support.checkpoints import tiny_whisper
from tests.support.corpora import tiny_model
from tests.support.tables import segment
from tests.support.tokenizers import tiny_tokenizer

# A tiny random checkpoint babbles; a sampled text is the hardest to say twice.
BABBLE: dict[str, Any] = {
    "language": "en",
    "temperature": 1.0,
    "no_speech_threshold": None,
    "logprob_threshold": None,
    "compression_ratio_threshold": None,
}
FITTED = ConfidenceModel(name="fitted", offset=0.3, weights=(0.5, 1.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcriber]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    with Transcriber.from_pretrained(
        str(model), slots=2, part_s=30.0, vad_filter=False, **BABBLE
    ) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("files")
    sounds = {"noise": noise(40.0), "tone": tone(2.0), "short": noise(1.0, seed=1)}
    for name, samples in sounds.items():
        (folder / f"{name}.wav").write_bytes(wav_bytes(samples, rate_hz=SAMPLE_RATE_HZ))
    return [str(folder / f"{name}.wav") for name in sounds]


@pytest.mark.slow
def test_a_file_says_the_same_alone_and_among_others(
    transcriber: Transcriber, files: list[str]
) -> None:
    together = {found.uri: found for found in transcriber.transcribe_many(files[::-1])}
    assert sorted(map(str, together)) == sorted(files)
    assert together[files[0]].segments, "babble"
    for path in files:
        alone = transcriber.transcribe(path)
        assert alone == together[path]
        for each in alone.segments:
            assert 0 <= each.start_s < each.end_s <= alone.duration_s
            assert 0 <= each.confidence <= 1


@pytest.mark.slow
def test_confidences_are_those_of_the_calibration(files: list[str], tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    write_calibration(OutputStore(str(tmp_path)), FITTED, fitted={})
    options: dict[str, Any] = {"slots": 2, "vad_filter": False, **BABBLE}
    with Transcriber.from_pretrained(str(model), calibration=str(tmp_path), **options) as loaded:
        found = loaded.transcribe(files[0])
    assert found.segments
    for each in found.segments:
        evidence = segment_evidence(each)
        assert evidence is not None
        assert each.confidence == FITTED.confidence(evidence)
        assert each.confidence != DEFAULT_MODEL.confidence(evidence)


def test_a_broken_file_is_told_of_and_the_others_go_on(
    transcriber: Transcriber, files: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    messages: list[tuple[str, ItemError]] = []
    found = list(
        transcriber.transcribe_many(
            [files[1], str(broken), files[2]],
            on_error=lambda uri, error: messages.append((uri, error)),
        )
    )
    assert sorted(str(one.uri) for one in found) == sorted(files[1:])
    assert [uri for uri, _ in messages] == [str(broken)]
    with pytest.raises(DecodeError):
        transcriber.transcribe(str(broken))


def test_wrong_options_are_refused_before_a_file_is_read(transcriber: Transcriber) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"drop_nonspeech": True}, "vad_filter is false"),
        ({"channels": "each"}, "one transcript per recording"),
        ({"vad_treshold": 0.5}, "did you mean vad_threshold"),
        ({"device": "cpu"}, "device: the loaded model has it; give it to Transcriber"),
        ({"language": "xx"}, "does not know xx"),
        ({"tempratur": 0}, "temperature"),
    ]
    for options, words in wrong:
        with pytest.raises(ConfigError, match=words):
            transcriber.transcribe("nowhere.wav", **options)
    with pytest.raises(ConfigError, match="one transcript per recording"):
        Transcriber.from_pretrained("nowhere", channels="each")


def test_the_language_of_a_recording_is_what_is_spoken_most(
    transcriber: Transcriber, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[Future[PartTranscript]] = []
    for code, seconds, probability in (("en", 2.0, 0.9), ("de", 10.0, 0.6)):
        spoken = (segment(" w1", 0.0, seconds, language=code),)
        parts.append(Future())
        parts[-1].set_result(
            PartTranscript(segments=spoken, language=code, language_probability=probability,
                           transcribe_s=0.0)
        )  # fmt: skip
    monkeypatch.setattr(type(transcriber._engine), "submit", lambda *_, **__: parts.pop(0))
    found = transcriber.transcribe(files[0])  # two parts
    assert (found.language, found.language_probability) == ("de", 0.6)
    assert [one.language for one in found.segments] == ["en", "de"]


def test_a_language_has_a_model_of_its_own(tmp_path: Path, files: list[str]) -> None:
    tiny_tokenizer(tmp_path / "tokenizer")
    main, other = (
        str(tiny_whisper(tmp_path / name, seed=seed, tokenizer=tmp_path / "tokenizer",
                         max_target_positions=24))
        for seed, name in enumerate(("main", "other"))
    )  # fmt: skip
    usual: dict[str, Any] = {**BABBLE, "temperature": 0.0, "vad_filter": False, "slots": 2}
    with Transcriber.from_pretrained(main, by_language={"de": other}, **usual) as both:
        english, german = (both.transcribe(files[1], language=code) for code in ("en", "de"))
        detected = both.transcribe(files[1], language=["de", "en"])
    with Transcriber.from_pretrained(main, **usual) as alone:
        assert english == alone.transcribe(files[1])
        assert german.segments != alone.transcribe(files[1], language="de").segments
        assert detected.language == alone.transcribe(files[1], language=["de", "en"]).language
    assert detected.text == {"en": english, "de": german}[str(detected.language)].text
    write_calibration(OutputStore(str(tmp_path)), FITTED, fitted={})
    usual["calibration"] = str(tmp_path)  # of the main model alone
    with Transcriber.from_pretrained(main, by_language={"de": other}, **usual) as both:
        assert both.transcribe(files[1], language="de") == german
        assert both.transcribe(files[1], language="en") != english
    with pytest.raises(ConfigError, match="by_language: found xx"):
        Transcriber.from_pretrained(main, by_language={"xx": other}, **usual)
