"""Inputs of `transcribe`: files, folders, globs, URIs, pipes and standard input."""

import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.stages.inspection import IsolatedInspection
from corpus_asr.storage.listing import (
    FileListing,
    NothingFoundError,
    first_magic,
    probably_meant,
)
from corpus_asr.storage.stores.uri import (
    LOCAL,
    escaped_path,
    is_archive,
    local_path,
    normalize,
    parent,
    redact_uri,
    scheme_of,
)
from corpus_asr.units import counted

STDIN = "-"
_STDIN_NAME = "stdin"
_OF_THIS_PROCESS = ("/dev/stdin", "/dev/fd/", "/proc/self/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One recording to transcribe."""

    name: str
    """Name as read and displayed: the argument, or a listed file's path based on it."""
    uri: str
    """Normalized URI; determines the names of its outputs."""
    base: str
    """Folder, with a trailing slash, whose structure the outputs replicate."""
    piped: bool = False
    """Whether its bytes come from a pipe, readable once and sequentially."""

    @property
    def shown_uri(self) -> str:
        """Return its source as stated in results."""
        return self.name if self.piped else self.uri

    @property
    def audio(self) -> "str | Pipe":
        """Return the argument for a transcriber."""
        return Pipe(self.name, self.uri) if self.piped else self.name


class Pipe:
    """Standard input or a named pipe, opened on first read, which waits for a writer."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self._path = path
        self._file: io.BufferedIOBase | None = None

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes; empty at the end."""
        if self._file is None:
            stdin = cast("io.BufferedIOBase", sys.stdin.buffer)
            self._file = stdin if self.name == STDIN else open(local_path(self._path), "rb")  # noqa: SIM115
        data = self._file.read(size)
        if not data and self.name != STDIN:
            self._file.close()
        return data


@dataclass(slots=True, kw_only=True)
class Inputs:
    """All distinct recordings, and messages about other arguments and files."""

    found: list[Input] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """One message per argument that names no recording."""
    num_ignored: int = 0
    """Number of files in folders and globs ignored for their names or first bytes."""
    num_dangling: int = 0
    """Number of dangling links there."""

    @property
    def total(self) -> int:
        """Number of recordings plus invalid arguments."""
        return len(self.found) + len(self.problems)


def inputs_of(words: Iterable[str]) -> Inputs:
    """Return the recordings named by arguments; a missing one does not affect the others."""
    inputs = Inputs()
    seen: set[str] = set()
    for word in words:
        try:
            for recording in _named(word, inputs):
                if recording.uri not in seen:
                    seen.add(recording.uri)
                    inputs.found.append(recording)
        except (ConfigError, FetchError) as error:
            inputs.problems.append(str(error))
    return inputs


def _named(word: str, inputs: Inputs) -> Iterator[Input]:
    if word == STDIN:
        yield _standard_input()
        return
    word = escaped_path(word)  # as in settings, tables and messages
    uri, scheme = normalize(word), scheme_of(word)
    if scheme in ("http", "https"):  # the web has no folders: opened when it is read
        yield Input(name=word, uri=uri, base=parent(uri.partition("?")[0]) + "/")
    elif (
        scheme == LOCAL
        and os.path.exists(path := local_path(uri))
        and not (os.path.isdir(path) or is_archive(uri))
    ):
        yield _local_file(word, uri)
    else:
        yield from _listed(word, uri, inputs)


def _standard_input() -> Input:
    if sys.stdin.isatty():
        raise _no_audio(STDIN)
    folder = normalize(".") + "/"
    return Input(name=STDIN, uri=folder + _STDIN_NAME, base=folder, piped=True)


def _no_audio(word: str) -> ConfigError:
    return ConfigError(
        f"reading {word}: found a terminal, expected audio from a pipe or a file, as in "
        "`corpus-asr transcribe - < talk.mp3`"
    )


def _local_file(word: str, path: str) -> Input:
    mode = os.stat(local_path(path)).st_mode
    if stat.S_ISCHR(mode) and _is_terminal(path):
        raise _no_audio(word)
    # A shell's <(command), a named pipe, or a file descriptor that differs in the decoding process.
    piped = stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or path.startswith(_OF_THIS_PROCESS)
    return Input(name=word, uri=path, base=parent(path) + "/", piped=piped)


def _is_terminal(path: str) -> bool:
    with open(path, "rb") as device:
        return device.isatty()


def _listed(word: str, uri: str, inputs: Inputs) -> Iterator[Input]:
    inspect = IsolatedInspection(timeout_s=ExtractSettings().item_timeout_s)
    listing = FileListing(SourceSettings(uri=(word,), require_files=True), inspect=inspect)
    base = _base_of(uri)
    try:
        for batch in listing:
            for file_uri in batch.column("uri").to_pylist():
                file_base = base if file_uri.startswith(base) else parent(file_uri) + "/"
                yield Input(name=_shown(word, file_uri), uri=file_uri, base=file_base)
    except NothingFoundError as error:
        num_ignored = listing.num_ignored + len(listing.silent)
        raise ConfigError(_nothing(word, uri, num_ignored)) from error
    finally:
        inspect.close()
        inputs.num_ignored += listing.num_ignored + len(listing.silent)
        inputs.num_dangling += listing.num_dangling


def _base_of(uri: str) -> str:
    # A folder itself; for a glob the folder before its first wildcard.
    magic = None if scheme_of(uri) == LOCAL and os.path.isdir(uri) else first_magic(uri)
    return uri.rstrip("/") + "/" if magic is None else uri[: uri.rfind("/", 0, magic) + 1]


def _shown(word: str, uri: str) -> str:
    # Relative arguments give relative paths, as displayed to the user.
    if scheme_of(uri) != LOCAL or os.path.isabs(word) or word.startswith(("~/", "file://")):
        return uri
    return os.path.relpath(uri)


def _nothing(word: str, uri: str, num_ignored: int) -> str:
    shown = redact_uri(word)
    if num_ignored:
        return (
            f"reading {shown}: found no recording ({counted(num_ignored, 'file')} that are not "
            "audio), expected one; name a file to transcribe it nevertheless"
        )
    if scheme_of(uri) == LOCAL and os.path.isdir(uri):
        return f"reading {shown}: found an empty folder, expected recordings; name another"
    meant = probably_meant(uri)
    if first_magic(uri) is not None:
        return f"reading {shown}: no file matches; correct the pattern{meant}"
    return f"reading {shown}: found no such file; correct its name{meant}"
