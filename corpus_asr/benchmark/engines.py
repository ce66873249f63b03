"""What all engines share: clocks, samples, checkpoints in their layouts, and one interface.

A runner is made with an `Order` and has one method, `run`: it works once and returns seconds, by
stage and in total. Imports no torch: an engine that works without it must not have its memory
counted.
"""

import functools
import importlib
import json
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32

from corpus_asr.benchmark.orders import Order
from corpus_asr.errors import EngineError
from corpus_asr.units import WINDOW_FRAMES, WINDOW_S

_T = TypeVar("_T")
_MIB = 1 << 20
_SEED = 0
_STAGES = ("features", "encode", "decode")


class StageClock:
    """Adds up the time spent in stages; stages must not lie within one another."""

    def __init__(self, *, cuda: bool) -> None:
        self._cuda = _torch_cuda() if cuda else None
        self._seconds: dict[str, float] = {}
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what is done inside; on a GPU between two marks in the queue, without waiting."""
        if self._cuda is None:
            started = time.perf_counter()
            yield
            self.add(name, time.perf_counter() - started)
            return
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._marks.append((name, begin, end))

    def watch(self, name: str, function: Callable[..., _T]) -> Callable[..., _T]:
        """Return `function` with its calls counted."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> _T:
            with self.stage(name):
                return function(*args, **kwargs)

        return watched

    def add(self, name: str, seconds: float) -> None:
        """Count time that was taken elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Return the seconds of every stage since the last call."""
        if self._cuda is not None:
            self._cuda.synchronize()
        for name, begin, end in self._marks:
            self.add(name, begin.elapsed_time(end) / 1000)
        taken, self._seconds, self._marks = self._seconds, {}, []
        return taken


def seconds(work: Callable[[], object], *, cuda: bool) -> float:
    """Time `work` until the device has done it; nothing must be queued on a GPU before."""
    started = time.perf_counter()
    work()
    if cuda:
        _torch_cuda().synchronize()
    return time.perf_counter() - started


def peak_memory() -> dict[str, float | None]:
    """Return the peak memory of this process and its children, and torch's on the GPU, in MiB.

    Each child's peak is its own, so the sum may be a little above what was in use at once.
    """
    # Each thread has children of its own.
    listed = Path("/proc/self/task").glob("*/children")
    processes = ["self", *(pid for children in listed for pid in children.read_text().split())]
    known = [
        kib for pid in processes if (kib := _peak_kib(Path(f"/proc/{pid}/status"))) is not None
    ]
    on_gpu = "torch.cuda" in sys.modules and _torch_cuda().is_initialized()
    gpu = _torch_cuda().max_memory_reserved() / _MIB if on_gpu else 0.0
    return {
        "peak_memory_mib": round(sum(known) / 1024, 1) if known else None,
        # Engines that do not allocate through torch cannot be seen there.
        "peak_gpu_mib": round(gpu, 1) or None,
    }


def _peak_kib(status: Path) -> int | None:
    """Read a process's high-water mark, which unlike `getrusage`'s starts with the program."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def _torch_cuda() -> Any:
    return importlib.import_module("torch.cuda")


def read_samples(path: str) -> Float32[np.ndarray, " sample"]:
    """Decode a file to 16 kHz mono."""
    # Where engines are timed on windows alone, PyAV need not be installed.
    from corpus_asr.audio.decode import open_audio

    with Path(path).open("rb") as file, open_audio(file, uri=path) as decoder:
        return np.concatenate([chunk[0] for chunk in decoder])


def batches(items: Any, size: int) -> Iterator[Any]:
    """Yield `items` in runs of `size`."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


_NAMES = {"ctranslate2": "ctranslate2", "openai": "openai.pt"}
_COPIED = ("tokenizer.json", "preprocessor_config.json")


def converted(layout: str, order: Order) -> Path:
    """Return the checkpoint in `ctranslate2`'s or `openai`'s layout."""
    target = Path(order.scratch) / _NAMES[layout]
    if target.exists():
        return target
    command = [sys.executable, "-P", "-m", "corpus_asr.benchmark.engines"]
    done = subprocess.run(
        [*command, layout, order.model, str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(
            f"converting {order.model} to {layout}'s layout: {last}; leave {order.engine} out, or "
            "convert the checkpoint by hand to see why"
        )
    return target


def _to_ctranslate2(source: Path, target: Path) -> None:
    library = importlib.import_module("ctranslate2.converters")
    converter = library.TransformersConverter(
        str(source), copy_files=[name for name in _COPIED if (source / name).is_file()]
    )
    vocabulary = source / "vocabulary.txt"
    if vocabulary.is_file():  # a checkpoint of noise, which has no tokenizer
        tokens = vocabulary.read_text(encoding="utf-8").split("\n")
        converter.load_tokenizer = lambda *_, **__: _Vocabulary(tokens)
    converter.convert(str(target))


class _Vocabulary:
    """As much of a tokenizer as the converter looks at."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._ids = {token: number for number, token in enumerate(tokens)}

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        return self._ids


def _to_openai(source: Path, target: Path) -> None:
    from corpus_asr.models.convert.folder import convert

    convert(source, target)


class Runner(ABC):
    """Works once whenever it is asked to; made with an `Order`, in a process of its own."""

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Return `total_s`, `stages` and, for recordings, `texts`."""


class RecordingsRunner(Runner):
    """Times one engine from files to text."""

    remainder = "decode"
    """The stage that has the time for which there is no clock."""

    def __init__(self, order: Order, *, cuda: bool) -> None:
        self.order = order
        self.clock = StageClock(cuda=cuda)

    @abstractmethod
    def texts(self) -> list[str]:
        """Transcribe every file."""

    def run(self) -> dict[str, Any]:
        """Transcribe everything, with clocks attached."""
        started = time.perf_counter()
        texts = self.texts()
        total_s = time.perf_counter() - started
        stages = dict.fromkeys(_STAGES, 0.0) | self.clock.take()
        stages[self.remainder] = total_s - sum(stages.values())
        return {"total_s": total_s, "stages": stages, "texts": texts}


class WindowsRunner(Runner):
    """Times one engine on a batch of windows of noise: encoder, first token, all further tokens.

    The first token holds the keys and values of cross-attention, which every engine computes
    there. The split needs no look inside an engine: it decodes twice, once for a single token.
    """

    def __init__(self, order: Order) -> None:
        config = json.loads((Path(order.model) / "config.json").read_text())
        self.order = order
        self.cuda = order.device.startswith("cuda")
        self.end: int = config["eos_token_id"]
        vocabulary = (Path(order.model) / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
        self.vocabulary: Sequence[str] = vocabulary
        # Without timestamps: their grammar would be a matter of chance with random weights.
        wanted = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
        self.prompt = [vocabulary.index(token) for token in wanted]
        noise = np.random.default_rng(_SEED)
        shape = (order.batch, config["num_mel_bins"], WINDOW_FRAMES)
        self.features: Float32[np.ndarray, "batch mel frame"] = noise.uniform(
            -1.0, 1.0, shape
        ).astype(np.float32)

    @abstractmethod
    def encode(self) -> Any:
        """Encode all windows, as this engine would encode so many."""

    @abstractmethod
    def decode(self, encoded: Any, num_tokens: int) -> list[int]:
        """Decode `num_tokens` tokens of each window; return how many each one got."""

    def run(self) -> dict[str, Any]:
        """Time all three.

        Raises:
            EngineError: the engine did not say as many tokens as it was asked for.
        """
        encoded: Any = None

        def encode() -> None:
            nonlocal encoded
            encoded = self.encode()

        encode_s = seconds(encode, cuda=self.cuda)
        first_s = self._decode_s(encoded, 1)
        all_s = self._decode_s(encoded, self.order.tokens_per_window)
        return {
            "total_s": encode_s + all_s,
            "stages": {"encode": encode_s, "first_token": first_s, "tokens": all_s - first_s},
            "audio_s": float(self.order.batch * WINDOW_S),
        }

    def _decode_s(self, encoded: Any, num_tokens: int) -> float:
        counts: list[int] = []

        def decode() -> None:
            counts.extend(self.decode(encoded, num_tokens))

        taken_s = seconds(decode, cuda=self.cuda)
        if counts != [num_tokens] * self.order.batch:
            raise EngineError(
                f"timing {self.order.engine}: asked for {num_tokens} tokens about each of "
                f"{self.order.batch} windows, it said {counts}; its figures would not be comparable"
            )
        return taken_s


if __name__ == "__main__":
    write = {"ctranslate2": _to_ctranslate2, "openai": _to_openai}[sys.argv[1]]
    final = Path(sys.argv[3])
    unfinished = final.with_name(f"unfinished-{final.name}")
    write(Path(sys.argv[2]), unfinished)
    unfinished.rename(final)
