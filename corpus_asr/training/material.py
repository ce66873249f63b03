"""Everything to learn from, decoded once: passages in, a folder of samples and texts out.

In: passages of recordings. Out: `audio.i16`, the samples of all stretches with text one after the
other, `passages.arrow`, where in it what is said, and `material.json`, what was left out and why.
Epochs read stretches through the page cache, so memory does not grow with the material; the folder
takes 115 MB per hour of audio. Knows no windows and no features.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int16, Int64

from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.storage.addresses import shown
from corpus_asr.training.passages import Passage, Recording
from corpus_asr.training.samples import FULL_SCALE, Samples, Wanted, joined, read_samples
from corpus_asr.units import SAMPLE_RATE_HZ, WINDOW_SAMPLES

AUDIO_NAME = "audio.i16"
PASSAGES_NAME = "passages.arrow"
ACCOUNT_NAME = "material.json"

_SCHEMA = pa.schema(
    [
        pa.field("stretch", pa.int32(), nullable=False),  # of audio that runs on
        pa.field("start", pa.int64(), nullable=False),  # samples of audio.i16
        pa.field("end", pa.int64(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("previous", pa.string(), nullable=False),  # said before the stretch
    ]
)
_PLACES = ("stretch", "start", "end", "tokens")
_ROWS_AT_ONCE = 10_000
_FAILURES_KEPT = 20

CountTokens = Callable[[str], int | None]
"""Tokens of a text; None where it holds control tokens."""


@dataclass(frozen=True, slots=True)
class Material:
    """What there is to learn from."""

    audio: Int16[np.ndarray, " sample"]
    """Of the file, mapped into memory."""
    stretch: np.ndarray
    start: Int64[np.ndarray, " passage"]
    end: Int64[np.ndarray, " passage"]
    tokens: np.ndarray
    table: pa.Table
    account: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map a prepared folder."""
        table = _table(folder / PASSAGES_NAME)
        account = json.loads((folder / ACCOUNT_NAME).read_text(encoding="utf-8"))
        # numpy maps no empty file
        path = folder / AUDIO_NAME
        audio = np.memmap(path, np.int16, "r") if path.stat().st_size else np.zeros(0, np.int16)
        stretch, start, end, tokens = (table[name].to_numpy() for name in _PLACES)
        return cls(audio, stretch, start, end, tokens, table, account)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def hours(self) -> float:
        """Of passages, silence between them left out."""
        return float((self.end - self.start).sum()) / SAMPLE_RATE_HZ / 3600

    @property
    def silent(self) -> Int64[np.ndarray, " passage"]:
        """Passages without speech."""
        return np.flatnonzero(self.tokens == 0)

    def samples(self, begin: int, end: int) -> Float32[np.ndarray, " _"]:
        """Return a stretch of the audio, in [-1, 1]."""
        return self.audio[begin:end].astype(np.float32) / np.float32(FULL_SCALE)

    def text(self, passage: int) -> str:
        """Return what is said in a passage; nothing where there is no speech."""
        said: str = self.table["text"][passage].as_py()
        return said

    def ends(self, passages: slice) -> int:
        """Return the sample at which the last of some passages ends: they may overlap."""
        return int(self.end[passages].max())

    def said_before(self, passage: int, *, letters: int) -> str:
        """Return at least so many letters of what is said before a passage, if it is known."""
        earlier: list[str] = []
        at = passage
        while at and self.stretch[at - 1] == self.stretch[passage]:
            at -= 1
            earlier.insert(0, self.text(at))
            if sum(map(len, earlier)) > letters:
                return " ".join(filter(None, earlier))
        first: str = self.table["previous"][at].as_py()
        return " ".join(filter(None, [first, *earlier]))

    def languages(self) -> list[str | None]:
        """Return the languages in which something is said."""
        spoken = self.table.filter(pa.array(self.tokens > 0))
        found: list[str | None] = spoken["language"].unique().to_pylist()
        return found

    def language(self, passage: int) -> str | None:
        """Return the code of a passage's language."""
        code: str | None = self.table["language"][passage].as_py()
        return code


def _table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def prepare(
    passages: Iterable[Passage],
    folder: Path,
    *,
    count_tokens: CountTokens,
    max_tokens: int,
    max_gap_s: float,
    workers: int,
    timeout_s: float,
    endpoint_url: str | None = None,
) -> Material:
    """Decode what is to be learnt from, or take what an earlier call left in the folder.

    Args:
        passages: in any order; held in memory, texts included.
        folder: of this machine; replaced unless it holds the same. Recordings whose content
            changed under the same address are not noticed.
        count_tokens: see there.
        max_tokens: of a passage; longer ones are left out.
        max_gap_s: audio between two passages is kept with them up to here.
        workers: recordings decoded at a time.
        timeout_s: the longest silence of a decoder.
        endpoint_url: the S3 endpoint, where it is not Amazon's.

    Raises:
        ConfigError: nothing is left to learn from.
        EngineError: decoding cannot go on, whatever the recording.
        OSError: the folder cannot be written.
    """
    account = _Account()
    kept = list(_usable(passages, count_tokens, max_tokens, account))
    kept.sort(key=lambda pair: _order(pair[0]))
    gap = round(max_gap_s * SAMPLE_RATE_HZ)
    fingerprint = _fingerprint(kept, gap)
    if (folder / ACCOUNT_NAME).is_file():
        found = Material.open(folder)
        if found.account["fingerprint"] == fingerprint:
            return found
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = list(_wanted(kept, gap))
    with _Writer(folder) as writer:
        readings = read_samples(
            (one.wanted for one in wanted),
            workers=workers,
            timeout_s=timeout_s,
            endpoint_url=endpoint_url,
        )
        for one, (_, found_samples) in zip(wanted, readings, strict=True):
            if isinstance(found_samples, ItemError):
                account.failed(one, found_samples)
            else:
                writer.add(kept[one.first : one.end], one, found_samples, account)
    _finish(folder, fingerprint, account)
    return Material.open(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    wanted: Wanted
    first: int
    """The first of its passages."""
    end: int


class _Account:
    """What was left out, and why."""

    def __init__(self) -> None:
        self.passages = 0
        self.kept = 0
        self.left_out: Counter[str] = Counter()
        self.failures: list[str] = []

    def failed(self, recording: _Recording, error: ItemError) -> None:
        self.left_out[f"recordings that cannot be read ({error.kind})"] += (
            recording.end - recording.first
        )
        if len(self.failures) < _FAILURES_KEPT:
            self.failures.append(str(error))


def _usable(
    passages: Iterable[Passage], count_tokens: CountTokens, max_tokens: int, account: _Account
) -> Iterator[tuple[Passage, int]]:
    """Yield passages that fit a window, with the tokens of their texts."""
    known: set[Passage] = set()
    for passage in passages:
        account.passages += 1
        if passage in known:
            # It would be its own neighbour in windows: a text that says all twice.
            account.left_out["passages that are given again"] += 1
            continue
        known.add(passage)
        tokens = count_tokens(passage.text)
        length_s = 0.0 if passage.end_s is None else passage.end_s - passage.start_s
        if tokens is None:
            account.left_out["texts with control tokens"] += 1
        elif tokens > max_tokens:
            account.left_out[f"texts of more than {max_tokens} tokens"] += 1
        elif tokens and length_s * SAMPLE_RATE_HZ > WINDOW_SAMPLES:
            account.left_out["passages of more than 30 s"] += 1
        else:
            yield passage, tokens


def _order(passage: Passage) -> tuple[str, int, int, float]:
    row, channel = (-1 if n is None else n for n in (passage.row, passage.channel))
    return passage.uri, row, channel, passage.start_s


def _fingerprint(kept: list[tuple[Passage, int]], gap: int) -> str:
    """Name what there is to decode: other passages, or other tokens of them, have another name."""
    digest = hashlib.sha256(f"{_SCHEMA} {gap}".encode())
    for pair in kept:
        digest.update(repr(pair).encode("utf-8", "replace"))
    return digest.hexdigest()[:32]


def _wanted(kept: list[tuple[Passage, int]], gap: int) -> Iterator[_Recording]:
    """Yield each recording with what is wanted of it."""
    recordings: list[Recording] = [passage.recording for passage, _ in kept]
    firsts = [i for i, one in enumerate(recordings) if not i or recordings[i - 1] != one]
    for first, end in pairwise([*firsts, len(kept)]):
        stretches = [_in_samples(passage) for passage, _ in kept[first:end]]
        yield _Recording(
            wanted=Wanted(recording=recordings[first], stretches=joined(stretches, gap=gap)),
            first=first,
            end=end,
        )


def _in_samples(passage: Passage) -> tuple[int, int | None]:
    start = round(passage.start_s * SAMPLE_RATE_HZ)
    end = None if passage.end_s is None else max(start + 1, round(passage.end_s * SAMPLE_RATE_HZ))
    return start, end


class _Writer:
    """Appends stretches and their passages."""

    def __init__(self, folder: Path) -> None:
        self._audio = (folder / AUDIO_NAME).open("wb")
        self._sink = pa.OSFile(str(folder / PASSAGES_NAME), "wb")
        self._rows = pa.ipc.new_file(self._sink, _SCHEMA)
        self._waiting: list[dict[str, Any]] = []
        self._samples = self._stretches = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._rows.close()
        self._sink.close()
        self._audio.close()

    def add(
        self,
        passages: list[tuple[Passage, int]],
        recording: _Recording,
        found: list[Samples],
        account: _Account,
    ) -> None:
        at = 0
        for (begin, until), samples in zip(recording.wanted.stretches, found, strict=True):
            while at < len(passages):
                start, end = _in_samples(passages[at][0])
                if until is not None and start >= until:
                    break
                passage, tokens = passages[at]
                at += 1
                place = (
                    start - begin,
                    min(samples.size, samples.size if end is None else end - begin),
                )
                if place[1] <= place[0]:
                    account.left_out["passages after the end of their recording"] += 1
                elif tokens and place[1] - place[0] > WINDOW_SAMPLES:
                    account.left_out["passages of more than 30 s"] += 1
                else:
                    account.kept += 1
                    for piece in range(*place, WINDOW_SAMPLES):  # only what is silent is longer
                        end_of_piece = min(piece + WINDOW_SAMPLES, place[1])
                        self._row(passage, tokens, (piece, end_of_piece))
            samples.tofile(self._audio)
            self._samples += samples.size
            self._stretches += 1

    def _row(self, passage: Passage, tokens: int, place: tuple[int, int]) -> None:
        self._waiting.append(
            {
                "stretch": self._stretches,
                "start": self._samples + place[0],
                "end": self._samples + place[1],
                "tokens": tokens,
                "text": passage.text.strip(),
                "language": passage.language,
                "previous": passage.previous,
            }
        )
        if len(self._waiting) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._rows.write_table(pa.Table.from_pylist(self._waiting, schema=_SCHEMA))
        self._waiting = []


def _finish(folder: Path, fingerprint: str, account: _Account) -> None:
    """Write the account, which says that the folder is whole."""
    if not account.kept:
        reasons = ", ".join(f"{n} {why}" for why, n in account.left_out.most_common())
        first = f" ({account.failures[0]})" if account.failures else ""
        raise ConfigError(
            f"preparing {shown(str(folder))}: found nothing to learn from in {account.passages} "
            f"passages; left out: {reasons or 'none'}{first}; name other data"
        )
    written = {
        "fingerprint": fingerprint,
        "passages": account.passages,
        "kept": account.kept,
        "left_out": dict(account.left_out),
        "failures": account.failures,
    }
    path = folder / ACCOUNT_NAME
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(written, indent=2), encoding="utf-8")
    partial.rename(path)
