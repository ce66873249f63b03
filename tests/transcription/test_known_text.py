"""Known texts: their words, the parts that claim them, and their place in real speech."""

import random
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from corpus_asr import Transcriber
from corpus_asr.errors import AlignmentError, ConfigError
from corpus_asr.formats.transcript import Transcript
from corpus_asr.segments import PartTranscript, PlacedText, Segment, Word
from corpus_asr.transcription.anchors import find_pairs, folded
from corpus_asr.transcription.joined_text import (
    Claim,
    joined_parts,
    placed_once,
    words_of_lengths,
)
from corpus_asr.transcription.text_places import TextPlaces, TextPosition, TextWords
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import KnownText
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip
from tests.support.spoken import REPOSITORY, spoken

# Median and 90th percentile of start errors: docs/how-to/alignment.md has 0.10 s and 0.23 s.
MEDIAN_S, MOST_S = 0.16, 0.35


@pytest.fixture(scope="module")
def aligner() -> Iterator[Transcriber]:
    with Transcriber("whisper-tiny.en", temperature=0, num_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def inaugural() -> np.ndarray:
    return read_clip(spoken()["inaugural.flac"].path)


SPEECH = spoken()["inaugural.flac"].text


def words_of(transcript: Transcript) -> list[Word]:
    return [word for segment in transcript.segments for word in segment.words or ()]


def missing(transcript: Transcript) -> list[str]:
    return [each.word.strip() for each in transcript.missing or ()]


def align(model: Transcriber, audio: np.ndarray, text: str) -> Transcript:
    return model.align(audio, text, sampling_rate=SAMPLE_RATE_HZ)


@pytest.mark.slow
def test_a_long_recording_is_aligned_over_windows_and_parts(aligner: Transcriber) -> None:
    recording = spoken()["newgate.mp3"]
    transcript = aligner.align(recording.path, recording.text, part_s=60.0)
    words = words_of(transcript)
    # Numbers, which are recognized as figures, may be lost where parts meet.
    assert len(transcript.missing or ()) <= 5
    assert len(words) + len(transcript.missing or ()) == len(recording.text.split())
    starts_s = [word.start_s for word in words]
    assert starts_s == sorted(starts_s)
    assert all(word.start_s <= word.end_s for word in words)
    reference = [(folded(each["word"]), each["start_s"]) for each in recording.words]
    found = {(folded(w.word), round(w.start_s)): w.start_s for w in words}
    errors_s = [
        min(abs(found[key] - start_s) for key in keys)
        for word, start_s in reference
        if (keys := [(word, at) for at in (int(start_s), int(start_s) + 1) if (word, at) in found])
    ]
    assert len(errors_s) > 0.85 * len(words)
    assert np.median(errors_s) < MEDIAN_S
    assert np.quantile(errors_s, 0.9) < MOST_S
    # A segment is a sentence, of any length.
    assert transcript.segments[1].text == " By Arthur Griffiths."


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "not_said"),
    [
        pytest.param(SPEECH, [], marks=pytest.mark.slow),
        (f"Chapter nineteen of geography. {SPEECH}", ["Chapter", "nineteen", "of", "geography."]),
        pytest.param(f"{SPEECH} Thus spoke Zarathustra yesterday.",
                     ["Thus", "spoke", "Zarathustra", "yesterday."], marks=pytest.mark.slow),
        (SPEECH.replace("what your", "what exquisite hippopotamus your"),
         ["exquisite", "hippopotamus"]),
        # Words that are said and not in the text take no time from others.
        ("ask what you can do for your country", []),
        pytest.param(SPEECH.upper().replace("-", " "), [], marks=pytest.mark.slow),
        pytest.param(f"« {SPEECH.replace(' ', chr(10))} » ☃ 🎉 ...", [], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_words_that_are_not_said_are_reported(
    text: str, not_said: list[str], aligner: Transcriber, inaugural: np.ndarray
) -> None:
    transcript = align(aligner, inaugural, text)
    assert missing(transcript) == not_said
    said = "".join(segment.text for segment in transcript.segments)
    assert [folded(word) for word in said.split() if folded(word)] == [
        folded(word) for word in text.split() if folded(word) and word not in not_said
    ]
    last_s = words_of(transcript)[-1].end_s
    assert abs(last_s - 10.5) < 0.5, "the country is the last word in each"


NEWGATE = spoken()["newgate.mp3"]
READ = [sentence for sentence in NEWGATE.sentences if 8 < sentence.start_s < 27]
READ_WORDS = " ".join(sentence.text for sentence in READ).split()


@pytest.fixture(scope="module")
def read_aloud() -> np.ndarray:
    edges_s = READ[0].start_s - 0.2, READ[-1].end_s + 0.2
    first, stop = (round(edge_s * SAMPLE_RATE_HZ) for edge_s in edges_s)
    return read_clip(NEWGATE.path)[first:stop]


@pytest.fixture(scope="module")
def whole(aligner: Transcriber, read_aloud: np.ndarray) -> list[Word]:
    return words_of(align(aligner, read_aloud, " ".join(READ_WORDS)))


@pytest.mark.long
@pytest.mark.parametrize(
    "gone",
    [
        [0, 1], [8], [18, 19, 20, 21, 22], [*range(43, 51)],
        pytest.param([3, 9, 10, 11, 24, 25, 36], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_words_outside_of_the_text_take_no_time_from_others(
    gone: list[int], aligner: Transcriber, read_aloud: np.ndarray, whole: list[Word]
) -> None:
    indices = [at for at in range(len(READ_WORDS)) if at not in gone]
    text = " ".join(READ_WORDS[at] for at in indices)
    transcript = align(aligner, read_aloud, text)
    assert transcript.missing == ()
    # Of 54 words, three are recognized as two, or two as one.
    assert abs((transcript.extra_words or 0) - len(gone)) <= 2
    for at, word in zip(indices, words_of(transcript), strict=True):
        assert abs(word.start_s - whole[at].start_s) < MOST_S, word
        assert word.end_s > word.start_s, word


@pytest.mark.long
def test_speech_goes_on_behind_a_last_word_that_is_recognized_otherwise(
    aligner: Transcriber, read_aloud: np.ndarray, whole: list[Word]
) -> None:
    more = read_clip(NEWGATE.path)[: 35 * SAMPLE_RATE_HZ]
    # A word like it is said far behind.
    text = " ".join([*READ_WORDS[:-1], "chapters."])
    words = words_of(align(aligner, np.concatenate([read_aloud, more]), text))
    pairs = list(zip(words, whole[:-1], strict=False))
    assert len(pairs) == len(READ_WORDS) - 1
    for word, right in pairs:
        assert word.word == right.word
        assert abs(word.start_s - right.start_s) < MOST_S, word


def test_an_unexpected_error_is_that_of_one_recording(
    aligner: Transcriber, inaugural: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = TextPlaces.find

    def break_down(places: TextPlaces, said: Sequence[Word]) -> list[TextPosition]:
        if "zebra" in places._known.text:
            raise IndexError("list index out of range")
        return find(places, said)

    monkeypatch.setattr(TextPlaces, "find", break_down)
    pairs = [(inaugural, SPEECH), (inaugural, f"{SPEECH} zebra"), (inaugural, SPEECH)]
    failed: list[tuple[str, type[Exception]]] = []
    aligned = aligner.align_many(
        pairs,
        sampling_rate=SAMPLE_RATE_HZ,
        on_error=lambda name, error: failed.append((name, type(error))),
    )
    assert sorted(str(transcript.uri) for transcript in aligned) == ["input-0", "input-2"]
    assert failed == [("input-1", IndexError)]


PLAIN = "In these cases security was given"
SIGNED = (
    "In these cases « security » was given", "In these cases «security» was given",
    "In these cases » security « was given", "In these cases „ security “ was given",
    "In these cases „security“ was given", "In these cases ” security ” was given",
    'In these cases " security " was given', 'In these cases "security" was given',
    "In these cases \u2018security\u2019 was given", "In these cases 'security' was given",
    "In these cases \u2039 security \u203a was given", "In these cases 「 security 」 was given",
    "In these cases 『security』 was given", "In these cases ( security ) was given",
    "In these cases [security] was given", "In these cases { security } was given",
    "In these cases security — was given", "In these cases security - was given",
    "In these cases security\u2013 was given", "— In these cases security was given",
    "- In these cases 🙂 security ♪ was given …", "In these cases , security ; was given .",
    "¿ In these cases security was given ?", "• In these cases security * was given",
)  # fmt: skip


def test_signs_that_nobody_says_are_not_read() -> None:
    packaged = REPOSITORY / "corpus_asr" / "pretrained" / "whisper-tiny.en"
    prompt_format = PromptFormat.from_folder(packaged)
    plain = TextWords.of(KnownText(text=PLAIN, name="a"), prompt_format)
    for text in SIGNED:
        signed = TextWords.of(KnownText(text=text, name="a"), prompt_format)
        assert signed.spelled == plain.spelled, text
        assert "".join(signed.words).strip() == text
        # Opening signs stand before the word behind them, others behind the word before them.
        assert signed.words[2].split()[0] == "cases", text
        assert not re.search(r"[«„「(\[{]$", signed.words[2]), text


@pytest.mark.long
def test_numbers_that_are_recognized_as_figures_are_found(aligner: Transcriber) -> None:
    recording = spoken()["newgate.mp3"]
    text = "After that they fell as steadily, till, eighteen oh eight, the lowest point was"
    at = next(each for each in recording.sentences if "eighteen oh eight" in each.text)
    audio = read_clip(recording.path)
    cut = audio[round(at.start_s * SAMPLE_RATE_HZ) : round(at.end_s * SAMPLE_RATE_HZ)]
    transcript = align(aligner, cut, text)
    assert "eighteen" not in missing(transcript)
    assert "eight," not in missing(transcript)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", "no_text", "found '', expected words"),
        (" ... -- ☃ ", "no_text", "expected words with letters"),
        ("before <|endoftext|> after", "no_text", "special token"),
        (spoken()["newgate.mp3"].text, "text_not_found", r"found 0 of its 266 words \(0%\)"),
    ],
)
def test_texts_that_cannot_be_aligned_say_why(
    text: str, kind: str, message: str, aligner: Transcriber, inaugural: np.ndarray
) -> None:
    with pytest.raises(AlignmentError, match=message) as raised:
        align(aligner, inaugural, text)
    assert raised.value.kind == kind


def test_one_text_is_of_all_channels(aligner: Transcriber, inaugural: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="channels: each"):
        aligner.align(inaugural, SPEECH, sampling_rate=SAMPLE_RATE_HZ, channels="each")


def test_scripts_without_blanks_are_split_into_characters() -> None:
    packaged = REPOSITORY / "corpus_asr" / "pretrained" / "whisper-tiny.en"
    prompt_format = PromptFormat.from_folder(packaged)
    text = "今天\N{FULLWIDTH EXCLAMATION MARK}天气 “good” — x"
    words = TextWords.of(KnownText(text=text, name="a"), prompt_format)
    assert "".join(words.words).split() == text.split()
    assert [folded(word) for word in words.words] == ["今", "天", "天", "气", "good", "x"]
    assert not words.has_blanks
    # Quotation marks and dashes are written, and not read.
    assert [text for text, _ in words.spelled] == [
        " 今", "天\N{FULLWIDTH EXCLAMATION MARK}", "天", "气", " good", " x",
    ]  # fmt: skip
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


SENTENCE = (
    "the quick brown fox jumps over the lazy dog and then it went home to sleep under a large "
    "tree beside the river where nobody ever came before noon"
)
TEXT = SENTENCE.split()


def anchored(said: str, text: list[str] = TEXT) -> list[tuple[int, int]]:
    return [(pair.said, pair.given) for pair in find_pairs(said.split(), text) if pair.is_anchor]


@pytest.mark.parametrize(
    ("said", "given"),
    [
        (" ".join(TEXT), list(range(len(TEXT)))),
        ("Went home, to sleep under a LARGE tree!", list(range(12, 20))),
        # One word more, one less, one other: the words around them stay where they are.
        ("quick brown fox well jumps over lazy dog and when it went home",
         [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13]),
        # A page that is not read is skipped, whatever its length.
        ("the quick brown fox jumps over the lazy dog beside the river where nobody ever came "
         "before noon",
         [*range(9), *range(20, 29)]),
    ],
)  # fmt: skip
def test_words_are_found_in_order(said: str, given: list[int]) -> None:
    assert [index for _, index in anchored(said)] == given


def test_an_excerpt_is_found_in_one_piece_to_its_ends() -> None:
    said = "and so my fellow americans ask not what your country can do for you ask what you can do"
    # Its words are also said over a longer span, in order: where they stand side by side, they are.
    excerpt = ["what", "your", "country", "can", "do"]
    assert anchored(f"{said} for your country", excerpt) == [(7 + at, at) for at in range(5)]
    # What is said beyond it is not held against its last words.
    assert anchored(said, said.split()[:5]) == [(at, at) for at in range(5)]


@pytest.mark.parametrize("said", ["", "!", "a", "unlike anything a person over there said"])
def test_few_words_in_common_mark_no_place(said: str) -> None:
    assert len(anchored(said)) <= 1


def test_words_that_resemble_each_other_stand_for_each_other() -> None:
    pairs = find_pairs(
        ["the", "quik", "brown", "fox", "jumped", "over", "the", "lazy", "dog"], TEXT
    )
    assert [(p.said, p.given) for p in pairs if not p.is_anchor] == [(1, 1), (4, 4)]


def test_the_place_decides_between_two_that_fit() -> None:
    twice = TEXT + TEXT
    said = ["beside", "the", "river", "where", "nobody", "ever", "came"]
    for place, first in (((0.0, 0.3), 20), ((0.7, 1.0), 20 + len(TEXT))):
        assert find_pairs(said, twice, place=place)[0].given == first


def test_a_long_text_is_searched_with_every_fifth_word_wrong() -> None:
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(3, 8))) for _ in range(500)]
    text = [draw.choice(words) for _ in range(4000)]
    # Longer than the rows that are kept at once, so that the way back is made again in blocks.
    said = [word if draw.random() > 0.2 else draw.choice(words) for word in text[1500:1800]]
    pairs = [pair for pair in find_pairs(said, text) if pair.is_anchor]
    right = [pair for pair in pairs if pair.given == 1500 + pair.said]
    assert len(right) > 200
    # A wrong word may be one of its neighbors by chance.
    assert len(pairs) - len(right) <= 3


def test_words_are_compared_without_case_accents_and_marks() -> None:
    assert folded(" “Élan-Vital,” ") == "elanvital"
