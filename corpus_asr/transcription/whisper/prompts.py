"""What a window is shown before it speaks: earlier text, names to expect, its own beginning.

In: the settings, and what was said so far. Out: each window's prompt. Knows nothing of audio.
"""

from collections.abc import Iterable

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.transcription.whisper.dialect import Dialect

# Above this temperature the text is too uncertain to prompt the next window with.
_MAX_TEMPERATURE = 0.5


class Prompts:
    """The prompts of windows that follow one another.

    Args:
        dialect: of the checkpoint.
        settings: `initial_prompt` counts as said before the first window, and is forgotten as text
            is; `hotwords` stand before every window; `prefix` begins the first one.
        at_beginning: whether the first window is the recording's, which alone has the prefix.

    Source: openai-whisper `transcribe` for `initial_prompt` and the layout of the prefix, which is
    not said again in the text; faster-whisper for `hotwords`, which give way to a prefix, and for
    the prefix of the first window alone.
    """

    def __init__(self, dialect: Dialect, settings: DecodingSettings, *, at_beginning: bool) -> None:
        self._dialect = dialect
        self._task = settings.task
        self._conditioned = settings.condition_on_prev_tokens
        self._previous = list(_encoded(dialect, settings.initial_prompt))
        self._hotwords = _encoded(dialect, settings.hotwords)
        self._prefix = _encoded(dialect, settings.prefix) if at_beginning else ()

    def take(self, language: str | None) -> tuple[tuple[int, ...], int]:
        """Return the next window's prompt and the position of its start token."""
        prefix, self._prefix = self._prefix, ()
        return self._dialect.prompt(
            language,
            self._task,
            self._previous,
            hotwords=() if prefix else self._hotwords,
            prefix=prefix,
        )

    def remember(self, tokens: Iterable[int], *, temperature: float) -> None:
        """Note what a window said, timestamps included, and at which temperature."""
        self._previous.extend(tokens)
        if not self._conditioned or temperature > _MAX_TEMPERATURE:
            self._previous.clear()


def _encoded(dialect: Dialect, text: str | None) -> tuple[int, ...]:
    return () if text is None else dialect.encode(text)
