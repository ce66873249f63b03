"""Known texts in words, and parts that claim the same words of one."""

import pytest

from corpus_asr.segments import Segment, Word
from corpus_asr.transcription.anchors import folded
from corpus_asr.transcription.engine import PartTranscript, PlacedText
from corpus_asr.transcription.joined_text import (
    Claim,
    joined_parts,
    placed_once,
    text_columns,
    words_of_lengths,
)
from corpus_asr.transcription.known_text import TextWords
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import KnownText
from tests.support.spoken import REPOSITORY


def test_scripts_without_blanks_are_split_into_characters() -> None:
    packaged = REPOSITORY / "corpus_asr" / "pretrained" / "whisper-tiny.en"
    prompt_format = PromptFormat.from_folder(packaged)
    text = "今天\N{FULLWIDTH EXCLAMATION MARK}天气 “good” — x"
    words = TextWords.of(KnownText(text=text, name="a"), prompt_format)
    assert "".join(words.words).split() == text.split()
    assert [folded(word) for word in words.words] == ["今", "天", "天", "气", "good", "x"]
    assert not words.has_blanks
    assert all(prompt_format.text(tokens) == text for text, tokens in words.spelled)
    # Tables hold the lengths alone.
    assert words_of_lengths(text, [len(word) for word in words.words]) == list(words.words)
    with pytest.raises(ValueError, match="found lengths of 3 in all"):
        words_of_lengths(text, [1, 2])


# Parts as words with the probability of them all.
Said = tuple[list[int], float]


@pytest.mark.parametrize(
    ("parts", "kept"),
    [
        ([([0, 1, 2], 0.1), ([3, 4, 5], 0.9)], [[0, 1, 2], [3, 4, 5]]),
        # A refrain at the seam that both parts claim: the one that fits better has all of it.
        ([([0, 1, 5, 6, 7], 0.9), ([5, 6, 7, 8], 0.5)], [[0, 1, 5, 6, 7], [8]]),
        ([([0, 1, 5, 6, 7], 0.5), ([5, 6, 7, 8], 0.9)], [[0, 1], [5, 6, 7, 8]]),
        # The whole of a part, again, and a part that is out of place.
        ([([0, 1, 2], 0.3), ([0, 1, 2], 0.8), ([2, 3], 0.1)], [[], [0, 1, 2], [3]]),
        ([([0, 1], 0.9), ([6, 7], 0.9), ([2, 3, 4], 0.9)], [[0, 1], [], [2, 3, 4]]),
        ([([0, 1, 9], 0.2), ([2, 3, 4, 5], 0.2)], [[0, 1], [2, 3, 4, 5]]),
        ([([], 0.0), ([4], 0.0), ([4], 0.0)], [[], [], [4]]),
        ([], []),
    ],
)
def test_of_parts_with_the_same_words_the_one_that_fits_better_has_them(
    parts: list[Said], kept: list[list[int]]
) -> None:
    claims = [
        Claim(part=part, index=index, probability=probability)
        for part, (indices, probability) in enumerate(parts)
        for index in indices
    ]
    found = [claims[at] for at in placed_once(claims)]
    assert [
        [claim.index for claim in found if claim.part == part] for part in range(len(parts))
    ] == kept


def part(*indices: int, probability: float = 1.0) -> PartTranscript:
    words = tuple(
        Word(word=f" w{index}", start_s=float(index), end_s=index + 0.5, probability=probability)
        for index in indices
    )
    segment = Segment(
        start_s=words[0].start_s, end_s=words[-1].end_s, text="".join(w.word for w in words),
        tokens=(1, 2), language="en", language_probability=None, task="transcribe",
        confidence=1.0, avg_logprob=0.0, no_speech_prob=None, compression_ratio=1.0,
        temperature=0.0, speech_fraction=None, words=words,
    )  # fmt: skip
    text = tuple(f" w{number}" for number in range(8))
    return PartTranscript(segments=(segment,), placed=PlacedText(words=text, indices=(indices,)))


@pytest.mark.parametrize(
    ("parts", "kept", "not_said"),
    [
        ([(0, 1, 2), (3, 4, 5, 6, 7)], [0, 1, 2, 3, 4, 5, 6, 7], []),
        # Claimed twice, out of order, or by none.
        ([(0, 1, 2), (2, 3, 5)], [0, 1, 2, 3, 5], [4, 6, 7]),
        ([(0, 1), (6, 7), (2, 3, 4)], [0, 1, 2, 3, 4], [5, 6, 7]),
    ],
)
def test_of_words_that_two_parts_claim_each_is_kept_once(
    parts: list[tuple[int, ...]], kept: list[int], not_said: list[int]
) -> None:
    segments, missing = joined_parts([part(*each) for each in parts], text="", name="a")
    assert [int(w.word[2:]) for s in segments for w in s.words or ()] == kept
    assert [each.index for each in missing] == not_said
    assert "".join(s.text for s in segments) == "".join(f" w{index}" for index in kept)
    # Tokens are those of the words, or none.
    assert all(len(s.words or ()) in map(len, parts) or not s.tokens for s in segments)


def test_columns_say_which_words_a_part_has() -> None:
    assert text_columns([2, 3, 4], [(0, 1.0), (2, 2.0)]) == {
        "text_words": 3,
        "text_lengths": [2, 3, 4],
        "text_found": 2,
        "text_spans": [
            {"first": 0, "stop": 1, "end_s": 1.0},
            {"first": 2, "stop": 3, "end_s": 2.0},
        ],
    }
