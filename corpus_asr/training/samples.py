"""Recordings to samples, in a child process that may crash or hang without harm.

In: a recording and the regions wanted. Out: their samples as int16. Knows no text.
"""

import io
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
from jaxtyping import Int16

from corpus_asr.audio.decode import open_audio
from corpus_asr.errors import DecodeError, ItemError
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.storage.run_state.tables import parquet_rows
from corpus_asr.storage.stores.filesystem import StoreOptions, open_binary
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.training.utterances import Recording

Samples = Int16[np.ndarray, "_"]

FULL_SCALE = 32768.0  # of int16
_ROWS_AHEAD = 16  # of a Parquet file with audio in it: rows are asked for in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A recording and its regions, in samples at 16 kHz; None: up to the end."""

    recording: Recording
    regions: tuple[tuple[int, int | None], ...]
    """Ascending, none touching the next."""


class SampleReader:
    """What runs in the child: decodes a recording as far as its last region.

    Args:
        endpoint_url: the S3 endpoint, where it is not Amazon's.
    """

    def __init__(self, *, endpoint_url: str | None) -> None:
        self._store = StoreOptions(endpoint_url=endpoint_url)
        self._rows: dict[tuple[str, int], bytes | None] = {}

    def __call__(self, wanted: Wanted) -> Iterator[tuple[int, Samples]]:
        """Yield pieces of regions with the number of the region.

        Raises:
            DecodeError: the bytes hold no usable audio.
            FetchError: the store failed.
        """
        uri, row, channel = wanted.recording
        channels: Literal["mix"] | int = "mix" if channel is None else channel
        begin = done = 0
        with (
            self._opened(uri, row) as file,
            open_audio(file, uri=redact_uri(uri), channels=channels) as decoder,
        ):
            for chunk in decoder:
                samples = _rounded(chunk[0])
                after = begin + samples.size
                while done < len(wanted.regions) and wanted.regions[done][0] < after:
                    start, end = wanted.regions[done]
                    yield (
                        done,
                        samples[max(0, start - begin) : None if end is None else end - begin],
                    )
                    if end is None or end > after:
                        break
                    done += 1
                if done == len(wanted.regions):
                    return
                begin = after

    def _opened(self, uri: str, row: int | None) -> BinaryIO:
        if row is None:
            return open_binary(uri, self._store)
        if (uri, row) not in self._rows:
            with open_binary(uri, self._store) as file:
                tables = list(parquet_rows(file, ["audio"], [(row, row + _ROWS_AHEAD)]))
            encoded = [audio["bytes"] for table in tables for audio in table["audio"].to_pylist()]
            self._rows = {(uri, row + at): data for at, data in enumerate(encoded)}
        data = self._rows.get((uri, row))
        if data is None:
            raise DecodeError(
                f"decoding row {row} of {redact_uri(uri)}: found no bytes in its column audio, "
                "expected an encoded recording; write the data set with its audio",
                kind="empty_file",
            )
        return io.BytesIO(data)


def read_samples(
    wanted: Iterable[Wanted], *, workers: int, timeout_s: float, endpoint_url: str | None = None
) -> Iterator[tuple[Wanted, list[Samples] | ItemError]]:
    """Yield the regions of each recording, in order, decoding several at a time.

    Args:
        wanted: twice as many as `workers` are in memory.
        workers: child processes.
        timeout_s: the longest silence of a decoder.
        endpoint_url: the S3 endpoint, where it is not Amazon's.

    Raises:
        EngineError: a child could not be started.
    """
    children: queue.SimpleQueue[IsolatedGenerator] = queue.SimpleQueue()
    owned = [
        IsolatedGenerator(
            f"{__name__}:{SampleReader.__name__}",
            init_kwargs={"endpoint_url": endpoint_url},
            timeout_s=timeout_s,
        )
        for _ in range(workers)
    ]
    for child in owned:
        children.put(child)

    def read(one: Wanted) -> list[Samples] | ItemError:
        child = children.get()
        pieces: list[list[Samples]] = [[] for _ in one.regions]
        try:
            for number, samples in child.run(one):
                pieces[number].append(samples)
        except ItemError as error:
            return error
        finally:
            children.put(child)
        return [np.concatenate(each) if each else np.zeros(0, np.int16) for each in pieces]

    try:
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            yield from _in_order(pool, read, wanted, ahead=2 * workers)
    finally:
        for child in owned:
            child.close()


def _in_order(
    pool: ThreadPoolExecutor,
    read: Callable[[Wanted], list[Samples] | ItemError],
    wanted: Iterable[Wanted],
    *,
    ahead: int,
) -> Iterator[tuple[Wanted, list[Samples] | ItemError]]:
    pending: list[tuple[Wanted, Future[list[Samples] | ItemError]]] = []
    for one in wanted:
        pending.append((one, pool.submit(read, one)))
        if len(pending) > ahead:
            first, future = pending.pop(0)
            yield first, future.result()
    for one, future in pending:
        yield one, future.result()


def joined(
    regions: Sequence[tuple[int, int | None]], *, gap: int
) -> tuple[tuple[int, int | None], ...]:
    """Join ascending regions that touch, overlap or lie no further apart than `gap`."""
    found: list[tuple[int, int | None]] = []
    for start, end in regions:
        before = found[-1][1] if found else 0
        if found and (before is None or start - before <= gap):
            until = None if before is None or end is None else max(before, end)
            found[-1] = (found[-1][0], until)
        else:
            found.append((start, end))
    return tuple(found)


def _rounded(samples: np.ndarray) -> Samples:
    scaled = np.rint(samples * FULL_SCALE)
    return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
