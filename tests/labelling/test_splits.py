"""Splits: drawn by recording, or dealt out by speaker so that nobody is in two."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.config.run import DatasetSettings, SelectionSettings
from corpus_asr.errors import ConfigError
from corpus_asr.labelling.selection import open_sources
from corpus_asr.labelling.splits import split_of, splits_of
from corpus_asr.schemas import DUPLICATES
from corpus_asr.segments import SpeakerTurn
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.runs import Transcribed, write_tones


def settings(**values: Any) -> DatasetSettings:
    return DatasetSettings(uri="set", **values)


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


def split(
    spoken: Mapping[str, str],
    *,
    seconds: Mapping[str, float] | None = None,
    originals: Mapping[str, str] | None = None,
    **values: Any,
) -> dict[str, str]:
    """Split recordings by the speakers in them, each a letter."""
    seconds = seconds or {}
    table = pa.table(
        {
            "recording_id": pa.array([*spoken], pa.string()),
            "duration_s": pa.array([seconds.get(each, 10.0) for each in spoken], pa.float64()),
        }
    )
    turns = {
        each: [
            SpeakerTurn(start_s=at, end_s=at + 1.0, speaker=speaker, confidence=1.0)
            for at, speaker in enumerate(speakers)
        ]
        for each, speakers in spoken.items()
    }
    chosen = settings(split_by="speaker", **values)
    return dict(splits_of(table, turns, chosen, "out", originals=originals or {}))


def number_of_groups(spoken: Sequence[str]) -> int:
    groups: list[set[str]] = []
    for speakers in filter(None, spoken):
        shared = [each for each in groups if each & {*speakers}]
        groups = [each for each in groups if each not in shared]
        groups.append({*speakers}.union(*shared))
    return len(groups)


@given(
    st.lists(st.text("abcdefghijkl", max_size=3), min_size=1, max_size=20),
    st.lists(st.integers(0, 50), min_size=20, max_size=20),
    st.sampled_from([(0.0, 0.0), (0.1, 0.0), (0.2, 0.2), (0.45, 0.5)]),
    st.randoms(use_true_random=False),
)
def test_no_speaker_is_in_two_splits_and_every_split_is_there(
    spoken: list[str], lengths: list[int], shares: tuple[float, float], order: Any
) -> None:
    said = {f"r{at}": speakers for at, speakers in enumerate(spoken)}
    values: dict[str, Any] = {
        "seconds": {f"r{at}": float(lasts) for at, lasts in enumerate(lengths)},
        "test_fraction": shares[0], "validation_fraction": shares[1],
    }  # fmt: skip
    wanted = 1 + sum(share > 0 for share in shares)
    groups = number_of_groups(spoken)
    if 1 < wanted > groups:
        with pytest.raises(ConfigError, match="split_by: recording"):
            split(said, **values)
        return
    found = split(said, **values)
    assert {*found} == {*said}
    assert len({*found.values()}) == wanted
    assert all(found[each] == "train" for each, speakers in said.items() if not speakers)
    for speaker in "abcdefghijkl":
        assert len({found[each] for each, speakers in said.items() if speaker in speakers}) <= 1
    # In whatever order they are listed.
    shuffled = [*said.items()]
    order.shuffle(shuffled)
    assert split(dict(shuffled), **values) == found


def test_splits_by_speaker_have_about_their_shares_of_audio() -> None:
    said = {f"r{at:03}": chr(200 + at // 4) for at in range(400)}  # a hundred speakers
    found = split(said, test_fraction=0.1, validation_fraction=0.2)
    assert Counter(found.values()) == {"test": 40, "validation": 80, "train": 280}
    # Not the first or the last of them, as their names are sorted.
    splits = [found[f"r{at:03}"] for at in range(0, 400, 4)]
    assert sum(a != b for a, b in pairwise(splits)) > 10


@pytest.mark.parametrize(
    ("spoken", "message"),
    [
        ({"a": "x", "b": "x"}, "found one speaker, expected 2 for validation, train"),
        ({"a": ""}, "found none, expected 2"),
        ({"a": "xy", "b": "yz", "c": "z"},
         r"found 1 group of recordings that share no speaker (y in 2, z in 2, x in 1)"),
    ],
    ids=["one", "nobody", "through others"],
)  # fmt: skip
def test_too_few_groups_are_refused(spoken: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        split(spoken)
    assert message in str(refused.value)


def test_a_run_without_speakers_is_refused_by_speaker_alone() -> None:
    table = pa.table({"recording_id": ["a"], "duration_s": [1.0]})
    with pytest.raises(ConfigError, match="found a run without speakers, expected"):
        splits_of(table, None, settings(split_by="speaker"), "out", originals={})
    found = splits_of(table, None, settings(), "out", originals={})
    assert found == {"a": split_of("a", settings())}


def test_copies_are_where_their_original_is_which_they_never_move() -> None:
    names = [f"recording {at}" for at in range(300)]
    table = pa.table({"recording_id": names, "duration_s": [1.0] * len(names)})
    some = settings(validation_fraction=0.3, test_fraction=0.3)
    alone = splits_of(table, None, some, "out", originals={})
    # One of them was not selected: what it would be drawn for holds.
    originals = {name: ("gone", *names[:20])[at % 21] for at, name in enumerate(names[30:])}
    found = splits_of(table, None, some, "out", originals=originals)
    assert all(found[name] == alone[name] for name in names[:30])
    assert all(found[copy] == split_of(name, some) for copy, name in originals.items())
    assert {*found.values()} == {"train", "validation", "test"}


def test_by_speaker_copies_join_groups() -> None:
    said = {f"r{at:02}": chr(200 + at) for at in range(40)}
    originals = {f"r{at:02}": "gone" for at in range(10)} | {"r39": "r38"}
    found = split(said, originals=originals, test_fraction=0.3, validation_fraction=0.3)
    assert len({found[name] for name in originals if name != "r39"}) == 1
    assert found["r39"] == found["r38"]
    assert {*found.values()} == {"train", "validation", "test"}
    # Where nobody is known anybody may speak, also in what is a copy of it.
    quiet = said | {"r38": ""}
    found = split(quiet, originals=originals, test_fraction=0.45, validation_fraction=0.45)
    assert found["r39"] == found["r38"] == "train"
    # A copy without known speakers, such as a jingle, goes along and moves nobody.
    usual = split(said, test_fraction=0.45, validation_fraction=0.45)
    jingles = {"r38": ""}, {"r38": "r05"}
    found = split(said | jingles[0], originals=jingles[1], test_fraction=0.45,
                  validation_fraction=0.45)  # fmt: skip
    assert found["r38"] == found["r05"]
    assert sum(found[each] != usual[each] for each in said if each != "r38") <= 2


def test_what_is_selected_from_knows_copies_and_is_another_data_set_with_them(
    tmp_path: Path,
) -> None:
    made = Transcribed(tmp_path)
    said = [(0.0, 3.0, "The old ship.")]
    for name in ("a.wav", "b.wav"):
        write_tones(made.audio / name, seconds=4)
    made.run({"a.wav": said, "b.wav": said})
    store = OutputStore(made.config().output.uri)
    digests = set()
    for end_s in (1.0, 3.0):  # of 4 s
        uris = {"uri": made.uri("b.wav"), "other_uri": made.uri("a.wav")}
        row = uris | {
            "recording_id": recording_id(uris["uri"]), "start_s": 0.0, "end_s": end_s,
            "other_recording_id": recording_id(uris["other_uri"]), "other_start_s": 0.0,
            "other_end_s": end_s, "compared": True,
        }  # fmt: skip
        store.write_table("duplicates/1.parquet", pa.Table.from_pylist([row], DUPLICATES))
        with open_sources(store, SelectionSettings()) as sources:
            digests.add(sources.digest())
            found = sources.originals
        copied = {row["recording_id"]: row["other_recording_id"]}
        assert found == (copied if end_s == 3.0 else {})
    assert len(digests) == 2
