"""Media files of every container broken by seeded mutations, and a run over them."""

import contextlib
import os
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.runtime.local import run_local
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.resources import resolve_resources, this_machine
from corpus_asr.stages.extract import EXTRACTOR
from corpus_asr.storage.run_state.plan import make_plan, read_packs
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.audio import encode, noise, tone
from tests.support.corpora import job, outcomes_in, tiny_model
from tests.support.engines import committer_of, scripted_engine
from tests.support.killing import descendants, peak_bytes

# Of one decoder with its libraries and its detector, whatever it reads; measured were 209 MB.
MAX_DECODER_BYTES = 400_000_000


@dataclass(frozen=True)
class Fuzzed:
    """What became of files that were extracted by one decoder after the other."""

    counts: Counter[str]
    """Files by the kind of failure, or the status, of their last part."""
    names: dict[str, str]
    """That of each file."""
    peak_bytes: int
    """Most memory that a decoder's process had."""


def fuzz(
    folder: Path, files: Iterable[tuple[str, bytes]], *, item_timeout_s: float, **extract: Any
) -> Fuzzed:
    """Extract files, names and contents, and check that each has one outcome."""
    corpus, output = folder / "corpus", folder / "output"
    corpus.mkdir(parents=True)
    count = 0
    for name, data in files:
        (corpus / name).write_bytes(data)
        count += 1
    usual = {"part_s": 30, "item_timeout_s": item_timeout_s, "workers": 1, "pack_mb": 1}
    config = job(corpus, tiny_model(folder), output, extract=usual | extract)
    store = OutputStore(str(output))
    plan = make_plan(config, store)
    assert plan.num_files + plan.num_no_sound == count
    with _measured() as peaks:
        run_local(
            config,
            read_packs(store, plan),
            committer_of(config),
            resources=resolve_resources(config, (this_machine(),), num_packs=plan.num_packs),
            progress=Progress(total_files=count, stream=None),
            engine_factory=scripted_engine,
            extractor=EXTRACTOR,
        )
    rows = outcomes_in(output)  # no part twice
    last = {name: row for (name, _), row in sorted(rows.items())}
    assert len(last) == plan.num_files, "a file has no outcome"
    assert all(row["last_part"] for row in last.values())
    for row in last.values():
        if row["status"] == "failed":
            assert "; " in str(row["error_message"]), row  # what was found, and what to do
    names = {name: str(row["error_kind"] or row["status"]) for name, row in last.items()}
    return Fuzzed(Counter(names.values()), names, max(peaks.values(), default=0))


@contextmanager
def _measured() -> Iterator[dict[int, int]]:
    """Note the most memory of each process below this one while the context is open."""
    peaks: dict[int, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for child in descendants(os.getpid()):
                with contextlib.suppress(OSError, ValueError):  # it is gone
                    peaks[child.pid] = peak_bytes(child.pid)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


# Container, codec, sample format, sample rate, suffix.
KINDS = tuple(
    line.split()
    for line in """
    wav pcm_s16le s16 16000 wav|wav pcm_mulaw s16 16000 wav|wav adpcm_ms s16 16000 wav
    wav adpcm_ima_wav s16p 16000 wav|w64 pcm_f32le flt 16000 w64|flac flac s16 16000 flac
    mp3 libmp3lame fltp 16000 mp3|mp2 mp2 s16 16000 mp2|ogg libopus flt 16000 opus
    ogg flac s16 16000 ogg|ipod aac fltp 16000 m4a|mp4 aac fltp 16000 mp4
    mov pcm_s16le s16 16000 mov|mov alac s16p 16000 m4a|3gp aac fltp 16000 3gp
    adts aac fltp 16000 aac|latm aac fltp 16000 latm|webm libopus flt 16000 webm
    matroska pcm_s16le s16 16000 mkv|asf libmp3lame fltp 16000 wma
    amr libopencore_amrnb s16 8000 amr|avi libmp3lame fltp 16000 avi
    avi pcm_s16le s16 16000 avi|aiff pcm_s16be s16 16000 aiff|au pcm_s16be s16 16000 au
    caf pcm_s16be s16 16000 caf|caf alac s16p 16000 caf|mpegts aac fltp 16000 ts
    mpegts mp2 s16 16000 ts|flv aac fltp 16000 flv|nut libmp3lame fltp 16000 nut
    wv wavpack s16p 16000 wv|tta tta s16 16000 tta|ac3 ac3 fltp 44100 ac3
    eac3 eac3 fltp 44100 eac3|voc pcm_s16le s16 16000 voc|rm ac3 fltp 44100 rm
    sbc sbc s16 16000 sbc|g722 g722 s16 16000 g722|ircam pcm_s16le s16 16000 sf
    sox pcm_s32le s32 16000 sox|mpeg mp2 s16 16000 mpg|wtv mp2 s16 16000 wtv
    swf libmp3lame fltp 44100 swf|rso pcm_u8 u8 16000 rso
    """.replace("|", "\n")
    .strip()
    .splitlines()
)

Random = np.random.Generator
_ABSURD = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0, 0x00010000)


def whole_files() -> list[tuple[bytes, str]]:
    """One file of each kind, a second and a half of sound, with its suffix."""
    files = []
    for container, codec, sample_format, rate, suffix in KINDS:
        rate_hz = int(rate)
        sound = tone(1.0, rate_hz=rate_hz) + 0.3 * noise(1.0, rate_hz=rate_hz)
        data = encode(
            np.concatenate([sound, sound[:, : rate_hz // 2]], axis=1),
            rate_hz=rate_hz, container=container, codec=codec, sample_format=sample_format,
        )  # fmt: skip
        files.append((data, suffix))
    return files


def _flip_bits(data: bytearray, random: Random, _: bytes) -> None:
    for at in random.integers(0, len(data), max(1, len(data) // int(random.choice([50, 500])))):
        data[at] ^= 1 << int(random.integers(8))


def _flip_header(data: bytearray, random: Random, _: bytes) -> None:
    for at in random.integers(0, min(len(data), 512), 6):
        data[at] = int(random.integers(256))


def _lie(data: bytearray, random: Random, _: bytes) -> None:
    """Put absurd numbers where sizes, rates and counts stand."""
    for at in random.integers(0, max(1, min(len(data), 600) - 4), 3):
        order = "<I" if random.random() < 0.5 else ">I"
        struct.pack_into(order, data, int(at), int(random.choice(_ABSURD)))


def _truncate(data: bytearray, random: Random, _: bytes) -> None:
    del data[int(random.integers(0, len(data))) :]


def _lose_the_beginning(data: bytearray, random: Random, _: bytes) -> None:
    del data[: int(random.integers(1, min(len(data), 2000)))]


def _zero(data: bytearray, random: Random, _: bytes) -> None:
    start = int(random.integers(0, len(data)))
    data[start : start + len(data) // 4] = bytes(len(data[start : start + len(data) // 4]))


def _drop(data: bytearray, random: Random, _: bytes) -> None:
    start = int(random.integers(0, len(data)))
    del data[start : start + int(random.integers(1, 4000))]


def _splice(data: bytearray, random: Random, other: bytes) -> None:
    data[int(random.integers(0, len(data))) :] = other[int(random.integers(0, len(other))) :]


def _append(data: bytearray, random: Random, other: bytes) -> None:
    data += other


def _repeat(data: bytearray, random: Random, _: bytes) -> None:
    start = int(random.integers(0, len(data)))
    data[start:start] = data[start : start + 3000] * 5


def _garbage(data: bytearray, random: Random, _: bytes) -> None:
    """Keep the signature, and nothing after it."""
    kept = int(random.integers(0, 64))
    data[kept:] = random.bytes(int(random.integers(1, 20_000)))


def _other_name(data: bytearray, random: Random, _: bytes) -> None:
    """Leave the bytes as they are: the suffix will lie."""


MUTATIONS: tuple[Callable[[bytearray, Random, bytes], None], ...] = (
    _flip_bits, _flip_header, _lie, _truncate, _lose_the_beginning, _zero, _drop, _splice, _append,
    _repeat, _garbage, _other_name,
)  # fmt: skip


def mutated(count: int, *, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield broken files: each kind with each mutation in turn, some mutated twice."""
    whole = whole_files()
    random = np.random.default_rng(seed)
    for index in range(count):
        source, suffix = whole[index % len(whole)]
        mutate = MUTATIONS[(index + index // len(whole)) % len(MUTATIONS)]  # so all pairs occur
        other, other_suffix = whole[int(random.integers(len(whole)))]
        data = bytearray(source)
        mutate(data, random, other)
        if data and random.random() < 0.2:
            MUTATIONS[int(random.integers(len(MUTATIONS)))](data, random, other)
        if mutate is _other_name or random.random() < 0.1:
            suffix = other_suffix
        yield f"{index:05d}{mutate.__name__}.{suffix}", bytes(data)
