"""A known text in the words that are looked for one by one, each with the tokens that spell it."""

from collections.abc import Iterator
from dataclasses import dataclass

from corpus_asr.errors import AlignmentError
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import KnownText
from corpus_asr.transcription.words import BEFORE_A_WORD, Spelled, split_characters


@dataclass(frozen=True, slots=True)
class TextWords:
    """A text in words that can be found one by one: each has a letter or digit, and its tokens."""

    spelled: tuple[Spelled, ...]
    has_blanks: bool
    """Between its words; false if any of it is of a script without."""

    @property
    def words(self) -> tuple[str, ...]:
        """With their blanks and marks; joined, they are the text."""
        return tuple(text for text, _ in self.spelled)

    @classmethod
    def of(cls, known: KnownText, prompt_format: PromptFormat) -> "TextWords":
        """Split a text at blanks; where a script has none, by the characters that tokens spell.

        Marks that stand alone belong to the word before them, opening ones to that after.

        Raises:
            AlignmentError: it has no letter or digit, or control tokens in it.
        """
        pieces: list[Spelled] = []
        spelled: dict[str, list[Spelled]] = {}
        for chunk in known.text.split():
            if chunk not in spelled:
                try:
                    spelled[chunk] = list(_pieces(chunk, prompt_format))
                except ValueError as error:
                    raise AlignmentError(
                        f"aligning the text of {known.name}: {error}", kind="no_text"
                    ) from error
            pieces += spelled[chunk]
        words: list[Spelled] = []
        opening: Spelled = ("", ())
        for piece in pieces:
            if any(letter.isalnum() for letter in piece[0]):
                words.append(_joined(opening, piece))
                opening = ("", ())
            elif not words or opening[0] or piece[0].strip() in BEFORE_A_WORD:
                opening = _joined(opening, piece)
            else:
                words[-1] = _joined(words[-1], piece)
        if not words:
            raise AlignmentError(
                f"aligning the text of {known.name}: found {known.text.strip()[:60]!r}, expected "
                "words with letters or digits; give what is said in the recording",
                kind="no_text",
            )
        words[-1] = _joined(words[-1], opening)
        return cls(tuple(words), not any(map(_without_blanks, known.text)))


def _pieces(chunk: str, prompt_format: PromptFormat) -> Iterator[Spelled]:
    tokens = prompt_format.encode(chunk)
    if any(_without_blanks(letter) for letter in chunk):
        yield from split_characters(tokens, prompt_format.text)
    else:
        yield f" {chunk}", tokens


# Scripts written without blanks: Thai and Lao, Burmese, Khmer, kana and Chinese characters.
_RANGES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF),
    (0x20000, 0x3FFFF),
)  # fmt: skip


def _without_blanks(letter: str) -> bool:
    return any(first <= ord(letter) <= last for first, last in _RANGES)


def _joined(first: Spelled, second: Spelled) -> Spelled:
    return first[0] + second[0], first[1] + second[1]
