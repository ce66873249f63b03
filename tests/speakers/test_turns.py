"""From windows to turns, and from turns to segments and words."""

import json
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.audio.parts import PartCutter
from corpus_asr.audio.vad import DEFAULT_CRITERIA, SileroDetector
from corpus_asr.config.extraction import PACKAGED_ENCODER, PACKAGED_SEGMENTATION, SpeakerSettings
from corpus_asr.report.scoring import SpokenSpan, turn_errors
from corpus_asr.segments import Segment, SpeakerTurn, Word
from corpus_asr.speakers.turns import (
    Diarization,
    SpeechWindows,
    Timeline,
    diarize,
    diarize_parts,
    turns_of,
    with_overlaps,
    with_speakers,
)
from corpus_asr.stages.measures import Voices
from tests.support.audio import read_clip

SPOKEN = Path(__file__).resolve().parents[1] / "data" / "spoken"


def windows(*times: tuple[float, float]) -> SpeechWindows:
    at = np.array(times, dtype=np.float64).reshape(-1, 2)
    embeddings = np.ones((len(at), 1), dtype=np.float16)
    return SpeechWindows(start_s=at[:, 0], end_s=at[:, 1], embeddings=embeddings)


@pytest.mark.parametrize(
    ("times", "labels", "expected"),
    [
        ([], [], []),
        ([(1.0, 2.0)], [0], [(1.0, 2.0, "0")]),
        # One span, one speaker; another span is another turn.
        (
            [(0.0, 1.2), (1.2, 2.35), (3.0, 4.0)],
            [0, 0, 0],
            [(0.0, 2.35, "0"), (3.0, 4.0, "0")],
        ),
        ([(0.0, 1.2), (1.2, 2.35)], [0, 1], [(0.0, 1.2, "0"), (1.2, 2.35, "1")]),
    ],
)
def test_turns_of_labelled_windows(times, labels, expected):
    found = turns_of(windows(*times), np.array(labels, np.int64), np.full(len(labels), 0.5))
    assert [turn.speaker for turn in found] == [speaker for *_, speaker in expected]
    at_s = [(turn.start_s, turn.end_s) for turn in found]
    assert np.allclose(at_s, [(start, end) for start, end, _ in expected])
    assert all(turn.confidence == 0.5 for turn in found)


def turn(start_s: float, end_s: float, speaker: str) -> SpeakerTurn:
    return SpeakerTurn(start_s=start_s, end_s=end_s, speaker=speaker, confidence=1.0)


@pytest.mark.parametrize(
    ("overlaps", "expected"),
    [
        ([], [(0, 10, "A"), (10, 20, "B"), (30, 40, "C")]),
        # Around a change of speaker both turns grow.
        ([(9, 11)], [(0, 11, "A"), (9, 20, "B"), (30, 40, "C")]),
        # Within a turn, nearer to one of the others; too far from any; near one alone.
        ([(19, 19.5)], [(0, 10, "A"), (10, 20, "B"), (30, 40, "C")]),
        ([(11, 11.5)], [(0, 10, "A"), (10, 20, "B"), (11, 11.5, "A"), (30, 40, "C")]),
        (
            [(5, 6), (22, 29)],
            [(0, 10, "A"), (10, 20, "B"), (22, 29, "C"), (30, 40, "C")],
        ),
        ([(8, 9), (8.5, 10)], [(0, 10, "A"), (8, 20, "B"), (30, 40, "C")]),
    ],
)
def test_the_second_of_two_at_once_is_who_speaks_next_to_it(overlaps, expected):
    turns = [turn(0.0, 10.0, "A"), turn(10.0, 20.0, "B"), turn(30.0, 40.0, "C")]
    found = with_overlaps(turns, overlaps)
    assert [(each.start_s, each.end_s, each.speaker) for each in found] == expected


def test_a_word_has_one_speaker_where_two_have_turns():
    # B says a little within what A says, and C speaks as A ends.
    turns = [turn(0.0, 6.2, "A"), turn(2.0, 2.7, "B"), turn(5.9, 9.0, "C")]
    (named, *_), *_ = (with_speakers([segment("a b c d e f g h")], turns),)
    timeline = Timeline(turns)
    assert [timeline.speaker(at, at + 0.8) for at in (0.0, 2.0, 3.0, 5.0, 6.0)] == [*"AAAAC"]
    assert named.speaker == "A"


def test_words_of_an_overlap_go_to_who_says_their_sentence():
    # A speaks until 10.4 s, B from 7.9 s on.
    turns = [turn(0.0, 10.4, "A"), turn(7.9, 17.0, "B")]

    def said(text, start_s):
        pieces = with_speakers([segment(text, start_s=start_s)], turns)
        return [(piece.speaker, piece.text.strip()) for piece in pieces]

    assert said("b b b b", 8.0) == [("B", "b b b b")]
    assert said("a a a a a", 4.5) == [("A", "a a a a a")]
    # One sentence of each, and two of which both voices speak all the time.
    assert said("a a a. b b b", 5.0) == [("A", "a a a."), ("B", "b b b")]
    assert said("b b.", 8.0) == [("B", "b b.")]
    assert said("a.", 9.5) == [("A", "a.")]


def test_what_is_said_within_another_s_sentence_stays_there():
    turns = [turn(0.0, 6.0, "A"), turn(1.9, 2.9, "B")]
    (piece,) = with_speakers([segment("a a a a a a")], turns)
    assert piece.speaker == "A"


def test_a_lone_full_stop_is_said_by_who_spoke_before():
    turns = [turn(0.0, 1.9, "A"), turn(1.9, 4.0, "B")]
    (piece,) = with_speakers([segment("a a .")], turns)
    assert piece.speaker == "A"


def segment(text: str, *, start_s: float = 0.0, word_s: float | None = 1.0) -> Segment:
    """A word a second, or without words; `_` is a pause of a word's length."""
    words, at_s = [], start_s
    for each in text.split():
        if each != "_" and word_s is not None:
            end_s = at_s + 0.8 * word_s
            words.append(Word(word=f" {each}", start_s=at_s, end_s=end_s, probability=1.0))
        at_s += word_s or 1.0
    return Segment(
        start_s=start_s,
        end_s=at_s,
        text="".join(f" {each}" for each in text.split() if each != "_"),
        tokens=(1, 2, 3),
        language="en",
        language_probability=None,
        task="transcribe",
        confidence=0.9,
        avg_logprob=-0.1,
        no_speech_prob=None,
        compression_ratio=1.0,
        temperature=0.0,
        speech_fraction=None,
        words=tuple(words) or None,
    )


@pytest.mark.parametrize(
    ("text", "turns", "expected"),
    [
        ("a b c d", [turn(0, 4, "S1")], [("S1", " a b c d")]),
        (
            "a b c d",
            [turn(0, 2, "S1"), turn(2, 4, "S2")],
            [("S1", " a b"), ("S2", " c d")],
        ),
        # The change was placed half a word early: a sentence ends there.
        ("a b. c d", [turn(0, 0.9, "S1"), turn(0.9, 4, "S2")], [("S1", " a b."), ("S2", " c d")]),
        # Beyond reach: what was found stays.
        ("a b c d. e", [turn(0, 1, "S1"), turn(1, 5, "S2")], [("S1", " a"), ("S2", " b c d. e")]),
        # A word in silence is its neighbor's.
        ("a b c", [turn(0, 0.9, "S1"), turn(2, 3, "S1")], [("S1", " a b c")]),
        ("_ _ a b", [turn(5, 9, "S1")], [("S1", " a b")]),
        ("a b", [], [(None, " a b")]),
        ("a b", [turn(50, 60, "S1")], [(None, " a b")]),
        # Nobody loses a turn of a single word.
        (
            "a. b c. d",
            [turn(0, 1, "S1"), turn(1, 2, "S2"), turn(2, 4, "S1")],
            [("S1", " a."), ("S2", " b c."), ("S1", " d")],
        ),
    ],
)
def test_a_segment_is_split_where_the_speaker_changes(text, turns, expected):
    word_s = 0.5 if "d." not in text else 1.0
    given = segment(text, word_s=word_s)
    scaled = [turn(each.start_s * word_s, each.end_s * word_s, each.speaker) for each in turns]
    found = with_speakers([given], scaled)
    assert [(each.speaker, each.text) for each in found] == expected
    assert "".join(each.text for each in found) == given.text
    assert (found[0].start_s, found[-1].end_s) == (given.start_s, given.end_s)
    for each in found:
        assert each.words is not None
        assert {word.speaker for word in each.words} == {each.speaker}
        assert each.tokens == (given.tokens if len(found) == 1 else ())


def test_a_segment_without_words_is_whose_most_of_it_is():
    given = segment("a b c d e", word_s=None)
    turns = [turn(0, 2, "S1"), turn(2, 5, "S2")]
    (found,) = with_speakers([given], turns)
    assert (found.speaker, found.text, found.tokens) == ("S2", given.text, (1, 2, 3))


def test_speakers_of_channels_are_others_and_are_numbered_by_appearance():
    draw = np.random.default_rng(0).random((2, 16))
    channels: dict[int | None, SpeechWindows] = {}
    for channel, (start_s, voice) in enumerate(zip((5.0, 1.0), draw, strict=True)):
        at = windows((start_s, start_s + 1.6), (start_s + 0.75, start_s + 2.35))
        embeddings = np.stack([voice, voice]).astype(np.float16)
        channels[channel] = SpeechWindows(start_s=at.start_s, end_s=at.end_s, embeddings=embeddings)
    found = diarize(channels)
    assert [(each.channel, each.speaker) for each in found.turns] == [(0, "S2"), (1, "S1")]
    assert sorted(found.voices) == ["S1", "S2"]
    assert diarize({None: windows()}).turns == ()


def test_fewer_speakers_than_asked_for_are_told(caplog: pytest.LogCaptureFixture) -> None:
    short = windows((0.0, 1.0), (1.0, 2.0))
    for settings, expected in (
        (SpeakerSettings(mode="auto", num_speakers=12), 12),
        (SpeakerSettings(mode="auto", min_speakers=4), 4),
    ):
        caplog.clear()
        found = diarize_parts([(0, short), (1, short)], settings, name="talk.wav")
        assert len(found.voices) == 4  # the number is of each channel
        [line] = caplog.messages
        assert f"finding speakers of talk.wav: found 2, expected {expected}" in line
    caplog.clear()
    diarize_parts([(None, short)], SpeakerSettings(mode="auto", num_speakers=2), name="a")
    diarize_parts([(None, short)], SpeakerSettings(mode="auto", max_speakers=9), name="a")
    diarize_parts([(None, windows())], SpeakerSettings(mode="auto", num_speakers=2), name="a")
    assert caplog.messages == []


def windows_of(clip: Path, segmentation: str = PACKAGED_SEGMENTATION) -> SpeechWindows:
    """Return a clip's windows as the extract stage makes them."""
    cutter = PartCutter(part_s=600.0, detector=SileroDetector())
    parts = [*cutter.feed(read_clip(clip)), *cutter.finish()]
    (part,) = parts
    voices = Voices(model=PACKAGED_ENCODER, segmentation=segmentation, pad_s=DEFAULT_CRITERIA.pad_s)
    measured = voices.measure(part.samples, part.speech)
    return SpeechWindows.of_columns(Voices.over(measured, (), start_s=0.0))


@pytest.mark.long
def test_the_readers_of_the_demo_are_told_from_one_another():
    readers = windows_of(SPOKEN / "readers.opus")
    found = diarize({None: readers})
    lines = (SPOKEN.parent / "spoken-references.jsonl").read_text().splitlines()
    (row,) = [row for row in map(json.loads, lines) if row["path"] == "spoken/readers.opus"]
    truth = [SpokenSpan(each["start_s"], each["end_s"], each["reader"]) for each in row["segments"]]
    assert len(found.voices) == 3
    spans = [SpokenSpan(each.start_s, each.end_s, each.speaker) for each in found.turns]
    assert turn_errors(truth, spans).confused_s == pytest.approx(0.0, abs=1e-6)


@pytest.mark.long
def test_two_women_on_the_telephone_are_two_speakers(large_speech: Path):
    talk = large_speech / "awkward" / "repo_two_speakers_30s.wav"
    found = diarize({None: windows_of(talk)})
    assert len(found.voices) == 2
    # The longest turns of each, as pyannote's sample.rttm has them.
    timeline = Timeline(found.turns)
    speakers = [timeline.speaker(at_s, at_s + 2.0) for at_s in (11.5, 15.0, 18.8, 23.0, 28.0)]
    assert speakers == [speakers[0], speakers[1]] * 2 + [speakers[0]]


@pytest.mark.long
def test_one_reader_is_one_speaker():
    for name in ("newgate.mp3", "inaugural.flac"):
        found = diarize({None: windows_of(SPOKEN / name)})
        assert [*found.voices] == ["S1"]


def found_in(*turns: tuple[float, float, str], channel: int | None = None) -> Diarization:
    return Diarization(
        turns=tuple(
            SpeakerTurn(start_s=start_s, end_s=end_s, speaker=name, confidence=1.0, channel=channel)
            for start_s, end_s, name in turns
        ),
        voices={name: (float(name[1:]),) for *_, name in sorted(turns, key=lambda turn: turn[2])},
    )


@pytest.mark.parametrize(
    ("earlier", "turns", "expected"),
    [
        ([], [(0, 4, "S1"), (4, 9, "S2")], ["S1", "S2"]),
        # A third is found where the first spoke: who has the longer share of a label keeps it.
        ([(0, 6, "S1"), (6, 9, "S2")], [(0, 2, "S1"), (2, 6, "S2"), (6, 9, "S3")],
         ["S3", "S1", "S2"]),
        ([(0, 2, "S1"), (2, 6, "S2")], [(0, 6, "S1")], ["S2"]),
        # Both share most with one: the other is somebody new, not who spoke later.
        ([(0, 5, "S1"), (5, 6, "S2")], [(0, 3, "S1"), (3, 5, "S2")], ["S1", "S3"]),
        # So is who shares only a border with somebody whom the first has become as well.
        ([(0, 18, "S1"), (18, 24.2, "S2")], [(0, 10, "S1"), (10, 18.2, "S2"), (18.2, 24.2, "S1")],
         ["S1", "S3", "S1"]),
        # Who has all of their time in common keeps a label of which another has more.
        ([(0, 15, "S1"), (15, 25, "S2")], [(0, 7, "S1"), (7, 25, "S2")], ["S1", "S2"]),
        ([(0, 5, "S2")], [(5, 9, "S1")], ["S1"]),
        ([(3, 3, "S1"), (0, 5, "S2")], [(1, 4, "S1")], ["S2"]),
    ],
)  # fmt: skip
def test_turns_that_are_made_again_keep_labels(earlier, turns, expected):
    named = found_in(*turns).named_as(found_in(*earlier).turns)
    assert [turn.speaker for turn in named.turns] == expected
    numbers = {new: (float(old[1:]),) for new, (*_, old) in zip(expected, turns, strict=True)}
    assert named.voices == numbers


def test_who_is_new_has_no_number_that_people_named():
    assert found_in((5, 9, "S1")).named_as((), number=2).turns[0].speaker == "S3"
    earlier = found_in((0, 5, "S1")).turns
    assert found_in((5, 9, "S1")).named_as(earlier, number=1).turns[0].speaker == "S2"
    both = found_in((0, 5, "S2"), (5, 9, "S1")).named_as(earlier, number=4)
    assert [turn.speaker for turn in both.turns] == ["S1", "S5"]


def test_labels_stay_within_a_channel():
    earlier = (*found_in((0, 5, "S1"), channel=0).turns, *found_in((0, 5, "S2"), channel=1).turns)
    named = found_in((1, 4, "S1"), channel=1).named_as(earlier)
    assert [turn.speaker for turn in named.turns] == ["S2"]
