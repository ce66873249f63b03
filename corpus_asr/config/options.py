"""Options of one transcription: keywords of `Transcriber`, and `--set` of `transcribe`.

These are the keys of the section `decoding`, those of `extract` that affect results, and speakers.

`translated` takes them by the names that faster-whisper and openai-whisper give them: what is
always done here, and how it is done, is taken where it says just that; any other value, and every
other name, is left to be refused.
"""

import functools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo

from corpus_asr.config.decoding import AudioSettings, DecodingSettings, Hotword
from corpus_asr.config.document import override_value
from corpus_asr.config.extraction import (
    NO_SPEAKERS,
    SPEAKER_COUNTS,
    ExtractSettings,
    SpeakerSettings,
    missing_speech,
)
from corpus_asr.config.load import checked_options, name_hint
from corpus_asr.config.settings import DecodingSection
from corpus_asr.errors import ConfigError


class TranscriptionOptions(TypedDict, total=False):
    """Keywords of `Transcriber` and its methods; described in `OPTIONS`."""

    language: str | Sequence[str] | None
    language_mode: Literal["recording", "part", "window"]
    task: Literal["transcribe", "translate"]
    target_language: str | None
    strategy: Literal["auto", "sequential", "chunked"]
    clip_timestamps: float | Sequence[float] | Sequence[Mapping[str, float]] | str
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
    padding_s: float | Literal["auto"] | None
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
    speaker_model: str
    speaker_segmentation: str


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
    """Validate the options of a transcription, which may be named as `translated` knows them.

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


_LOG = logging.getLogger(__name__)

_SAME = {
    "log_prob_threshold": "logprob_threshold",
    "condition_on_previous_text": "condition_on_prev_tokens",
    "chunk_length": "window_s",
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


# Names without a counterpart, and the values that say what is done here anyway.
_DONE_ANYWAY: dict[str, tuple[Any, ...]] = {
    "log_progress": (None, False),
    "best_of": (None, 1),
    "carry_initial_prompt": (None, False),
    "patience": (None, 1),
    "fp16": (None,),
    "verbose": (None, False),
    "prompt_reset_on_temperature": (0.5,),
    "suppress_blank": (True,),
    "suppress_tokens": (-1, "-1"),
    "without_timestamps": (False,),
    "max_initial_timestamp": (1,),
    "prepend_punctuations": ("\"'“¿([{-",),
    "append_punctuations": ("\"'.。,，!！?？:：”)]}、",),  # noqa: RUF001
    "max_new_tokens": (None,),
    "language_detection_segments": (None, 1),
}

# Usual values that are taken though they change nothing here, and why; of numbers those from 1.
_CHANGES_NOTHING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "best_of": (_is_count, "one sample is drawn at each temperature"),
    "patience": (lambda value: _is_count(math.ceil(value)), "beam search ends as in transformers"),
    "max_new_tokens": (lambda value: _is_count(value - 127), "a window ends where its text ends"),
    "suppress_blank": (lambda value: value is False, "the checkpoint lists suppressed tokens"),
    "suppress_tokens": (
        lambda value: value in (None, "", [], ()),
        "the checkpoint lists suppressed tokens",
    ),
    "without_timestamps": (lambda value: value is True, "segments always have times"),
    "fp16": (lambda value: isinstance(value, bool), "the model has its compute_type"),
    "verbose": (lambda value: value is True, "stream yields the segments"),
}

# By key of `vad_parameters`: ours, and how many of its units one of ours has.
_VAD = {
    "threshold": ("vad_threshold", 1),
    "onset": ("vad_threshold", 1),
    "min_speech_duration_ms": ("vad_min_speech_s", 1000),
    "min_silence_duration_ms": ("vad_min_silence_s", 1000),
    "speech_pad_ms": ("vad_pad_s", 1000),
}


def translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under our names; unknown ones are unchanged.

    Raises ConfigError if an option is given under two names, or has an unsupported value.
    """
    translations: dict[str, Any] = {}
    for name, value in options.items():
        for option, meant in _meant(name, value, options).items():
            if option in translations or (option != name and option in options):
                raise ConfigError(
                    f"reading the options: {name}: found {option} too, expected one of these "
                    "synonyms; remove one"
                )
            translations[option] = meant
    return translations


def _meant(name: str, value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    if name in _SAME:
        # A length of None is that of the model.
        return {} if name == "chunk_length" and value is None else {_SAME[name]: value}
    if name == "clip_timestamps" and value is None:
        return {}
    if name in _TRANSLATED:
        return _TRANSLATED[name](name, value)
    if name == "language_detection_threshold":
        # With one window, its most probable language is used at any probability.
        segments = options.get("language_detection_segments")
        return {} if segments in (None, 1) or value is None else {name: value}
    if name in _DONE_ANYWAY:
        plain = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
        is_done = any(plain is done or plain == done for done in _DONE_ANYWAY[name])
        return {} if is_done or _changes_nothing(name, value) else {name: value}
    return {name: value}


def _changes_nothing(name: str, value: Any) -> bool:
    is_usual, reason = _CHANGES_NOTHING.get(name, (lambda _: False, ""))
    try:
        if not is_usual(value):
            return False
    except TypeError:
        return False
    _note(name, reason)
    return True


@functools.cache  # logged once
def _note(name: str, reason: str) -> None:
    _LOG.warning("the option %s changes nothing here: %s", name, reason)


def _multilingual(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, bool):
        return {name: value}
    return {"language_mode": "window"} if value else {}


def _speech_detection(name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return {name: value}
    if unknown := sorted(map(str, value.keys() - _VAD.keys())):
        raise ConfigError(
            f"reading the options: {name}.{unknown[0]}: unknown key, expected {', '.join(_VAD)}; "
            "remove it"
        )
    return {
        _VAD[key][0]: amount / _VAD[key][1] if isinstance(amount, int | float) else amount
        for key, amount in value.items()
    }


_TRANSLATED: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "multilingual": _multilingual,
    "vad_parameters": _speech_detection,
}
