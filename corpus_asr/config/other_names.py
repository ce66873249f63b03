"""Options of one transcription by the names that faster-whisper and openai-whisper give them.

In: keywords of a call. Out: the same by our names. What is always done here, and how it is done,
is taken where it says just that; any other value, and every other name, is left to be refused.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from corpus_asr.errors import ConfigError

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
        # Of one window the likeliest language is taken, whatever its probability.
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
