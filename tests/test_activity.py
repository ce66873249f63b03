"""Counts of workers add up, whatever their order, and shares follow from the sums."""

from dataclasses import asdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.activity import EXAMPLES, Activity, FailureCount, FileSums, merged
from corpus_asr.json_values import parsed

COUNTS = st.integers(0, 1000)
ACTIVITIES = st.builds(
    Activity,
    extract_alive_s=COUNTS.map(float),
    steps=COUNTS,
    slots=COUNTS,
    durations=st.dictionaries(
        st.sampled_from(["mp3:11", "wav:12"]),
        st.builds(FileSums, files=COUNTS, size=COUNTS.map(float), audio_s=COUNTS.map(float)),
    ),
    slot_steps=COUNTS,
    slot_room=COUNTS,
)
# Made into objects by the test: what checks types draws lots of its own.
FAILURES = st.fixed_dictionaries(
    {
        "stage": st.sampled_from(["extract", "transcribe"]),
        "kind": st.sampled_from(["not_audio", "timeout"]),
        "count": st.integers(1, 9),
        "retryable": st.booleans(),
        "examples": st.lists(st.sampled_from("abcdef"), max_size=EXAMPLES, unique=True),
    }
)


@given(left=ACTIVITIES, right=ACTIVITIES)
def test_everything_adds_up_but_the_slots_of_one_worker(left: Activity, right: Activity) -> None:
    both = left + right
    assert both == right + left
    assert both == Activity.total([left, right])
    assert both.slots == max(left.slots, right.slots)
    assert both.steps == left.steps + right.steps


@given(before=ACTIVITIES, now=ACTIVITIES)
def test_what_was_done_since_a_moment_adds_up_with_what_was_done_before(
    before: Activity, now: Activity
) -> None:
    both = before + now.since(before)
    assert (both.steps, both.extract_alive_s) == (now.steps, now.extract_alive_s)
    assert {kind: s for kind, s in both.durations.items() if s != FileSums()} == {
        kind: s for kind, s in now.durations.items() if s != FileSums()
    }
    assert (now.since(now).steps, now.since(now).durations) == (0, {})
    assert now.since(before).slots == now.slots


@given(found=ACTIVITIES)
def test_counts_survive_json_and_other_versions(found: Activity) -> None:
    assert parsed(Activity, asdict(found)) == found
    assert parsed(Activity, asdict(found) | {"of_tomorrow": 1}) == found
    assert parsed(Activity, {}) == Activity()


def test_shares_are_unknown_before_there_is_anything_to_share() -> None:
    assert Activity().engine_share is None
    assert Activity().occupancy is None
    busy = Activity(transcribe_alive_s=10.0, encode_s=4.0, step_s=5.0, slot_steps=3, slot_room=4)
    assert busy.engine_share == 0.9
    assert busy.occupancy == 0.75


def test_depths_are_never_negative_where_parts_were_done_twice() -> None:
    assert Activity(parts_extracted=1, parts_started=3, parts_transcribed=4).parts_ready == 0
    assert Activity(parts_started=3, parts_transcribed=1).parts_in_engines == 2


@given(rows=st.lists(FAILURES))
def test_failures_of_a_kind_are_counted_together(rows: list[dict[str, Any]]) -> None:
    counts = [FailureCount(**{**row, "examples": tuple(row["examples"])}) for row in rows]
    found = merged(counts)
    assert sum(one.count for one in found) == sum(one.count for one in counts)
    assert len({(one.stage, one.kind) for one in found}) == len(found)
    assert [one.count for one in found] == sorted((one.count for one in found), reverse=True)
    assert all(len(one.examples) <= EXAMPLES for one in found)
    assert merged([*merged(counts[:1]), *counts[1:]]) == found
