"""Brace expansion in URIs: `train-{000..099}.tar`, `{a,b}.tar` and NeMo's `_OP_0..9_CL_`.

Input: URIs from settings. Forms that only other programs accept, such as shell commands, are
refused with advice on what to write instead.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator

from corpus_asr.errors import ConfigError
from corpus_asr.storage.stores.uri import LOCAL, local_path, normalize, redact_uri, scheme_of

_MOST = 1_000_000
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?")
# NeMo's notation for braces, which shells do not expand.
_TAGS = re.compile(r"_OP_(.*?)_CL_")
# NeMo also expands these as braces; here they are a glob, or part of a name.
_OTHER_BRACKETS = re.compile(r"[\[(<](\w+\.\.\w+)[\])>]")
_COMMAND = re.compile(r"pipe:", re.IGNORECASE)
_SEVERAL = re.compile(r"\.(?:tar|jsonl?)::", re.IGNORECASE)


def expanded(uris: Iterable[str], setting: str) -> Iterator[str]:
    """Yield URIs with ranges and lists in braces expanded, in order.

    Raises:
        ConfigError: a URI uses another program's notation, or expands to too many.
    """
    for uri in uris:
        if _is_there(uri):
            yield uri
            continue
        _check(uri, setting)
        addresses = itertools.islice(_expanded(_TAGS.sub(r"{\1}", uri)), _MOST + 1)
        written = dict.fromkeys(addresses)
        if len(written) > _MOST:
            raise _refused(uri, setting, "more than a million URIs", "fewer", "use a glob")
        yield from written


def _is_there(uri: str) -> bool:
    # A literal reading takes precedence, as for globs: names may hold any character.
    named = bool(uri) and scheme_of(uri) == LOCAL and "\0" not in uri
    return named and os.path.lexists(local_path(normalize(uri)))


def _check(uri: str, setting: str) -> None:
    if _COMMAND.match(uri):
        problem, advice = (
            "a command",
            "name the files themselves, as in s3://bucket/shard-{0..9}.tar",
        )
        raise _refused(uri, setting, problem, "URIs, since no command is run", advice)
    if _SEVERAL.search(uri):
        raise _refused(uri, setting, "several URIs in one", "one", "write a list of them")
    brackets = _OTHER_BRACKETS.search(uri)
    if brackets:
        problem, advice = f"the range {brackets[0]}", f"write {{{brackets[1]}}}"
        raise _refused(uri, setting, problem, "braces around it", advice)


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
