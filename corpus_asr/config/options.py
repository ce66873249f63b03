"""Options of one transcription: what `Transcriber` takes as keywords, and `--set` of `transcribe`.

They are the keys of the section `decoding`, and those of `extract` that change results.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.document import override_value
from corpus_asr.config.foreign_names import name_hint
from corpus_asr.config.load import checked_options
from corpus_asr.config.run import ExtractSettings, missing_speech
from corpus_asr.config.settings import DecodingSection
from corpus_asr.config.speakers import NO_SPEAKERS, SpeakerSettings
from corpus_asr.errors import ConfigError


class TranscriptionOptions(TypedDict, total=False):
    """Keywords of `Transcriber` and its methods; every key has the default of the settings."""

    language: str | Sequence[str] | None
    """Language: `auto` (detected), a code or name such as `en` or `English`, or a list of
    candidates for detection."""
    language_mode: Literal["recording", "part", "window"]
    """Scope of one language: `recording`, `part`, or `window` (for speakers who switch
    languages)."""
    task: Literal["transcribe", "translate"]
    """Task: `transcribe` in the spoken language, or `translate` into English."""
    target_language: str | None
    """Code of the language that a multilingual Speech2Text checkpoint translates into, such as
    `fr`."""
    strategy: Literal["sequential", "chunked"]
    """Long-form strategy: `sequential` moves window by window along predicted timestamps; `chunked`
    cuts windows at silences and decodes them independently."""
    clip_timestamps: float | Sequence[float] | str
    """Clips to transcribe, as start, end, start, end ... in seconds of the recording; without the
    last end, up to the end. A list, or text such as `10,20`. Default: everything."""
    window_s: float | None
    """Maximum window length in seconds of Speech2Text or of a `chunked` Whisper (faster only with
    padding_s); null: 30 for Whisper, 15 for Speech2Text."""
    temperature: float | Sequence[float]
    """Temperature fallback schedule: temperatures tried in order until a window passes the
    thresholds below. 0 is greedy or beam search."""
    compression_ratio_threshold: float | None
    """Compression ratio above which a window counts as repetitive and falls back to the next
    temperature; null: no limit."""
    logprob_threshold: float | None
    """Mean log-probability below which a window falls back to the next temperature; null: no
    limit."""
    no_speech_threshold: float | None
    """No-speech probability above which a window with a low log-probability is dropped as silence;
    null: none is."""
    beam_size: int
    """Number of beams at temperature 0; 1 is greedy search."""
    length_penalty: float
    """Exponent of the length by which the log-probability of a beam is divided."""
    repetition_penalty: float
    """Penalty on tokens that already occurred; above 1 makes them less likely."""
    no_repeat_ngram_size: int
    """Length in tokens of sequences that may not occur twice; 0: no limit."""
    stop_loops: bool
    """Stop decoding a window that has entered a repetition loop; it then falls back to the next
    temperature."""
    condition_on_prev_tokens: bool
    """Prompt each window with the text before it (`sequential` only)."""
    initial_prompt: str | None
    """Prompt text placed before each part (before each window when `strategy` is `chunked`)."""
    hotwords: str | None
    """Names and terms to expect, in the prompt of each window."""
    prefix: str | None
    """Text that the first window starts with; the model continues it."""
    padding_s: float | None
    """Seconds of silent padding after a window shorter than 30 s; null pads to 30 s, as in
    training. Lower is faster for short clips but can change the text: on a CPU 10
    doubles the speed at about the same word error rate, with 2 errors more than double."""
    word_timestamps: bool
    """Compute start time, end time and probability of each word."""
    hallucination_silence_threshold: float | None
    """Seconds of silence to skip around likely hallucinations; needs word_timestamps. null:
    none."""
    drop_nonspeech: bool
    """Drop segments outside detected speech."""
    drop_known_hallucinations: bool
    """Drop segments whose whole text is a known hallucination of Whisper models without speech;
    otherwise the column `known_hallucination` marks them."""
    channels: Literal["mix", "each"] | int
    """Channels: `mix` down to mono, `each` channel separately, or the number of one channel,
    counted from 0."""
    part_s: float
    """Maximum length in seconds of a part, the unit of transcription and retry; longer recordings
    are cut at silences. Bounds memory."""
    vad_filter: bool
    """Detect speech (Silero VAD): parts are cut at silences and long silence is skipped; false
    transcribes all audio."""
    vad_threshold: float
    """Probability at which speech begins; it ends below this less 0.15. Higher: less noise counts
    as speech; lower: fewer quiet words are lost."""
    vad_min_speech_s: float
    """Seconds up to which a sound is too short to be speech; at the end of a recording, at most
    0.1."""
    vad_min_silence_s: float
    """Seconds of silence that end a span of speech; shorter pauses belong to it."""
    vad_pad_s: float
    """Seconds of audio kept before and after detected speech."""
    diarize: bool
    """Find the speakers: segments and words name them, and segments are split where they change
    (with word_timestamps)."""
    num_speakers: int | None
    """Exact number of speakers of each recording (of each channel, if `extract.channels` is
    `each`); null: it is found."""
    min_speakers: int | None
    """Minimum number of speakers; null: 1."""
    max_speakers: int | None
    """Maximum number of speakers; null: 12."""
    speaker_model: str | None
    """Network that embeds voices, in ONNX: a file, a folder or URI with one, or OWNER/NAME or
    OWNER/NAME/FILE of the Hugging Face Hub, such as those of WeSpeaker and 3D-Speaker. null: the
    packaged GE2E encoder."""


EXTRACT_OPTIONS = ("channels", "part_s", *(n for n in ExtractSettings.model_fields if "vad_" in n))
BOUND_OPTIONS = ("num_speakers", "min_speakers", "max_speakers")
SPEAKER_OPTIONS = ("diarize", *BOUND_OPTIONS, "speaker_model")
# Whose text it is that is aligned, a call says by its method.
ALIGN = "align"
_DECODING_OPTIONS = tuple(name for name in DecodingSection.model_fields if name != ALIGN)
OPTION_NAMES = (*_DECODING_OPTIONS, *EXTRACT_OPTIONS, *SPEAKER_OPTIONS)
_SECTIONS = ("decoding.", "extract.", "speakers.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """How one recording is transcribed, and whether its speakers are found."""

    decoding: DecodingSettings
    extract: ExtractSettings
    speakers: SpeakerSettings = NO_SPEAKERS


def options_from(options: Mapping[str, Any], *, fixed: Collection[str] = ()) -> CallSettings:
    """Check the options of a transcription.

    `fixed` names the arguments of `Transcriber` itself, which no call can change.

    Raises:
        ConfigError: names each wrong key or value.
    """
    problems = [_unknown(name, fixed) for name in options if name not in OPTION_NAMES]
    if problems:
        raise ConfigError(f"reading the options: {'; '.join(problems)}")
    of_speakers = _of_speakers(options)
    others = {name: value for name, value in options.items() if name not in SPEAKER_OPTIONS}
    section, extract, speakers = checked_options(
        others | of_speakers, DecodingSection, ExtractSettings, SpeakerSettings
    )
    if problem := missing_speech(section, extract, speakers):
        raise ConfigError(f"reading the options: {problem}")
    return CallSettings(decoding=section.settings(), extract=extract, speakers=speakers)


def _of_speakers(options: Mapping[str, Any]) -> dict[str, Any]:
    diarize = options.get("diarize", False)
    if not isinstance(diarize, bool):
        raise ConfigError(
            f"reading the options: diarize: found {diarize!r}, expected true or false"
        )
    given = {name: options[name] for name in BOUND_OPTIONS if options.get(name) is not None}
    model = options.get("speaker_model")
    if (given or model) and not diarize:
        names = ", ".join([*given, *(["speaker_model"] if model else [])])
        raise ConfigError(f"reading the options: {names}: nothing without speakers; set diarize")
    return given | {"mode": "auto" if diarize else "none", "model": model}


def _unknown(name: str, fixed: Collection[str]) -> str:
    if name in fixed:
        return f"{name}: the loaded model has it; give it to Transcriber"
    hint = name_hint(name, OPTION_NAMES, fixed)
    return f"{name}: unknown key; {hint or 'known here: ' + ', '.join(OPTION_NAMES)}"


def option_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` options of a command line, with `decoding.` or `extract.` or without."""
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
