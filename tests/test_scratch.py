"""What processes keep for a while, and what of it stays where they are killed."""

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from corpus_asr import scratch
from corpus_asr.scratch import PREFIX, remove_abandoned, scratch_folder
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.local import TEMPORARY_NAME, LocalStore

_KEEPING = """
import sys, tempfile, time
from corpus_asr.scratch import scratch_folder
tempfile.tempdir = sys.argv[1]
with scratch_folder() as folder:
    (folder / "text").write_text("s3cr3t")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_left_goes_with_the_next_folder(folder: Path) -> None:
    command = [sys.executable, "-c", _KEEPING, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        kept = Path(process.stdout.readline().strip())
        assert kept.stat().st_mode & 0o777 == 0o700
        with scratch_folder() as mine:
            assert {*folder.iterdir()} == {kept, mine}
        assert [*folder.iterdir()] == [kept]  # its process lives
        process.kill()
    with scratch_folder() as mine:
        assert [*folder.iterdir()] == [mine]


@pytest.mark.parametrize("made", ["gone", "held"])
def test_what_another_process_takes_before_it_is_held_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    """A busy machine: seconds pass between making and holding."""
    opened, make, makes = os.open, os.open, list[Path]()

    def late(path: Path, *arguments: int, **options: int) -> int:
        makes.append(Path(path))
        if len(makes) > 1:
            return opened(path, *arguments, **options)
        if made == "held":
            descriptor = opened(path, *arguments, **options)
            scratch.hold(make(path, os.O_RDONLY))
            return descriptor
        if Path(path).is_dir():
            Path(path).rmdir()
            return opened(path, *arguments, **options)
        descriptor = opened(path, *arguments, **options)
        Path(path).unlink()
        return descriptor

    monkeypatch.setattr(os, "open", late)
    with scratch_folder() as mine:
        assert mine.is_dir()
    makes.clear()
    target = folder / "table"
    LocalStore().write(str(target), b"rows")
    assert target.read_bytes() == b"rows"
    assert len(makes) > 1


def test_nothing_else_is_removed(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / f"{PREFIX}link").symlink_to(folder / "mine")
    (folder / "corpus-asr-other").mkdir()
    with scratch_folder():
        pass
    assert len([*folder.iterdir()]) == 3


def test_a_fork_leaves_its_parents_folders(folder: Path) -> None:
    opened = contextlib.ExitStack()
    mine = opened.enter_context(scratch_folder())
    child = os.fork()
    if not child:
        opened.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert mine.exists()
    opened.close()
    assert [*folder.iterdir()] == []


def test_files_of_killed_writers_go_and_those_of_others_stay(folder: Path) -> None:
    (folder / f".tmp-{uuid.uuid4().hex}").write_text("half")
    (folder / ".tmp-of-the-user").write_text("whole")
    alive = folder / f".tmp-{uuid.uuid4().hex}"
    with alive.open("w") as file:
        scratch.hold(file.fileno())
        remove_abandoned(str(folder), TEMPORARY_NAME)
        assert len([*folder.iterdir()]) == 2
        assert alive.exists()
    remove_abandoned(str(folder), TEMPORARY_NAME)
    assert [path.name for path in folder.iterdir()] == [".tmp-of-the-user"]


def test_what_a_store_is_writing_is_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def swept(source: str, target: str) -> None:
        remove_abandoned(str(folder), TEMPORARY_NAME)
        replace(source, target)

    monkeypatch.setattr("os.replace", swept)
    LocalStore().write(str(folder / "a"), b"whole")
    assert (folder / "a").read_bytes() == b"whole"


_DYING = """
import os, signal, sys
from corpus_asr.storage.stores import filesystem
os.replace = os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
getattr(filesystem, sys.argv[1])(sys.argv[2], b"s3cr3t")
"""


@pytest.mark.parametrize("way", ["write_atomic", "create"])
def test_a_folder_is_swept_by_who_writes_to_it_next(folder: Path, way: str) -> None:
    place = folder / "of" / way
    killed = subprocess.run([sys.executable, "-c", _DYING, way, str(place / "a.txt")], check=False)
    assert killed.returncode == -signal.SIGKILL
    [half] = place.iterdir()
    assert half.read_bytes() == b"s3cr3t"
    alive = place / f".tmp-{uuid.uuid4().hex}"
    with alive.open("w") as file:
        scratch.hold(file.fileno())
        LocalStore().write(str(place / "b.txt"), b"whole")
        assert {*place.iterdir()} == {alive, place / "b.txt"}
    filesystem.sweep(str(folder))
    assert {*place.iterdir()} == {place / "b.txt"}
