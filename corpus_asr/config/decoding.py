"""Transcription options as plain dataclasses, as engines take them, without pydantic.

Each option is declared here once: name, type, default, bounds (`metadata`) and description. They
are the keys of the section `decoding` and the first ones of `extract`, which `settings.keys_from`
turns into validating models. The default model's name is defined here as well, so that the command
line can show it in its help.

Hotwords are parsed here, from text, lists or tables of settings, command lines and manifests,
independent of tokenizers: the checkpoint determines whether a phrase can be spelled.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from corpus_asr.errors import ConfigError
from corpus_asr.languages import LANGUAGES, advise_codes

MAX_WEIGHT = 10.0
_MAX_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Hotword:
    """A phrase to prefer where it may be said."""

    phrase: str
    weight: float = 1.0
    """Factor of the default bonus of each of its tokens."""


def hotwords_from(value: object, *, files: bool = False) -> tuple[Hotword, ...]:
    """Parse phrases, without duplicates, in order.

    Text has phrases separated by commas or line ends, each optionally followed by a tab and a
    weight; with `files`, `@` and a path name a text file with one phrase per line. A list has
    phrases, or objects with `phrase` and `weight`; a table has weights by phrase.

    Raises:
        ValueError: an item is not a phrase or a weight.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        hotwords = (
            _of_file(value.strip()[1:]) if files and value.strip()[:1] == "@" else _of_text(value)
        )
    elif isinstance(value, Mapping):
        hotwords = [_hotword(phrase, weight) for phrase, weight in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        hotwords = [_of_entry(entry) for entry in value]
    else:
        raise ValueError(
            f"found {value!r}, expected text with commas between phrases, a list, or weights by "
            "phrase; quote it if it is text"
        )
    return tuple({hotword.phrase: hotword for hotword in hotwords}.values())


def _of_file(name: str) -> list[Hotword]:
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(
            f"found @{name}, which cannot be read ({error}), expected a text file of one phrase "
            "per line; correct its path"
        ) from error
    return _of_lines(text.splitlines())


def _of_text(text: str) -> list[Hotword]:
    return _of_lines(phrase for line in text.splitlines() for phrase in line.split(","))


def _of_lines(lines: Iterable[str]) -> list[Hotword]:
    parts = (line.rstrip().partition("\t") for line in lines if line.strip())
    return [_hotword(phrase, weight if tab else 1.0) for phrase, tab, weight in parts]


def _of_entry(entry: object) -> Hotword:
    if isinstance(entry, Hotword):
        return _hotword(entry.phrase, entry.weight)
    if not isinstance(entry, Mapping):
        return _hotword(entry, 1.0)
    unknown = sorted(map(str, set(entry) - {"phrase", "weight"}))
    if unknown:
        raise ValueError(
            f"found {', '.join(unknown)} in {dict(entry)!r}, expected phrase and weight"
        )
    return _hotword(entry.get("phrase"), entry.get("weight", 1.0))


def _hotword(phrase: object, weight: object) -> Hotword:
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError(f"found the phrase {phrase!r}, expected text that is not blank")
    phrase = " ".join(phrase.split())
    if len(phrase) > _MAX_CHARACTERS:
        raise ValueError(
            f"found a phrase of {len(phrase)} characters ({phrase[:40]!r}...), expected at most "
            f"{_MAX_CHARACTERS}; name a file of phrases as @names.txt"
        )
    try:
        number = math.nan if isinstance(weight, bool) else float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number <= MAX_WEIGHT:
        raise ValueError(
            f"found the weight {weight!r} of {phrase!r}, expected a number above 0, at most "
            f"{MAX_WEIGHT:g}"
        )
    return Hotword(phrase, number)


ComputeType = Literal["auto", "float32", "float16", "bfloat16", "int8", "float16_fp8"]

AUTO_TRACK: Final = "auto"
ALL_TRACKS: Final = "all"
"""Value of `track`: the default track of players, and each track."""
# Included in the package, in int8.
PACKAGED_CHECKPOINT: Final = "whisper-tiny.en"


def default_model_notice(larger: str) -> str:
    """Return a line that names the model in use, and how to choose a larger one."""
    return (
        f"model: {PACKAGED_CHECKPOINT}, the English model that comes with the package (39M "
        f"parameters); {larger} is more accurate, and multilingual"
    )


def other_language_notice(recording: str) -> str:
    """Return a line on a recording that an English-only model transcribed with low confidence."""
    return (
        f"transcribing {recording}: found text of low confidence by a model that knows English "
        "only; for another language name a multilingual model, such as base (--model base), for "
        "English the language (--language en)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioSettings:
    """Settings of extraction that change the text."""

    part_s: float = field(default=600.0, metadata={"ge": 30.0, "le": 3600.0})
    """Maximum length in seconds of a part, the unit of transcription and retry; longer recordings
    are cut at silences. Bounds memory."""
    channels: Literal["mix", "each"] | int = "mix"
    """Channels: `mix` down to mono, `each` channel separately, or the number of one channel,
    counted from 0."""
    track: str | int = "auto"
    """Audio track of files that hold several, such as films: `auto` takes that of
    `decoding.language`, else the default track, or another if that has no speech; or a number,
    counted from 1, or a language; `all` transcribes each track separately."""
    vad_filter: bool = True
    """Detect speech (Silero VAD): parts are cut at silences and long silence is skipped; false
    transcribes all audio."""
    # A probability: 0 would detect speech everywhere, like `vad_filter: false`, and 1 nowhere.
    vad_threshold: float = field(default=0.5, metadata={"gt": 0.0, "lt": 1.0})
    """Probability at which speech begins; it ends below this less 0.15. Higher: less noise counts
    as speech; lower: fewer quiet words are lost."""
    # 5 s and more are a sentence; a pause of more than 10 s is a third of a window.
    vad_min_speech_s: float = field(default=0.18, metadata={"ge": 0.0, "le": 5.0})
    """Minimum duration in seconds of speech; at the end of a recording, at most 0.1."""
    vad_min_silence_s: float = field(default=0.5, metadata={"ge": 0.0, "le": 10.0})
    """Seconds of silence that end a span of speech; shorter pauses belong to it."""
    vad_pad_s: float = field(default=0.4, metadata={"ge": 0.0, "le": 5.0})
    """Seconds of audio kept before and after detected speech."""


QUALITIES: Mapping[str, Mapping[str, Any]] = {
    "fast": {"beam_size": 1},
    "balanced": {},
    "accurate": {"beam_size": 5},
}
"""Values of `decoding` keys set by each `quality`; measured in docs/how-to/decoding.md."""
AUTO_BEAMS = 5
"""Number of beams of `beam_size` auto, the default of openai-whisper and faster-whisper."""
AUTO_PADDING_S = 5.0
"""First padding of `padding_s` auto; measured in docs/benchmarks/README.md#short-clips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSettings:
    """Settings that change the text; values are not checked here."""

    language: str | tuple[str, ...] = "auto"
    """Language: `auto` (detected), a code, tag or name such as `de`, `deu`, `de-AT`, `German` or
    `Deutsch`, or candidates for detection, as a list or `en,de`."""
    language_mode: Literal["recording", "part", "window"] = "recording"
    """Scope of one language: `recording`, `part`, or `window` (for speakers who switch
    languages)."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Task: `transcribe` in the spoken language, or `translate` into English."""
    target_language: str | None = None
    """Code of the language that a multilingual Speech2Text checkpoint translates into, such as
    `fr`."""
    strategy: Literal["auto", "sequential", "chunked"] = "auto"
    """Long-form strategy of Whisper: `sequential` moves window by window along predicted
    timestamps; `chunked` cuts windows at silences and decodes them independently; auto: chunked,
    or sequential without speech detection and with condition_on_prev_tokens."""
    clip_timestamps: tuple[float, ...] = ()
    """Clips to transcribe, as start, end, start, end ... in seconds of the recording; without the
    last end, up to the end. A list, or text such as `10,20`. Default: everything."""
    window_s: float | None = field(default=None, metadata={"ge": 1, "le": 3600})
    """Maximum window length in seconds of Speech2Text, Qwen3-ASR, of a `chunked` Whisper, or of
    models that read each window once; null: 30 for Whisper and Qwen3-ASR, 15 for Speech2Text, 120
    for Parakeet."""
    temperature: tuple[float, ...] = field(
        default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0), metadata={"min_length": 1}
    )
    """Temperature fallback schedule: temperatures tried in order until a window passes the
    thresholds below. 0 is greedy or beam search."""
    seed: int | None = field(default=None, metadata={"ge": 0})
    """Seed of sampling at temperatures above 0: the same audio gets the same text under any name;
    null: the URI of each recording."""
    compression_ratio_threshold: float | None = field(default=2.4, metadata={"gt": 0})
    """Compression ratio above which a window counts as repetitive and falls back to the next
    temperature; null: no limit."""
    logprob_threshold: float | None = field(default=-1.0, metadata={"le": 0})
    """Mean log-probability below which a window falls back to the next temperature; null: no
    limit."""
    no_speech_threshold: float | None = field(default=0.6, metadata={"ge": 0, "le": 1})
    """No-speech probability above which a window with a low log-probability is dropped as silence;
    null: never."""
    beam_size: int | Literal["auto"] = "auto"
    """Number of beams at temperature 0; 1 is greedy search; auto: greedy first, then 5 beams for
    windows whose text is uncertain."""
    length_penalty: float = 1.0
    """Exponent of the length by which the log-probability of a beam is divided."""
    repetition_penalty: float = field(default=1.0, metadata={"gt": 0})
    """Penalty on tokens that already occurred; above 1 makes them less likely."""
    no_repeat_ngram_size: int = field(default=0, metadata={"ge": 0})
    """Length in tokens of sequences that may not occur twice; 0: no limit."""
    stop_loops: bool = True
    """Stop decoding a window that has entered a repetition loop; it then falls back to the next
    temperature."""
    condition_on_prev_tokens: bool = False
    """Prompt each window with the text before it; not with `chunked`."""
    initial_prompt: str | None = None
    """Prompt text placed before each window, or before each part where windows are sequential; of
    Qwen3-ASR, the context of each window."""
    hotwords: tuple[Hotword, ...] | None = None
    """Names and terms to prefer: text with commas between, `@` and the path of a file of one per
    line, or a list, whose items may be `{phrase: Ray Data, weight: 2}`."""
    hotwords_mode: Literal["boost", "prompt"] = "boost"
    """Method of preferring hotwords: `boost` in search, which takes thousands; or `prompt`, as text
    before each window, which takes some dozens, whatever their weights (Whisper, Qwen3-ASR)."""
    prefix: str | None = None
    """Text that the first window starts with; the model continues it."""
    padding_s: float | Literal["auto"] | None = "auto"
    """Seconds of silent padding after a window shorter than 30 s; null pads to 30 s, as in
    training. auto: null with `sequential` or with two and more beams everywhere, else 5, and 30 s
    where the language is uncertain, and where the text is very uncertain or fails a threshold."""
    word_timestamps: bool = False
    """Compute start time, end time and probability of each word."""
    align: bool = False
    """Align the text of each recording instead of recognizing one: segments and words are those of
    the text, with times. The text is the column `text` of source.manifest or of a table, or in a
    tar file the .txt, or `text` of the .json, of the recording's name. Whisper, or any model with
    `align.model`."""
    hallucination_silence_threshold: float | None = field(default=None, metadata={"gt": 0})
    """Seconds of silence to skip around likely hallucinations; needs word_timestamps. null:
    none."""
    drop_nonspeech: bool = False
    """Drop segments outside detected speech."""
    drop_known_hallucinations: bool = False
    """Drop segments whose whole text is a known hallucination of Whisper models without speech;
    otherwise the column `known_hallucination` marks them."""

    @property
    def in_chunks(self) -> bool:
        """Whether Whisper windows are decoded independently."""
        if self.strategy == "auto":
            return not self.condition_on_prev_tokens
        return self.strategy == "chunked"

    @property
    def first_padding_s(self) -> float | None:
        """Padding in seconds of a window when it is first decoded; None pads to 30 s."""
        if self.padding_s == "auto":
            # Who asks for beams everywhere asks for exactness, not for speed.
            is_short = self.in_chunks and self.beam_size in (1, "auto")
            return AUTO_PADDING_S if is_short else None
        return self.padding_s

    @property
    def most_beams(self) -> int:
        """Return the maximum number of beams."""
        return AUTO_BEAMS if self.beam_size == "auto" else self.beam_size


def expected_languages(decoding: DecodingSettings) -> tuple[str, ...]:
    """Return the codes of the configured languages; empty for `auto`."""
    wanted = (decoding.language,) if isinstance(decoding.language, str) else decoding.language
    return tuple(code for code in wanted if code != "auto")


def only_language(decoding: DecodingSettings) -> str | None:
    """Return the language if there is nothing to detect, else None."""
    codes = expected_languages(decoding)
    return codes[0] if len(codes) == 1 else None


def check_refused(settings: DecodingSettings, reasons: Mapping[str, str], *, model: str) -> None:
    """Raise ConfigError for settings that are neither default nor None, with their `reasons`."""
    usual = DecodingSettings()
    for name, reason in reasons.items():
        setting = getattr(settings, name)
        if setting is not None and setting != getattr(usual, name):
            raise ConfigError(
                f"decoding.{name}: found {setting}, but {model}, and {reason}; leave it out"
            )


ADVICE = "name a multilingual model, such as base, as the model"


def check_english_only(decoding: DecodingSettings, *, checkpoint: str = "this checkpoint") -> None:
    """Raise ConfigError for other languages than English, translation and language detection."""
    codes = [code for code in expected_languages(decoding) if code != "en"]
    if codes:
        raise ConfigError(
            f"decoding.language: found {', '.join(codes)}, but {checkpoint} is English-only; "
            f"{advise_codes(codes, LANGUAGES)}{ADVICE}"
        )
    if decoding.task == "translate":
        raise ConfigError(
            f"decoding.task: found translate, but {checkpoint} is English-only; {ADVICE}"
        )
    if decoding.language_mode != "recording":
        raise ConfigError(
            f"decoding.language_mode: found {decoding.language_mode}, but {checkpoint} is "
            f"English-only; leave it out, or {ADVICE}"
        )
