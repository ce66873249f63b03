"""A known text, placed in real speech by the packaged model."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from corpus_asr import Transcriber
from corpus_asr.errors import AlignmentError, ConfigError
from corpus_asr.formats.transcript import Transcript
from corpus_asr.segments import Word
from corpus_asr.transcription.anchors import folded
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip
from tests.support.spoken import REPOSITORY, spoken

CLIPS = REPOSITORY / "tests" / "data" / "clips"
# Median and 90th percentile of start errors: docs/alignment.md has 0.10 s and 0.23 s.
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


@pytest.mark.parametrize(
    ("text", "not_said"),
    [
        (SPEECH, []),
        (f"Chapter nineteen of geography. {SPEECH}", ["Chapter", "nineteen", "of", "geography."]),
        (f"{SPEECH} Thus spoke Zarathustra yesterday.",
         ["Thus", "spoke", "Zarathustra", "yesterday."]),
        (SPEECH.replace("what your", "what exquisite hippopotamus your"),
         ["exquisite", "hippopotamus"]),
        # Words that are said and not in the text take no time from others.
        ("ask what you can do for your country", []),
        (SPEECH.upper().replace("-", " "), []),
        (f"« {SPEECH.replace(' ', chr(10))} » ☃ 🎉 ...", []),
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


@pytest.mark.parametrize(
    ("text", "start_s", "end_s"),
    [
        ("And so my fellow Americans \N{PARTY POPPER}", 0.3, 2.2),
        ("what your country can do", 4.9, 6.9),
        ("ask what you can do for your country", 7.9, 10.5),
    ],
)
def test_an_excerpt_of_what_is_said_has_its_times(
    text: str, start_s: float, end_s: float, aligner: Transcriber, inaugural: np.ndarray
) -> None:
    transcript = align(aligner, inaugural, text)
    words = words_of(transcript)
    assert not transcript.missing
    assert abs(words[0].start_s - start_s) < 0.5
    assert abs(words[-1].end_s - end_s) < 0.6
    assert all(word.end_s - word.start_s < 1.0 for word in words)


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


def test_silence_says_no_word(aligner: Transcriber) -> None:
    with pytest.raises(AlignmentError, match=r"found 0 of its 22 words"):
        aligner.align(CLIPS / "silence.flac", SPEECH)


def test_two_seconds_suffice(aligner: Transcriber, inaugural: np.ndarray) -> None:
    cut = inaugural[: 2 * SAMPLE_RATE_HZ]
    words = words_of(align(aligner, cut, "And so, my fellow Americans"))
    assert [word.word for word in words][:4] == [" And", " so,", " my", " fellow"]
    assert words[-1].end_s <= 2.0


def test_results_do_not_depend_on_what_is_aligned_beside(
    aligner: Transcriber, inaugural: np.ndarray
) -> None:
    other = read_clip(CLIPS / "english.wav")
    texts = json.loads((CLIPS.parent / "clips-references.jsonl").read_text().splitlines()[0])
    pairs = [(inaugural, SPEECH), (other, texts["text"]), (inaugural, SPEECH)]
    found = list(aligner.align_many(pairs, sampling_rate=SAMPLE_RATE_HZ))
    alone = align(aligner, inaugural, SPEECH)
    same = [each.segments for each in found if each.uri in ("input-0", "input-2")]
    assert same == [alone.segments, alone.segments]


def test_one_failure_leaves_the_others(aligner: Transcriber, inaugural: np.ndarray) -> None:
    failed: list[str] = []
    pairs = [(inaugural, ""), (inaugural, SPEECH)]
    found = aligner.align_many(
        pairs, sampling_rate=SAMPLE_RATE_HZ, on_error=lambda name, _: failed.append(name)
    )
    assert [each.uri for each in found] == ["input-1"]
    assert failed == ["input-0"]


def test_one_text_is_of_all_channels(aligner: Transcriber, inaugural: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="channels: each"):
        aligner.align(inaugural, SPEECH, sampling_rate=SAMPLE_RATE_HZ, channels="each")


def packaged() -> Path:
    return REPOSITORY / "corpus_asr" / "pretrained" / "whisper-tiny.en"
