"""What tells that a recording has changed: what the source's settings say, also as they change."""

import os
from pathlib import Path

import pytest

from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import ConfigError
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.run_state.tables import OutputStore
from tests.storage.test_redo import ENGLISH, NAMES, Folder


def touch(folder: Folder, name: str) -> None:
    os.utime(folder.source / f"{name}.wav", (1_000_000_000 + folder.run_number,) * 2)


def replace(folder: Folder, name: str, size: int = 100) -> None:
    (folder.source / f"{name}.wav").write_bytes(os.urandom(size))
    touch(folder, name)


@pytest.mark.parametrize(
    ("version", "touched", "replaced"),
    [("etag", True, True), ("mtime", True, True), ("size", False, False),
     ("checksum", False, True)],
)  # fmt: skip
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


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("etag", "checksum"),
        ("checksum", "etag"),
        ("etag", "size"),
        ("size", "etag"),
        ("mtime", "checksum"),
        ("size", "mtime"),
    ],
)
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


def test_versions_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    OutputStore("memory://bucket").write_bytes("a.wav", b"x")
    for version in ("mtime", "checksum"):
        source = SourceSettings(uri=("memory://bucket/",), version=version)
        with pytest.raises(ConfigError, match=rf"source\.version: {version}.*set etag or size"):
            list(FileListing(source))
    with pytest.raises(ValueError, match="leave version out"):
        SourceSettings(manifest=("list.jsonl",), version="size")
