"""What may be read on untrusted input: a manifest or tables from elsewhere, a redirect on the way.

The URIs in `source.uri`, and those in a manifest on this machine, are the user's own. A
manifest read from a remote store is not, nor are the tables of an output folder: they must not make
this machine read its own files, nor ask hosts that only this machine can reach.
"""

import fnmatch
import functools
import ipaddress
import os
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from corpus_asr.errors import ConfigError
from corpus_asr.storage.stores.uri import LOCAL, local_path, scheme_of

if TYPE_CHECKING:
    from corpus_asr.config.run import SourceSettings

WEB = frozenset({"http", "https"})
# Their URIs name buckets of one service each, never a file here or a host of choice.
_OBJECT_STORES = frozenset(
    {"s3", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "hf"}
)  # fmt: skip

_NUMERIC = re.compile(r"(?:(?:0x[0-9a-f]*|[0-9]+)(?:\.|$))+")

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Source: IANA, IPv6 Address Space: all else is reserved, deprecated, or for one network's own use,
# such as site-local addresses, NAT64 prefixes of one's own, and forms that carry an IPv4 address.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Of which `is_global` says too much, depending on Python's version. Source: IANA, Special-Purpose
# Address Registries: protocols of the IETF, with the metadata service of Oracle's cloud; relays of
# 6to4; protocols, with Teredo; documentation. And the platform server of machines in Azure.
_RESERVED = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20", "168.63.129.16/32")
)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Verdict(Enum):
    """What to make of a host."""

    ADMITTED = "admitted"
    IF_PUBLIC = "if public"  # admitted where all its addresses are public ones
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRules:
    """Which hosts http(s) URLs may lead to."""

    trusted_names: bool = True
    """Whether the URIs that are read are the user's own word; redirects never are."""
    own_hosts: tuple[str, ...] = ()  # hosts that the settings themselves name
    listed: tuple[str, ...] | None = None  # `source.allow_hosts`
    named_by_caller: bool = False
    """Whether the URIs that are read are themselves what a call was given, as `own_hosts` are."""

    @classmethod
    def of(cls, source: "SourceSettings") -> "HostRules":
        """Return the rules for a source."""
        hosts = (host_of(uri) for uri in source.uris if scheme_of(uri) in WEB)
        return cls(
            trusted_names=not any(map(comes_from_elsewhere, source.manifest)),
            own_hosts=tuple(dict.fromkeys(host for host in hosts if host)),
            listed=source.allow_hosts,
        )

    @classmethod
    def of_call(cls, allow_hosts: Any) -> "HostRules":
        """Return the rules for what a call was given, whose hosts are admitted in any case.

        Raises:
            ConfigError: these are no names of hosts.
        """
        hosts = (allow_hosts,) if isinstance(allow_hosts, str) else allow_hosts
        if hosts is None:
            return ANY_NAMED_HOST
        if not isinstance(hosts, Sequence) or not all(isinstance(each, str) for each in hosts):
            raise ConfigError(
                f"reading allow_hosts: found {allow_hosts!r}, expected names, *.wildcards or "
                "networks, such as media.example.org or 10.1.0.0/16; correct it"
            )
        return cls(named_by_caller=True, listed=tuple(hosts))

    def verdict(self, host: str, *, redirected: bool) -> Verdict:
        """Say whether a host may be asked; a redirect to the host that was asked first is none."""
        host = host.lower().rstrip(".")
        if host in self.own_hosts or (self.named_by_caller and not redirected):
            return Verdict.ADMITTED
        if self.listed is not None:
            fits = any(_fits(host, pattern) for pattern in self.listed)
            return Verdict.ADMITTED if fits else Verdict.REFUSED
        if self.trusted_names and not redirected:
            return Verdict.ADMITTED
        if _is_odd_number(host):
            return Verdict.REFUSED
        address = _ip_address(host)
        if address is not None:
            return Verdict.ADMITTED if is_public(address) else Verdict.REFUSED
        return Verdict.IF_PUBLIC


ANY_NAMED_HOST = HostRules(named_by_caller=True)
"""The host that an address names, and from there public ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRules:
    """Which URIs may be opened that lead to neither an object store nor a web server."""

    folders: tuple[str, ...]
    """Folders, or single files, in normal form: what lies below them may be opened."""

    def admits(self, uri: str) -> bool:
        """Tell whether a URI in normal form may be opened; the web has rules of its own."""
        scheme = scheme_of(uri)
        if scheme in WEB or scheme in _OBJECT_STORES:
            return True
        if scheme == LOCAL:
            # Where a link leads is what counts; a path was made absolute without "..".
            path = PurePosixPath(os.path.realpath(local_path(uri)))
            return not _real_paths(self.folders).isdisjoint((path, *path.parents))
        below = any(uri == each or uri.startswith(each.rstrip("/") + "/") for each in self.folders)
        return below and ".." not in uri.split("/")


@functools.lru_cache(maxsize=8)
def _real_paths(uris: tuple[str, ...]) -> frozenset[PurePosixPath]:
    local = (local_path(uri) for uri in uris if scheme_of(uri) == LOCAL)
    return frozenset(PurePosixPath(os.path.realpath(path)) for path in local)


def comes_from_elsewhere(manifest: str) -> bool:
    """Tell whether a manifest is read from a remote store."""
    return scheme_of(manifest) != LOCAL


def may_name(manifest: str, uri: str, *, allow_local_files: bool) -> bool:
    """Tell whether a manifest may name a URI (in normal form), as far as its scheme tells."""
    # From elsewhere it may name objects of object stores, URLs, and what lies in its own
    # store; everything else (this machine's files, archives and caches, any host over FTP or SSH)
    # could reach what its writer cannot.
    scheme = scheme_of(uri)
    if not comes_from_elsewhere(manifest) or scheme in WEB or scheme in _OBJECT_STORES:
        return True
    if scheme == LOCAL:
        return allow_local_files
    return scheme == scheme_of(manifest) and _authority(uri) == _authority(manifest)


def host_of(uri: str) -> str:
    """Return the host of a URI in lower case, without user and port; "" without one."""
    try:
        return (urllib.parse.urlsplit(uri).hostname or "").rstrip(".")
    except ValueError:  # a bracket that does not close
        return ""


def is_public(address: IPAddress) -> bool:
    """Tell whether an address is of the public Internet, inner ones of IPv6 forms included."""
    if isinstance(address, ipaddress.IPv6Address):
        # Forms that carry an IPv4 address: mapped, 6to4, NAT64.
        inner = [address.ipv4_mapped, address.sixtofour]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(found is not None and not is_public(found) for found in inner):
            return False
        if address.ipv4_mapped is not None or address in _NAT64:
            return True
        if address not in _GLOBAL_UNICAST:
            return False
    reserved = any(address in network for network in _RESERVED)
    return address.is_global and not address.is_multicast and not reserved


def _fits(host: str, pattern: str) -> bool:
    address = _ip_address(host)
    if address is None:
        return fnmatch.fnmatchcase(host, pattern.lower().rstrip("."))
    try:
        return address in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return False  # the pattern is a name


def _ip_address(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_odd_number(host: str) -> bool:
    # As none is written today, but as resolvers still take it: 2130706433, 127.1, 0x7f.
    return _ip_address(host) is None and _NUMERIC.fullmatch(host) is not None


def _authority(uri: str) -> str:
    return uri.partition("://")[2].partition("/")[0]
