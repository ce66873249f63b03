"""What is planned, in which order, in packs of which size."""

import importlib.metadata
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.config.run import RunConfig
from corpus_asr.schemas import PACKS
from corpus_asr.storage.run_state import plan as plan_module
from corpus_asr.storage.run_state.finish import finish
from corpus_asr.storage.run_state.lock import LOCK_NAME, Lock
from corpus_asr.storage.run_state.plan import make_plan, pack, read_listing, read_packs
from corpus_asr.storage.run_state.run_files import begin_run, fingerprint
from corpus_asr.storage.run_state.run_tables import REMAINING
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import (
    File,
    StoreOptions,
    inspect_files,
    write_atomic,
)
from corpus_asr.units import MEBIBYTE
from tests.support.audio import wav_of
from tests.support.tables import (
    commit,
    part,
    results,
    rows_of,
    run_config,
    same_schema,
    stored_segments,
)


def config(source: Path | str, output: Path | str, **extract: float) -> RunConfig:
    key = "manifest" if str(source).endswith((".jsonl", ".parquet")) else "uri"
    return run_config(source, output, source={key: str(source)}, extract=extract)


def sparse(path: Path, size_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)


def planned(store: OutputStore, plan) -> list[list[tuple[str, int | None]]]:
    return [
        [(Path(file["uri"]).name, file["size_bytes"]) for file in row["files"]]
        for table in read_packs(store, plan)
        for row in table.to_pylist()
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, mebibytes in (("long", 90), ("whole", 64), ("b", 30), ("a", 30), ("tiny", 1)):
        sparse(tmp_path / "in" / f"{name}.mp3", mebibytes * MEBIBYTE)
    (tmp_path / "in" / "notes.txt").touch()
    return tmp_path / "in"


PRINTABLE = "".join(map(chr, range(32, 127))).replace("/", "")
CONTROL = "".join(map(chr, range(1, 32))) + "\x7f"
MOST_KEY_BYTES = 1024  # of S3, Google and Azure


@pytest.mark.long
def test_keys_of_any_character_and_of_full_length_go_through_a_run(
    place: tuple[str, StoreOptions], store: OutputStore
) -> None:
    base, options = place[0] + "-in", place[1]
    taken = len("out-in/") + len(".mp3")
    longest = ("0123456789/" * MOST_KEY_BYTES)[: MOST_KEY_BYTES - taken]
    long_names = [longest, "\u00e9" * ((MOST_KEY_BYTES - taken) // 2)]
    if base.startswith("/"):  # a name of a file has 255 bytes, a path many
        long_names[1] = "\u00e9" * 120
    names = [PRINTABLE, CONTROL, "a\nb", "two  spaces/ x ", *long_names]
    uris = sorted(f"{base}/{name}.mp3" for name in names)
    for uri in uris:
        write_atomic(uri, b"sound", options)
    source = {"uri": base, "storage_options": {"endpoint_url": options.endpoint_url}}
    job = run_config("", "", source=source, output=source | {"uri": store.uri})
    plan = make_plan(job, store, model_revision="revision")
    run = begin_run(store, job, fingerprint(job, "revision"))
    for row in pa.concat_tables(read_packs(store, plan)).to_pylist():
        for file in row["files"]:
            assert filesystem.read_bytes(file["uri"], options) == b"sound"
            same = {"etag": file["etag"], "size_bytes": file["size_bytes"]}
            commit(store, results(part("", 0, texts=["x"], uri=file["uri"], **same)))
    finish(store, run, job, model_revision="revision", num_listed=plan.num_files,
           listing=read_listing(store, plan.name), plan_name=plan.name)  # fmt: skip
    for rows in (stored_segments(store), store.outcomes(), store.recordings()):
        assert sorted(row["uri"] for row in rows_of(rows)) == uris
    assert make_plan(job, store, model_revision="revision").num_remaining == 0


def test_long_files_come_first_and_alone(
    source: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "MIN_PACKS", 1)
    store = OutputStore(memory)
    plan = make_plan(config(source, memory, pack_mb=64), store)
    packs = planned(store, plan)
    assert [{name for name, _ in files} for files in packs] == [
        {"long.mp3"}, {"whole.mp3"}, {"a.mp3", "b.mp3", "tiny.mp3"},
    ]  # fmt: skip
    assert (plan.num_files, plan.num_remaining, plan.num_done) == (5, 5, 0)
    assert plan.num_bytes == plan.num_remaining_bytes == 215 * MEBIBYTE
    assert (plan.num_packs, plan.num_ignored, plan.num_duplicates) == (3, 1, 0)
    [first, *_] = read_packs(store, plan)
    assert same_schema(first.schema, PACKS)
    assert first["pack_bytes"].to_pylist() == [90 * MEBIBYTE]
    assert [table["pack_id"][0].as_py() for table in read_packs(store, plan)] == [0, 1, 2]


def test_what_holds_no_sound_is_opened_once(tmp_path: Path, memory: str) -> None:
    """Before: each night opened all of them again."""
    for name, content in {
        "junk": b"junk",
        "sound": wav_of("x"),
        "empty": b"",
        "a.mp3": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
    store, job, opened = OutputStore(memory), config(tmp_path, memory), list[str]()

    def inspect(function: str, files: Sequence[File], *rest: Any) -> list[Any]:
        opened.extend(Path(uri).name for uri, _ in files)
        return inspect_files(function, files, *rest)

    def openings(store: OutputStore) -> list[str]:
        opened.clear()
        assert make_plan(job, store, inspect=inspect).num_no_sound == 2
        return sorted(opened)

    assert openings(store) == ["junk", "sound"]
    assert openings(store) == ["sound"]  # until it is committed
    (tmp_path / "junk").write_bytes(b"other junk")
    assert openings(store) == ["junk", "sound"]
    assert openings(store) == ["sound"]
    with pytest.MonkeyPatch.context() as patch:  # may read what it did not
        patch.setattr(importlib.metadata, "version", lambda _: "another libav")
        assert openings(store) == ["junk", "sound"]


def test_what_failed_before_comes_last(source: Path, memory: str) -> None:
    store, job = OutputStore(memory), config(source, memory)
    uri = next(name for files in planned(store, make_plan(job, store)) for name, _ in files)
    [listed] = [row for row in rows_of(read_listing(store, make_plan(job, store).name))
                if row["uri"].endswith(uri)]  # fmt: skip
    version = {name: listed[name] for name in ("uri", "size_bytes", "etag")}
    commit(
        store, results(part("", 0, texts=None, status="failed", error_kind="timeout", **version))
    )
    plan = make_plan(job, store)
    order = [name for files in planned(store, plan) for name, _ in files]
    assert plan.num_retried == 1
    assert order[-1] == uri, "the longest, which was the first"


def named(folder: Path, num_files: int) -> Path:
    """Write a manifest of files of unknown size."""
    lines = "".join(f'{{"uri": "{index}.mp3"}}\n' for index in range(num_files))
    (folder / "m.jsonl").write_text(lines)
    return folder / "m.jsonl"


def test_tiny_files_travel_in_packs_of_hundreds_once_every_worker_has_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, memory: str
) -> None:
    monkeypatch.setattr(plan_module, "UNKNOWN_SHARE", 1e-6)
    for num_files, num_packs in ((1_000, 16), (6_400, 64), (17_000, 67)):
        job = config(named(tmp_path, num_files), memory)
        assert make_plan(job, OutputStore(memory)).num_packs == num_packs


def test_packs_are_plain_parquet_at_the_plans_address(source: Path, tmp_path: Path) -> None:
    plan = make_plan(config(source, tmp_path / "out"), OutputStore(str(tmp_path / "out")))
    assert pq.read_table(plan.uri).num_rows == plan.num_packs == 5  # one each, so few they are


def test_what_is_done_is_left_out_and_half_done_files_say_which_parts(
    source: Path, memory: str
) -> None:
    store = OutputStore(memory)
    plan = make_plan(config(source, memory), store)
    versions = {row["uri"]: row for row in rows_of(read_listing(store, plan.name))}

    def row(name: str, index: int, *, last: bool) -> dict:
        uri = f"{source}/{name}.mp3"
        known = {key: versions[uri][key] for key in ("etag", "size_bytes")}
        return part(name, index, texts=["x"], last=last, uri=uri) | known

    commit(store, results(row("a", 0, last=True), row("b", 1, last=False)))
    plan = make_plan(config(source, memory), store)
    assert (plan.num_done, plan.num_remaining) == (1, 4)
    parts = {
        Path(file["uri"]).name: file["done_parts"]
        for table in read_packs(store, plan)
        for file in table["files"].to_pylist()[0]
    }
    assert parts == {"long.mp3": [], "whole.mp3": [], "b.mp3": [1], "tiny.mp3": []}


def test_nothing_to_do_is_an_empty_plan(source: Path, memory: str) -> None:
    store = OutputStore(memory)
    listing = read_listing(store, make_plan(config(source, memory), store).name)
    for row in rows_of(listing):
        done = part("x", 0, texts=["x"], uri=row["uri"])
        commit(store, results(done | {key: row[key] for key in ("etag", "size_bytes")}))
    plan = make_plan(config(source, memory), store)
    assert (plan.num_done, plan.num_remaining, plan.num_packs) == (5, 0, 0)
    assert list(read_packs(store, plan)) == []
    assert store.names(f"{plan.name}/packs") == []


def test_files_of_unknown_size_come_first_in_small_packs(tmp_path: Path, memory: str) -> None:
    store = OutputStore(memory)
    plan = make_plan(config(named(tmp_path, 1000), memory), store)
    assert (plan.num_unknown_sizes, plan.num_bytes) == (1000, 0)
    assert max(len(files) for files in planned(store, plan)) <= 8


def test_output_inside_the_source_is_not_transcribed(source: Path) -> None:
    store = OutputStore(str(source / "out"))
    store.write_bytes("_SUCCESS", b"")
    sparse(source / "out-takes" / "a.mp3", MEBIBYTE)  # beside it, with a name that begins alike
    plan = make_plan(config(source, source / "out"), store)
    assert (plan.num_files, plan.num_ignored) == (6, 1)


def test_shards_do_not_change_the_order(
    source: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(40):
        sparse(source / f"{index}.mp3", random.Random(index).randrange(5) * MEBIBYTE)
    store = OutputStore(memory)
    whole = planned(store, make_plan(config(source, memory), store))
    monkeypatch.setattr(plan_module, "SHARD_ROWS", 7)
    sharded = planned(store, make_plan(config(source, memory), store))
    assert [file for files in sharded for file in files] == [f for files in whole for f in files]


def plans_of(store: OutputStore) -> set[str]:
    return {"/".join(name.split("/")[:3]) for name in store.all_names("_run/plan")}


@pytest.mark.long
@pytest.mark.parametrize("done", [True, False])
def test_a_finish_removes_plans_and_raw_addresses_also_where_something_is_left(
    tmp_path: Path, memory: str, done: bool
) -> None:
    address = "https://u:s3cr3t@host/{}.mp3?X-Amz-Signature=s3cr3t"
    lines = [json.dumps({"uri": address.format(index), "link": address}) for index in range(20)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    job, store = config(tmp_path / "m.jsonl", memory), OutputStore(memory)
    old, mine = make_plan(job, store), make_plan(job, store)
    run = begin_run(store, job, fingerprint(job, "weights"))
    younger = make_plan(job, store)
    identities = [row["recording_id"] for batch in read_listing(store, mine.name)
                  for row in batch.to_pylist()]  # fmt: skip
    for index in range(20 if done else 19):
        commit(store, results(part("x", 0, texts=["x"], uri=address.format(index))))
    for _ in range(2):  # may be repeated
        counts = finish(
            store, run, job, model_revision="weights", listing=read_listing(store, mine.name),
            num_listed=mine.num_files, plan_name=mine.name,
        )  # fmt: skip
        assert (counts.listed, counts.remaining) == (20, 0 if done else 1)
    assert old.name not in plans_of(store)
    assert plans_of(store) == {mine.name, younger.name}
    assert not any(name.startswith(f"{mine.name}/packs/") for name in store.all_names("_run"))
    listed = rows_of(read_listing(store, mine.name))
    assert [row["recording_id"] for row in listed] == identities
    assert listed[0]["uri"] == "https://host/0.mp3"
    assert "s3cr3t" not in str(listed)
    for name in store.all_names(""):
        if not name.startswith(f"{younger.name}/packs/"):
            assert b"s3cr3t" not in filesystem.read_bytes(store.address(name))


_KILLED = """
import os, signal, sys
from corpus_asr.config.run import RunConfig
from corpus_asr.storage.run_state import plan
from corpus_asr.storage.run_state.tables import OutputStore

plan._write_packs = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
job = RunConfig.model_validate_json(sys.argv[1])
plan.make_plan(job, OutputStore(job.output.uri))
"""


@pytest.mark.long
def test_a_killed_plan_leaves_no_addresses_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "m.jsonl").write_text('{"uri": "https://host/a.mp3?X-Amz-Signature=s3cr3t"}')
    job = config(tmp_path / "m.jsonl", tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, job.model_dump_json()],
        env=os.environ | {"TMPDIR": str(scratch)}, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    kept = [path for path in scratch.rglob("*") if path.is_file()]
    assert any(b"s3cr3t" in path.read_bytes() for path in kept)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    time.sleep(1.1)  # what is younger may not be locked yet
    make_plan(job, OutputStore(job.output.uri))
    assert list(scratch.iterdir()) == []


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("usual_umask")
def test_what_may_hold_signed_addresses_is_its_owner_s_alone_on_local_disks(
    source: Path, tmp_path: Path
) -> None:
    job, output = config(source, tmp_path / "out"), tmp_path / "out"
    store = OutputStore(str(output))
    with Lock(store, "run") as lock:
        store = lock.store
        plan = make_plan(job, store)
        run = begin_run(store, job, fingerprint(job, "weights"))
        assert modes(output / plan.name / "packs") == {0o600}
        # What others need to look at a run or to continue it.
        assert modes(output / "_run") - modes(output / plan.name / "packs") == {0o644}
        assert (output / LOCK_NAME).stat().st_mode & 0o777 == 0o644
        commit(store, results(part("a", 0, texts=["x"], uri=str(source / "a.mp3"))))
        finish(
            store, run, job, model_revision="weights", listing=read_listing(store, plan.name),
            num_listed=plan.num_files, plan_name=plan.name,
        )  # fmt: skip
    # By then it holds addresses without signatures.
    assert modes(output / plan.name) == modes(output / "outcomes") == {0o644}


@given(
    st.lists(st.integers(0, 200), max_size=300), st.integers(1, 300), st.integers(0, 9),
    st.integers(1, 99),
)  # fmt: skip
def test_packs_hold_every_file_once_and_are_bounded(
    sizes: list[int], pack_bytes: int, first_id: int, max_files: int
) -> None:
    sizes.sort(reverse=True)
    rows = [
        {"recording_id": f"{index}", "uri": f"/{index}", "size_bytes": size, "done_parts": []}
        for index, size in enumerate(sizes)
    ]
    table = pack(
        pa.Table.from_pylist(rows, schema=REMAINING), np.array(sizes), pack_bytes,
        first_id=first_id, max_files=max_files,
    )  # fmt: skip
    packs = table.to_pylist()
    packed = [file["uri"] for row in packs for file in row["files"]]
    assert packed == [f"/{index}" for index in range(len(sizes))]
    for number, row in enumerate(packs):
        assert row["pack_id"] == first_id + number
        assert row["pack_bytes"] == sum(file["size_bytes"] for file in row["files"])
        assert 1 <= len(row["files"]) <= max_files
        assert row["pack_bytes"] <= pack_bytes or row["files"][0]["size_bytes"] > pack_bytes
        if row["files"][0]["size_bytes"] > pack_bytes:
            assert len([file for file in row["files"] if file["size_bytes"]]) == 1


def test_durations_of_a_manifest_order_and_fill_packs(tmp_path: Path) -> None:
    rows = [{"audio_filepath": f"{n}.wav", "duration": 5.0 + n / 1000} for n in range(2000)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = OutputStore(str(tmp_path / "out"))
    plan = make_plan(config(tmp_path / "m.jsonl", tmp_path / "out"), store)
    packs = planned(store, plan)
    # 3.3 hours: 64 packs for the sake of all workers, not 250 of 8.
    assert 60 <= len(packs) <= 70
    assert packs[0][0] == ("1999.wav", None)
    [sums] = plan.remaining.strata.values()
    assert sums.size < 2000 * MEBIBYTE, "not of unknown size"
    assert plan.num_unknown_sizes == 2000
    assert plan.num_remaining_bytes == 0


def test_no_glob_for_parquet_finds_what_is_internal(source: Path, tmp_path: Path) -> None:
    """Readers of `**/*.parquet` would add its rows to those of tables."""
    job = config(source, tmp_path / "out")
    store = OutputStore.of(job.output)
    plan = make_plan(job, store)
    commit(store, results(part("a", 0, texts=["x"])))
    folders = {path.relative_to(tmp_path / "out").parts[0]: path.suffix
               for path in tmp_path.glob("out/**/*.rows")}  # fmt: skip
    assert folders == {"_run": ".rows"}
    assert not list(tmp_path.glob("out/_run/**/*.parquet"))
    assert planned(store, plan)
