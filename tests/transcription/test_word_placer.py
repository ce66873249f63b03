"""Words that a CTC checkpoint places: where its scores say them, within pauses of the segments."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.errors import AlignmentError, ConfigError
from corpus_asr.segments import PartTranscript, Segment, SpeechSpan, Word
from corpus_asr.transcription.text_places import words_of
from corpus_asr.transcription.windows import KnownText, PartRequest
from corpus_asr.transcription.word_placer import WordPlacer
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.planted import KIND, SURE, PlantedAligner, Said, plant
from tests.support.tables import segment

WORDS = DecodingSettings(word_timestamps=True)
# A position of 80 ms: where tokens share a word's time they begin at whole ones.
STEP_S = 0.08
START_S = 100.0


def part_of(said: Sequence[Said], duration_s: float, **fields: Any) -> PartRequest:
    usual: dict[str, Any] = {
        "recording_id": "r", "part": 1, "features": np.zeros((1, 80), np.float16),
        "num_samples": round(duration_s * SAMPLE_RATE_HZ), "pad_value": 0.0, "start_s": START_S,
        "speech": (SpeechSpan(start_s=START_S, end_s=START_S + duration_s),),
        "further": {KIND: plant(said, duration_s)},
    }  # fmt: skip
    return PartRequest(**usual | fields)


def says(*texts: tuple[str, float, float], **fields: Any) -> PartTranscript:
    segments = [
        segment(text=text, start_s=START_S + start_s, end_s=START_S + end_s)
        for text, start_s, end_s in texts
    ]
    return PartTranscript(segments=tuple(segments), **fields)


def words(segments: Sequence[Segment]) -> list[Word]:
    return [word for one in segments for word in one.words or ()]


def assert_said(found: Sequence[Word], said: Sequence[Said]) -> None:
    assert [word.word for word in found] == [word for word, *_ in said]
    for word, (_, start_s, end_s) in zip(found, said, strict=True):
        assert word.start_s - START_S == pytest.approx(start_s, abs=STEP_S), word
        assert word.end_s - START_S == pytest.approx(end_s, abs=STEP_S), word
        assert word.probability == pytest.approx(SURE, rel=1e-3)


SAID: list[Said] = [
    (" staka", 1.0, 1.6), (" noba,", 1.6, 2.4), (" volo.", 3.2, 4.0),
    (" kafi", 24.0, 24.8), (" staka!", 25.6, 26.4), (" noba", 29.6, 30.4),
]  # fmt: skip


def test_words_are_placed_where_the_checkpoint_says_them() -> None:
    aligner = PlantedAligner()
    # Times that are off by up to a second, and none of words.
    recognized = says(
        (" staka noba, volo.", 0.5, 3.4), (" kafi staka!", 24.7, 25.8), (" noba", 29.0, 31.0),
        language="en",
    )  # fmt: skip
    found = WordPlacer(aligner).place(part_of(SAID, 40.0), recognized, WORDS)
    assert_said(words(found.segments), SAID)
    assert [one.text for one in found.segments] == [one.text for one in recognized.segments]
    for one in found.segments:
        assert one.words
        assert (one.start_s, one.end_s) == (one.words[0].start_s, one.words[-1].end_s)
    assert found.language == "en"
    # 20 s of silence are not scored, but for 2 s on both sides of what is said; and at the edges.
    assert [rows / 100 for rows in aligner.rows] == pytest.approx([5.4, 10.3], abs=0.05)


def test_words_stay_between_the_pauses_around_their_segment() -> None:
    """The same word is said twice; each segment has its own."""
    said: list[Said] = [(" staka", 2.0, 2.8), (" staka", 6.0, 6.8), (" staka", 10.0, 10.8)]
    recognized = says((" staka", 2.2, 2.9), (" staka", 9.8, 10.6))
    found = WordPlacer(PlantedAligner()).place(part_of(said, 20.0), recognized, WORDS)
    assert_said(words(found.segments), [said[0], said[2]])


def test_words_stay_in_their_clip() -> None:
    """The same word is said just before a clip, and after it, which the clip does not say."""
    said: list[Said] = [(" staka", 2.0, 2.8), (" staka", 6.0, 6.8)]
    settings = replace(WORDS, clip_timestamps=(START_S + 4.0, START_S + 5.5))
    recognized = says((" staka", 4.0, 5.0))
    found = WordPlacer(PlantedAligner()).place(part_of(said, 20.0), recognized, settings)
    (word,) = words(found.segments)
    assert 4.0 <= word.start_s - START_S < word.end_s - START_S <= 5.5


def test_what_cannot_be_placed_is_spread_over_its_time() -> None:
    recognized = says(
        (" staka", 0.8, 1.8), (" 中文 1984", 4.0, 8.0),
        (" kafi staka noba volo" * 30, 12.0, 12.5), (" noba", 17.0, 18.0),
    )  # fmt: skip
    said: list[Said] = [(" staka", 1.0, 1.6), (" noba", 17.6, 18.4)]
    found = WordPlacer(PlantedAligner()).place(part_of(said, 20.0), recognized, WORDS)
    first, foreign, crowded, last = found.segments
    assert_said([*(first.words or ()), *(last.words or ())], said)
    assert foreign.words
    assert [word.word for word in foreign.words] == [" 中", "文", " 1984"]
    assert {word.probability for word in (*foreign.words, *(crowded.words or ()))} == {0.0}
    assert [word.start_s - START_S for word in foreign.words] == pytest.approx(
        [4.0, 4.67, 5.33], abs=0.01
    )
    assert [(one.start_s, one.end_s) for one in (foreign, crowded)] == [
        (one.start_s, one.end_s) for one in recognized.segments[1:3]
    ]


def test_the_model_is_given_no_words_to_time() -> None:
    placer = WordPlacer(PlantedAligner())
    heard: list[tuple[float, int]] = []
    known = KnownText(text="staka", name="a", clip=(3.0, 9.0))
    part = part_of(
        SAID, 40.0, known_text=known, listener=lambda at_s, some: heard.append((at_s, len(some)))
    )
    given, settings = placer.given(part, DecodingSettings(align=True, word_timestamps=True))
    assert (settings.align, settings.word_timestamps) == (False, False)
    assert settings.clip_timestamps == (3.0, 9.0)
    assert given.known_text is None
    assert given.listener is not None
    given.listener(1.0, says((" staka", 0.0, 1.0)).segments)
    assert heard == [(1.0, 0)]
    mute, settings = placer.given(part_of(SAID, 40.0, detect_only=True), WORDS)
    assert mute.detect_only
    kept = DecodingSettings(word_timestamps=True, hallucination_silence_threshold=2.0)
    assert placer.settings_given(kept).word_timestamps  # it finds invented text by these


@pytest.mark.parametrize("changes", [{"task": "translate"}, {"target_language": "fr"}])
def test_words_of_translations_are_refused(changes: dict[str, Any]) -> None:
    placer = WordPlacer(PlantedAligner())
    with pytest.raises(ConfigError, match=r"align.model: found decoding\.\w+ \w+, expected none"):
        placer.check(DecodingSettings(word_timestamps=True, **changes))
    placer.check(DecodingSettings(**changes))


def known(text: str, **fields: Any) -> KnownText:
    return KnownText(text=text, name="talk.mp3", **fields)


# Words enough that they are anchors among others.
READ: list[Said] = [
    (f" {word}", 1.0 + at, 1.8 + at)
    for at, word in enumerate(
        ["staka", "noba", "volo", "kafi", "noba", "staka", "kafi", "volo", "staka", "volo"]
    )
]
TEXT = "".join(word for word, *_ in READ)


def placed(
    text: str, recognized: str, said: Sequence[Said] = READ, **fields: Any
) -> PartTranscript:
    part = part_of(said, 14.0, known_text=known(text, **fields))
    return WordPlacer(PlantedAligner()).place(part, says((recognized, 0.5, 11.5)), WORDS)


def test_a_known_text_is_placed_with_its_own_words() -> None:
    # One word was recognized wrongly, and another not at all.
    found = placed(
        TEXT.replace(" kafi noba", " Kafi, noba", 1), TEXT.replace("volo kafi", "volf", 1)
    )
    assert_said(words(found.segments), [*READ[:3], (" Kafi,", 4.0, 4.8), *READ[4:]])
    assert found.placed is not None
    assert [index for some in found.placed.indices for index in some] == list(range(10))


def test_words_that_nobody_says_are_missing() -> None:
    given = TEXT.replace(" noba staka", " noba kafi kafi staka")
    found = placed(given, TEXT)
    assert_said(words(found.segments), READ)
    assert found.placed is not None
    assert len(found.placed.words) == 12
    assert [index for some in found.placed.indices for index in some] == [
        *range(5), *range(7, 12)
    ]  # fmt: skip


def test_a_text_of_something_else_is_refused() -> None:
    with pytest.raises(AlignmentError, match=r"talk.mp3: found 0 of its 4 words"):
        placed("Dreba gulo fespi hobu", TEXT)
    with pytest.raises(AlignmentError, match="found no letter of the align"):
        placed("中文 1984", TEXT)
    with pytest.raises(AlignmentError, match="expected words with letters or digits"):
        placed("...", TEXT)


def test_a_part_of_several_says_its_span_of_the_text() -> None:
    text = "dreba gulo fespi" + TEXT + " hobu dreba"
    found = placed(text, TEXT, is_first=False, is_last=False)
    assert_said(words(found.segments), READ)
    assert found.placed is not None
    assert found.placed.indices[0][0] == 3


def test_texts_are_split_at_blanks_and_blankless_scripts_at_characters() -> None:
    assert words_of(' "So — it is," she said ...') == [
        ' "So —',
        " it",
        ' is,"',
        " she",
        " said ...",
    ]
    assert words_of("今天,好。OK 吗") == ["今", "天,", "好。", "O", "K", " 吗"]
    assert words_of(" ♪ ♪") == [" ♪ ♪"]
    assert words_of("- (hm)") == ["- (hm)"]
    assert words_of(" ") == []
