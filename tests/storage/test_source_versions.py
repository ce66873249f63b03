"""What tells that a recording has changed: what the source's settings say, also as they change."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus_asr.config.run import SourceSettings
from corpus_asr.storage.run_state.forget import find_recordings, forget
from corpus_asr.storage.stores.filesystem import read_bytes
from corpus_asr.storage.stores.uri import located
from tests.storage.test_members import tar_bytes
from tests.storage.test_redo import ENGLISH, NAMES, Folder
from tests.support.audio import wav_of
from tests.support.runs import ManualRun, planned_files
from tests.support.tables import rows_of

pytestmark = pytest.mark.long


def touch(folder: Folder, name: str) -> None:
    os.utime(folder.source / f"{name}.wav", (1_000_000_000 + folder.run_number,) * 2)


def replace(folder: Folder, name: str, size: int = 100) -> None:
    (folder.source / f"{name}.wav").write_bytes(os.urandom(size))
    touch(folder, name)


@pytest.mark.parametrize(
    ("version", "touched", "replaced"),
    [("etag", True, True), ("size", False, False)],
)
def test_what_changes_a_recording(
    tmp_path: Path, version: str, touched: bool, replaced: bool
) -> None:
    folder = Folder(tmp_path)
    folder.version = version
    folder.run()
    touch(folder, "a")
    assert set(folder.todo(folder.plan())) == ({"a"} if touched else set())
    replace(folder, "b")
    expected = {name for name, is_changed in (("a", touched), ("b", replaced)) if is_changed}
    assert set(folder.todo(folder.plan())) == expected
    replace(folder, "c", size=200)
    assert set(folder.todo(folder.plan())) == expected | {"c"}


@pytest.mark.parametrize(("before", "after"), [("etag", "size"), ("size", "etag")])
def test_another_setting_does_nothing_again_and_sees_later_changes(
    tmp_path: Path, before: str, after: str
) -> None:
    folder = Folder(tmp_path)
    folder.version = before
    folder.run()
    folder.version = after
    assert folder.plan().num_remaining == 0
    counts = folder.run()
    assert (counts.ok, folder.texts()) == (len(NAMES), ENGLISH)
    replace(folder, "b", size=100 if after != "size" else 200)
    assert set(folder.todo(folder.plan())) == {"b"}


def test_another_setting_in_a_run_that_replaces_a_recording(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.version = "size"
    folder.run()
    folder.version = "etag"
    replace(folder, "a", size=200)
    assert folder.run().ok == len(NAMES)
    touch(folder, "b")
    assert set(folder.todo(folder.plan())) == {"b"}


def test_a_manifest_has_no_versions() -> None:
    with pytest.raises(ValueError, match="remove version"):
        SourceSettings(manifest=("list.jsonl",), version="size")


class Shard:
    """An archive that changes between runs, of whose members all that is left is done."""

    def __init__(self, folder: Path, suffix: str, version: str) -> None:
        self.job = ManualRun(folder, [])
        source = self.job.config.source.model_copy(
            update={"version": version, "audio_column": "audio"}
        )
        self.job.config = self.job.config.model_copy(update={"source": source})
        self.path = self.job.source / f"s.{suffix}"
        self.nights = 0

    def write(self, *sounds: bytes, named: str = "abcdef") -> None:
        self.nights += 1
        if self.path.suffix == ".tar":
            files = [(f"{name}.wav", sound) for name, sound in zip(named, sounds, strict=False)]
            self.path.write_bytes(tar_bytes(files))
        else:
            table = pa.table({"audio": list(sounds), "n": range(len(sounds))})
            pq.write_table(table, self.path, row_group_size=2)
        os.utime(self.path, (1_000_000_000 + self.nights,) * 2)

    def night(self) -> set[str]:
        self.job.begin()
        todo = planned_files(self.job.store, self.job.plan)
        for file in todo:
            assert read_bytes(located(file["uri"], file["etag"]))
            self.job.commit(file["uri"].rpartition("/")[2])
        self.job.finish()
        return {file["uri"].rpartition("#")[2].removesuffix(".wav") for file in todo}


@pytest.mark.parametrize(
    ("suffix", "version", "touched", "replaced"),
    [
        ("tar", "etag", "abc", "abcz"),
        ("tar", "size", "", "z"),
        ("parquet", "etag", "012", "0123"),
        ("parquet", "size", "", "0123"),
    ],
)
def test_members_of_a_rewritten_archive_are_done_again_unless_size_alone_counts(
    tmp_path: Path, suffix: str, version: str, touched: str, replaced: str
) -> None:
    shard = Shard(tmp_path, suffix, version)
    one, two, three, four = b"1" * 700, b"2" * 700, b"3" * 700, b"4" * 2_000
    shard.write(one, two, three)
    assert len(shard.night()) == 3
    assert shard.night() == set()
    shard.write(one, two, three)
    assert shard.night() == set(touched)
    if suffix == "tar":  # others lie elsewhere now
        shard.write(four, one, b"5" * 700, three, named="zabc")
    else:
        shard.write(one, b"5" * 700, three, four)
    assert shard.night() == set(replaced)
    # What was done before lies where the tables say: the finish takes the place from the listing.
    for row in rows_of(shard.job.store.recordings()):
        assert read_bytes(located(row["uri"], row["etag"]))
    assert shard.night() == set()


def test_a_member_is_known_in_another_archive(tmp_path: Path) -> None:
    shard = Shard(tmp_path, "tar", "etag")
    shard.write(wav_of("one"), wav_of("two"))
    shard.night()
    shard.path.rename(shard.path.with_name("other.tar"))
    shard.path = shard.path.with_name("other.tar")
    shard.write(wav_of("other"), wav_of("one"), wav_of("two"), named="xab")
    assert shard.night() == {"x"}


def test_a_forgotten_member_stays_away_in_another_archive(tmp_path: Path) -> None:
    shard = Shard(tmp_path, "tar", "etag")
    shard.write(wav_of("one"), wav_of("two"))
    shard.night()
    found = find_recordings(shard.job.store, [f"{shard.path}#a.wav"])
    forget(shard.job.store, found.recordings)
    shard.path.rename(shard.path.with_name("other.tar"))
    shard.path = shard.path.with_name("other.tar")
    shard.write(wav_of("other"), wav_of("two"), wav_of("one"), named="xbr")
    assert shard.night() == {"x"}
