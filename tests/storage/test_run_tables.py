"""What counts as done and what is done again; a finished folder is exact however it came about."""

import functools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus_asr.config.run import Retry
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.pipelines.nightly import count_tries
from corpus_asr.schemas import RECORDINGS
from corpus_asr.storage.run_state import finish as recordings
from corpus_asr.storage.run_state.finish import (
    OutcomeCounts,
    finish,
)
from corpus_asr.storage.run_state.fold import RemainingReason
from corpus_asr.storage.run_state.rewriting import FAILING_NAME
from corpus_asr.storage.run_state.run_files import RunRecord, begin_run
from corpus_asr.storage.run_state.run_tables import MEMORY_VARIABLE, RunTables
from corpus_asr.storage.run_state.table_names import TABLES_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.tables import (
    commit,
    complete,
    files,
    part,
    plain_read,
    remaining,
    results,
    rows_of,
    run_config,
    same_schema,
)

pytestmark = pytest.mark.long

config = functools.partial(run_config, "/in", "/out", model="tiny")
RUN = RunRecord(
    run_id="run", fingerprint="f-r", started_at="2026-01-01T00:00:00+00:00", continues=False
)


def done(
    store: OutputStore, *listing: pa.RecordBatch, target_mb: float | None = 128, **sections: Any
) -> OutcomeCounts:
    """Finish a run that was to cover the listing."""
    num_listed = sum(batch.num_rows for batch in listing)
    job = config(output={"uri": "/out", "target_file_mb": target_mb}, **sections)
    return finish(store, RUN, job, model_revision="r", listing=listing, num_listed=num_listed)


def left(
    store: OutputStore, batch: pa.RecordBatch, retry: Retry = Retry.environment
) -> dict[str, list[int]]:
    rows = remaining(store, batch, retry)
    return {row["uri"].lstrip("/"): row["done_parts"] for row in rows}


def test_a_folder_at_work_is_not_marked_as_finished(memory: str) -> None:
    store = OutputStore(memory)
    begin_run(store, config(), "f-r")
    commit(store, results(part("a", 0, texts=["x"])))
    done(store, files("a"))
    assert store.exists("_SUCCESS")
    begin_run(store, config(), "f-r")
    assert not store.exists("_SUCCESS")
    done(store, files("a"))
    assert done(store, files("a", "b")).remaining == 1
    assert not store.exists("_SUCCESS")


def test_finishing_says_what_there_is(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    begin_run(store, config(), "f-r")
    failure: dict[str, Any] = {"error_stage": "extract", "error_kind": "timeout", "retryable": True}
    audio: dict[str, Any] = {"codec": "mp3", "channels": 2, "sample_rate_hz": 44100}
    commit(
        store,
        results(
            part("a", 0, texts=["x", "y"], last=False, language="de", speech_s=4.0, **audio),
            part("a", 1, texts=["z"], language="en", speech_s=5.0, decode_errors=3, **audio),
            part("c", 0, texts=[], status="no_speech", language="en"),  # of an English model
        ),
    )
    commit(store, results(part("b", 0, texts=["x"], last=False, language="en")))
    commit(store, results(part("b", 2, texts=["x"], last=False, language="en")))
    commit(store, results(part("b", 1, texts=["x"], last=False, language="de")))
    commit(store, results(part("b", 3, texts=None, status="failed", **failure)))
    commit(store, results(part("half", 1, texts=["x"])))
    commit(store, results(part("earlier", 0, texts=["x"])))
    counts = done(store, files("a", "b"), files("c", "half", "never"))
    assert counts == OutcomeCounts(
        listed=5, ok=1, no_speech=1, failed=1, remaining=2, processed=3, processed_failed=1,
        recordings=4, gone=1, segments=7, audio_s=80.0, speech_s=9.0,
    )  # fmt: skip
    rows = {row["uri"]: row for row in plain_read(tmp_path, "recordings")}
    assert set(rows) == {"/a", "/b", "/c", "/earlier"}
    a, b, c = rows["/a"], rows["/b"], rows["/c"]
    assert (a["status"], a["parts"], a["segments"], a["decode_errors"]) == ("ok", 2, 3, 3)
    assert (a["languages"], a["speech_s"], a["codec"]) == (["en", "de"], 9.0, "mp3")
    assert (b["status"], b["error_kind"], b["retryable"]) == ("failed", "timeout", True)
    assert (b["languages"], b["segments"], b["duration_s"]) == (["en", "de"], 3, 40.0)
    assert (c["status"], c["error_kind"], c["languages"], c["speech_s"]) == (
        "no_speech", None, [], None,
    )  # fmt: skip
    paths = [*(tmp_path / "recordings").iterdir()]
    assert len(paths) == 1
    assert all(same_schema(pq.read_schema(path), RECORDINGS) for path in paths)
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["counts"]["failed"] == 1
    assert report["model_revision"] == "r"
    assert report["versions"]["pyarrow"]
    assert not store.exists("_SUCCESS"), "two recordings remain"


def test_channels_apart_cover_the_same_time(memory: str) -> None:
    store = OutputStore(memory)
    apart = [part("a", index, texts=["x"], last=False, channel=index) for index in (0, 1)]
    nothing: dict[str, Any] = {"texts": None, "status": "failed", "duration_s": 0.0}
    commit(store, results(*apart, part("a", 2, **nothing), part("b", 0, **nothing)))
    counts = done(store, files("a", "b"))
    a, b = rows_of(store.recordings())
    assert counts.audio_s == a["duration_s"] + b["duration_s"] == 10.0, "a failure is no channel"
    assert {(row["uri"], row["parts"], row["segments"]) for row in (a, b)} == {
        ("/a", 3, 2), ("/b", 1, 0),
    }  # fmt: skip


def test_secrets_of_the_configuration_are_not_kept(memory: str) -> None:
    store = OutputStore(memory)
    secret = config(
        source={"uri": ["https://h/a?X-Amz-Signature=s3cr3t"]},
        output={"uri": "s3://b/o", "storage_options": {"endpoint_url": "http://u:s3cr3t@h"}},
    )
    run = begin_run(store, secret, "f-r")
    finish(store, run, secret, model_revision="r", listing=(), num_listed=0)
    for name in ("_run/config.json", "_run/fingerprint.json", "run.json"):
        assert "s3cr3t" not in json.dumps(store.read_json(name))


def test_an_empty_run_finishes_with_empty_tables(memory: str) -> None:
    store = OutputStore(memory)
    assert done(store).recordings == 0
    assert list(store.recordings()) == []
    assert len(store.names("recordings")) == 1


def test_many_recordings_are_aggregated_slice_by_slice(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "RECORDINGS_PER_OBJECT", 4)
    store = OutputStore(memory)
    names = [f"r{index}" for index in range(11)]
    for name in names:
        commit(store, results(part(name, 0, texts=[name])))
    assert done(store, files(*names)).ok == 11
    assert len(store.names("recordings")) == 3
    uris = [row["uri"] for batch in store.recordings() for row in batch.to_pylist()]
    assert sorted(uris) == sorted(f"/{name}" for name in names)


def test_segments_that_are_gone_are_named_with_what_to_do(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    commit(store, results(part("a", 0, texts=["x"]), part("b", 0, texts=["z"])))
    assert done(store, files("a", "b")).ok == 2
    commit(store, results(part("c", 0, texts=["y"])))
    [segments], [outcomes] = store.names("segments"), store.names("outcomes")
    Path(store.address(segments)).unlink()
    with pytest.raises(CorpusAsrError, match=f"found no {segments}, .*or remove {outcomes} and "):
        left(store, files("a"))
    with pytest.raises(CorpusAsrError, match="found no segments/"):
        done(store, files("a", "b", "c"))
    for removed in (outcomes, TABLES_NAME):
        Path(store.address(removed)).unlink()
    assert left(store, files("a", "b", "c")) == {"a": [], "b": []}
    commit(store, results(part("a", 0, texts=["again"]), part("b", 0, texts=["again"])))
    assert done(store, files("a", "b", "c")).remaining == 0
    assert [row["text"] for row in plain_read(tmp_path, "segments")] == ["again", "again", "y"]


def test_a_listing_that_lost_rows_is_no_success(memory: str) -> None:
    store = OutputStore(memory)
    commit(store, results(part("a", 0, texts=["x"])))
    for listing in ([], [files("a")]):
        counts = finish(store, RUN, config(), model_revision="r", listing=listing, num_listed=3)
        assert (counts.listed, counts.remaining) == (3, 3 - len(listing))
        assert not store.exists("_SUCCESS")


def failed(name: str, index: int = 0, *, retryable: bool = True, **values: Any) -> dict[str, Any]:
    kind: dict[str, Any] = {"error_stage": "extract", "retryable": retryable,
                            "error_kind": "poison" if retryable else "decode"}  # fmt: skip
    return part(name, index, texts=None, status="failed", **(kind | values))


def reasons(
    store: OutputStore, batch: pa.RecordBatch, *, leave_alone: Iterable[str] = ()
) -> dict[str, RemainingReason]:
    rows = remaining(store, batch, Retry.failed, leave_alone=leave_alone)
    return {row["uri"].lstrip("/"): RemainingReason(row["reason"]) for row in rows}


def test_each_recording_is_left_for_a_reason(memory: str) -> None:
    store = OutputStore(memory)
    commit(store, results(part("good", 0, texts=["x"]), failed("down")))
    commit(store, results(failed("bad", retryable=False), part("half", 0, texts=["x"], last=False)))
    commit(store, results(part("other", 0, texts=["x"], etag="v0"), failed("was", etag="v0")))
    batch = files("good", "down", "bad", "half", "other", "was", "fresh")
    assert reasons(store, batch) == {
        "down": RemainingReason.retried,
        "half": RemainingReason.continued,
        "other": RemainingReason.changed,
        "was": RemainingReason.changed,
        "fresh": RemainingReason.new,
    }


def test_what_is_to_be_left_alone_is_retried_with_new_content_only(memory: str) -> None:
    store = OutputStore(memory)
    commit(store, results(failed("down"), failed("hopeless"), failed("was", etag="v0")))
    alone = {recording_id(f"/{name}") for name in ("hopeless", "was", "absent")}
    assert reasons(store, files("down", "hopeless", "was"), leave_alone=alone) == {
        "down": RemainingReason.retried,
        "was": RemainingReason.changed,
    }


def test_an_end_that_failed_may_turn_out_to_be_none(tmp_path: Path) -> None:
    """A recording broke off at part 1; done again, it has four parts, and is killed on the way."""
    store = OutputStore(str(tmp_path))
    commit(store, results(part("a", 0, texts=["x"], last=False), failed("a", 1)))
    assert left(store, files("a"), Retry.environment) == {}
    commit(store, results(part("a", 1, texts=["x"], last=False), part("a", 3, texts=["x"])))
    assert left(store, files("a"), Retry.environment) == {"a": [0, 1, 3]}
    commit(store, results(part("a", 2, texts=["x"], last=False)))
    assert done(store, files("a")).ok == 1
    assert [row["part"] for row in plain_read(tmp_path, "outcomes")] == [0, 1, 2, 3]


@pytest.mark.parametrize("sounds", [("x", "x", "y"), ("x", "x", None), (None, None, None)])
@pytest.mark.parametrize("first", [None, "v0"])
def test_parts_of_two_contents_are_never_one_recording(
    memory: str, first: str | None, sounds: tuple[str | None, ...]
) -> None:
    """A listing without ETags, a run that is killed before its finish, and a replaced file."""
    store = OutputStore(memory)

    def put(etag: str | None, sound: str | None, *numbers: int, last: int = 2) -> None:
        rows = [part("a", number, texts=["x"], last=number == last) for number in numbers]
        [planned] = remaining(store, files("a", etag=etag, size_bytes=3))
        changes = {"etag": etag, "content_digest": sound, "size_bytes": 3,
                   "begun_by": planned["begun_by"] or f"run of {etag}"}  # fmt: skip
        commit(store, results(*(row | changes for row in rows)))

    def listed(etag: str) -> pa.RecordBatch:
        return files("a", etag=etag, size_bytes=3)

    put(first, sounds[0], 0, 1)
    if first is None:
        assert left(store, listed("v1")) == {"a": [0, 1]}
        put("v1", sounds[1], 2)
        assert left(store, listed("v1")) == {}
    assert left(store, listed("v2")) == {"a": []}
    if sounds[2] is not None:
        put("v2", sounds[2], 2)
        assert left(store, listed("v2")) == {"a": [2]}
    put("v2", sounds[2], 0, 1, 2)
    assert done(store, listed("v2")).ok == 1
    rows = rows_of(store.outcomes(("etag", "content_digest")))
    assert {(row["etag"], row["content_digest"]) for row in rows} == {("v2", sounds[2])}


def night(store: OutputStore, number: int, *rows: dict[str, Any]) -> dict[str, int]:
    """Commit rows as that run, and return the tries noted after it."""
    if rows:
        commit(store, results(*rows), run_id=f"night-{number}")
    failing = count_tries(store)
    store.write_table(FAILING_NAME, failing)
    return {one["uri"].lstrip("/"): one["tries"] for one in failing.to_pylist()}


def test_each_run_that_failed_on_a_recording_counts_once(memory: str) -> None:
    store = OutputStore(memory)
    assert night(store, 1) == {}
    assert night(store, 1, failed("a"), failed("bad", retryable=False)) == {"a": 1}
    assert night(store, 1) == {"a": 1}, "nothing was tried since"
    assert night(store, 2, failed("b")) == {"a": 1, "b": 1}
    assert night(store, 3, failed("a"), part("good", 0, texts=["x"])) == {"a": 2, "b": 1}
    commit(store, results(failed("a")), run_id="night-4")
    assert night(store, 5, failed("a")) == {"a": 3, "b": 1}, "only the last run is known"


def test_new_content_is_counted_anew(memory: str) -> None:
    store = OutputStore(memory)
    night(store, 1, failed("a"), failed("b"))
    assert night(store, 2, failed("a", etag="v2"), failed("b", size_bytes=9)) == {"a": 1, "b": 1}
    assert night(store, 3, failed("a", etag="v2")) == {"a": 2, "b": 1}


def test_each_of_many_recordings_keeps_its_own(memory: str) -> None:
    """Many, since a hash table may look sorted while it is small."""
    store = OutputStore(memory)
    rows = [
        part(f"r{number}", index, texts=["x"] * (number % 3 + 1), last=index == 1,
             language=f"l{number}" if index else f"l{number % 7}", codec=f"c{number}",
             speech_s=float(number), speech_without_text_s=2.5 if number % 2 else None)
        for number in range(300) for index in range(2)
    ]  # fmt: skip
    commit(store, results(*rows))
    found = complete(store)
    ids = [row["recording_id"] for row in found]
    assert ids == sorted(ids)
    recordings = {row["uri"]: row for row in found}
    assert len(recordings) == 300
    for number in range(300):
        row = recordings[f"/r{number}"]
        assert set(row["languages"]) == {f"l{number}", f"l{number % 7}"}
        assert (row["codec"], row["speech_s"]) == (f"c{number}", 2.0 * number)
        assert row["speech_without_text_s"] == (5.0 if number % 2 else None)
        assert (row["parts"], row["segments"]) == (2, 2 * (number % 3 + 1))


def test_tables_that_find_no_room_say_so_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OutputStore(str(tmp_path / "out"))
    commit(store, results(*(part(f"r{number}", 0, texts=["x"]) for number in range(200))))
    names = sorted(store.all_names(""))
    full = tmp_path / "full"
    full.write_text("no folder")
    monkeypatch.setattr(tempfile, "tempdir", str(full))
    monkeypatch.setenv(MEMORY_VARIABLE, "2")
    with pytest.raises(CorpusAsrError, match=rf"querying the tables of .*{MEMORY_VARIABLE}"):
        RunTables(store)
    assert sorted(store.all_names("")) == names
    monkeypatch.setenv(MEMORY_VARIABLE, "much")
    with pytest.raises(ConfigError, match=f"{MEMORY_VARIABLE}.*found 'much', expected"):
        RunTables(store)
