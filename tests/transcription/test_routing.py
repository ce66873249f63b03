"""Parts go to the model for their language, and what goes wrong there comes back."""

from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.activity import Activity
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.errors import ConfigError
from corpus_asr.segments import PartTranscript, Segment
from corpus_asr.stages.transcribe import EngineSpec, load_engine
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.routing import RoutedEngine
from corpus_asr.transcription.windows import PartRequest
from tests.support.checkpoints import tiny_whisper
from tests.support.prompt_formats import part
from tests.support.tables import run_config
from tests.support.tokenizers import tiny_tokenizer

PART = part(1.0, mels=80)


def in_language(language: str | tuple[str, ...]) -> PartRequest:
    return replace(PART, decoding=DecodingSettings(language=language))


class ScriptedOne(Engine):
    """Answers at once with a name and a language, or fails."""

    def __init__(self, name: str, detects: str = "en", error: Exception | None = None) -> None:
        self.device_name = name
        self.asked: list[DecodingSettings] = []
        self.parts: list[PartRequest] = []
        self.closed = 0
        self._detects = detects
        self._error = error

    @property
    def slots(self) -> int:
        return 2

    def check(self, decoding: DecodingSettings) -> None:
        if decoding.task == "translate" and self.device_name != "main":
            raise ConfigError(f"{self.device_name} does not translate")

    def submit(self, part: PartRequest) -> "Future[PartTranscript]":
        decoding = part.decoding
        assert decoding is not None
        self.asked.append(decoding)
        self.parts.append(part)
        future: Future[PartTranscript] = Future()
        if self._error is not None:
            future.set_exception(self._error)
            return future
        given = decoding.language if decoding.language != "auto" else None
        sure = None if given else 0.7
        found = str(given or self._detects)
        said = () if self.device_name == "main" and found == "de" else (segment(found, sure),)
        future.set_result(
            PartTranscript(
                segments=said, language=found, language_probability=sure, transcribe_s=1.0
            )
        )
        return future

    def statistics(self) -> Activity:
        return Activity(slots=2, windows=len(self.asked), encode_s=0.5)

    def close(self) -> None:
        self.closed += 1


def segment(language: str, sure: float | None) -> Segment:
    fields: dict[str, Any] = {
        "start_s": 0.0, "end_s": 1.0, "text": " hi", "tokens": (1,), "task": "transcribe",
        "confidence": 0.9, "avg_logprob": -0.1, "no_speech_prob": 0.0, "compression_ratio": 1.0,
        "temperature": 0.0, "speech_fraction": None,
    }  # fmt: skip
    return Segment(language=language, language_probability=sure, **fields)


def routed(main: ScriptedOne, **others: ScriptedOne) -> RoutedEngine:
    return RoutedEngine(main, others, decoding=DecodingSettings(language_mode="part"))


def test_a_detected_language_goes_to_its_model_with_the_detectors_certainty() -> None:
    main, german = ScriptedOne("main", "de"), ScriptedOne("german")
    found = routed(main, de=german).submit(PART).result()
    assert (found.language, found.language_probability) == ("de", 0.7)
    assert [one.language_probability for one in found.segments] == [0.7]
    assert found.transcribe_s == 2.0
    (asked,) = german.asked
    assert (asked.language, asked.language_mode) == ("de", "recording")
    assert main.asked[0].language == "auto"
    # Other languages stay with the main model.
    main = ScriptedOne("main", "fr")
    found = routed(main, de=german).submit(PART).result()
    assert (found.language, len(found.segments), len(german.asked)) == ("fr", 1, 1)
    # A given one is not detected.
    for given in ("de", ("de",)):
        main, german = ScriptedOne("main"), ScriptedOne("german")
        routed(main, de=german).submit(in_language(given)).result()
        assert (len(main.asked), len(german.asked)) == (0, 1)


def test_what_a_model_or_several_cannot_do_is_refused() -> None:
    engine = routed(ScriptedOne("main"), de=ScriptedOne("german"))
    with pytest.raises(ConfigError, match="german does not translate"):
        engine.check(DecodingSettings(task="translate"))
    engine.check(DecodingSettings(task="translate", language="fr"))  # which is the main model's
    with pytest.raises(ConfigError, match="german does not translate"):
        engine.check(DecodingSettings(task="translate", language="de"))
    with pytest.raises(ConfigError, match="found window, expected recording or part"):
        engine.check(DecodingSettings(language_mode="window"))
    with pytest.raises(ConfigError, match="found window"):
        engine.submit(replace(PART, decoding=DecodingSettings(language_mode="window")))


class Waiting(ScriptedOne):
    """Answers when the test says so."""

    def submit(self, part: PartRequest) -> "Future[PartTranscript]":
        self.future: Future[PartTranscript] = Future()
        self.future.set_running_or_notify_cancel()
        self.cancelled: list[object] = []
        return self.future

    def cancel(self, future: "Future[PartTranscript]") -> None:
        if future is self.future:
            self.cancelled.append(future)


def test_a_part_is_cancelled_where_it_is() -> None:
    main, german = Waiting("main"), Waiting("german")
    german.future = Future()
    engine = routed(main, de=german)
    detecting = engine.submit(PART)
    engine.cancel(detecting)
    assert main.cancelled == [main.future]
    # Its language was found meanwhile.
    main.future.set_result(PartTranscript(language="de", language_probability=0.7))
    assert german.cancelled == [german.future]
    german.future.set_exception(CancelledError())
    with pytest.raises(CancelledError):
        detecting.result()
    assert not engine._under_way
    speaking = engine.submit(PART)
    main.future.set_result(PartTranscript(language="de", language_probability=0.7))
    assert not german.cancelled
    engine.cancel(speaking)
    assert german.cancelled == [german.future]
    given = engine.submit(in_language("de"))
    engine.cancel(given)
    assert german.cancelled == [given]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, multilingual in (("many", True), ("one", False)):
        tiny_tokenizer(folder / f"{name}-tokenizer", multilingual)
    sizes: dict[str, Any] = {"d_model": 16, "layers": 1, "heads": 2, "max_target_positions": 16}
    return {
        name: tiny_whisper(
            folder / name, seed=seed, tokenizer=folder / f"{kind}-tokenizer", **sizes
        )
        for seed, (name, kind) in enumerate((("main", "many"), ("other", "many"), ("en", "one")))
    }


def load(main: Path, others: dict[str, Path], **decoding: Any) -> Any:
    return RoutedEngine.from_folders(
        main, others, decoding=DecodingSettings(**decoding), device="cpu", dtype="float32", slots=1
    )


def test_of_a_given_language_only_its_model_is_loaded(folders: dict[str, Path]) -> None:
    model = {"checkpoint": "nowhere/at/all", "by_language": {"de": str(folders["other"])},
             "compute_type": "float32"}  # fmt: skip
    config = run_config("/in", "/out", model=model, decoding={"language": "de"},
                        transcribe={"slots": 1})  # fmt: skip
    engine = load_engine(EngineSpec(config=config, device="cpu"))
    assert isinstance(engine, Engine)
    engine.close()


def test_checkpoints_that_do_not_do_what_they_are_for_are_refused(
    folders: dict[str, Path],
) -> None:
    with pytest.raises(ConfigError, match=r"by_language\.de: .*this checkpoint is English-only"):
        load(folders["main"], {"de": folders["en"]})
    engine = load(folders["main"], {"en": folders["en"], "de": folders["main"]})
    assert engine.slots == 2  # the main one is not loaded twice
    engine.close()
