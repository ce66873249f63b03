"""Recordings named by a source (URIs, folders, globs or manifests), as FILES batches."""

import difflib
import errno
import fnmatch
import functools
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from corpus_asr.activity import has_media_name
from corpus_asr.config.extraction import NO_SPEAKERS, SpeakerSettings
from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.failure_kinds import ACCESS_DENIED, NOT_FOUND
from corpus_asr.schemas import FILES
from corpus_asr.storage.manifest import NoRowsError, Row, read_manifest
from corpus_asr.storage.shards import MemberPlaces, ShardLister, with_columns
from corpus_asr.storage.stores.filesystem import (
    Inspection,
    StoreOptions,
    describe,
    exists,
    inspect_files,
    list_pages,
)
from corpus_asr.storage.stores.host_allowlist import WEB
from corpus_asr.storage.stores.members import HEADER_BLOCK_BYTES
from corpus_asr.storage.stores.store import TIMED, Page, page_of
from corpus_asr.storage.stores.uri import (
    LOCAL,
    REST,
    expanded,
    is_archive,
    is_table,
    join,
    local_path,
    member_address,
    normalize,
    parent,
    recording_id,
    redact_uri,
    scheme_of,
)
from corpus_asr.units import MEBIBYTE, counted

HAS_AUDIO = "corpus_asr.audio.probe:has_audio"
_PAGES_AT_ONCE = 16  # an object named in full is a page
_ETAG_OF_NOTHING = hashlib.md5(usedforsecurity=False).hexdigest()
CHUNK_ROWS, _CHUNK_CHARS = 5_000, 16 * MEBIBYTE  # of a manifest


class NothingFoundError(ConfigError):
    """A URI names neither a file nor anything that can be listed."""


RECORDS_FOLDER = ".corpus-asr"
"""Folder of this program's records among transcripts, whose folder may hold recordings."""


def check_output_apart(source: SourceSettings, output_uri: str) -> None:
    """Check that the output folder, whose contents are not listed, does not hold the source.

    Raises:
        ConfigError: a folder or glob of the source is in the output folder.
        FetchError: the store cannot say whether a URI of the source in it is a file.
    """
    output = _folder_prefix(output_uri)
    store = StoreOptions(storage=source.bound_options)
    for uri in map(normalize, expanded(source.uri, "source.uri")):
        first = first_magic(uri)
        folder = uri if first is None else uri[: uri.rindex("/", 0, first)]
        if _folder_prefix(folder).startswith(output) and not exists(uri, store):
            name = join(redact_uri(output_uri), "transcripts")
            if _folder_prefix(folder).startswith(_folder_prefix(name)):
                name = f"{redact_uri(output_uri).rstrip('/')}-transcripts"
            raise ConfigError(
                f"reading output.uri: found {redact_uri(output_uri)}, which contains source.uri, "
                f"{redact_uri(uri)}, and is not listed, expected another folder; "
                f"set output.uri={name}"
            )


def _folder_prefix(uri: str) -> str:
    return normalize(uri).rstrip("/") + "/"


class FileListing:
    """FILES batches of a page or a chunk each; the counts are final once it is exhausted."""

    def __init__(
        self,
        source: SourceSettings,
        *,
        output_uri: str | None = None,
        speakers: SpeakerSettings = NO_SPEAKERS,
        known: Callable[[list[str]], Collection[str]] = lambda ids: (),
        silent: Mapping[str, str | None] = MappingProxyType({}),
        inspect: Inspection = inspect_files,
    ) -> None:
        """List a source, excluding the contents of the run's own output folder.

        Of files in folders, globs and archives without the suffix of a sound or film the first
        bytes are read by `inspect`, unless `known` returns their recording IDs or they have the
        version in `silent`, an earlier listing's. Rows whose numbers of speakers do not fit
        `speakers` are an error if diarization is on.
        """
        self.num_excluded = 0
        """Number of files excluded by `source.exclude`."""
        self.num_ignored = 0
        """Number of files that are not recordings, by `source.ignore`."""
        self.silent: dict[str, str | None] = {}
        """IDs and versions of files without the name and the first bytes of a sound or film."""
        self.num_own = 0
        """Number of sounds and films in the output folder and other folders of this program."""
        self.num_dangling = 0
        """Number of skipped links: local ones without a target, and symbolic ones in archives."""
        self.unknown: list[str] = []
        """Local links and other entries that are files or folders: they cannot be looked at."""
        self.odd: list[str] = []
        """First URIs in manifests that look written for another system."""
        self.num_odd = 0
        self.empty: list[str] = []
        """URIs without any recording."""
        self.num_duplicates = 0
        """Number of recordings named again by another URI or line."""
        # ETags of several objects, as gateways over existing files give, say nothing of a content.
        self._shared_etags = {_ETAG_OF_NOTHING}
        self._source, self._speakers, self._known = source, speakers, known
        self._silent_before, self._inspect = silent, inspect
        self._output = None if output_uri is None else _folder_prefix(output_uri)
        self._store = StoreOptions(
            storage=source.bound_options,
            audio_column=source.audio_column,
        )
        self._excluded = _any_of(source.exclude)
        self._ignored = _any_of(tuple(p for p in source.ignore if not p.endswith("/")))
        self._ignored_folders = _any_of(
            tuple(p.rstrip("/") for p in source.ignore if p.startswith((".", "_")) or p[-1:] == "/")
        )
        self._shards = ShardLister(
            store=self._store,
            by_size=source.version == "size",
            ignored=self._ignored,
            excluded=self._excluded,
        )
        if source.manifest:
            # URIs in manifests follow stricter access rules, and an unreadable archive is a failed
            # recording.
            self._shards = replace(self._shards, store=StoreOptions.of(source), is_strict=False)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        seen = _IdSet()
        for rows in self._named():
            ids = rows.column("recording_id").to_pylist()
            fresh = seen.add(np.array([int(name, 16) for name in ids], dtype=np.uint64))
            self.num_duplicates += len(fresh) - int(fresh.sum())
            if fresh.any():
                yield rows.filter(pa.array(fresh))

    def _named(self) -> Iterator[pa.RecordBatch]:
        source = self._source
        for pattern in expanded(source.manifest, "source.manifest"):
            for manifest in self._manifests(pattern):
                yield from self._listed_in(manifest)
        pages = (page for uri in expanded(source.uri, "source.uri") for page in self._expand(uri))
        while group := list(itertools.islice(pages, _PAGES_AT_ONCE)):
            columns = zip(*group, strict=True)
            page = Page._make(list(itertools.chain(*column)) for column in columns)
            etags = self._versions(page)
            yield from self._with_members(page._replace(etags=etags), [None] * len(page.uris))

    def _versions(self, page: Page) -> list[str | None]:
        """Return ETags, with times where several objects have one."""
        counts = Counter(filter(None, page.etags))
        self._shared_etags |= {etag for etag, count in counts.items() if count > 1}
        return [
            f"{etag}{TIMED}{time}" if size and time and etag in self._shared_etags else etag
            for _, size, etag, time in zip(*page, strict=True)
        ]

    def _with_members(self, page: Page, columns: Sequence[str | None]) -> Iterator[pa.RecordBatch]:
        # An archive is listed as the recordings in it.
        places, archives = [], []
        for at, uri in enumerate(page.uris):
            if is_archive(uri) or (self._source.audio_column is not None and is_table(uri)):
                archives.append(uri)
            else:
                places.append(at)
        if places:
            rest = Page._make([column[at] for at in places] for column in page)
            if self._source.version == "size":
                rest = rest._replace(etags=[None] * len(places))
            yield _rows(rest, [columns[at] for at in places])
        empty = dict.fromkeys(archives)
        of_archives = dict(zip(page.uris, columns, strict=True)) if archives else {}
        for shard_rows in self._shards.rows(archives):
            self.num_ignored += shard_rows.num_ignored
            self.num_excluded += shard_rows.num_excluded
            self.num_dangling += shard_rows.num_dangling
            if shard_rows.uris:
                archive = member_address(shard_rows.uris[0]).container  # type: ignore[union-attr]
                empty.pop(archive, None)
                columns_of_page = shard_rows.uris, shard_rows.sizes, shard_rows.etags
                members = Page(*columns_of_page, times=[None] * len(shard_rows.uris))
                sounds = self._sounds(members, range(len(members.uris)))
                metadata = [
                    with_columns(shard_rows.metadata[at], of_archives[archive]) for at in sounds
                ]
                yield _rows(_select_objects(members, sounds), metadata)
        if empty and self._source.require_files:
            raise _nothing(next(iter(empty)), self._num_passed_over)
        self.empty += empty

    def _listed_in(self, manifest: str) -> Iterator[pa.RecordBatch]:
        # Whether the files exist is not checked here: a million requests would delay the first
        # transcript, and a missing file is that recording's failure. Headers of tar files are read:
        # an archive with one named member may hold thousands of others.
        allow_local_files = self._source.allow_local_files
        rows = read_manifest(manifest, self._store, allow_local_files=allow_local_files)
        places = MemberPlaces(self._shards)
        try:
            while chunk := list(itertools.islice(self._described(rows), CHUNK_ROWS)):
                uris, columns = [uri for uri, _ in chunk], [text for _, text in chunk]
                odd = [uri for uri in uris if _ODD.search(uri) and not _is_there(uri)]
                self.num_odd += len(odd)
                self.odd += odd[: _MOST_ODD - len(self.odd)]
                yield from self._with_members(places.of(uris), columns)
        except NoRowsError:
            if self._source.require_files:
                raise
            self.empty.append(manifest)

    def _described(self, rows: Iterator[Row]) -> Iterator[tuple[str, str | None]]:
        # Chunks are bounded by characters of text; rows are not kept as Python objects.
        num_chars = 0
        for row in rows:
            if self._speakers.wanted:
                row.check_speakers(self._speakers)
            text = row.metadata()
            yield row.uri, text
            num_chars += len(text or "")
            if num_chars > _CHUNK_CHARS:
                return

    def _manifests(self, uri: str) -> Iterator[str]:
        # A URI is a file if one exists, else a glob.
        uri = normalize(uri)
        if first_magic(uri) is None or scheme_of(uri) in WEB or exists(uri, self._store):
            yield uri
            return
        has_matches = False
        for pattern in list(_patterns(uri))[1:]:
            for page in list_pages(pattern.prefix, self._store, depth=pattern.depth):
                for address, size_bytes in zip(page.uris, page.sizes, strict=True):
                    if _is_unread(address, size_bytes) and pattern.enters(parent(address)):
                        describe(address, self._store)  # raises: manifests may be missing
                    elif pattern.matches(address):
                        has_matches = True
                        yield address
        if not has_matches:
            raise NothingFoundError(
                f"listing {redact_uri(uri)}: found nothing, expected manifests that match the "
                f"glob; correct source.manifest{probably_meant(uri)}"
            )

    def rest_of(self, folders: Iterable[str]) -> pa.RecordBatch:
        """Return FILES rows that stand for all that cannot be read of folders."""
        uris = [f"{folder}/{REST}" for folder in folders]
        unknown: list[None] = [None] * len(uris)
        return _rows(Page(uris, [*unknown], [*unknown], [*unknown]), [*unknown])

    def _expand(self, uri: str) -> Iterator[Page]:
        # A URI is an object if one exists, else a folder, else a glob.
        uri = normalize(uri)
        denied: FetchError | None = None
        if not uri.endswith("/"):
            try:
                info = describe(uri, self._store)
            except FetchError as error:
                # Stores hide missing names from users who may not list: the listing decides.
                if error.kind not in (NOT_FOUND, ACCESS_DENIED):
                    raise
                denied = error if error.kind == ACCESS_DENIED else None
            else:
                yield page_of([uri], [info])
                return
        passed_over = self._num_passed_over
        has_matches = False
        for pattern in _patterns(uri):
            for page in self._matches(pattern):
                has_matches = has_matches or bool(page.uris)
                yield page
            if has_matches:
                return
        if denied is not None:
            raise denied
        passed_over = self._num_passed_over - passed_over
        if self._source.require_files or not _may_be_empty(uri):
            raise _nothing(uri, passed_over)
        self.empty.append(uri)

    def _matches(self, pattern: "Pattern") -> Iterator[Page]:
        pages = list_pages(pattern.prefix, self._store, depth=pattern.depth)
        # Hidden folders that the URI names explicitly are listed.
        named = pattern.prefix.rpartition("/")[0] + "/"
        for page in pages:
            kept = []
            for index, uri in enumerate(page.uris):
                is_unread = _is_unread(uri, page.sizes[index])
                if is_unread and not pattern.enters(parent(uri)):
                    continue
                is_unknown = page.sizes[index] is None and scheme_of(uri) == LOCAL and not is_unread
                if is_unknown and pattern.enters(uri):
                    self.unknown.append(uri)
                if not (is_unread or pattern.matches(uri)):
                    continue
                if f"/{RECORDS_FOLDER}/" in uri or (self._output and uri.startswith(self._output)):
                    self.num_own += has_media_name(uri)
                    continue
                *folders, name = uri.removeprefix(named).split("/")
                named_table = self._source.audio_column is not None and is_table(name)
                if (self._ignored.match(uri) and not named_table) or any(
                    map(self._ignored_folders.match, folders)
                ):
                    self.num_ignored += 1
                elif self._excluded.match(uri):
                    self.num_excluded += 1
                elif is_unknown and _leads_nowhere(uri):
                    self.num_dangling += 1
                else:
                    kept.append(index)
            yield _select_objects(page, self._sounds(page, kept))

    def _sounds(self, page: Page, indexes: Sequence[int]) -> list[int]:
        """Return those of some objects whose names or first bytes are of a sound or film."""
        doubtful = {
            recording_id(page.uris[at]): at
            for at in indexes
            if page.sizes[at] is not None and not self._is_named_as_read(page.uris[at])
        }
        for known_id in self._known([*doubtful]) if doubtful else ():
            del doubtful[known_id]
        versions = {name: _full_version(page, at) for name, at in doubtful.items()}
        silent_indexes = {
            at for name, at in doubtful.items()
            if page.sizes[at] == 0 or (versions[name] or "") == self._silent_before.get(name)
        }  # fmt: skip
        open_indexes = [at for at in doubtful.values() if at not in silent_indexes]
        files = [(page.uris[at], page.etags[at]) for at in open_indexes]
        if files:
            store = self._shards.store
            answers = self._inspect(HAS_AUDIO, files, store, HEADER_BLOCK_BYTES)
            # What could not be read is a failure of this recording, if it is processed.
            silent_indexes |= {
                at for at, holds in zip(open_indexes, answers, strict=True) if holds is False
            }
        self.silent |= {
            name: versions[name] for name, at in doubtful.items() if at in silent_indexes
        }
        return [at for at in indexes if at not in silent_indexes]

    def _is_named_as_read(self, uri: str) -> bool:
        is_container = is_archive(uri) or (self._source.audio_column is not None and is_table(uri))
        return is_container or has_media_name(uri)

    @property
    def _num_passed_over(self) -> int:
        return self.num_excluded + self.num_ignored + len(self.silent)


# A Windows path, a home folder, or spaces around a URI; not an escaped byte.
_ODD = re.compile(r"\\(?!x[89a-f][0-9a-f])|/~/|/\s|\s$")
_MOST_ODD = 3


def _is_there(uri: str) -> bool:
    return scheme_of(uri) == LOCAL and os.path.lexists(local_path(uri))


def _is_unread(uri: str, size_bytes: int | None) -> bool:
    return size_bytes is None and uri.endswith(f"/{REST}")


def _leads_nowhere(uri: str) -> bool:
    try:
        os.stat(local_path(uri))
    except OSError as error:  # a link into an unreadable folder is not dangling
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return False


def _may_be_empty(uri: str) -> bool:
    """Return whether a URI without matches may name an empty place for recordings."""
    if scheme_of(uri) == LOCAL:
        folder = uri[: first_magic(uri)].rpartition("/")[0] if first_magic(uri) else uri
        return os.path.isdir(local_path(folder) or "/")
    # A store does not distinguish an empty folder from a missing one, unlike a file's name; http(s)
    # has no folders.
    name = "" if first_magic(uri) is not None else uri.rpartition("/")[2]
    return scheme_of(uri) not in WEB and "." not in name


def _nothing(uri: str, passed_over: int) -> NothingFoundError:
    if scheme_of(uri) in WEB:
        looked_for = "a file (the web has no folders or globs)"
    elif first_magic(uri) is not None:
        looked_for = "a file, a folder with files below it, or files that match the glob"
    else:
        looked_for = "a file, or a folder with files below it"
    files = f", and {counted(passed_over, 'file')} without sound or in source.exclude or ignore"
    return NothingFoundError(
        f"listing {redact_uri(uri)}: found nothing{files if passed_over else ''}, expected "
        f"{looked_for}; correct source.uri"
        + (" or these settings" if passed_over else probably_meant(uri))
    )


def probably_meant(uri: str) -> str:
    """Return a question that suggests the existing name most similar to a missing one, or ""."""
    if scheme_of(uri) != LOCAL:
        return ""
    # With one slash missing, the URI of a store becomes a path below the current folder.
    store = re.search(r"/([a-z0-9]+):/([^/].*)", uri)
    if store:
        return f": did you mean {store[1]}://{store[2]}?"
    path = uri.rstrip("/")
    while not os.path.isdir(os.path.dirname(path)):
        path = os.path.dirname(path)
    folder, name = os.path.split(path)
    siblings = [sibling for sibling in os.listdir(folder) if sibling != name]
    near = difflib.get_close_matches(name, siblings, n=1)
    return f": did you mean {os.path.join(folder, near[0])}?" if near else ""


class Pattern(NamedTuple):
    """Prefix to list and the condition on its objects."""

    prefix: str
    depth: int | None
    glob: str | None

    def matches(self, uri: str) -> bool:
        """Return whether an object is listed."""
        return self.glob is None or _compiled(self.glob).fullmatch(uri) is not None

    def enters(self, folder: str) -> bool:
        """Return whether objects below a folder may be listed."""
        if self.glob is None:
            return True
        ends = [slash.start() for slash in re.finditer("/", self.glob)]
        return any(_compiled(self.glob[:end]).fullmatch(folder) for end in ends)


def _patterns(uri: str) -> Iterator[Pattern]:
    # A literal reading takes precedence: a folder's name may hold glob characters.
    if scheme_of(uri) in WEB:
        return
    yield Pattern(uri.rstrip("/") + "/", None, None)
    first = first_magic(uri)
    if first is None:
        return
    rest = uri[uri.rfind("/", 0, first) + 1 :]
    depth = None if "**" in rest.split("/") else rest.count("/") + 1
    yield Pattern(uri[:first], depth, uri)


def first_magic(uri: str) -> int | None:
    """Return the index of a URI's first glob character; None without one."""
    start = 0 if scheme_of(uri) == LOCAL else uri.index("://") + 3
    match = re.compile(r"[*?\[]").search(uri, start)
    return match.start() if match else None


@functools.lru_cache(maxsize=256)
def _compiled(glob: str) -> re.Pattern[str]:
    return re.compile(glob_regex(glob), re.DOTALL)


def glob_regex(pattern: str) -> str:
    """Translate a glob to a regex: `*`, `?`, `[..]` match within a folder, a step `**` across."""
    steps = pattern.split("/")
    out = ""
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        if step == "**":
            out += ".+" if last else "(?:[^/]+/)*"
        else:
            out += _step_regex(step) + ("" if last else "/")
    return out


def _step_regex(step: str) -> str:
    out, position = "", 0
    while position < len(step):
        character = step[position]
        end = step.find("]", position + 2) if character == "[" else -1
        if character == "*":
            out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif end > 0:
            # fnmatch translates invalid ranges such as `[b-a]`. Cut off: its flags and anchor.
            translated = fnmatch.translate(step[position : end + 1])
            out += "(?!/)" + translated[len("(?s:") : -len(")\\Z")]
            position = end
        else:
            out += re.escape(character)
        position += 1
    return out


def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return a regex of URIs: of their last steps, or where a pattern has a slash of the whole."""
    alternatives = ["(?!)"]
    for pattern in patterns:
        if "/" not in pattern:
            alternatives.append(f"(?:.*/)?(?=[^/]*$)(?:{fnmatch.translate(pattern)})")
            continue
        is_whole = pattern.startswith(("/", "*")) or "://" in pattern
        below = f"{pattern}*" if pattern.endswith("/") else pattern
        alternatives.append(fnmatch.translate(below if is_whole else f"*/{below}"))
    return re.compile("|".join(alternatives), re.IGNORECASE | re.DOTALL)


def _full_version(page: Page, at: int) -> str | None:
    """Return size, ETag and time of an object, as one may be shared; None without an ETag."""
    etag = page.etags[at]
    return etag and TIMED.join(map(str, (page.sizes[at], etag, page.times[at])))


def _select_objects(page: Page, indexes: Sequence[int]) -> Page:
    whole = len(indexes) == len(page.uris)
    return page if whole else Page._make([column[at] for at in indexes] for column in page)


class _IdSet:
    # Sorted arrays of doubling size, eight bytes per ID; a Python set takes ten times as much.

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Add IDs; return a mask of those that are new."""
        unique, first = np.unique(ids, return_index=True)
        fresh = np.zeros(len(ids), dtype=bool)
        fresh[first] = True
        is_known = np.zeros(len(unique), dtype=bool)
        for block in self._sorted:
            places = np.minimum(np.searchsorted(block, unique), len(block) - 1)
            is_known |= block[places] == unique
        fresh[first[is_known]] = False
        added = unique[~is_known]
        while self._sorted and len(self._sorted[-1]) <= len(added):
            added = np.union1d(self._sorted.pop(), added)
        if len(added):
            self._sorted.append(added)
        return fresh


def _rows(page: Page, metadata: list[str | None]) -> pa.RecordBatch:
    columns = [[recording_id(uri) for uri in page.uris], *page[:3], metadata]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, FILES, strict=True)]
    return pa.record_batch(arrays, schema=FILES)
