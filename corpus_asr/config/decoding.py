"""How text is searched for, as plain values: what engines take, without pydantic.

Names, types and defaults are those of the keys of the `decoding` section, which
`config.settings.DecodingSection` describes and checks (tests/config/test_decoding.py).
"""

from dataclasses import dataclass
from typing import Literal

from corpus_asr.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSettings:
    """Settings that change the text; values are not checked here."""

    language: str | tuple[str, ...] = "auto"
    language_mode: Literal["recording", "part", "window"] = "recording"
    task: Literal["transcribe", "translate"] = "transcribe"
    target_language: str | None = None
    strategy: Literal["sequential", "chunked"] = "sequential"
    clip_timestamps: tuple[float, ...] = ()
    window_s: float | None = None
    temperature: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    beam_size: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    stop_loops: bool = True
    condition_on_prev_tokens: bool = False
    initial_prompt: str | None = None
    hotwords: str | None = None
    prefix: str | None = None
    padding_s: float | None = None
    word_timestamps: bool = False
    align: bool = False
    hallucination_silence_threshold: float | None = None
    drop_nonspeech: bool = False
    drop_known_hallucinations: bool = False


ADVICE = "name a multilingual model, such as --model base (model.checkpoint: base)"


def check_english_only(decoding: DecodingSettings, *, checkpoint: str = "this checkpoint") -> None:
    """Refuse other languages than English, translation, and detection of languages."""
    wanted = (decoding.language,) if isinstance(decoding.language, str) else decoding.language
    others = [code for code in wanted if code not in ("auto", "en")]
    if others:
        raise ConfigError(
            f"decoding.language: found {', '.join(others)}, but {checkpoint} is English-only; "
            f"{ADVICE}"
        )
    if decoding.task == "translate":
        raise ConfigError(
            f"decoding.task: found translate, but {checkpoint} is English-only and has nothing to "
            f"translate; {ADVICE}"
        )
    if decoding.language_mode != "recording":
        raise ConfigError(
            f"decoding.language_mode: found {decoding.language_mode}, but {checkpoint} is "
            f"English-only; leave it out, or {ADVICE}"
        )
