"""Error rates are jiwer's on Whisper's normalized texts, and add up."""

import json
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

from corpus_asr.errors import ConfigError
from corpus_asr.report import evaluation, scoring
from corpus_asr.report.evaluation import (
    LEAST_BLOCKS,
    Evaluation,
    as_data,
    compare,
    interval,
    render,
    resampled,
    summarize,
)
from corpus_asr.report.scoring import (
    Errors,
    Hypothesis,
    Reference,
    Score,
    TimedWord,
    read_references,
    score,
)
from corpus_asr.storage.stores.uri import recording_id


def scored(said: str, found: str, *, language: str | None = "en", **values: Any) -> Score:
    names = ("set", "words", "uri")
    reference = {name: values.pop(name) for name in names if name in values}
    usual = {"language": language, "duration_s": 4.0, "confidence": 0.5}
    return score(
        Reference(**({"uri": "/a.wav", "text": said, "language": language} | reference)),
        Hypothesis(**({"text": found} | usual | values)),
    )


def whispers_english() -> EnglishTextNormalizer:
    with warnings.catch_warnings():  # it leaves a file open
        warnings.simplefilter("ignore", ResourceWarning)
        return EnglishTextNormalizer()


WORDS = ["the", "colour", "of", "Mr.", "Smith's", "20", "dogs", "isn't", "(cough)", "um,", "né",
         "été"]  # fmt: skip


@pytest.mark.parametrize("language", ["en", "fr", None])
def test_rates_are_jiwers_on_whispers_texts(language: str | None) -> None:
    rng = random.Random(7)
    normalize = whispers_english() if language == "en" else BasicTextNormalizer()
    for _ in range(50):
        said, found = (" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(2))
        result = scored(said, found, language=language)
        plain = [normalize(text).strip() for text in (said, found)]
        if not all(plain):
            continue
        assert result.words.rate == pytest.approx(jiwer.wer(*plain))
        assert result.characters.rate == pytest.approx(jiwer.cer(*plain))


def test_silence_and_its_opposite_count() -> None:
    for said, found, expected in (
        ("red blue", "", Errors(deletions=2)),
        ("", "red blue", Errors(insertions=2)),
        ("", "", Errors()),
        ("(cough)", "!", Errors()),
        ("red blue green pink", "blue green pig white", Errors(2, 1, 1, 1)),
    ):
        assert scored(said, found).words == expected, (said, found)
    # Letters are words where none are parted.
    assert scored("今日は 天気", "今日わ天気。", language="ja").words == Errors(4, 1, 0, 0)
    assert scored("今日は", "今日は", language="de").words.reference_length == 1


def test_without_jiwer_the_advice_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jiwer", None)
    scoring._jiwer.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install jiwer"):
        scored("one", "")
    scoring._jiwer.cache_clear()


def test_times_of_words_heard_right_are_compared() -> None:
    said = tuple(TimedWord(w, at, at + 1.0) for at, w in enumerate(["One,", "two", "three"]))
    found = tuple(
        TimedWord(w, at + 0.1, at + 1.3) for at, w in enumerate([" one", " too", " -", " three"])
    )
    result = score(
        Reference(uri="/a", text="One, two three", words=said),
        Hypothesis(text="one too three", language=None, duration_s=3.0, words=found),
    )
    assert [pytest.approx(pair) for pair in result.time_errors_s] == [(0.1, 0.3), (1.1, 1.3)]
    times = evaluated(result).word_times
    assert times
    assert (times.compared, times.of, times.close_share) == (2, 3, 0.0)
    assert (times.start_median_s, times.end_median_s) == pytest.approx((0.6, 0.8))


def evaluated(*scores: Score) -> Evaluation:
    return summarize(scores, output="out", references="refs.jsonl", missing=1)


def test_groups_add_up_and_are_sorted() -> None:
    found = evaluated(
        scored("a b", "a b", set="clean", duration_s=3.0, confidence=0.95),
        scored("a b c", "a", set="noisy", duration_s=700.0, confidence=0.1),
        scored("a", "x", set="clean", language="de", duration_s=12.0, confidence=None),
    )
    assert (found.everything.words.errors, found.everything.words.reference_length) == (3, 6)
    names = {title: [g.name for g in groups] for title, groups in found.groups.items()}
    assert names == {
        "set": ["clean", "noisy"],
        "language": ["de", "en"],
        "duration": ["under 5 s", "10 to 30 s", "600 s and more"],
        "confidence": ["under 0.3", "0.95 and more"],
    }
    rates = [group.words.rate for group in found.groups["set"]]
    assert rates == pytest.approx([1 / 3, 2 / 3])


def test_languages_heard_are_counted_by_those_said() -> None:
    reference = Reference(uri="/a", text="ja", language="de")
    transcribed = [
        Hypothesis(text="ja", language=code, duration_s=1.0) for code in ("de", "nl", "de")
    ]
    found = evaluated(*(score(reference, each) for each in transcribed))
    assert found.languages == {"de": {"de": 2, "nl": 1}}
    assert "correct in 2 of 3" in render(found)
    assert "de detected as nl 1" in render(found)


def test_the_worst_come_first_and_are_shown_and_json_holds_them() -> None:
    found = evaluated(
        scored("a b c d", "a b c x", uri="/some.wav"), scored("a", "x y z", uri="/most.wav"),
        scored("a", "a", uri="/none.wav"),
    )  # fmt: skip
    assert [each.reference.uri for each in found.worst] == ["/most.wav", "/some.wav", "/none.wav"]
    text = render(found)
    assert "300.00%  /most.wav" in text
    assert "/none.wav" not in text
    assert "1 references are not in the run" in text
    data = as_data(evaluated(scored("a b", "a")))
    assert (data["wer"], data["cer"], data["words"], data["deletions"]) == (0.5, 0.666667, 2, 1)
    assert data["by"]["language"][0]["name"] == "en"
    assert data["worst"][0]["hyp"] == "a"
    assert (data["word_times"], data["against"]) == (None, None)
    assert data["wer_interval"] is None


def test_error_rates_of_enough_recordings_have_an_interval() -> None:
    found = evaluated(
        *(scored("a b c d", "a b c" if at % 2 else "a b c d", set="x") for at in range(20)),
        scored("a b", "a", set="y"),
    )
    data = as_data(found)
    low, high = data["by"]["set"][0]["wer_interval"]
    assert low < 0.125 < high
    assert data["by"]["set"][1]["wer_interval"] is None
    assert f"12.50%  {low:.1%}-{high:.1%}" in render(found)


def runs(*, wrong: float, better: float, clips: int) -> tuple[dict[str, Score], dict[str, Score]]:
    rng = random.Random(1)
    sides: tuple[dict[str, Score], dict[str, Score]] = ({}, {})
    for at in range(clips):
        said = ["w"] * rng.randint(1, 20)
        for side, rate in zip(sides, (wrong * better, wrong), strict=True):
            found = ["x" if rng.random() < rate else word for word in said]
            side[str(at)] = scored(" ".join(said), " ".join(found))
    return sides


def test_a_clear_difference_is_told_from_chance() -> None:
    clear = compare(*runs(wrong=0.3, better=0.5, clips=200), other="old")
    assert clear
    assert clear.low < clear.difference < clear.high < 0
    assert clear.difference == pytest.approx(clear.wer - clear.other_wer)
    assert clear.p_value < 0.01
    chance = compare(*runs(wrong=0.3, better=1.0, clips=200), other="old")
    assert chance
    assert chance.low < 0 < chance.high
    assert chance.p_value > 0.05
    # Only recordings of both runs are compared, and always with the same result.
    one, two = runs(wrong=0.3, better=0.5, clips=20)
    some = {name: two[name] for name in list(two)[:5]} | {"z": one["0"]}
    few = compare(one, some, other="o")
    assert few
    assert few == compare(one, some, other="o")
    assert few.recordings == 5
    assert compare(one, {"z": one["0"]}, other="o") is None


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_references_are_read_as_manifests_are(tmp_path: Path) -> None:
    rows = [
        {"path": "a.wav", "text": "Hi.", "language": "English", "set": "x", "other": 1},
        {"uri": "/b.wav", "text": "Ho.", "language": None, "set": "y", "other": 2},
    ]
    found = read_references(written(tmp_path / "refs.jsonl", rows), language="de")
    uri = str(tmp_path / "a.wav")
    assert found == {
        recording_id(uri): Reference(uri=uri, text="Hi.", language="en", set="x"),
        recording_id("/b.wav"): Reference(uri="/b.wav", text="Ho.", language="de", set="y"),
    }


def test_words_of_references_may_be_named_either_way(tmp_path: Path) -> None:
    expected = (TimedWord("Hi.", 0.5, 1.0),)
    for words in (
        [{"word": "Hi.", "start_s": 0.5, "end_s": 1.0}],
        [{"word": "Hi.", "start": 0.5, "end": 1}],
        '[{"word": "Hi.", "start": 0.5, "end": 1}]',
    ):
        rows = [{"uri": "/a", "text": "Hi.", "words": words}]
        (found,) = read_references(written(tmp_path / "refs.jsonl", rows)).values()
        assert found.words == expected


def test_a_clip_does_not_say_when_in_it_somebody_speaks(tmp_path: Path) -> None:
    one = {"path": "/a.wav", "text": "yes", "speaker": "anna", "start_s": 0.0, "end_s": 4.0}
    two = {"path": "/b.wav", "text": "no", "speaker": "anna", "start_s": 0.5, "end_s": 2.0}
    clip, part = read_references(written(tmp_path / "refs.jsonl", [one, two])).values()
    assert (clip.speech, clip.speaker, clip.spans) == (None, "anna", ((0.0, 4.0),))
    assert part.speech is not None


def test_unusable_references_are_refused(tmp_path: Path) -> None:
    for rows, message in (
        ([{"uri": "/a", "text": "x"}, {"uri": "file:///a", "text": "y"}], "found /a twice"),
        ([{"uri": "/a", "text": "x", "words": [{"word": "x"}]}], "1 of words: found word of a w"),
        ([{"uri": "/a", "text": "x", "words": [{"word": "x", "end": "?"}]}], "found end '[?]'"),
        ([{"uri": "/a", "text": "x", "words": "{"}], "words that are not JSON"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_references(written(tmp_path / "refs.jsonl", rows))


def test_neither_credentials_nor_commands_to_terminals_are_shown(tmp_path: Path) -> None:
    uri = "https://user:secret@h.org/a.mp3?X-Amz-Signature=secret"
    rows = [{"uri": uri, "text": "red\x1b[2J"}]
    ((identity, reference),) = read_references(written(tmp_path / "r.jsonl", rows)).items()
    assert identity == recording_id(uri)
    transcribed = Hypothesis(text="\x1b]0;x\x07blue", language=None, duration_s=1.0)
    found = evaluated(score(reference, transcribed))
    assert "secret" not in render(found) + str(as_data(found))
    assert "\x1b" not in render(found)


CLIPS = 100


def test_intervals_are_as_wide_as_rates_scatter() -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(5, 30, size=(200, CLIPS))
    errors = rng.binomial(words, rng.beta(0.6, 3.4, size=words.shape))  # 15 % of words
    rates = errors.sum(axis=1) / words.sum(axis=1)
    found = interval(errors[0].tolist(), words[0].tolist(), [None] * CLIPS)
    assert found
    low, high = found
    assert low < rates[0] < high
    assert (high - low) / 2 == pytest.approx(1.96 * rates.std(), rel=0.25)


def test_recordings_of_a_speaker_are_drawn_together_if_there_are_enough() -> None:
    each = CLIPS // LEAST_BLOCKS
    # Every second speaker is hard to understand.
    errors = [5 * (clip // each % 2) for clip in range(CLIPS)]
    words = [10] * CLIPS

    def width(speakers: Sequence[str | None]) -> float:
        low, high = interval(errors, words, speakers) or (0.0, 0.0)
        return high - low

    alone = width([None] * CLIPS)
    together = width([str(clip // each) for clip in range(CLIPS)])
    few = width(["one"] * CLIPS)
    assert together == pytest.approx(alone * each**0.5, rel=0.2)
    # Of one speaker there is nothing else to draw.
    assert few == alone


def test_too_little_has_no_interval() -> None:
    enough = [1] * LEAST_BLOCKS
    nobody = [None] * LEAST_BLOCKS
    assert interval(enough, [2] * LEAST_BLOCKS, nobody) == (0.5, 0.5)
    assert interval(enough[1:], enough[1:], nobody[1:]) is None
    # Nothing in such a sample says how often errors are.
    assert interval([0] * LEAST_BLOCKS, enough, nobody) is None
    assert interval(enough, [0] * LEAST_BLOCKS, nobody) is None


def test_draws_without_a_word_are_replaced_and_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silence = [0] * 3
    whole = resampled([1, *silence], [2, *silence], [None] * 4)
    assert len(whole) == evaluation.NUM_RESAMPLES
    assert set(whole) == {0.5}
    rates = resampled([1, 2, 3], [4, 4, 4], [None] * 3)
    monkeypatch.setattr(evaluation, "_MOST_AT_ONCE", 30)
    assert np.array_equal(resampled([1, 2, 3], [4, 4, 4], [None] * 3), rates)
