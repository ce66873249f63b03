"""Examples hold what was kept, whole, with its times; shards are bounded and lose nothing."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.config.run import DatasetSettings
from corpus_asr.labelling.examples import Example, examples_of, joined, shards_of
from corpus_asr.stages.messages import ClipRange
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ

REPOSITORY = Path(__file__).resolve().parents[2]
TIMED = re.compile(r"<\|(\d+\.\d\d)\|>(.*?)<\|(\d+\.\d\d)\|>")
HALF_A_STEP = 0.0101


def settings(**values: Any) -> DatasetSettings:
    return DatasetSettings(uri="set", **values)


def row(start_s: float, end_s: float, text: str = " word", **values: Any) -> dict[str, Any]:
    usual = {
        "recording_id": "r", "uri": "/r.wav", "recording_s": 1000.0, "channel": None,
        "audio_track": None,
        "start_s": start_s, "end_s": end_s, "text": text, "language": "en", "task": "transcribe",
        "confidence": 0.9, "avg_logprob": -0.1, "no_speech_prob": 0.0, "compression_ratio": 1.0,
        "temperature": 0.0, "disagreement": None, "from_other": None, "wer": None,
        "reference": None,
        "corrected": False,
        "speaker": None, "model": "m", "model_revision": "r1",
        "dropped_by": None, "example_id": None,
    }  # fmt: skip
    return usual | values


def texts(found: list[Example]) -> list[str]:
    return [each.row["text"] for each in found]


def bounds(example: Example) -> tuple[float, float]:
    return example.clip.start_sample / SAMPLE_RATE_HZ, example.clip.end_sample / SAMPLE_RATE_HZ


def test_segments_are_packed_with_times_from_the_start_of_the_window() -> None:
    rows = [row(10.0, 12.5, " So"), row(12.5, 20.0, " it goes."), row(21.0, 41.0, " On.")]
    first, second = examples_of(rows, settings())
    assert first.row["whisper_transcript"] == "<|0.20|> So<|2.70|><|2.70|> it goes.<|10.20|>"
    assert first.row["text"] == "So it goes."
    assert bounds(first) == (9.8, 20.2)
    assert second.row["whisper_transcript"] == "<|0.20|> On.<|20.20|>"
    assert second.row["condition_on_prev"] == "So it goes."
    assert [each["example_id"] for each in rows] == ["r-00000", "r-00000", "r-00002"]


def test_a_pause_and_another_language_begin_a_window() -> None:
    rows = [row(0, 2, " a"), row(4.9, 6, " b"), row(9.1, 11, " c"),
            row(11, 12, " d", language="de")]  # fmt: skip
    found = examples_of(rows, settings())
    assert texts(found) == ["a b", "c", "d"]
    assert [each.row["condition_on_prev"] for each in found] == [None, "a b", None]
    # Text from long ago is not what was said before.
    found = examples_of([row(0, 2, " a"), row(31, 33, " b"), row(64, 66, " c")], settings())
    assert [each.row["condition_on_prev"] for each in found] == [None, "a", None]


def test_pads_stop_at_the_ends_of_the_recording_and_of_the_window() -> None:
    (only,) = examples_of([row(0.1, 9.9, recording_s=10.0)], settings(pad_s=1.0))
    assert bounds(only) == (0.0, 10.0)
    (full,) = examples_of([row(50.0, 79.9)], settings(pad_s=1.0))
    start_s, end_s = bounds(full)
    assert end_s - start_s == pytest.approx(30.0)
    assert full.row["whisper_transcript"].endswith("<|30.00|>")


def test_the_worst_segment_speaks_for_a_window() -> None:
    rows = [row(0, 2, wer=0.1, confidence=0.5), row(2, 4, wer=0.3, temperature=0.4)]
    (found,) = examples_of(rows, settings())
    assert [found.row[name] for name in ("wer", "confidence", "temperature", "disagreement")] == [
        0.3, 0.5, 0.4, None,
    ]  # fmt: skip


def test_a_transcript_goes_along_where_the_example_is_the_whole_recording() -> None:
    said = {"reference": "So it goes."}
    (whole,) = examples_of([row(0, 2, **said), row(2, 3)], settings())
    assert whole.row["reference"] == "So it goes."
    (part,) = examples_of([row(0, 2, **said), row(2, 3, dropped_by="wer")], settings())
    assert part.row["reference"] is None


def test_texts_are_joined_as_their_language_does() -> None:
    assert joined([" So", " it goes"], "en") == "So it goes"
    assert joined(["So", "it goes"], "en") == "So it goes"
    assert joined(["你好", "世界"], "zh") == "你好世界"


_SEGMENTS = st.lists(
    st.tuples(
        st.floats(0, 8, allow_nan=False), st.floats(0.1, 30), st.booleans(), st.sampled_from("ab")
    ),
    max_size=12,
)


@given(_SEGMENTS, st.floats(0, 1), st.sampled_from(["windows", "clips"]))
def test_every_kept_segment_is_in_one_example_and_no_other_is_heard(
    segments: list[tuple[float, float, bool, str]], pad_s: float, kind: str
) -> None:
    rows, at_s = [], 0.0
    for number, (pause_s, lasts_s, kept, language) in enumerate(segments):
        start_s, at_s = at_s + pause_s, at_s + pause_s + lasts_s
        rows.append(row(start_s, at_s, f" w{number}", language=language, recording_s=at_s + 1,
                        dropped_by=None if kept else "rule"))  # fmt: skip
    found = examples_of(rows, settings(pad_s=pad_s, examples=kind))
    names = [each.row["example_id"] for each in found]
    assert len({*names}) == len(names)
    for example in found:
        start_s, end_s = bounds(example)
        inside = [each for each in rows if each["example_id"] == example.row["example_id"]]
        assert end_s - start_s <= 30 + 1e-4
        timed = TIMED.findall(example.row["whisper_transcript"])
        assert [text for _, text, _ in timed] == [each["text"] for each in inside]
        for (begins, _, ends), each in zip(timed, inside, strict=True):
            assert abs(start_s + float(begins) - each["start_s"]) < HALF_A_STEP
            assert abs(start_s + float(ends) - each["end_s"]) < HALF_A_STEP
        for other in rows:
            if other not in inside:
                assert other["end_s"] <= start_s + 1e-4 or other["start_s"] >= end_s - 1e-4
    for each in rows:
        assert each["example_id"] in (names if each["dropped_by"] is None else [None])


MIB_PER_SECOND = 2 * SAMPLE_RATE_HZ / MEBIBYTE


def recording(
    name: str, *seconds: int, split: str = "train"
) -> tuple[dict[str, Any], list[Example]]:
    row = {"recording_id": name, "uri": f"/{name}", "size_bytes": 1, "etag": "e", "split": split}
    examples = [
        Example(clip=ClipRange(channel=None, start_sample=0, end_sample=lasts * SAMPLE_RATE_HZ),
                row={"example_id": f"{name}-{at}"})
        for at, lasts in enumerate(seconds)
    ]  # fmt: skip
    return row, examples


@given(
    st.lists(st.lists(st.integers(1, 30), max_size=6), max_size=8),
    st.integers(5, 60),
)
def test_nothing_is_lost_and_no_shard_is_too_large(lengths: list[list[int]], most_s: int) -> None:
    splits = {f"r{at}": ("train", "validation")[at % 2] for at in range(len(lengths))}
    recordings = [
        recording(name, *each, split=split)
        for (name, split), each in zip(splits.items(), lengths, strict=True)
    ]
    chosen = settings(shard_mb=most_s * MIB_PER_SECOND)
    found = list(shards_of(recordings, chosen))
    names = [row["example_id"] for shard in found for cuts in shard.cuts for row in cuts.rows]
    assert sorted(names) == sorted(e.row["example_id"] for _, all_ in recordings for e in all_)
    for shard in found:
        ranges = [each for cuts in shard.cuts for each in cuts.request.ranges]
        seconds = sum(each.end_sample - each.start_sample for each in ranges) / SAMPLE_RATE_HZ
        assert seconds <= most_s or len(ranges) == 1
        for cuts in shard.cuts:
            assert splits[cuts.rows[0]["example_id"].partition("-")[0]] == shard.split
    assert [shard.name for shard in shards_of(recordings, chosen)] == [s.name for s in found]
    assert max(Counter(shard.name for shard in found).values(), default=1) == 1
    for split in ("train", "validation"):
        numbers = sorted(shard.number for shard in found if shard.split == split)
        assert numbers == list(range(len(numbers)))


def test_other_content_is_another_digest() -> None:
    (one,) = shards_of([recording("a", 3)], settings(validation_fraction=0))
    (same,) = shards_of([recording("a", 3)], settings(validation_fraction=0))
    (other,) = shards_of([recording("a", 4)], settings(validation_fraction=0))
    assert one.digest() == same.digest() != other.digest()


def test_numbers_become_digits_by_the_recipe_of_the_guide(tmp_path: Path) -> None:
    pytest.importorskip("text_to_num")
    guide = (REPOSITORY / "docs/reference/label_rules.md").read_text(encoding="utf-8")
    code = guide.partition("## Numbers as digits")[2].partition("```python")[2].partition("```")[0]
    said = [row(0, 2, " Twenty-three dogs."), row(2, 4, " One of them ran.")]
    rows = [each.row for each in examples_of(said, settings())]
    columns = ("text", "whisper_transcript", "language")
    table = datasets.Dataset.from_list([{name: each[name] for name in columns} for each in rows])
    table.to_parquet(tmp_path / "mine/data/train-0.parquet")
    names: dict[str, Any] = {}
    exec(code.replace('"dataset"', repr(str(tmp_path / "mine"))), names)
    [found] = names["written"]["train"]
    assert found["text"] == "23 dogs. One of them ran."
    assert found["whisper_transcript"] == (
        "<|0.00|> 23 dogs.<|2.00|><|2.00|> One of them ran.<|4.00|>"
    )
