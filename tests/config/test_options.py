"""Options by the names of faster-whisper: taken where they mean the same, else answered."""

import inspect
import re
from pathlib import Path
from typing import Any

import faster_whisper
import pytest

from corpus_asr.config import options as module
from corpus_asr.config.options import OPTION_NAMES, CallSettings, options_from, translated
from corpus_asr.errors import ConfigError
from corpus_asr.text.words import AFTER_A_WORD, BEFORE_A_WORD

FIXED = ("checkpoint", "device", "slots")
GUIDE = (Path(__file__).parents[2] / "docs" / "reference" / "other_tools.md").read_text()
TABLE = GUIDE.partition("| Option | Here | What differs |\n|---|---|---|\n")[2].partition("\n\n")[0]
ROWS = [[cell.strip() for cell in row.strip("|").split("|")] for row in TABLE.splitlines()]
NAMES = {
    name: parameter.default
    for kind in (faster_whisper.BatchedInferencePipeline, faster_whisper.WhisperModel)
    for name, parameter in inspect.signature(kind.transcribe).parameters.items()
    if name not in ("self", "audio")
}


def asked(**options: Any) -> CallSettings:
    return options_from(options, fixed=FIXED)


def test_the_guide_lists_every_option_once() -> None:
    assert len(NAMES) == 35
    assert [name for name, *_ in ROWS] == sorted(NAMES, key=[name for name, *_ in ROWS].index)
    assert len(ROWS) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_guide_says_what_happens(name: str) -> None:
    [(_, here, _)] = [row for row in ROWS if row[0] == name]
    for own in re.findall(r"[a-z_]+", here) if not re.search(r"only|`", here) else ():
        assert own in OPTION_NAMES
    if here.startswith("only"):
        with pytest.raises(ConfigError, match=f"{name}: unknown key; there is none here: "):
            asked(**{"language_detection_segments": 2, name: "anything"})


# What is answered though it is the default there, and with what.
ANSWERED = {
    "batch_size": "did you mean slots. It is an argument of Transcriber",
}


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_taken_or_answered(name: str) -> None:
    value = [-1] if name == "suppress_tokens" else NAMES[name]
    if name in ANSWERED:
        with pytest.raises(ConfigError, match=ANSWERED[name]):
            asked(**{name: value})
    else:
        asked(**{name: value})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"log_prob_threshold": -0.5}, {"logprob_threshold": -0.5}),
        ({"condition_on_previous_text": True}, {"condition_on_prev_tokens": True}),
        ({"multilingual": True}, {"language_mode": "window"}),
        ({"chunk_length": 20, "strategy": "chunked"}, {"window_s": 20, "strategy": "chunked"}),
        ({"best_of": 1, "patience": 1.0, "max_initial_timestamp": 1.0}, {}),
        ({"prepend_punctuations": BEFORE_A_WORD, "append_punctuations": AFTER_A_WORD}, {}),
        ({"language_detection_threshold": 0.7, "language_detection_segments": 1}, {}),
        ({"suppress_tokens": "-1", "without_timestamps": False, "log_progress": False}, {}),
        ({"clip_timestamps": None, "chunk_length": None, "vad_parameters": None}, {}),
        ({"vad_parameters": {"threshold": 0.4, "speech_pad_ms": 200}},
         {"vad_threshold": 0.4, "vad_pad_s": 0.2}),
    ],
    ids=lambda given: ",".join(given),
)  # fmt: skip
def test_the_same_by_another_name(given: dict[str, Any], meant: dict[str, Any]) -> None:
    assert translated(given) == meant
    assert asked(**given) == asked(**meant)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"log_progress": True}, "log_progress: .* give on_progress"),
        ({"prompt_reset_on_temperature": 0.9}, "never a prompt"),
        ({"append_punctuations": "!"}, "are fixed"),
        ({"language_detection_threshold": 0.9, "language_detection_segments": 3},
         "threshold: .*likeliest language is taken; .*segments: .*averaged"),
        ({"multilingual": "yes"}, "did you mean language_mode"),
        ({"clip_timestamps": [{"start": 0}]}, "clip_timestamps: .*{'start': seconds"),
        ({"vad_parameters": {"volume": 1}}, "volume: unknown key, expected threshold, onset"),
        ({"vad_parameters": {"threshold": 2}}, "vad_threshold: found 2"),
        ({"log_prob_threshold": -1, "logprob_threshold": -2}, "found logprob_threshold too"),
        ({"vad_parameters": {"threshold": 0.3}, "vad_threshold": 0.4}, "found vad_threshold too"),
        ({"slots": 4}, "found it in a call"),
    ],
    ids=lambda given: ",".join(given),
)  # fmt: skip
def test_what_cannot_be_had_is_answered(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        asked(**given)


@pytest.mark.parametrize(
    ("usual", "unusual"),
    [
        ({"best_of": 5}, {"best_of": 0}),
        ({"patience": 2.0}, {"patience": -1.0}),
        ({"without_timestamps": True}, {"without_timestamps": "yes"}),
        ({"suppress_tokens": []}, {"suppress_tokens": [50257]}),
        ({"suppress_tokens": None}, {"suppress_tokens": "1,2"}),
        ({"suppress_blank": False}, {"suppress_blank": "no"}),
        ({"max_new_tokens": 128}, {"max_new_tokens": 10}),
        ({"carry_initial_prompt": False}, {"carry_initial_prompt": True}),
        ({"fp16": True}, {"fp16": "yes"}),
        ({"verbose": True}, {"verbose": 3}),
    ],
    ids=str,
)
def test_usual_values_are_taken_and_noted_once(
    usual: dict[str, Any], unusual: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    module._note.cache_clear()
    assert asked(**usual) == asked() == asked(**usual)
    (name,) = usual
    notes = [record.message for record in caplog.records]
    assert notes in ([], [note for note in notes if f"{name} changes nothing" in note][:1])
    with pytest.raises(ConfigError, match=f"{name}: unknown key"):
        asked(**unusual)


@pytest.mark.parametrize("language", ["", " "])
def test_an_empty_language_is_detected(language: str) -> None:
    assert asked(language=language).decoding.language == "auto"
