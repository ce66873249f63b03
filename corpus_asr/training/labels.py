"""What the decoder is to write for a window: spoken utterances in, token ids out.

As Whisper trains (Radford et al. 2022, section 2.2 and figure 1): preceding text, which has no
loss, then start, language, task, and the text between timestamps or, after `<|notimestamps|>`,
alone; `<|nospeech|>` if there is none. Independent of samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from corpus_asr.errors import ConfigError
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.units import TIMESTAMP_STEP_S, WINDOW_S

_STEPS = round(WINDOW_S / TIMESTAMP_STEP_S)


@dataclass(frozen=True, slots=True)
class TimedText:
    """An utterance in its window."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """What the decoder reads, and from which token on it is asked for the next one."""

    ids: tuple[int, ...]
    """All tokens, the end token last."""
    loss_from: int
    """Index of the first token with a loss."""


class LabelWriter:
    """Writes the tokens of windows.

    Args:
        tokenizer: that of the trained checkpoint.
        max_tokens: the decoder's positions.
    """

    def __init__(self, tokenizer: WhisperTokenizer, *, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    @property
    def room(self) -> int:
        """Tokens that the text of a window may take, timestamps included."""
        # start, language, task, <|notimestamps|> or the time of what is cut off; the end token is
        # not read
        return self._max_tokens - 4

    def count(self, text: str) -> int | None:
        """Count the tokens of a text; None where it holds control tokens."""
        ids = self._text(text)
        return None if any(i >= self._tokenizer.eot for i in ids) else len(ids)

    def check(self, language: str | None, *, task: str) -> None:
        """Raise what `row` would raise for windows of a language.

        Raises:
            ConfigError: a language is missing, or the model does not know it.
        """
        self._prompt(language, task, timestamps=True)

    def row(
        self,
        texts: Sequence[TimedText],
        *,
        language: str | None,
        task: str,
        timestamps: bool,
        previous: str = "",
        begins_s: float | None = None,
    ) -> TokenRow:
        """Return the tokens of one window.

        Args:
            texts: in the order of time; empty, or only empty texts, without speech.
            language: its code; None only for a model of one language.
            task: `transcribe` or `translate`.
            timestamps: whether times are written.
            previous: preceding text; truncated at its start to the available positions.
            begins_s: when an utterance begins that the window cuts off. That time is all that is
                in the target, so that decoding continues there (Radford et al. 2022, section 2.3).

        Raises:
            ConfigError: a language is missing, or the model does not know it.
        """
        tokenizer = self._tokenizer
        spoken = [one for one in texts if one.text.strip()]
        if not spoken:
            return TokenRow(ids=(tokenizer.sot, tokenizer.no_speech, tokenizer.eot), loss_from=1)
        prompt = self._prompt(language, task, timestamps=timestamps)
        text = (
            self._timed(spoken)
            if timestamps
            else self._text(" ".join(o.text.strip() for o in spoken))
        )
        truncated = [] if begins_s is None else [max(self._time(begins_s), text[-1])]
        before = self._before(
            previous, room=self._max_tokens - len(prompt) - len(text) - len(truncated)
        )
        return TokenRow(
            ids=(*before, *prompt, *text, *truncated, tokenizer.eot),
            loss_from=len(before) + 1,
        )

    def _prompt(self, language: str | None, task: str, *, timestamps: bool) -> Sequence[int]:
        try:
            return self._tokenizer.prompt(language, task, timestamps)
        except ValueError as error:
            raise ConfigError(
                f"writing labels: {error}; give data.language, or `language` in the manifest"
            ) from error

    def _timed(self, texts: Sequence[TimedText]) -> list[int]:
        ids: list[int] = []
        earliest = 0
        for one in texts:
            start = min(max(round(one.start_s / TIMESTAMP_STEP_S), earliest), _STEPS)
            earliest = min(max(round(one.end_s / TIMESTAMP_STEP_S), start), _STEPS)
            begin = self._tokenizer.timestamp_begin
            ids += [begin + start, *self._text(one.text), begin + earliest]
        return ids

    def _time(self, second: float) -> int:
        return self._tokenizer.timestamp_begin + min(round(second / TIMESTAMP_STEP_S), _STEPS)

    def _before(self, previous: str, *, room: int) -> Sequence[int]:
        """Return the prompt of earlier text, at most half of the positions as in decoding."""
        room = min(room, self._max_tokens // 2) - 1
        ids = self._text(previous)[-room:] if previous and room > 0 else []
        return [self._tokenizer.start_of_prev, *ids] if ids else []

    def _text(self, text: str) -> tuple[int, ...]:
        stripped = text.strip()
        if not stripped:
            return ()
        return tuple(self._tokenizer.encode(" " + stripped, add_special_tokens=False))
