"""Options of a transcription are the settings; which exclude one another; clips; hotwords."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.decoding import DecodingSettings, Hotword, hotwords_from
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.config.load import yaml_value
from corpus_asr.config.options import (
    OPTIONS,
    option_overrides,
    options_from,
)
from corpus_asr.config.settings import DecodingSection
from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.storage.manifest import hotwords_of
from tests.support.tables import run_config


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("", ()),
        ("0", (0.0,)),
        ("10,20.5, 30", (10.0, 20.5, 30.0)),
        (7, (7.0,)),
        ([1, 2], (1.0, 2.0)),
        ((0.0, 5.0, 5.0, 9.0), (0.0, 5.0, 5.0, 9.0)),
        ([{"start": 0, "end": 5}, {"end": 9.0, "start": 5.5}], (0.0, 5.0, 5.5, 9.0)),
    ],
)
def test_clips_are_numbers_pairs_or_text(written: Any, meant: tuple[float, ...]) -> None:
    assert options_from({"clip_timestamps": written}).decoding.clip_timestamps == meant


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip_timestamps": "ten"}, 'the text "ten", expected seconds with commas'),
        ({"clip_timestamps": "1,,2"}, "expected seconds with commas"),
        ({"clip_timestamps": [5.0, 5.0]}, "found 5 after 5, expected start, end"),
        ({"clip_timestamps": [5.0, 9.0, 8.0]}, "found 8 after 9"),
        ({"clip_timestamps": [-1.0]}, "at least 0"),
        ({"clip_timestamps": [{"start": 0, "end": 5}, 7]}, "for each clip, or numbers alone"),
        ({"clip_timestamps": [{"start": 0, "end": "x"}]}, "expected {'start': seconds, 'end'"),
        ({"clip_timestamps": [{"start": 3, "end": 2}]}, "found 2 after 3"),
        ({"clip_timestamps": "nan"}, "expected a number"),
        ({"clip_timestamps": [True, 2]}, "clip_timestamps: "),
        ({"language": "en", "language_mode": "window"}, "names a single one"),
        ({"language": ["en", "en"], "language_mode": "part"}, "names a single one"),
        ({"beam_size": 2, "temperature": 0.4}, "not among temperature"),
        ({"length_penalty": 0.5, "beam_size": 1}, "beam_size is 1"),
        ({"hallucination_silence_threshold": 2.0}, "set word_timestamps"),
        ({"strategy": "chunked", "condition_on_prev_tokens": True}, "strategy is chunked"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"hotwords": 5}, "quote it"),
        ({"drop_nonspeech": "perhaps"}, "expected true or false"),
        ({"padding_s": -0.5}, "padding_s: found -0.5"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options_from(options)
    assert words in str(caught.value)
    assert ": :" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "beams", "padding_s"),
    [
        ({}, "auto", "auto"),
        ({"quality": "balanced"}, "auto", "auto"),
        ({"quality": "fast"}, 1, "auto"),
        ({"quality": "accurate"}, 5, "auto"),
        ({"quality": "fast", "beam_size": 3, "padding_s": None}, 3, None),
    ],
)
def test_a_preset_sets_keys_that_are_not_given(
    given: dict[str, Any], beams: int | str, padding_s: float | str | None
) -> None:
    settings = options_from(given).decoding
    assert (settings.beam_size, settings.padding_s) == (beams, padding_s)
    # What a run keeps of its settings has the keys, and says the same when it is read again.
    kept = DecodingSection(**given).model_dump()
    assert "quality" not in kept
    assert DecodingSection(**kept).settings() == settings


def test_options_that_fit() -> None:
    """A language counts once however often it is listed, and a blank prompt is none."""
    beams = {"beam_size": 5, "length_penalty": 0.5}
    quiet = {"word_timestamps": True, "hallucination_silence_threshold": 2}
    languages = {"language": ["en", "de", "en"], "language_mode": "window"}
    prompts = {"initial_prompt": " ", "hotwords": "", "prefix": "So"}
    settings = options_from(beams | quiet | languages | prompts).decoding
    assert (settings.beam_size, settings.hallucination_silence_threshold) == (5, 2.0)
    assert settings.language == ("en", "de")
    assert (settings.initial_prompt, settings.hotwords, settings.prefix) == (None, None, "So")
    # Of one there is nothing to detect, so that models which do not detect take it, too.
    assert options_from({"language": ["German", "de"]}).decoding.language == "de"
    for text, codes in (("en,de", ("en", "de")), ("en, Deutsch,", ("en", "de")), ("de,", "de")):
        assert options_from({"language": text}).decoding.language == codes, text


def test_text_that_utf8_cannot_write_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"initial_prompt: found '.ud800', expected text"):
        options_from({"initial_prompt": "\ud800"})


def test_the_guide_says_the_defaults_of_speech_detection() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "speech_detection.md").read_text()
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
        ({"num_speakers": 2}, "num_speakers: found no diarize, expected true; set it"),
        ({"diarize": True, "num_speakers": 0}, "num_speakers: found 0, expected a whole number"),
        ({"diarize": True, "num_speakers": 2, "max_speakers": 3}, "num_speakers: 2 is exact"),
        ({"diarize": True, "min_speakers": 4, "max_speakers": 3}, "min_speakers: 4 is more than"),
        ({"slots": 4}, "slots: found it in a call, expected it as an argument of Transcriber"),
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


TWO = (Hotword("Ray Data", 2.0), Hotword("Kubernetes"))


@pytest.mark.parametrize(
    "value",
    [
        "Ray Data\t2, Kubernetes,",
        "Ray  Data\t2.0\n\n Kubernetes \n",
        ["Kubernetes", {"phrase": "Ray Data", "weight": 2}],
        ({"phrase": "Ray Data", "weight": "2"}, {"phrase": "Kubernetes"}),
        {"Ray Data": 2, "Kubernetes": 1},
        list(TWO),
    ],
)
def test_every_form_says_the_same(value: Any) -> None:
    assert set(hotwords_from(value)) == set(TWO)
    settings = options_from({"hotwords": value}).decoding
    assert set(settings.hotwords or ()) == set(TWO)


@pytest.mark.parametrize("nothing", [None, "", " ,\n,", [], {}])
def test_no_phrases_are_none(nothing: Any) -> None:
    assert hotwords_from(nothing) == ()
    assert options_from({"hotwords": nothing}).decoding.hotwords is None


def test_a_file_has_a_phrase_per_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("﻿Ray Data\t2\r\nKubernetes\n\nSmith, Jones and Co\n")
    assert hotwords_from(f"@{path}", files=True) == (*TWO, Hotword("Smith, Jones and Co"))
    assert hotwords_from([f"@{path.name}"]) == (Hotword(f"@{path.name}"),)
    decoding = {"hotwords": f"@{path}"}
    assert run_config(str(tmp_path), "out", decoding=decoding).decoding.hotwords == (
        *TWO,
        Hotword("Smith, Jones and Co"),
    )
    with pytest.raises(ValueError, match=r"found @none.txt, which cannot be read"):
        run_config(str(tmp_path), "out", decoding={"hotwords": "@none.txt"})
    # What a service hands on of a request names no file.
    assert options_from(decoding).decoding.hotwords == (Hotword(f"@{path}"),)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, "quote it"),
        ([5], "found the phrase 5"),
        (["Ray", " "], "found the phrase ' '"),
        ([{"weight": 2}], "found the phrase None"),
        ([{"phrase": "Ray", "boost": 2}], "found boost in"),
        ({"": 1}, "found the phrase ''"),
        ({"Ray": 0}, "the weight 0 of 'Ray', expected a number above 0, at most 10"),
        ({"Ray": -1.5}, "the weight -1.5"),
        ({"Ray": math.nan}, "the weight nan"),
        ({"Ray": math.inf}, "the weight inf"),
        ({"Ray": True}, "the weight True"),
        ({"Ray": [1]}, r"the weight \[1\]"),
        ("Ray\tmuch", "the weight 'much'"),
        ("a" * 201, "a phrase of 201 characters"),
    ],
)
def test_what_is_no_phrase_or_no_weight_is_refused_by_name(value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"hotwords: .*{words}"):
        options_from({"hotwords": value})


def test_a_recording_has_those_of_its_column() -> None:
    def of(columns: dict[str, Any]) -> tuple[Hotword, ...]:
        return hotwords_of("s3://a/b.mp3", json.dumps(columns))

    assert hotwords_of("s3://a/b.mp3", None) == of({"title": "hotwords"}) == ()
    assert of({"hotwords": None}) == of({"hotwords": ""}) == ()
    assert of({"hotwords": "Ray Data\t2, Kubernetes"}) == TWO
    assert of({"hotwords": "@/etc/passwd"}) == (Hotword("@/etc/passwd"),)
    with pytest.raises(
        ItemError, match=r"column hotwords of s3://a/b.mp3: found the phrase 7"
    ) as e:
        of({"hotwords": [7]})
    assert e.value.kind == "bad_hotwords"
