"""Options of one transcription: keywords of `Transcriber`, and `--set` of `transcribe`.

These are the keys of the section `decoding`, those of `extract` that affect results, and speakers.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo

from corpus_asr.config.decoding import AudioSettings, DecodingSettings
from corpus_asr.config.document import override_value
from corpus_asr.config.extraction import (
    NO_SPEAKERS,
    SPEAKER_COUNTS,
    ExtractSettings,
    SpeakerSettings,
    missing_speech,
)
from corpus_asr.config.hotwords import Hotword
from corpus_asr.config.load import checked_options, name_hint
from corpus_asr.config.other_names import translated
from corpus_asr.config.settings import DecodingSection
from corpus_asr.errors import ConfigError


class TranscriptionOptions(TypedDict, total=False):
    """Keywords of `Transcriber` and its methods; described in `OPTIONS`."""

    language: str | Sequence[str] | None
    language_mode: Literal["recording", "part", "window"]
    task: Literal["transcribe", "translate"]
    target_language: str | None
    strategy: Literal["auto", "sequential", "chunked"]
    clip_timestamps: float | Sequence[float] | str
    window_s: float | None
    temperature: float | Sequence[float]
    seed: int | None
    compression_ratio_threshold: float | None
    logprob_threshold: float | None
    no_speech_threshold: float | None
    beam_size: int | Literal["auto"]
    length_penalty: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    stop_loops: bool
    condition_on_prev_tokens: bool
    initial_prompt: str | None
    hotwords: str | Sequence[str | Hotword | Mapping[str, Any]] | Mapping[str, float] | None
    hotwords_mode: Literal["boost", "prompt"]
    prefix: str | None
    padding_s: float | None
    word_timestamps: bool
    hallucination_silence_threshold: float | None
    drop_nonspeech: bool
    drop_known_hallucinations: bool
    quality: Literal["fast", "balanced", "accurate"]
    channels: Literal["mix", "each"] | int
    track: str | int
    part_s: float
    vad_filter: bool
    vad_threshold: float
    vad_min_speech_s: float
    vad_min_silence_s: float
    vad_pad_s: float
    diarize: bool
    num_speakers: int | None
    min_speakers: int | None
    max_speakers: int | None
    speaker_model: str | None
    speaker_segmentation: str | None


_NETWORKS = {"speaker_model": "model", "speaker_segmentation": "segmentation"}
SPEAKER_OPTIONS = ("diarize", *SPEAKER_COUNTS, *_NETWORKS)
# A single call supports two values of `speakers.mode`.
_DIARIZE = Field(
    default=False,
    description=(
        "Find the speakers of segments and words; segments are split where speakers change (with "
        "word_timestamps)."
    ),
)
_OF_AUDIO = {name: ExtractSettings.model_fields[name] for name in get_type_hints(AudioSettings)}
_OF_SPEAKERS = SpeakerSettings.model_fields
OPTIONS: Mapping[str, FieldInfo] = {
    # The text to align is selected by the method instead.
    **{name: key for name, key in DecodingSection.model_fields.items() if name != "align"},
    "channels": _OF_AUDIO["channels"],
    "track": _OF_AUDIO["track"],
    **_OF_AUDIO,
    "diarize": FieldInfo.from_annotated_attribute(bool, _DIARIZE),
    **{name: _OF_SPEAKERS[name] for name in SPEAKER_COUNTS},
    **{name: _OF_SPEAKERS[key] for name, key in _NETWORKS.items()},
}
OPTION_NAMES = tuple(OPTIONS)
# Sections of the options, and those of arguments of `Transcriber`.
_SECTIONS = ("decoding.", "extract.", "speakers.", "source.", "model.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """Decoding settings of one recording, and whether speakers are identified."""

    decoding: DecodingSettings
    extract: ExtractSettings
    speakers: SpeakerSettings = NO_SPEAKERS


def options_from(options: Mapping[str, Any], *, fixed: Collection[str] = ()) -> CallSettings:
    """Validate the options of a transcription, which may be named as in `other_names`.

    `fixed` names arguments of `Transcriber` itself, which calls cannot change.

    Raises:
        ConfigError: names each wrong key or value.
    """
    section, extract, speakers = sections_from(options, fixed=fixed)
    return CallSettings(decoding=section.settings(), extract=extract, speakers=speakers)


def sections_from(
    options: Mapping[str, Any], *, fixed: Collection[str] = ()
) -> tuple[DecodingSection, ExtractSettings, SpeakerSettings]:
    """Return transcription options as sections of a job; as `options_from`."""
    options = translated(options)
    problems = [_unknown(name, fixed) for name in options if name not in OPTION_NAMES]
    if problems:
        raise ConfigError(f"reading the options: {'; '.join(problems)}")
    of_speakers = _of_speakers(options)
    other_options = {name: value for name, value in options.items() if name not in SPEAKER_OPTIONS}
    section, extract, speakers = checked_options(
        other_options | of_speakers, DecodingSection, ExtractSettings, SpeakerSettings
    )
    if problem := missing_speech(section, extract, speakers):
        raise ConfigError(f"reading the options: {problem}")
    return section, extract, speakers


def _of_speakers(options: Mapping[str, Any]) -> dict[str, Any]:
    diarize = options.get("diarize", False)
    if not isinstance(diarize, bool):
        raise ConfigError(
            f"reading the options: diarize: found {diarize!r}, expected true or false"
        )
    names = {name: name for name in SPEAKER_COUNTS} | _NETWORKS
    speaker_options = {name: options[name] for name in names if options.get(name) is not None}
    if speaker_options and not diarize:
        raise ConfigError(
            f"reading the options: {', '.join(speaker_options)}: found no diarize, expected true; "
            "set it"
        )
    settings = {names[name]: value for name, value in speaker_options.items()}
    return settings | {"mode": "auto" if diarize else "none"}


def _unknown(name: str, fixed: Collection[str]) -> str:
    if name in fixed:
        return f"{name}: found it in a call, expected it as an argument of Transcriber; move it"
    hint = name_hint(name, OPTION_NAMES, fixed)
    if hint in {f"did you mean {fixed_name}?" for fixed_name in fixed}:
        hint += " It is an argument of Transcriber"
    return f"{name}: unknown key; {hint or 'expected one of: ' + ', '.join(OPTION_NAMES)}"


def option_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` command-line options, with or without `decoding.` or `extract.`."""
    options: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"reading --set {override}: expected key=value, such as language=en")
        name = key.strip()
        for section in _SECTIONS:
            name = name.removeprefix(section)
        options[name] = override_value(text, f"--set {key}")
    return options
