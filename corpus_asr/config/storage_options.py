"""How one side of a job reaches its store, in the names of fsspec and s3fs.

Options come in as plain values, are checked by name, and go out to the store alone: as text, in a
dump and in a traceback their values are hidden. Knows no library of any store.
"""

import difflib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

MASK: Final = "***"
S3: Final = "s3"
TAR: Final = ".tar"
TABLE_SUFFIXES: Final = (".parquet", ".arrow", ".feather")
"""Of files whose rows may be recordings, as members of a tar file are."""
_S3_SCHEMES = {"s3", "s3a", "s3n"}
_NO_OPTIONS_SCHEMES = {"", "file", "http", "https"}

CREDENTIALS: Final = ("anon", "key", "secret", "token", "username", "password", "profile")
CALL_PARAMETERS: Final = "s3_additional_kwargs"

# Names of s3fs that its direct calls follow here, with what each takes.
_TOP: Mapping[str, type] = MappingProxyType({
    **dict.fromkeys(CREDENTIALS, str), "anon": bool, "endpoint_url": str, "use_ssl": bool,
    "requester_pays": bool, "default_block_size": int, "max_concurrency": int,
    "fixed_upload_size": bool,
})  # fmt: skip
_BELOW: Mapping[str, Mapping[str, type]] = MappingProxyType({
    "client_kwargs": {"region_name": str, "verify": object},
    "config_kwargs": {
        **dict.fromkeys((
            "region_name", "signature_version", "user_agent", "user_agent_extra",
            "user_agent_appid", "client_cert", "request_checksum_calculation",
            "response_checksum_validation",
        ), str),
        **dict.fromkeys((
            "tcp_keepalive", "use_dualstack_endpoint", "use_fips_endpoint", "inject_host_prefix",
            "ignore_configured_endpoint_urls",
        ), bool),
        **dict.fromkeys(("connect_timeout", "read_timeout", "max_pool_connections"), int),
        **dict.fromkeys(("s3", "proxies", "proxies_config"), dict),
    },
    CALL_PARAMETERS: {
        **dict.fromkeys((
            "ServerSideEncryption", "SSEKMSKeyId", "SSEKMSEncryptionContext",
            "SSECustomerAlgorithm", "SSECustomerKey", "ACL", "GrantFullControl", "GrantRead",
            "GrantReadACP", "GrantWriteACP", "StorageClass", "ChecksumAlgorithm", "RequestPayer",
            "ExpectedBucketOwner", "ObjectLockMode", "ObjectLockRetainUntilDate",
            "ObjectLockLegalHoldStatus", "Tagging", "CacheControl", "ContentType",
        ), str),
        "BucketKeyEnabled": bool, "Metadata": dict,
    },
})  # fmt: skip
# What cannot be honoured, and why.
_REFUSED: Mapping[str, str] = MappingProxyType({
    **dict.fromkeys(("session", "loop", "asynchronous"), "it is no plain value"),
    **dict.fromkeys(
        ("skip_instance_cache", "use_listings_cache", "listings_expiry_time", "max_paths"),
        "connections are kept per process, and listings never",
    ),
    **dict.fromkeys(
        ("default_fill_cache", "default_cache_type"),
        "objects are read in blocks of default_block_size, four of which are kept",
    ),
    "cache_regions": "a side has one region: set client_kwargs.region_name",
    "version_aware": "the present version of an object is read",
    "local_expiry_check": "what is read is always compared here with the version seen first",
    "config_kwargs.retries": "failed requests are tried again by rules of this program's own",
    "BypassGovernanceRetention": "versions under retention are never removed",
    **dict.fromkeys(
        ("SSECustomerKeyMD5", "ContentMD5"), "it is computed of what it belongs to"
    ),
})  # fmt: skip
_ELSEWHERE: Mapping[str, str] = MappingProxyType({
    **dict.fromkeys(("aws_access_key_id", "access_key", "access_key_id"), "key"),
    **dict.fromkeys(("aws_secret_access_key", "secret_key", "secret_access_key"), "secret"),
    **dict.fromkeys(("aws_session_token", "session_token"), "token"),
    **dict.fromkeys(("aws_profile", "profile_name"), "profile"),
    **dict.fromkeys(("region", "aws_region", "default_region"), "client_kwargs.region_name"),
    **dict.fromkeys(("aws_endpoint_url", "endpoint", "endpoint_override"), "endpoint_url"),
    **dict.fromkeys(("anonymous", "no_sign_request", "skip_signature"), "anon"),
    "request_payer": "requester_pays",
    "addressing_style": "config_kwargs.s3",
    "encryption": "s3_additional_kwargs.ServerSideEncryption",
    "acl": "s3_additional_kwargs.ACL",
})  # fmt: skip
_CHOICES: Mapping[str, Collection[str]] = MappingProxyType({
    "ServerSideEncryption": ("AES256", "aws:kms", "aws:kms:dsse"),
    "ChecksumAlgorithm": ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"),
    "RequestPayer": ("requester",),
    "ObjectLockMode": ("GOVERNANCE", "COMPLIANCE"),
    "ObjectLockLegalHoldStatus": ("ON", "OFF"),
})  # fmt: skip
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")

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
        self._text = text  # JSON with sorted keys: equal options are equal
        self.scheme = scheme

    @classmethod
    def of(cls, values: Mapping[str, Any], scheme: str | None = None) -> "StorageOptions":
        """Return options of plain values; those that are null are left out."""
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
        found: dict[str, Any] = json.loads(self._text)
        return found

    def shown(self) -> dict[str, Any]:
        """Return the values with all hidden that may be secret."""
        shown: dict[str, Any] = _masked(self.values())
        return shown

    def public(self) -> "StorageOptions":
        """Return the options that `shown` names with their values."""
        return StorageOptions.of(_unmasked(self.shown()), self.scheme)

    def over(self, others: "StorageOptions") -> "StorageOptions":
        """Return these, and what others say beside; of credentials one side's alone."""
        mine, beside = self.values(), others.values()
        if mine.keys() & set(CREDENTIALS):
            beside = {name: each for name, each in beside.items() if name not in CREDENTIALS}
        return StorageOptions.of(beside | mine, self.scheme or others.scheme)

    def bound(self, uris: Iterable[str]) -> "StorageOptions":
        """Return them for the stores of these addresses alone."""
        return StorageOptions(self._text, next(iter(_schemes(uris)), None))

    def for_scheme(self, scheme: str) -> "StorageOptions":
        """Return what of them a store of this scheme takes."""
        wanted = self.scheme in (None, scheme) and scheme not in _NO_OPTIONS_SCHEMES
        return self if wanted else NO_OPTIONS

    def hide(self, text: str) -> str:
        """Return a text without the values that may be secret."""
        for secret in sorted(set(_secrets(self.values())), key=len, reverse=True):
            text = text.replace(secret, MASK)
        return text

    def problems(self, uris: Iterable[str], *, lists_others: bool = False) -> list[str]:
        """Return what stores of these addresses could not take, without values.

        Whatever they are, they may be a list that names objects of other stores.
        """
        if not self:
            return []
        uris = list(uris)
        schemes = _schemes(uris)
        if len(schemes) > 1:
            return [
                f"found addresses of {' and '.join(f'{name}://' for name in schemes)}, expected "
                "those of one kind of store, whose options these are; write a job for each"
            ]
        if not schemes:
            none = (
                "found files of this machine or web addresses, which take none; leave them out, or "
                "give the address of a store, such as s3://"
            )
            return [] if lists_others else [none]
        return self.s3_problems() if schemes[0] == S3 else list(_refused(self.values()))

    def s3_problems(self) -> list[str]:
        """Return which options are not of S3 or do not fit together, without values."""
        values = self.values()
        found = [*_unknown(values), *_misfits(values)]
        return list(dict.fromkeys(found))


NO_OPTIONS: Final = StorageOptions()


def parsed(value: object) -> StorageOptions:
    """Return the options that a value of YAML names.

    Raises:
        ValueError: it is no mapping; the message holds no value.
    """
    if isinstance(value, StorageOptions):
        return value
    if value is None:
        return NO_OPTIONS
    if not isinstance(value, Mapping):
        raise ValueError("found a single value, expected options by name, such as key and secret")
    return StorageOptions.of(_typed(value))


def _schemes(uris: Iterable[str]) -> list[str]:
    found = (uri.partition("://")[0].lower() if "://" in uri else "" for uri in uris)
    names = (S3 if name in _S3_SCHEMES else name for name in found)
    return list(dict.fromkeys(name for name in names if name not in _NO_OPTIONS_SCHEMES))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _without_nulls(each) for name, each in value.items() if each is not None}
    return value


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _masked(each, key) for key, each in value.items()}
    return value if isinstance(value, bool) or name in _SHOWN else MASK


def _unmasked(value: Mapping[str, Any]) -> dict[str, Any]:
    plain = {
        name: _unmasked(each) if isinstance(each, Mapping) else each for name, each in value.items()
    }
    return {name: each for name, each in plain.items() if each not in (MASK, {})}


def _secrets(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _secrets(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from _secrets(each)
    elif not isinstance(value, bool) and name not in _SHOWN and len(str(value)) >= _SHORTEST_SECRET:
        yield str(value)


def _typed(values: Mapping[str, Any], types: Mapping[str, type] = _TOP) -> dict[str, Any]:
    """Read numbers and switches that come as text, such as from the environment."""
    typed: dict[str, Any] = {}
    for name, value in values.items():
        below, wanted = _BELOW.get(name), types.get(name)
        if isinstance(value, Mapping) and below is not None:
            typed[name] = _typed(value, below)
        elif isinstance(value, str) and wanted is bool and value.lower() in ("true", "false"):
            typed[name] = value.lower() == "true"
        elif isinstance(value, str) and wanted is int and value.isdecimal():
            typed[name] = int(value)
        else:
            typed[name] = value
    return typed


_KIND_WORDS = {str: "text", bool: "true or false", int: "a number", dict: "names below it"}


def _unknown(values: Mapping[str, Any]) -> Iterator[str]:
    yield from _refused(values)
    for name, value in values.items():
        if name in _BELOW:
            if not isinstance(value, Mapping):
                yield f"{name}: expected {', '.join(_BELOW[name])} below it"
                continue
            for inner, each in value.items():
                yield from _checked(f"{name}.{inner}", each, _BELOW[name].get(inner))
        else:
            yield from _checked(name, value, _TOP.get(name))


def _refused(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        dotted = f"{above}{name}"
        why = _REFUSED.get(dotted, _REFUSED.get(name))
        if why is not None:
            yield f"{dotted} is not supported: {why}; leave it out"
        elif name in _BELOW and isinstance(value, Mapping):
            yield from _refused(value, f"{name}.")


def _checked(dotted: str, value: Any, wanted: type | None) -> Iterator[str]:
    name = dotted.rpartition(".")[2]
    if dotted in _REFUSED or name in _REFUSED:
        return
    if wanted is None:
        yield f"{dotted} is not supported; {_nearest(dotted)}"
    elif not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        quotes = "; put it in quotes" if wanted is str and isinstance(value, int) else ""
        yield f"{dotted}: expected {_KIND_WORDS[wanted]}{quotes}"
    elif name in _CHOICES and value not in (*_CHOICES[name], MASK):
        yield f"{dotted}: expected {' or '.join(_CHOICES[name])}"
    elif name == "StorageClass" and value in _ARCHIVES:
        yield (
            f"{dotted}: {value} is an archive, out of which nothing can be read at once, and the "
            "tables are read again; expected another class, such as STANDARD_IA"
        )


def _nearest(dotted: str) -> str:
    known = [*_TOP, *(f"{above}.{name}" for above, names in _BELOW.items() for name in names)]
    wanted = dotted.rpartition(".")[2].lower()
    if wanted in _ELSEWHERE:
        return f"did you mean {_ELSEWHERE[wanted]}?"
    by_last = {name.rpartition(".")[2].lower(): name for name in reversed(known)}
    near = difflib.get_close_matches(wanted, by_last, n=1, cutoff=0.6)
    if near:
        return f"did you mean {by_last[near[0]]}?"
    return f"known are {', '.join((*_TOP, *_BELOW))}"


def _misfits(values: Mapping[str, Any]) -> Iterator[str]:
    named = {"username": "key", "password": "secret"}
    for other, usual in named.items():
        if other in values and usual in values:
            yield f"{other} and {usual} mean the same; leave one out"
    has = {named.get(name, name) for name in values if name in CREDENTIALS}
    if ("key" in has) != ("secret" in has):
        given, missing = ("key", "secret") if "key" in has else ("secret", "key")
        yield f"{given} needs {missing}; set both"
    if "token" in has and "key" not in has:
        yield "token belongs to a key and its secret; set all three"
    anonymous = values.get("anon") is True
    if anonymous and (others := sorted(has - {"anon"})):
        yield f"anon sends no credentials, but there is {' and '.join(others)}; leave one out"
    parameters = values.get(CALL_PARAMETERS)
    parameters = parameters if isinstance(parameters, Mapping) else {}
    if anonymous and (values.get("requester_pays") is True or "RequestPayer" in parameters):
        yield "requester_pays needs credentials, but anon sends none; leave one out"
    kms = str(parameters.get("ServerSideEncryption", "")).startswith("aws:kms")
    for name in ("SSEKMSKeyId", "SSEKMSEncryptionContext", "BucketKeyEnabled"):
        if name in parameters and not kms:
            yield f"{name} is for ServerSideEncryption aws:kms; set that too"
    if ("SSECustomerKey" in parameters) != ("SSECustomerAlgorithm" in parameters):
        yield "SSECustomerKey and SSECustomerAlgorithm belong together; set both"
    if "SSECustomerKey" in parameters and "ServerSideEncryption" in parameters:
        yield "SSECustomerKey and ServerSideEncryption exclude each other; leave one out"
    if ("ObjectLockMode" in parameters) != ("ObjectLockRetainUntilDate" in parameters):
        yield "ObjectLockMode and ObjectLockRetainUntilDate belong together; set both"


# Names of files that lie beside recordings and are none. Not those that may hold sound, such as
# `.ts`, `.dat`, `.mod` and `.bin`.
_UNFINISHED_SUFFIXES = """
    part part-frag* part.met partial filepart crdownload download opdownload fdmdownload downloading
    incomplete !ut !qb !sync bc! xltd aria2 aria2__temp ytdl torrent icloud cloud cloudf mega gstmp
    lftp-pget-status tmp temp swp swo bak old orig rej lock lck"""
_TEXTS_SUFFIXES = """
    m3u m3u8 pls xspf cue nfo sfv md5 sha1 sha256 sha512 par2 asc sig
    json jsonl ndjson csv tsv parquet txt text md rst xml yaml yml toml ini cfg conf log tex bib
    srt vtt ass ssa sbv sub idx sup ttml dfxp smi lab lrc textgrid eaf trs rttm ctm stm
    py sh bat cmd ps1 ipynb html htm mhtml css js url webloc lnk desktop ics vcf eml msg mbox"""
_DOCUMENTS_SUFFIXES = """
    pdf ps rtf epub mobi pages numbers key one pub vsd vsdx doc docx docm dot dotx dotm
    xls xlsx xlsm xlsb xltx ppt pptx pptm pps ppsx potx odt ods odp odg odf ott
    jpg jpeg jfif png gif bmp tif tiff webp svg heic heif avif ico psd ai eps xcf
    raf cr2 cr3 nef arw dng"""
_ARCHIVES_SUFFIXES = """
    zip rar 7z gz tgz bz2 tbz2 xz txz zst tzst lz4 lzma z cab iso dmg img pkg deb rpm apk jar
    exe msi dll so dylib ttf otf woff woff2 db db-wal db-shm sqlite sqlite3 mdb accdb"""
_EDITORS_SUFFIXES = "aup aup3 sesx asd rpp reapeaks pek pkf cfa sfk ptx band logicx"

NO_AUDIO_PATTERNS = (
    # Of systems, of disks, and of programs that copy, edit or compute.
    ".*", "_SUCCESS", "_temporary", "__MACOSX", "*_$folder$", "Thumbs.db", "ehthumbs*.db",
    "desktop.ini", "Icon\r", "*@SynoEAStream", "*@SynoResource", "~$*", "*~", "#*#",
    "$RECYCLE.BIN/", "RECYCLER/", "System Volume Information/", "lost+found/", "@eaDir/",
    "@Recycle/", "#recycle/", "*.download/", "~uTorrentPartFile*", "INCOMPLETE~*", "*_.gstmp",
    "README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CHANGES", "Makefile", "Dockerfile",
    *(
        f"*.{suffix}"
        for kind in (
            _UNFINISHED_SUFFIXES, _TEXTS_SUFFIXES, _DOCUMENTS_SUFFIXES, _ARCHIVES_SUFFIXES,
            _EDITORS_SUFFIXES,
        )
        for suffix in kind.split()
    ),
)  # fmt: skip
"""Patterns of file names; a slash at the end makes one of folders."""
