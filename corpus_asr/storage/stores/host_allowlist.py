"""Access rules for URIs from untrusted input: remote manifests and tables, HTTP redirects.

URIs in `source.uri`, and in a manifest on this machine, are trusted. Those of a remote manifest or
of an output folder's tables are not: they must not make this machine read its own files, nor send
requests to hosts that only it can reach.
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
# Their URIs name buckets of one service each, never a local file or an arbitrary host.
_OBJECT_STORES = frozenset(
    {"s3", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "hf"}
)  # fmt: skip

_NUMERIC = re.compile(r"(?:(?:0x[0-9a-f]*|[0-9]+)(?:\.|$))+")

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Source: IANA, IPv6 Address Space: the rest is reserved, deprecated or for private use, such as
# site-local addresses, local NAT64 prefixes, and forms that embed an IPv4 address.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Ranges that `is_global` accepts in some Python versions. Source: IANA, Special-Purpose Address
# Registries: IETF protocols (with the metadata service of Oracle's cloud), 6to4 relays, Teredo,
# documentation; and the platform server of Azure virtual machines.
_RESERVED = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20", "168.63.129.16/32")
)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Verdict(Enum):
    """Whether requests to a host are allowed."""

    ADMITTED = "admitted"
    IF_PUBLIC = "if public"  # allowed if all its addresses are public
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRules:
    """Hosts that http(s) URLs may point to."""

    trusted_names: bool = True
    """Whether the URIs that are read are trusted input; redirects never are."""
    own_hosts: tuple[str, ...] = ()  # hosts named in the settings
    listed: tuple[str, ...] | None = None  # `source.allow_hosts`
    named_by_caller: bool = False
    """Whether the URIs that are read were given by the caller, like `own_hosts`."""

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
        """Return the rules for URIs passed to a call, whose hosts are always allowed.

        Raises:
            ConfigError: `allow_hosts` holds something that is no host name.
        """
        hosts = (allow_hosts,) if isinstance(allow_hosts, str) else allow_hosts
        if hosts is None:
            return ANY_NAMED_HOST
        if not isinstance(hosts, Sequence) or not all(isinstance(host, str) for host in hosts):
            raise ConfigError(
                f"reading allow_hosts: found {allow_hosts!r}, expected names, *.wildcards or "
                "networks, such as media.example.org or 10.1.0.0/16; correct it"
            )
        return cls(named_by_caller=True, listed=tuple(hosts))

    def verdict(self, host: str, *, redirected: bool) -> Verdict:
        """Return whether a host may be requested; `redirected`: another than the first one."""
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
"""Allows the host in the URI, and redirects to public hosts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRules:
    """URIs that may be opened, of schemes other than object stores and http(s)."""

    folders: tuple[str, ...]
    """Folders or single files, normalized; anything below them may be opened."""

    def admits(self, uri: str) -> bool:
        """Return whether a normalized URI may be opened; http(s) URLs follow `HostRules`."""
        scheme = scheme_of(uri)
        if scheme in WEB or scheme in _OBJECT_STORES:
            return True
        if scheme == LOCAL:
            # The target of a link decides; the path was made absolute without "..".
            path = PurePosixPath(os.path.realpath(local_path(uri)))
            return not _real_paths(self.folders).isdisjoint((path, *path.parents))
        below = any(
            uri == folder or uri.startswith(folder.rstrip("/") + "/") for folder in self.folders
        )
        return below and ".." not in uri.split("/")


@functools.lru_cache(maxsize=8)
def _real_paths(uris: tuple[str, ...]) -> frozenset[PurePosixPath]:
    local = (local_path(uri) for uri in uris if scheme_of(uri) == LOCAL)
    return frozenset(PurePosixPath(os.path.realpath(path)) for path in local)


def comes_from_elsewhere(manifest: str) -> bool:
    """Return whether a manifest is read from a remote store."""
    return scheme_of(manifest) != LOCAL


def may_name(manifest: str, uri: str, *, allow_local_files: bool) -> bool:
    """Return whether a manifest may name a normalized URI, judged by the scheme."""
    # A remote manifest may name objects of object stores, URLs and objects of its own store.
    # Everything else (local files, archives and caches, any host over FTP or SSH) could give access
    # to what its author cannot reach.
    scheme = scheme_of(uri)
    if not comes_from_elsewhere(manifest) or scheme in WEB or scheme in _OBJECT_STORES:
        return True
    if scheme == LOCAL:
        return allow_local_files
    return scheme == scheme_of(manifest) and _authority(uri) == _authority(manifest)


def host_of(uri: str) -> str:
    """Return the host of a URI in lower case, without user and port; "" if it has none."""
    try:
        return (urllib.parse.urlsplit(uri).hostname or "").rstrip(".")
    except ValueError:  # an unclosed bracket
        return ""


def is_public(address: IPAddress) -> bool:
    """Return whether an IP address is public, including IPv4 addresses embedded in IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        # Forms that embed an IPv4 address: mapped, 6to4, NAT64.
        inner = [address.ipv4_mapped, address.sixtofour]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(
            inner_address is not None and not is_public(inner_address) for inner_address in inner
        ):
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
    # Legacy forms that resolvers still accept: 2130706433, 127.1, 0x7f.
    return _ip_address(host) is None and _NUMERIC.fullmatch(host) is not None


def _authority(uri: str) -> str:
    return uri.partition("://")[2].partition("/")[0]
