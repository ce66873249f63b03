"""Shards are bounded, hold everything once, and a recording has one split wherever it is."""

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.config.labelling import DatasetSettings
from corpus_asr.labelling.examples import Example, shards_of, split_of
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ

MIB_PER_SECOND = 2 * SAMPLE_RATE_HZ / MEBIBYTE


def settings(**values: Any) -> DatasetSettings:
    return DatasetSettings(uri="set", **values)


def recording(name: str, *seconds: int) -> tuple[dict[str, Any], list[Example]]:
    row = {"recording_id": name, "uri": f"/{name}", "size_bytes": 1, "etag": "e"}
    examples = [
        Example(start_sample=0, end_sample=lasts * SAMPLE_RATE_HZ,
                row={"example_id": f"{name}-{at}", "channel": None})
        for at, lasts in enumerate(seconds)
    ]  # fmt: skip
    return row, examples


@given(
    st.lists(st.lists(st.integers(1, 30), max_size=6), max_size=8),
    st.integers(5, 60),
)
def test_nothing_is_lost_and_no_shard_is_too_large(lengths: list[list[int]], most_s: int) -> None:
    recordings = [recording(f"r{at}", *each) for at, each in enumerate(lengths)]
    chosen = settings(shard_mb=most_s * MIB_PER_SECOND, validation_fraction=0.3)
    found = list(shards_of(recordings, chosen))
    names = [row["example_id"] for shard in found for cuts in shard.cuts for row in cuts.rows]
    assert sorted(names) == sorted(e.row["example_id"] for _, all_ in recordings for e in all_)
    for shard in found:
        ranges = [each for cuts in shard.cuts for each in cuts.request.ranges]
        seconds = sum(each.end_sample - each.start_sample for each in ranges) / SAMPLE_RATE_HZ
        assert seconds <= most_s or len(ranges) == 1
        for cuts in shard.cuts:
            assert split_of(cuts.rows[0]["example_id"].partition("-")[0], chosen) == shard.split
    assert [shard.name for shard in shards_of(recordings, chosen)] == [s.name for s in found]
    assert max(Counter(shard.name for shard in found).values(), default=1) == 1
    for split in ("train", "validation"):
        numbers = sorted(shard.number for shard in found if shard.split == split)
        assert numbers == list(range(len(numbers)))


def test_splits_are_drawn_by_share_and_only_move_to_where_there_is_more() -> None:
    names = [f"recording {at}" for at in range(4000)]
    some = settings(validation_fraction=0.1, test_fraction=0.05)
    counts = Counter(split_of(name, some) for name in names)
    assert 150 < counts["test"] < 250
    assert 320 < counts["validation"] < 480
    more = settings(validation_fraction=0.2, test_fraction=0.05)
    for name in names:
        before, after = split_of(name, some), split_of(name, more)
        assert before == after or (before, after) == ("train", "validation")


def test_other_content_is_another_digest() -> None:
    (one,) = shards_of([recording("a", 3)], settings(validation_fraction=0))
    (same,) = shards_of([recording("a", 3)], settings(validation_fraction=0))
    (other,) = shards_of([recording("a", 4)], settings(validation_fraction=0))
    assert one.digest() == same.digest() != other.digest()
