"""Options of a transcription are the settings: the same names, texts, values and refusals."""

import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.load import yaml_value
from corpus_asr.config.options import (
    OPTION_NAMES,
    OPTIONS,
    TranscriptionOptions,
    option_overrides,
    options_from,
)
from corpus_asr.config.run import ExtractSettings
from corpus_asr.config.settings import admits_bool
from corpus_asr.errors import ConfigError


def test_editors_know_the_options_and_each_is_described() -> None:
    assert tuple(TranscriptionOptions.__annotations__) == OPTION_NAMES
    assert [name for name, key in OPTIONS.items() if not key.description] == []


@pytest.mark.parametrize("name", OPTION_NAMES)
def test_types_are_those_of_the_settings(name: str) -> None:
    hint, known = get_type_hints(TranscriptionOptions)[name], OPTIONS[name].annotation
    kinds = get_args(hint) or (hint,)
    assert (bool in kinds) == admits_bool(known)
    assert (type(None) in kinds) == (type(None) in get_args(known)) or (
        name == "language"  # where None is `auto`, as in other libraries
    )


def test_the_guide_says_the_defaults_of_speech_detection() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "decoding.md").read_text()
    rows = re.findall(r"^\| `(vad_\w+)` \| (\S+) \|", guide, re.MULTILINE)
    assert rows == [
        (name, yaml_value(key.default)) for name, key in OPTIONS.items() if name.startswith("vad_")
    ]


def test_options_are_checked_together_and_per_section() -> None:
    found = options_from({"language": None, "temperature": 0, "vad_pad_s": 0.1, "channels": 1})
    assert found.decoding == DecodingSettings(temperature=(0.0,))
    assert found.extract == ExtractSettings(vad_pad_s=0.1, channels=1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"vad_threshold": 1.0, "beam_size": 0}, r"beam_size: found 0.*vad_threshold: found 1\.0"),
        ({"vad_min_speech_s": -1}, "expected a number at least 0 and at most 5"),
        ({"vad_min_silence_s": 60}, "expected a number at least 0 and at most 10"),
        ({"vad_filter": 7}, "vad_filter: found 7, expected true or false"),
        ({"vad_filter": False, "drop_nonspeech": True}, "vad_filter is false"),
        ({"channels": -1}, "channels: found -1, expected mix or each or a whole number"),
        ({"speech_pad_ms": 400}, r"did you mean vad_pad_s\?"),
        ({"vad_treshold": 0.4}, r"did you mean vad_threshold\?"),
        ({"diarize": True, "vad_filter": False}, "speakers need detected speech"),
        ({"diarize": 1}, "diarize: found 1, expected true or false"),
        ({"num_speakers": 2}, "num_speakers: nothing without speakers; set diarize"),
        ({"diarize": True, "num_speakers": 0}, "num_speakers: found 0, expected a whole number"),
        ({"diarize": True, "num_speakers": 2, "max_speakers": 3}, "num_speakers: 2 is exact"),
        ({"diarize": True, "min_speakers": 4, "max_speakers": 3}, "min_speakers: 4 is more than"),
        ({"slots": 4}, "slots: the loaded model has it; give it to Transcriber"),
    ]
    for given, words in wrong:
        with pytest.raises(ConfigError, match=words):
            options_from(given, fixed=["slots"])


def test_options_of_a_command_line_may_carry_their_section() -> None:
    found = option_overrides(
        ["decoding.temperature=[0, 0.5]", "logprob_threshold=null", "hotwords=Kubernetes, Ray: x",
         "extract.vad_filter=false"]
    )  # fmt: skip
    assert found == {
        "temperature": [0, 0.5], "logprob_threshold": None, "hotwords": "Kubernetes, Ray: x",
        "vad_filter": False,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="expected key=value"):
        option_overrides(["temperature"])
