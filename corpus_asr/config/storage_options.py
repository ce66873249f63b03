"""Access of one side of a job to its store, in the names of fsspec and s3fs.

Options come in as plain values and go out to the store alone, whose library checks their names: as
text, in a dump and in a traceback their values are hidden. Knows no library of any store.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

MASK: Final = "***"
S3: Final = "s3"
TAR: Final = ".tar"
TABLE: Final = ".parquet"
"""Of files whose rows may be recordings, as members of a tar file are."""
_S3_SCHEMES = {"s3", "s3a", "s3n"}
_NO_OPTIONS_SCHEMES = {"", "file", "http", "https"}

CREDENTIALS: Final = ("anon", "key", "secret", "token", "username", "password", "profile")

# Whatever has another name is hidden.
_SHOWN = frozenset({
    "anon", "profile", "endpoint_url", "use_ssl", "requester_pays", "default_block_size",
    "max_concurrency", "fixed_upload_size", "region_name", "verify", "signature_version",
    "request_checksum_calculation", "response_checksum_validation", "connect_timeout",
    "read_timeout", "max_pool_connections", "addressing_style", "ServerSideEncryption", "ACL",
    "StorageClass", "ChecksumAlgorithm", "RequestPayer", "ObjectLockMode", "project",
    "account_name",
})  # fmt: skip
_SHORTEST_SECRET = 4  # shorter ones are in many words


class StorageOptions:
    """Options of one side's store; hashable and picklable, values hidden wherever it is printed.

    `scheme` is that of the addresses they are for; None: any store's that takes options.
    """

    # No dataclass: what turns these into dictionaries to show them, as Ray does, sees no value.
    __slots__ = ("_text", "scheme")

    def __init__(self, text: str = "{}", scheme: str | None = None) -> None:
        self._text = text  # JSON with sorted keys, so that equal options are equal
        self.scheme = scheme

    @classmethod
    def of(cls, values: Mapping[str, Any], scheme: str | None = None) -> "StorageOptions":
        """Return options from plain values, without null ones."""
        return cls(json.dumps(_without_nulls(values), sort_keys=True), scheme)

    def __bool__(self) -> bool:
        return self._text != "{}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorageOptions) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, str | None]:
        return self._text, self.scheme

    def __repr__(self) -> str:
        return f"StorageOptions({self.shown()})"

    def values(self) -> dict[str, Any]:
        """Return the plain values, secrets included."""
        options: dict[str, Any] = json.loads(self._text)
        return options

    def shown(self) -> dict[str, Any]:
        """Return the values, with possibly secret ones hidden."""
        shown: dict[str, Any] = _masked(self.values())
        return shown

    def public(self) -> "StorageOptions":
        """Return only the options whose values `shown` does not hide."""
        return StorageOptions.of(_unmasked(self.shown()), self.scheme)

    def over(self, others: "StorageOptions") -> "StorageOptions":
        """Return these options merged over `others`; credentials are taken from one side only."""
        values, beside = self.values(), others.values()
        if values.keys() & set(CREDENTIALS):
            beside = {name: value for name, value in beside.items() if name not in CREDENTIALS}
        return StorageOptions.of(beside | values, self.scheme or others.scheme)

    def bound(self, uris: Iterable[str]) -> "StorageOptions":
        """Return the options, restricted to the stores of these URIs."""
        return StorageOptions(self._text, next(iter(_schemes(uris)), None))

    def for_scheme(self, scheme: str) -> "StorageOptions":
        """Return the options applicable to a store of this scheme."""
        wanted = self.scheme in (None, scheme) and scheme not in _NO_OPTIONS_SCHEMES
        return self if wanted else NO_OPTIONS

    def hide(self, text: str) -> str:
        """Return a text with possibly secret values masked."""
        for secret in sorted(set(_secrets(self.values())), key=len, reverse=True):
            text = text.replace(secret, MASK)
        return text

    def problems(self, uris: Iterable[str], *, lists_others: bool = False) -> list[str]:
        """Return errors for stores of these URIs, without values.

        With `lists_others`, the URIs may be lists of objects in other stores.
        """
        if not self:
            return []
        uris = list(uris)
        schemes = _schemes(uris)
        if len(schemes) > 1:
            return [
                f"found URIs of {' and '.join(f'{name}://' for name in schemes)}, expected one "
                "kind of store; write a job for each"
            ]
        if not schemes:
            none = (
                "found local files or http URLs, expected the URI of a store, such as s3://; "
                "remove the options, or change the URI"
            )
            return [] if lists_others else [none]
        return [
            f"{name}: expected {words}"
            for name, value in self.values().items()
            for kind, words in [
                (bool, "true or false") if name == "anon" else (str, "text; quote it")
            ]
            if name in CREDENTIALS and not isinstance(value, kind)
        ]


NO_OPTIONS: Final = StorageOptions()


def parsed(value: object) -> StorageOptions:
    """Return the options in a YAML value.

    Raises:
        ValueError: it is not a mapping; the message contains no value.
    """
    if isinstance(value, StorageOptions):
        return value
    if value is None:
        return NO_OPTIONS
    if not isinstance(value, Mapping):
        raise ValueError("found a single value, expected options by name, such as key and secret")
    return StorageOptions.of(_typed(value))


def _typed(value: Any) -> Any:
    """Convert boolean text, such as from the environment, to booleans."""
    if isinstance(value, Mapping):
        return {name: _typed(inner) for name, inner in value.items()}
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _schemes(uris: Iterable[str]) -> list[str]:
    schemes = (uri.partition("://")[0].lower() if "://" in uri else "" for uri in uris)
    names = (S3 if name in _S3_SCHEMES else name for name in schemes)
    return list(dict.fromkeys(name for name in names if name not in _NO_OPTIONS_SCHEMES))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(name): _without_nulls(entry) for name, entry in value.items() if entry is not None
        }
    return value


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _masked(entry, key) for key, entry in value.items()}
    return value if isinstance(value, bool) or name in _SHOWN else MASK


def _unmasked(value: Mapping[str, Any]) -> dict[str, Any]:
    plain = {
        name: _unmasked(entry) if isinstance(entry, Mapping) else entry
        for name, entry in value.items()
    }
    return {name: entry for name, entry in plain.items() if entry not in (MASK, {})}


def _secrets(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _secrets(entry, key)
    elif isinstance(value, list):
        for entry in value:
            yield from _secrets(entry)
    elif not isinstance(value, bool) and name not in _SHOWN and len(str(value)) >= _SHORTEST_SECRET:
        yield str(value)


_UNFINISHED_SUFFIXES = """
    part partial filepart crdownload download opdownload fdmdownload downloading uploading
    converting incomplete !ut !qb !sync bc! xltd aria2__temp icloud cloud cloudf mega gstmp tmp temp
    swp"""
_PACKED_SUFFIXES = "tar.gz tgz tar.bz2 tbz2 tar.xz txz tar.zst tzst"
# Archives have one of these beside each recording: they are not to be read in each run.
_USUAL_SUFFIXES = """
    json jsonl csv tsv txt md xml yaml log srt vtt lrc textgrid pdf docx jpg jpeg png parquet"""

NO_AUDIO_PATTERNS = (
    # Of systems and disks: what they delete, copy or have in work may be sound.
    ".*", "_temporary", "__MACOSX", "$RECYCLE.BIN/", "RECYCLER/", "System Volume Information/",
    "lost+found/", "@eaDir/", "@Recycle/", "#recycle/",
    # Half-loaded or in work; small copies that cameras write beside their films.
    "*.download/", "~uTorrentPartFile*", "INCOMPLETE~*", "*_.gstmp", "*.*-frag[0-9]*", "*.temp.*",
    "*.lrv",
    *(
        f"*.{suffix}"
        for kind in (_UNFINISHED_SUFFIXES, _PACKED_SUFFIXES, _USUAL_SUFFIXES)
        for suffix in kind.split()
    ),
)  # fmt: skip
"""Patterns of names that tell more than first bytes do; a slash at the end makes one of folders."""
