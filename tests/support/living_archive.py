"""A folder of recordings over the years: what happens to its files, without audio.

Files say what they hold by their size alone, which no two contents share, so a text names its
content wherever its file lies.
"""

import itertools
import os
import random
import shutil
from pathlib import Path

import numpy as np

from tests.support.audio import wav_bytes

MOUNT = "in"
Lines = tuple[tuple[int, str], ...]
"""Part and text of each segment of a recording."""


def lines_of(content: int) -> Lines:
    """Return what is said in a content that can be read, without the take of it."""
    return tuple(
        (index, f"{content} {index}")
        for index in range(1 + content % 3)
        if (content + index) % 5  # else nobody speaks
    )


def sound_of(content: int) -> bytes:
    """Return a WAV file of so many bytes, which begins with 44 bytes of head."""
    return wav_bytes(np.zeros((1, content - 44), np.float32), rate_hz=16_000, sample_type="u8")


def broken(content: int) -> bool:
    return content % 7 == 0


def version_of(path: Path) -> str:
    """Return the version that a listing gives a file."""
    found = path.stat()
    return f"{found.st_size}-{found.st_mtime_ns}"


def plain(said: Lines) -> Lines:
    """Return lines with their content and part alone."""
    return tuple((index, " ".join(text.split()[:2])) for index, text in said)


class LivingArchive:
    """A project folder with recordings that come, change, move and go by day.

    Notes where each went, for who knows the tables.
    """

    def __init__(self, folder: Path, *, seed: int, files: int) -> None:
        self._folder, self.chance = folder, random.Random(seed)
        self._numbers, self._contents = itertools.count(), itertools.count(100)
        self._stamps_s = itertools.count(1_700_000_000)
        self.project = folder / "project-0"
        for name in ("s1", "s2"):
            (self.source / name).mkdir(parents=True)
        self.good: dict[str, Lines] = {}
        """What the tables had of complete recordings after the last night, by address."""
        self._versions: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        """Where files went that were renamed since a night listed all."""
        self.swapped: dict[str, str] = {}
        """Addresses that have each other's file since."""
        self.recognizable: set[str] = set()
        """Old addresses of those that cannot be taken for another file."""
        self.copied: set[int] = set()
        """Contents that more than one recording has had."""
        self.away: dict[int, str] = {}
        """Contents that are forgotten, and their addresses at that time."""
        self.corrected: dict[int, tuple[str, str]] = {}
        self.asked: dict[int, int] = {}
        """The first take that may count, of contents that were to be done again."""
        self._trash: list[tuple[Path, list[str], Path]] = []
        self._begin(files)

    def _begin(self, files: int) -> None:
        for _ in range(files):
            self.add()

    @property
    def source(self) -> Path:
        return self.project / MOUNT

    def files(self) -> dict[str, int]:
        """Return the files there are, and their contents."""
        return {str(path): path.stat().st_size for path in self.source.rglob("*.mp3")}

    def listed(self) -> set[str]:
        """Return the addresses that a night lists."""
        return {*self.files()}

    # What happens by day.

    def _some(self, *, forgotten: bool = False) -> Path:
        """Return a file; of those that are to stay away only if that changes nothing."""
        paths = sorted(self.source.rglob("*.mp3"))
        known = [path for path in paths if forgotten or path.stat().st_size not in self.away]
        return self.chance.choice(known)

    def _write(self, path: Path) -> None:
        path.write_bytes(sound_of(next(self._contents)))
        self._stamp(path)

    def _stamp(self, path: Path) -> None:
        stamp_s = next(self._stamps_s)
        os.utime(path, (stamp_s, stamp_s))
        self.recognizable -= {old for old, new in self.moved.items() if new == str(path)}

    def _new_path(self) -> Path:
        folder = self.chance.choice(sorted(path for path in self.source.iterdir() if path.is_dir()))
        return folder / f"{next(self._numbers):04d}.mp3"

    def add(self) -> None:
        self._write(self._new_path())

    def replace(self) -> None:
        path = self._some()
        self.corrected.pop(path.stat().st_size, None)
        self._write(path)

    def touch(self) -> None:
        self._stamp(self._some())

    def copy(self) -> None:
        """Copy a file with its time, as a backup does."""
        path, to = self._some(), self._new_path()
        self.copied.add(path.stat().st_size)
        self.corrected.pop(path.stat().st_size, None)
        shutil.copy2(path, to)

    def delete(self) -> None:
        path = self._some()
        kept = self._folder / "trash" / f"{next(self._numbers)}.mp3"
        kept.parent.mkdir(exist_ok=True)
        path.rename(kept)
        self.recognizable -= {old for old, new in self.moved.items() if new == str(path)}
        first = [place for place, later in self.moved.items() if later == str(path)]
        self._trash.append((kept, [*first, str(path)], path.relative_to(self.project)))

    def come_back(self) -> None:
        """Let a deleted file be there again, with its time."""
        if not self._trash:
            self.delete()
        kept, before, name = self._trash.pop(self.chance.randrange(len(self._trash)))
        path = self.project / name
        if path.exists():
            path = self._new_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        kept.rename(path)
        for each in before:
            self._went(each, str(path))

    def _move(self, old: Path, new: Path) -> None:
        files = sorted(old.rglob("*.mp3")) if old.is_dir() else [old]
        pairs = [(str(each), str(new / each.relative_to(old)) if old.is_dir() else str(new))
                 for each in files]  # fmt: skip
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
        for before, now in pairs:
            self._went(before, now)

    def _went(self, before: str, now: str) -> None:
        content = Path(now).stat().st_size
        first = [place for place, later in self.moved.items() if later == before]
        for place in {*first, before}:
            self.moved[place] = now
            if place == now:
                del self.moved[place]
                continue
            is_same = self._versions.get(place) == version_of(Path(now))
            if not first and is_same and place in self.good and content not in self.copied:
                self.recognizable.add(place)

    def rename_file(self) -> None:
        self._move(self._some(forgotten=True), self._new_path())

    def rename_folder(self) -> None:
        folders = sorted(path for path in self.source.iterdir() if any(path.rglob("*.mp3")))
        old = self.chance.choice(folders)
        self._move(old, old.with_name(f"{old.name[:2]}-{next(self._numbers)}"))

    def rename_project(self) -> None:
        new = self.project.with_name(f"project-{next(self._numbers)}")
        self._move(self.project, new)
        self.project = new

    def swap(self) -> None:
        """Let two files have each other's name."""
        one, other = self._some(), self._some()
        if one != other:
            between = one.with_suffix(".swap")
            one.rename(between)
            other.rename(one)
            between.rename(other)
            self.swapped |= {str(one): str(other), str(other): str(one)}
            pair = {str(one), str(other)}
            for path in (one, other):
                content = path.stat().st_size
                self.copied.add(content)
                self.corrected.pop(content, None)
                self.asked.pop(content, None)
            self.recognizable -= {old for old, new in self.moved.items() if {old, new} & pair}
            self.recognizable -= pair
