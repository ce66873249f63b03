"""The recordings to transcribe, how long they are, and what is said in them where that is known.

In: files, or a manifest of them. Out: `Recording`s. Every file is decoded once here, so that a bad
one ends the benchmark before a model is loaded. Knows no engine.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus_asr.errors import ConfigError
from corpus_asr.units import SAMPLE_RATE_HZ

_ADDRESS_KEYS = ("path", "uri")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One file."""

    path: Path
    duration_s: float
    text: str | None
    """What is said in it."""


def find_recordings(files: Sequence[Path], manifest: Path | None) -> list[Recording]:
    """Return the files, then those the manifest names; each text from there or from a .txt beside.

    Raises:
        ConfigError: there are none, or a file or the manifest is missing or unreadable.
        DecodeError: a file holds no audio.
    """
    named: list[tuple[Path, str | None]] = [(path, None) for path in files]
    if manifest is not None:
        named += _manifest_rows(manifest)
    if not named:
        raise ConfigError(
            "looking for audio: found none; name audio files, or a .jsonl with --manifest, or "
            "measure a size without audio with --shape"
        )
    return [
        Recording(path=path, duration_s=_duration_s(path), text=text or _text_beside(path))
        for path, text in named
    ]


def _manifest_rows(manifest: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield path and text of every line; relative paths start at the manifest."""
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"reading the manifest {manifest}: {error}; give a .jsonl with `path` and `text`"
        ) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _row(manifest, number, line)


def _row(manifest: Path, number: int, line: str) -> tuple[Path, str | None]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(
            f"reading the manifest {manifest}, line {number}: found no JSON ({error}), expected an "
            "object with `path` and `text`; correct the line"
        ) from error
    values = row if isinstance(row, dict) else {}
    address = next((values[key] for key in _ADDRESS_KEYS if values.get(key)), None)
    text = values.get("text")
    if not isinstance(address, str) or not isinstance(text, str | None):
        raise ConfigError(
            f"reading the manifest {manifest}, line {number}: found {line.strip()[:80]}, expected "
            "an object with `path` (or `uri`) and, where it is known, `text`; correct the line"
        )
    return manifest.parent / address.removeprefix("file://"), text


def _text_beside(path: Path) -> str | None:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    try:
        return beside.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"reading {beside}: {error}; write what is said in {path.name} there as UTF-8, or "
            "remove it"
        ) from error


def _duration_s(path: Path) -> float:
    if not path.is_file():
        raise ConfigError(f"opening {path}: no such file; check the name")
    try:
        from corpus_asr.audio.decode import open_audio
    except ImportError as error:
        raise ConfigError(
            f"decoding {path}: {error}; install the package av, or use --shape, which needs no "
            "audio"
        ) from error
    with path.open("rb") as file, open_audio(file, uri=str(path)) as decoder:
        num_samples: int = sum(chunk.shape[1] for chunk in decoder)
    return num_samples / SAMPLE_RATE_HZ
