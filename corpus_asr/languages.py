"""Whisper's languages by code and name, and the windows used for language detection."""

import difflib
from collections.abc import Collection, Iterable, Sequence

from corpus_asr.errors import ConfigError
from corpus_asr.language_names import OWN_NAMES, code_of_name
from corpus_asr.units import LONG_SILENCE_S, WINDOW_S

# The order is that of the tokens after <|startoftranscript|>; large-v3 appended Cantonese.
# Source: openai/whisper, tokenizer.py, LANGUAGES and TO_LANGUAGE_CODE.
LANGUAGES = {
    "en": "english", "zh": "chinese", "de": "german", "es": "spanish", "ru": "russian",
    "ko": "korean", "fr": "french", "ja": "japanese", "pt": "portuguese", "tr": "turkish",
    "pl": "polish", "ca": "catalan", "nl": "dutch", "ar": "arabic", "sv": "swedish",
    "it": "italian", "id": "indonesian", "hi": "hindi", "fi": "finnish", "vi": "vietnamese",
    "he": "hebrew", "uk": "ukrainian", "el": "greek", "ms": "malay", "cs": "czech",
    "ro": "romanian", "da": "danish", "hu": "hungarian", "ta": "tamil", "no": "norwegian",
    "th": "thai", "ur": "urdu", "hr": "croatian", "bg": "bulgarian", "lt": "lithuanian",
    "la": "latin", "mi": "maori", "ml": "malayalam", "cy": "welsh", "sk": "slovak",
    "te": "telugu", "fa": "persian", "lv": "latvian", "bn": "bengali", "sr": "serbian",
    "az": "azerbaijani", "sl": "slovenian", "kn": "kannada", "et": "estonian", "mk": "macedonian",
    "br": "breton", "eu": "basque", "is": "icelandic", "hy": "armenian", "ne": "nepali",
    "mn": "mongolian", "bs": "bosnian", "kk": "kazakh", "sq": "albanian", "sw": "swahili",
    "gl": "galician", "mr": "marathi", "pa": "punjabi", "si": "sinhala", "km": "khmer",
    "sn": "shona", "yo": "yoruba", "so": "somali", "af": "afrikaans", "oc": "occitan",
    "ka": "georgian", "be": "belarusian", "tg": "tajik", "sd": "sindhi", "gu": "gujarati",
    "am": "amharic", "yi": "yiddish", "lo": "lao", "uz": "uzbek", "fo": "faroese",
    "ht": "haitian creole", "ps": "pashto", "tk": "turkmen", "nn": "nynorsk", "mt": "maltese",
    "sa": "sanskrit", "lb": "luxembourgish", "my": "myanmar", "bo": "tibetan", "tl": "tagalog",
    "mg": "malagasy", "as": "assamese", "tt": "tatar", "haw": "hawaiian", "ln": "lingala",
    "ha": "hausa", "ba": "bashkir", "jw": "javanese", "su": "sundanese", "yue": "cantonese",
}  # fmt: skip
"""Name of each language by its code."""

ALIASES = {
    "burmese": "my", "valencian": "ca", "flemish": "nl", "haitian": "ht", "letzeburgesch": "lb",
    "pushto": "ps", "panjabi": "pa", "moldavian": "ro", "moldovan": "ro", "sinhalese": "si",
    "castilian": "es", "mandarin": "zh",
}  # fmt: skip
"""Codes by alternative names of languages."""

CODES_BY_NAME = {name: code for code, name in LANGUAGES.items()} | ALIASES
"""Codes by every English name."""

_CODES_BY_OWN_NAME = {
    name.strip().lower(): code for code, names in OWN_NAMES.items() for name in names.split(",")
}


def code_of(text: str) -> str:
    """Return the code for `en`, `English`, `<|en|>`, `en-US` or `eng`; other texts unchanged."""
    name = _plain(text)
    return "auto" if name == "auto" else _known_code(name) or text


def resolve_language(text: str, *, known: Collection[str] = LANGUAGES.keys()) -> str:
    """Return the code, among `known` ones, for `en`, `English`, `<|en|>`, `en-US` or `eng`."""
    name = _plain(text)
    code = name if name in known else _known_code(name)
    if code is not None and code in known:
        return code
    if code is not None:
        raise ValueError(
            f"choosing the language {text!r}: {LANGUAGES[code]} ({code}) is not among the "
            f"{len(known)} languages to choose from; nearest: {_nearest(name, known)}"
        )
    raise ValueError(
        f"choosing the language {text!r}: no such language, expected a code such as 'en' or a name "
        f"such as 'english'; nearest: {_nearest(name, known)}"
    )


def check_known(wanted: Iterable[str], known: Collection[str]) -> None:
    """Raise an error for codes that a checkpoint does not support; `auto` is not a code."""
    unknown = [code for code in wanted if code != "auto" and code not in known]
    if not unknown:
        return
    names = CODES_BY_NAME | _CODES_BY_OWN_NAME
    near = difflib.get_close_matches(unknown[0].strip().lower(), names, n=1, cutoff=0.75)
    meant = names[near[0]] if near else None
    hint = f"did you mean {meant}? " if meant in known else ""
    raise ConfigError(
        f"decoding.language: this checkpoint does not know {', '.join(unknown)}; {hint}it knows "
        f"{', '.join(sorted(known))}"
    )


# One window may contain a jingle, an advertisement or a quotation; with three, the majority
# language is chosen.
_MOST_WINDOWS = 3
# In a short span the first window covers most of it.
_S_PER_WINDOW = 90.0


def language_window_starts(
    speech: Sequence[tuple[float, float]] | None, *, start_s: float, end_s: float
) -> list[float]:
    """Return up to three window starts in a span, the first where its decoding starts.

    All but the first window lie inside the span; none overlap. Features are cut and decoded there.
    """
    first_s = _next_speech(speech, start_s)
    starts = [start_s if first_s is None else first_s]
    count = min(_MOST_WINDOWS, 1 + int((end_s - starts[0]) // _S_PER_WINDOW))
    apart_s = (end_s - starts[0]) / count
    for number in range(1, count):
        wanted_s = max(starts[0] + number * apart_s, starts[-1] + WINDOW_S)
        found_s = _next_speech(speech, wanted_s)
        if found_s is None or found_s + WINDOW_S > end_s:
            break
        starts.append(found_s)
    return starts


def _next_speech(speech: Sequence[tuple[float, float]] | None, time_s: float) -> float | None:
    # A short silence is not skipped, as in the seek loop.
    if speech is None:
        return time_s
    for span_start_s, span_end_s in speech:
        if span_end_s > time_s:
            return time_s if span_start_s - time_s <= LONG_SILENCE_S else span_start_s
    return None


def _plain(text: str) -> str:
    return text.strip().lower().removeprefix("<|").removesuffix("|>")


def _known_code(name: str) -> str | None:
    if name in LANGUAGES:
        return name
    return CODES_BY_NAME[name] if name in CODES_BY_NAME else code_of_name(name)


def _nearest(name: str, known: Collection[str]) -> str:
    # A short word is a misspelled code, a long one a misspelled name.
    names = {language_name: code for language_name, code in CODES_BY_NAME.items() if code in known}
    candidates = list(known) if len(name) <= 3 else list(names)
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.0)
    if not near:
        return "none"
    code = names.get(near[0], near[0])
    return f"{code} ({LANGUAGES.get(code, 'unnamed')})"
