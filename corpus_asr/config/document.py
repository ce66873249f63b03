"""Parses a YAML file to plain values, independent of the known keys."""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from corpus_asr.config.storage_options import MASK
from corpus_asr.errors import ConfigError

KeyPath = tuple[str, ...]

# Far above any handwritten job; expanded aliases count each time.
MAX_FILE_BYTES = 1_000_000
MAX_NODES = 10_000

_INTERPOLATION = re.compile(
    r"(?P<escaped>\$\$(?=\{))"
    r"|\$\{(?:env:)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<has_default>:-(?P<default>[^}]*))?\}"
    r"|(?P<unknown>\$\{[^}]*\}?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One error in the configuration."""

    key: KeyPath
    message: str

    @property
    def dotted(self) -> str:
        """Return the key in dotted form, as in messages and `--set`."""
        return ".".join(self.key)


@dataclass(slots=True, kw_only=True)
class Document:
    """The parsed content of a configuration file and overrides."""

    name: str
    values: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)
    """Origin of each key: `line 4`, or a `--set` option."""
    problems: list[Problem] = field(default_factory=list)

    def error(self, problems: Sequence[Problem]) -> ConfigError:
        """Return an error with one message for all problems and their origins."""
        lines = []
        for problem in sorted(problems, key=lambda problem: self._line_number(problem.key)):
            origin = self.origins.get(problem.key)
            place = f"{origin}: " if origin else ""
            key = f"{problem.dotted}: " if problem.key else ""
            lines.append(f"  {place}{key}{problem.message}")
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        return ConfigError(f"reading {self.name}: {count}\n" + "\n".join(lines))

    def _line_number(self, key: KeyPath) -> tuple[int, KeyPath]:
        # Keys without a line, from --set or missing, come last.
        digits = re.fullmatch(r"line (\d+)", self.origins.get(key, ""))
        return (int(digits[1]) if digits else 1_000_000, key)


# The plain scalars of YAML 1.2's core schema: only `true` and `false` are booleans and dates are
# text. PyYAML's default, version 1.1, parses the language code `no` as false.
class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own declaration


_SCALARS: tuple[tuple[str, str, str], ...] = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(f"^(?:{_pattern})$"),
        ["" if letter == "\0" else letter for letter in _first],
    )


def read_document(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Read a YAML file, apply overrides, substitute environment variables.

    Invalid keys and variables are stored in `Document.problems`, so that all are reported at once.
    """
    name = os.fspath(path)
    document = _parse(_read_text(Path(path), name), name)
    _write_out_sections(document)
    for override in overrides:
        _apply_override(document, override)
        _write_out_sections(document)
    document.values = {
        key: _interpolate(value, (key,), document.problems)
        for key, value in document.values.items()
    }
    return document


def read_pairs(pairs: Sequence[str], name: str) -> Document:
    """Parse `key=value` pairs of a command line, substituting environment variables."""
    document = Document(name=name, values={})
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"reading {name}: expected NAME=VALUE, such as {name} anon=true")
        _apply_override(document, pair)
    document.values = _interpolate(document.values, (), document.problems)
    document.origins.clear()
    return document


def _read_text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(
                f"reading {name}: found more than {MAX_FILE_BYTES} bytes, expected the YAML of "
                "one job; move long lists to a source.manifest"
            )
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"reading {name}: found no such file{_nearest_file(path)}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"reading {name}: found a folder, expected a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"reading {name}: found byte {error.start} that is not UTF-8, expected UTF-8; convert "
            "the file"
        ) from error
    except OSError as error:
        raise ConfigError(f"reading {name}: {error.strerror}") from error


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}"
    names = sorted(
        child.name for child in path.parent.iterdir() if child.suffix in {".yaml", ".yml"}
    )
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else "; give the path of a YAML file"


def _parse(text: str, name: str) -> Document:
    document = Document(name=name, values={})
    try:
        node, value = _composed(text, document)
    except yaml.YAMLError as error:
        raise ConfigError(f"reading {name}: {_yaml_words(error, text)}") from error
    if node is None:
        raise ConfigError(f"reading {name}: found an empty file, expected keys such as source:")
    if not isinstance(node, yaml.MappingNode):
        kind = (
            "a list" if isinstance(node, yaml.SequenceNode) else f"the single value {node.value!r}"
        )
        raise ConfigError(
            f"reading {name}: line {node.start_mark.line + 1}: found {kind}, "
            "expected keys such as source: and model: at the top level"
        )
    document.values = value
    return document


def _composed(text: str, document: Document) -> tuple[yaml.Node | None, Any]:
    # Nodes are counted before values are built: aliases expand.
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        _NodeChecker(document).visit(node)
        return node, _text_keys(loader.construct_document(node))
    except RecursionError as error:
        raise ConfigError(
            f"reading {document.name}: found nesting without end, expected sections of keys; "
            "correct the brackets and aliases"
        ) from error
    except ValueError as error:  # Python does not parse numbers of thousands of digits
        raise ConfigError(
            f"reading {document.name}: found an invalid value ({error}), expected a valid one; "
            "correct it"
        ) from error


@dataclass(slots=True)
class _NodeChecker:
    """Records key lines and duplicate keys; limits the expansion of aliases."""

    document: Document
    nodes: int = MAX_NODES

    def visit(self, node: yaml.Node, key: KeyPath = ()) -> None:
        self._spend()
        if isinstance(node, yaml.SequenceNode):
            for child in node.value:
                self.visit(child, key)
        if not isinstance(node, yaml.MappingNode):
            return
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            self._spend()
            # Non-text keys are rejected later; formatting one here could exhaust memory.
            name = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            line = key_node.start_mark.line + 1
            path = (*key, name)
            if name in seen:
                message = f"written twice, on lines {seen[name]} and {line}; keep one"
                self.document.problems.append(Problem(key=path, message=message))
            seen.setdefault(name, line)
            self.document.origins[path] = f"line {line}"
            self.visit(value_node, path)

    def _spend(self) -> None:
        self.nodes -= 1
        if self.nodes < 0:
            raise ConfigError(
                f"reading {self.document.name}: found more than {MAX_NODES} values, aliases "
                "included, expected one job; move long lists to a source.manifest"
            )


def _text_keys(value: Any) -> Any:
    # Names of settings are text: `1:` and `true:` are unknown keys.
    if isinstance(value, dict):
        return {str(key): _text_keys(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_text_keys(child) for child in value]
    return value


def _yaml_words(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return f"not YAML: {error}"
    source = text.splitlines()[mark.line].strip() if mark.line < len(text.splitlines()) else ""
    hint = "; indent with spaces, not tabs" if "\\t" in (error.problem or "") else ""
    hidden = _SECRET_LINE.sub(rf"\1 {MASK}", hide_secrets(source))
    shown = f"\n  {hidden}" if source else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}{hint}{shown}"


SHORT_SECTIONS = {"speakers": "mode"}
"""Sections that may be given as a single value, with the key it sets."""


def _write_out_sections(document: Document) -> None:
    for name, key in SHORT_SECTIONS.items():
        word = document.values.get(name)
        if isinstance(word, str):
            document.values[name] = {key: word}
            if (name,) in document.origins:
                document.origins[name, key] = document.origins.pop((name,))


def _apply_override(document: Document, override: str) -> None:
    dotted, equals, text = override.partition("=")
    key = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(key):
        raise ConfigError(
            f"reading --set {override}: expected key=value, such as --set decoding.language=en"
        )
    value = override_value(text, f"--set {dotted}")
    section = document.values
    for depth, part in enumerate(key[:-1], start=1):
        child = section.get(part)
        if child is not None and not isinstance(child, dict):
            message = f"{'.'.join(key[:depth])} is a single value, expected a section of keys"
            document.problems.append(Problem(key=key, message=message))
            return
        section[part] = child = dict(child or {})
        section = child
    section[key[-1]] = value
    for path in [path for path in document.origins if path[: len(key)] == key]:
        del document.origins[path]
    shown = f"{dotted}={MASK}" if _SECRET_KEY.search(dotted) else hide_secrets(override)
    document.origins[key] = f"--set {shown}"


def override_value(text: str, where: str) -> Any:
    """Parse the right side of `key=value`: YAML, or unquoted text."""
    # Unquoted text is taken literally, so that a URI may contain `#`, or begin with `*`, which have
    # another meaning in YAML.
    stripped = text.strip()
    quoted = stripped.startswith(('"', "'", "[", "{"))
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(
            f"reading {where}: found more than {MAX_FILE_BYTES} characters, expected fewer"
        )
    try:
        _, value = _composed(stripped, Document(name=where, values={}))
    except yaml.YAMLError as error:
        if not quoted:
            return stripped
        raise ConfigError(f"reading {where}: {_yaml_words(error, stripped)}") from error
    is_plain = not quoted and not isinstance(value, int | float | None)
    return stripped if is_plain else value


def _interpolate(value: Any, key: KeyPath, problems: list[Problem]) -> Any:
    if isinstance(value, dict):
        return {name: _interpolate(child, (*key, name), problems) for name, child in value.items()}
    if isinstance(value, list):
        return [_interpolate(child, key, problems) for child in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    text = _INTERPOLATION.sub(lambda match: _variable(match, key, problems), value)
    # Allows an option such as endpoint_url to depend on the environment: ${env:NAME:-}.
    return text or None


def _variable(match: re.Match[str], key: KeyPath, problems: list[Problem]) -> str:
    if match["escaped"]:
        return "$"
    if match["unknown"]:
        forms = "${NAME}, ${env:NAME} or ${env:NAME:-default}"
        message = f"{match['unknown']} is unknown, expected {forms}"
        problems.append(Problem(key=key, message=message))
        return match["unknown"]
    name = match["name"]
    value = os.environ.get(name)
    if match["has_default"]:
        return value or match["default"]  # as in a shell, :- also replaces an empty value
    if value is None:
        message = (
            f"the environment variable {name} is not set; export it, or give a default with "
            f"${{env:{name}:-default}}"
        )
        problems.append(Problem(key=key, message=message))
        return ""
    return value


# For keys with possibly secret values: the dotted name, and a line of YAML.
_SECRET_KEY = re.compile(r"storage|option|secret|token|passw|credential|key\b", re.IGNORECASE)
_SECRET_LINE = re.compile(
    r"([\w.\-]*(?:secret|token|passw|credential|key)[\w.\-]*[\"']?\s*[:=]).*", re.IGNORECASE
)

# user:password@ (or token@) after a scheme, up to the last @ before the first slash, because a
# password may contain an @; an @ in an object's key is ignored.
_USER_INFO = re.compile(r"(?<=://)[^/\s?#]*@")

# Signed URLs have credentials in the query: X-Amz-Signature, sig, AWSAccessKeyId, token...
_QUERY_SECRET = re.compile(
    r"(?P<name>[?&][^=&\s]*(?:sig|token|key|secret|credential|passw|auth|policy)[^=&\s]*=)[^&#\s]+",
    re.IGNORECASE,
)


def hide_secrets(text: str) -> str:
    """Mask user names, passwords and signatures in URIs within `text`."""
    without_user = _USER_INFO.sub(f"{MASK}@", text)
    return _QUERY_SECRET.sub(rf"\g<name>{MASK}", without_user)
