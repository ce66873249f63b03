"""URIs of objects: normal form, identity, what is safe to display, archive members, and braces.

A recording within a larger file has an address of its own, and is read by ranges:

    shard.tar#talks/a.flac          a member, by its name
    clips.parquet#17                a row of a table (cells.py), counted from 0

The address alone is enough: the member is looked for, which reads the archive's headers. A listing
knows where it lies and says so in its version, `ETAG@PLACE`; `located` makes of both an address
that is opened at once. Names within an archive are names, never paths of this machine.

Braces stand for several URIs, as in `train-{000..099}.tar` and `{a,b}.tar`. Other brackets of NeMo
are refused with advice on what to write instead.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from corpus_asr.config.storage_options import TABLE, TAR
from corpus_asr.errors import ConfigError, CorpusAsrError, encodable

LOCAL = "file"
REST = "*"
"""Last step of the URI of all that cannot be read of an archive or a folder."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://", re.ASCII)
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # `os.fsdecode` of a byte that is not UTF-8
_ESCAPED_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")
_ALIASES = {"s3a": "s3", "s3n": "s3", "local": LOCAL}
_HTTP = ("http://", "https://")

# Query parameters that carry a signature rather than the object's identity (presigned URLs of AWS,
# Google, Azure and CloudFront; plain tokens).
_SECRET_PARAMETER = re.compile(
    r"(x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|signature|sig|expires|policy|key-pair-id"
    r"|(access_|auth_|id_)?token|api_?key|password|secret)",
    re.IGNORECASE,
)
_AZURE_SIGNED = re.compile(r"s[a-z]{1,4}", re.ASCII)  # sv, sp, se, ..., together with `sig`
# Bounded, up to the first colon: otherwise a word of a megabyte takes an hour to search.
_SCHEME_IN_TEXT = r"[a-z][a-z0-9+.\-]{0,30}://"
_PASSWORD = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*://)[^/@:]*:[^/]*@", re.ASCII)
_ADDRESS = re.compile(rf"(?i:{_SCHEME_IN_TEXT})[^\s'\"<>\\]+", re.ASCII)
_AFTER_ADDRESS = ".,;:!)]}"
_ADDRESS_IN_TEXT = re.compile(rf"({_SCHEME_IN_TEXT})([^\s/'\"@]*@)?([^\s'\"?]*)(\?[^\s'\")]*)?")
# By name: in queries without a URI, assignments, dictionaries and headers. By form: tokens of
# OpenAI, Hugging Face, GitHub, GitLab, Slack and AWS, and JSON Web Tokens.
_SECRET_IN_TEXT = re.compile(
    r"""(
      [?&][^=&\s?]{0,40}(?:sig|token|key|secret|credential|passw|auth|policy)[^=&\s]{0,40}=
    | (?<![/a-z0-9])
      (?: (?:access|account|api|private)[_-]?key(?:[_-]?id)? | secret | passw(?:or)?d | pwd
        | (?:(?:access|api|auth|hf|id|refresh|security|session)[_-]?)?token
        | awsaccesskeyid | googleaccessid | x-(?:amz|goog)-[\w-]{1,40}
      )(?:\s?=|\\?["']\s?[:=])\s?\\?["']?
    | \b(?:(?:proxy-)?authorization|(?:set-)?cookie|(?:x-[\w-]{0,40})?(?:api-?key|token|auth))
      \\?["']?\s?:\s?\\?["']?(?:(?:basic|bearer|digest|negotiate|token)\s)?
    | \b(?:basic|bearer)\s(?=(?-i:[a-z]*[A-Z0-9_~+/=-]))
    )(?!\[hidden\]|basic\b|bearer\b)[^\s&,;"'\\)}<>\]]+
    | (?-i:(?<!\w)(?:sk-[\w-]{16,}|hf_\w{16,}|gh[a-z]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}
      |xox[a-z]-[\w-]{10,}|A[KS]IA[0-9A-Z]{12,}|eyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*))""",
    re.IGNORECASE | re.VERBOSE,
)

_PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_SUFFIXES = "|".join(re.escape(suffix) for suffix in (*_PACKED_TARS, TAR, TABLE))
# A web address may have a query, such as a signature, in front of the member.
_MEMBER = re.compile(
    rf"(.+?(?:{_SUFFIXES})(?:\?[^#]*)?)#(?:!([0-9+.~]+)!(~?)([0-9a-f]+)#)?(.+)",
    re.IGNORECASE | re.DOTALL,
)
_VERSION = re.compile(r"(.+)@([0-9]+\+[0-9]+|[0-9]+\.[0-9]+~([0-9]+))", re.DOTALL)
SIZE = "size:"
"""Prefix of versions of archive members that are a size, not an ETag: `size:9@ETAG@PLACE`."""


def scheme_of(uri: str) -> str:
    """Return the scheme in lower case; `file` for a plain path."""
    match = _SCHEME.match(uri)
    scheme = match.group(1).lower() if match else LOCAL
    return _ALIASES.get(scheme, scheme)


def normalize(uri: str) -> str:
    r"""Return the normalized URI that IDs are computed from.

    The result is valid UTF-8: a byte of a local name that is not UTF-8 becomes an escape such as
    `\xff`, which `local_path` reverses.
    """
    if not uri or "\0" in uri:
        raise ConfigError(
            f"reading the URI {uri!r}: found an empty one or a null character, expected a path or "
            "scheme://...; correct it"
        )
    scheme, match = scheme_of(uri), _SCHEME.match(uri)
    rest = uri[match.end() :] if match else uri
    if scheme == LOCAL:
        if match and rest.startswith("localhost/"):
            rest = rest.removeprefix("localhost")
        path = os.path.abspath(os.path.expanduser(rest) if rest.startswith("~/") else rest)
        return escaped_path(path)
    # The rest stays as written: keys are case-sensitive and may hold "..", "//" and "%20".
    return encodable(f"{scheme}://{rest}")


def escaped_path(path: str) -> str:
    r"""Return a local path as valid UTF-8: U+DCFF, which stands for byte 0xFF, becomes `\xff`."""
    return encodable(_NO_UTF8.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:x}", path))


def local_path(uri: str) -> str:
    """Return the path of a local URI, with escapes of non-UTF-8 bytes reversed.

    A file whose name contains such an escape literally takes precedence.
    """
    if not _ESCAPED_BYTE.search(uri) or os.path.lexists(uri):
        return uri
    return _ESCAPED_BYTE.sub(lambda byte: chr(0xDC00 + int(byte[1], 16)), uri)


def join(folder: str, name: str) -> str:
    """Return the URI of `name` in `folder`, both taken literally."""
    return f"{folder.rstrip('/')}/{name}"


def within(folder: str, name: str) -> str:
    """Return the URI of an untrusted `name` in `folder`.

    Raises:
        CorpusAsrError: it points outside the folder, directly or through a local link.
    """
    address = join(folder, name)
    culprit = ""
    if name.startswith("/") or "\0" in name or ".." in name.split("/") or _SCHEME.match(name):
        culprit = "the name leads"
    elif scheme_of(folder) == LOCAL:
        # Checked each time: other processes may write to the folder, which may be a link itself.
        steps = itertools.accumulate(name.split("/"), join, initial=folder)
        if any(map(os.path.islink, map(local_path, itertools.islice(steps, 1, None)))):
            root, path = (os.path.realpath(local_path(uri)) for uri in (folder, address))
            if not f"{path}/".startswith(f"{root.rstrip('/')}/"):
                culprit = "a symbolic link leads"
    if culprit:
        raise CorpusAsrError(
            f"looking for {name!r} in {redact_uri(folder)}: found that {culprit} out of the "
            "folder, expected an object in it; restore it, or choose another output.uri"
        )
    return address


def normalize_writable(uri: str, *, doing: str, choose: str) -> str:
    """Return the normalized URI of what is to be written; the rest is for the message.

    Raises:
        ConfigError: it is on the web.
    """
    address = normalize(uri)
    if scheme_of(address) in ("http", "https"):
        raise ConfigError(
            f"{doing} {redact_uri(address)}: found an http URL, expected a writable folder or "
            f"object store; choose another {choose}"
        )
    return address


def parent(uri: str) -> str:
    """Return the URI of the folder that contains `uri`, without a trailing slash."""
    head, _, tail = uri.rpartition("/")
    return head if tail or head else uri


def resolve(uri: str, *, folder: str) -> str:
    """Return `uri` in normal form; a relative one is resolved against `folder`."""
    if not uri or _SCHEME.match(uri) or uri.startswith("/"):
        return normalize(uri)
    if scheme_of(folder) == LOCAL:
        return escaped_path(os.path.abspath(os.path.join(folder, uri)))
    # A key may hold "..", so only leading steps are resolved.
    base = folder.rstrip("/")
    root = re.match(_SCHEME.pattern + "[^/]*", base)
    top = len(root.group()) if root else 0
    while uri.startswith(("./", "../")):
        if uri.startswith("../"):
            if len(base) <= top:
                raise ConfigError(
                    f"reading the URI {uri!r} relative to {redact_uri(folder)}: found a path out "
                    "of the store, expected one within it; correct the URI"
                )
            base = parent(base)
        uri = uri.split("/", 1)[1]
    return normalize(join(base, uri))


def public(uri: str) -> str:
    """Return a URI without credentials, as used for IDs and in tables."""
    if not uri.startswith(_HTTP):
        # In other schemes a question mark is part of the name, and so may be a lone user.
        return _PASSWORD.sub(r"\1", uri)
    scheme, rest = uri.split("://", 1)
    authority, slash, path = rest.partition("/")
    authority = authority.rpartition("@")[2]
    # Presigned URLs change with every signature; without it they name the object. The part after
    # `#` is no parameter: it names an archive member.
    path, number, member = path.partition("#")
    path, question, query = path.partition("?")
    if question:
        kept = "&".join(_public_parameters(query.split("&")))
        path = f"{path}?{kept}" if kept else path
    return f"{scheme}://{authority}{slash}{path}{number}{member}"


def public_text(text: str) -> str:
    """Return a text, JSON included, with `public` applied to every URI in it."""

    def replace(match: re.Match[str]) -> str:
        uri = match.group().rstrip(_AFTER_ADDRESS)
        return public(uri) + match.group()[len(uri) :]

    return _ADDRESS.sub(replace, text)


def _public_parameters(parameters: list[str]) -> list[str]:
    names = [parameter.partition("=")[0] for parameter in parameters]
    azure = "sig" in names
    return [
        parameter
        for parameter, name in zip(parameters, names, strict=True)
        if not _SECRET_PARAMETER.fullmatch(name) and not (azure and _AZURE_SIGNED.fullmatch(name))
    ]


def redact_uri(uri: str) -> str:
    """Return a URI for a one-line message: no credentials, no control characters."""
    visible = uri if scheme_of(uri) == LOCAL else without_secrets(uri)
    return visible if visible.isprintable() else repr(visible)


def without_secrets(text: str) -> str:
    """Hide user names, passwords and query strings of URIs, and other secrets, in a text."""

    def hide(match: re.Match[str]) -> str:
        scheme, _, rest, query = match.groups()
        return (
            f"{scheme}{rest}{'?[hidden]' if query and scheme.startswith('http') else query or ''}"
        )

    return without_named_secrets(_ADDRESS_IN_TEXT.sub(hide, text))


def without_named_secrets(text: str) -> str:
    """Hide secrets recognized by name or form, such as `api_key=...`; URIs are kept."""
    return _SECRET_IN_TEXT.sub(lambda match: f"{match[1] or ''}[hidden]", text)


def recording_id(uri: str) -> str:
    """Return the 16-digit ID of a recording first seen at a normalized URI."""
    identity = public(uri).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(identity, digest_size=8).hexdigest()


_MOST_EXPANDED = 1_000_000
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?")
# NeMo expands these as braces; here they are a glob, or part of a name.
_OTHER_BRACKETS = re.compile(r"(?:[\[(<]|_OP_)(\w+?\.\.\w+?)(?:[\])>]|_CL_)")


class MemberAddress(NamedTuple):
    """Parsed address of an archive's member."""

    container: str
    name: str
    place: str | None
    """Position of the member, if the listing has it ..."""
    of: str | None
    """... of a container with this digest of its version."""
    may_move: bool = False
    """Whether it is looked for by its name in a container of another version."""

    @property
    def uri(self) -> str:
        """The URI as stored in tables."""
        return f"{self.container}#{self.name}"


def is_archive(uri: str) -> bool:
    """Return whether a name is that of an archive with recordings as members."""
    return path_of(uri).lower().endswith((TAR, *_PACKED_TARS))


def is_table(uri: str) -> bool:
    """Return whether a name is that of a table whose rows may be recordings."""
    return path_of(uri).lower().endswith(TABLE)


def told_bytes(version: str | None) -> int | None:
    """Return the approximate audio size of a row in bytes, from its version; None for others."""
    match = _VERSION.fullmatch(version) if version and "~" in version else None
    return int(match[3]) if match and match[3] else None


def member_address(uri: str) -> MemberAddress | None:
    """Return the components of a member's URI; None for other URIs."""
    match = _MEMBER.fullmatch(uri) if "#" in uri else None  # skips most of millions of URIs
    if match is None:
        return None
    container, place, may_move, of, name = match.groups()
    return MemberAddress(container, name, place, of, may_move=bool(may_move))


def member_uri(container: str, name: str) -> str:
    """Return the URI of a member as stored in tables."""
    return f"{container}#{name}"


def member_version(container: str | None, place: str | None, told: str | None = None) -> str | None:
    """Return the version of a member: that of its container, and its position there.

    Args:
        told: a version of the member itself, by its size.
    """
    place_version = f"{container}@{place}" if container and place else container
    return f"{told}@{place_version}" if told and place_version else told or place_version


def located(uri: str, version: str | None) -> str:
    """Return a URI that opens a listed member without searching for it.

    Other URIs are returned unchanged. Valid within one process; never stored in a table.
    """
    match = _VERSION.fullmatch(version) if version and "#" in uri else None
    member = member_address(uri) if match else None
    if match is None or member is None or member.place is not None:
        return uri
    listed = match[1]
    # A member with a version of its own may have moved: then it is located by name.
    may_move = is_by_size(listed)
    digest = version_digest(listed.partition("@")[2] if may_move else listed)
    return f"{member.container}#!{match[2]}!{'~' if may_move else ''}{digest}#{member.name}"


def version_digest(version: str | None) -> str:
    """Return a short digest of a version, as used in URIs of members."""
    return hashlib.blake2b((version or "").encode(), digest_size=8).hexdigest()


def path_of(uri: str) -> str:
    """Return a URI without the query of a web address, such as a signature."""
    return uri.partition("?")[0] if uri.startswith(_HTTP) else uri


def is_by_size(version: str) -> bool:
    """Return whether a version is a size, whatever the ETag and the member's position."""
    return version.startswith(SIZE)


def expanded(uris: Iterable[str], setting: str) -> Iterator[str]:
    """Yield URIs with ranges and lists in braces expanded, in order.

    Raises:
        ConfigError: a URI uses another program's notation, or expands to too many.
    """
    for uri in uris:
        if _is_there(uri):
            yield uri
            continue
        if brackets := _OTHER_BRACKETS.search(uri):
            problem, advice = f"the range {brackets[0]}", f"write {{{brackets[1]}}}"
            raise _refused(uri, setting, problem, "braces around it", advice)
        addresses = itertools.islice(_expanded(uri), _MOST_EXPANDED + 1)
        written = dict.fromkeys(addresses)
        if len(written) > _MOST_EXPANDED:
            raise _refused(uri, setting, "more than a million URIs", "fewer", "use a glob")
        yield from written


def _is_there(uri: str) -> bool:
    # A literal reading takes precedence, as for globs: names may hold any character.
    named = bool(uri) and scheme_of(uri) == LOCAL and "\0" not in uri
    return named and os.path.lexists(local_path(normalize(uri)))


def _refused(uri: str, setting: str, found: str, expected: str, advice: str) -> ConfigError:
    return ConfigError(
        f"reading {setting}: {redact_uri(uri)}: found {found}, expected {expected}; {advice}"
    )


def _expanded(uri: str) -> Iterator[str]:
    for group in _INNERMOST.finditer(uri):
        options = _options(group[1])
        if options is not None:
            for option in options:
                yield from _expanded(f"{uri[: group.start()]}{option}{uri[group.end() :]}")
            return
    yield uri


def _options(inside: str) -> Iterable[str] | None:
    """Return the alternatives of a pair of braces; None if it is literal."""
    if numbers := _NUMBERS.fullmatch(inside):
        first, last = numbers[1], numbers[2]
        padded = any(re.match(r"-?0\d", bound) for bound in (first, last))
        width = max(map(len, (first, last))) if padded else 0
        return (f"{number:0{width}d}" for number in _steps(int(first), int(last), numbers[3]))
    if letters := _LETTERS.fullmatch(inside):
        return map(chr, _steps(ord(letters[1]), ord(letters[2]), letters[3]))
    return inside.split(",") if "," in inside else None


def _steps(first: int, last: int, step: str | None) -> range:
    by = int(step or 1) or 1
    return range(first, last + 1, by) if first <= last else range(first, last - 1, -by)
