"""Number words as digits, by text2num.

Source: text2num 3.1 (MIT License): a word alone stays up to three, of which `one of them` is made.
"""

import importlib
import re
from types import ModuleType

from corpus_asr.errors import ConfigError

LANGUAGES = frozenset({"da", "de", "en", "es", "fr", "it", "nl", "pt"})
"""Languages whose number words are known."""
_DIGIT = re.compile(r"\d")


def numbers_module() -> ModuleType:
    """Return the library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("text_to_num")
    except ImportError as error:
        raise ConfigError(
            "writing numbers as digits: found no text2num, expected it next to corpus-asr; install "
            "corpus-asr[numbers], or leave dataset.numbers out"
        ) from error


def with_digits(text: str, language: str | None) -> str:
    """Return a text whose number words are digits; of other languages as it is."""
    if language not in LANGUAGES:
        return text
    written: str = numbers_module().alpha2digit(text, language)
    # Where nothing became a number, spaces and signs stay as they are.
    return written if len(_DIGIT.findall(written)) > len(_DIGIT.findall(text)) else text
