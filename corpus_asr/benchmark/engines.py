"""Runners of the other engines: made with an `Order`, `run` works once and returns seconds."""

import importlib
import json
import os
import subprocess
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.benchmark.orders import Order
from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ, WINDOW_FRAMES, WINDOW_S, WINDOW_SAMPLES

_T = TypeVar("_T")
_Samples = Float32[np.ndarray, " sample"]
_SEED = 0
_STAGES = ("features", "encode", "decode")
# Its only choice is fp16 or not.
_OPENAI_DTYPES = ("float32", "float16")


class StageClock:
    """Adds up the time spent in stages; stages must not lie within one another."""

    def __init__(self, *, cuda: bool) -> None:
        self._cuda = _torch_cuda() if cuda else None
        self._taken: list[tuple[str, float]] = []  # several threads add to it
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what is done inside, or by a function: it is a decorator, too."""
        # On a GPU the time between two marks in its queue: to wait for it would slow the engine.
        if self._cuda is None:
            started_s = time.perf_counter()
            yield
            self._taken.append((name, time.perf_counter() - started_s))
            return
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._marks.append((name, begin, end))

    def take(self) -> dict[str, float]:
        """Return the seconds of every stage since the last call."""
        if self._cuda is not None:
            self._cuda.synchronize()
        marked = [(name, begin.elapsed_time(end) / 1000) for name, begin, end in self._marks]
        taken: dict[str, float] = {}
        for name, seconds in self._taken + marked:
            taken[name] = taken.get(name, 0.0) + seconds
        self._taken, self._marks = [], []
        return taken


def peak_memory() -> dict[str, float | None]:
    """Return the peak memory of this process and its children, and torch's on the GPU, in MiB."""
    # Each child's peak is its own, so the sum may be a little above what was in use at once.
    # Each thread has children of its own.
    listed = Path("/proc/self/task").glob("*/children")
    processes = ["self", *(pid for children in listed for pid in children.read_text().split())]
    peaks_kib = [kib for pid in processes if (kib := _peak_kib(pid)) is not None]
    on_gpu = "torch.cuda" in sys.modules and _torch_cuda().is_initialized()
    gpu = _torch_cuda().max_memory_reserved() / MEBIBYTE if on_gpu else 0.0
    return {
        "peak_memory_mib": round(sum(peaks_kib) / 1024, 1) if peaks_kib else None,
        # Engines that do not allocate through torch cannot be seen there.
        "peak_gpu_mib": round(gpu, 1) or None,
    }


def tree_cpu_s(pid: int | str = "self") -> float:
    """Return user and system seconds of a process, its children, and those that it waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        listed = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has ended: its parent has its seconds
        return 0.0
    own_s = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own_s + sum(tree_cpu_s(child) for children in listed for child in children.split())


def _peak_kib(pid: str) -> int | None:
    # Unlike the high-water mark of `getrusage`, this one starts with the program.
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


# Only engines that compute with torch load it: it must not count as memory of the others.
def _torch_cuda() -> Any:
    return importlib.import_module("torch.cuda")


def read_samples(path: str) -> _Samples:
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
# What CTranslate2's converter does not write itself, and faster-whisper reads.
_COPIED = ("tokenizer.json", "preprocessor_config.json")


def converted(layout: str, order: Order) -> Path:
    """Return the checkpoint in `ctranslate2`'s or `openai`'s layout."""
    target = Path(order.scratch) / _NAMES[layout]
    if target.exists():
        return target
    # In a process of its own, as the converters load torch.
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
        ids = {token: number for number, token in enumerate(tokens)}
        # As much of a tokenizer as the converter looks at.
        converter.load_tokenizer = lambda *_, **__: SimpleNamespace(get_vocab=lambda: ids)
    converter.convert(str(target))


def _to_openai(source: Path, target: Path) -> None:
    from corpus_asr.models.convert.folder import convert

    convert(source, target)


class RecordingsRunner(ABC):
    """Times one engine from files to text."""

    remainder = "decode"
    """The stage that has the time for which there is no clock."""

    def __init__(self, order: Order, *, marks_on_gpu: bool = True) -> None:
        self.order = order
        self.clock = StageClock(cuda=marks_on_gpu and order.on_gpu)

    @abstractmethod
    def texts(self) -> list[str]:
        """Transcribe every file."""

    def run(self) -> dict[str, Any]:
        """Return `total_s`, `cpu_s` of all threads and children, seconds by stage, and `texts`."""
        started_s, cpu_s = time.perf_counter(), tree_cpu_s()
        texts = self.texts()
        total_s, cpu_s = time.perf_counter() - started_s, tree_cpu_s() - cpu_s
        stages = dict.fromkeys(_STAGES, 0.0) | self.clock.take()
        stages[self.remainder] = total_s - sum(stages.values())
        return {"total_s": total_s, "cpu_s": cpu_s, "stages": stages, "texts": texts}


class WindowsRunner(ABC):
    """Times one engine on a batch of windows of noise: encoder, first token, all further tokens."""

    def __init__(self, order: Order) -> None:
        config = json.loads((Path(order.model) / "config.json").read_text())
        self.order = order
        self.end: int = config["eos_token_id"]
        vocabulary = (Path(order.model) / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
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
        """Time all three."""
        encoded, encode_s = self._timed(self.encode)
        # The first token holds the keys and values of cross-attention, which every engine computes
        # there. Decoding twice, once for a single token, needs no look inside an engine.
        first_s = self._decode_s(encoded, 1)
        all_s = self._decode_s(encoded, self.order.tokens_per_window)
        return {
            "total_s": encode_s + all_s,
            "stages": {"encode": encode_s, "first_token": first_s, "tokens": all_s - first_s},
            "audio_s": float(self.order.batch * WINDOW_S),
        }

    def _decode_s(self, encoded: Any, num_tokens: int) -> float:
        counts, taken_s = self._timed(lambda: self.decode(encoded, num_tokens))
        if counts != [num_tokens] * self.order.batch:
            raise EngineError(
                f"timing {self.order.engine}: requested {num_tokens} tokens for each of "
                f"{self.order.batch} windows, it said {counts}; its figures would not be comparable"
            )
        return taken_s

    def _timed(self, work: Callable[[], _T]) -> tuple[_T, float]:
        started_s = time.perf_counter()
        result = work()
        if self.order.on_gpu:
            _torch_cuda().synchronize()
        return result, time.perf_counter() - started_s


class FasterWhisper(RecordingsRunner):
    """Times `WhisperModel.transcribe` from files to text, file after file."""

    # Decoding the audio, finding speech, features: whatever is not the network.
    remainder = "features"

    def __init__(self, order: Order) -> None:
        # CTranslate2 returns when its work is done, on GPUs too: the host's clock will do.
        super().__init__(order, marks_on_gpu=False)
        folder = converted("ctranslate2", order)
        self._library = _import_without_torch("faster_whisper")
        self._model = self._library.WhisperModel(
            str(folder), cpu_threads=order.threads, local_files_only=True, **_ctranslate2(order)
        )
        self._model.model = _Clocked(self._model.model, self.clock)

    def texts(self) -> list[str]:
        return [self._text(path) for path in self.order.audio]

    def _text(self, path: str) -> str:
        options: dict[str, Any] = {}
        if self.order.settings == "thresholds-off":
            options = {
                "beam_size": self.order.beams,
                "temperature": 0.0,
                "compression_ratio_threshold": None,
                "log_prob_threshold": None,
                "no_speech_threshold": None,
                "condition_on_previous_text": False,
                "vad_filter": True,
            }  # `without_timestamps` is each one's own: the batched one loses sentences with them
        segments, _ = self._transcribe(path, language=self.order.language, **options)
        return " ".join(segment.text.strip() for segment in segments)

    def _transcribe(self, path: str, **options: Any) -> Any:
        return self._model.transcribe(path, **options)


class BatchedFasterWhisper(FasterWhisper):
    """Times `BatchedInferencePipeline.transcribe`, which batches the chunks of one file."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._pipeline = self._library.BatchedInferencePipeline(self._model)

    def _transcribe(self, path: str, **options: Any) -> Any:
        return self._pipeline.transcribe(path, batch_size=self.order.batch, **options)


class CTranslate2Windows(WindowsRunner):
    """Times CTranslate2's encoder, and `Whisper.generate` on what it encoded."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        folder = converted("ctranslate2", order)
        self._library = _import_without_torch("ctranslate2")
        self._model = self._library.models.Whisper(
            str(folder), intra_threads=order.threads, inter_threads=1, **_ctranslate2(order)
        )

    def encode(self) -> Any:
        return self._model.encode(self._library.StorageView.from_array(self.features))

    def decode(self, encoded: Any, num_tokens: int) -> list[int]:
        results = self._model.generate(
            encoded,
            [self.prompt] * self.order.batch,
            beam_size=self.order.beams,
            # It writes as many as half of this, and as the prompt but for its last token leaves.
            max_length=max(2 * num_tokens, num_tokens + len(self.prompt) - 1),
            suppress_blank=False,
            suppress_tokens=[self.end],
        )
        return [len(result.sequences_ids[0]) for result in results]


# Methods of CTranslate2's model cannot be replaced: it is wrapped.
class _Clocked:
    def __init__(self, inner: Any, clock: StageClock) -> None:
        self._inner = inner
        self.encode = clock.stage("encode")(inner.encode)
        self.generate = clock.stage("decode")(inner.generate)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _import_without_torch(name: str) -> Any:
    # CTranslate2 loads torch wherever it finds it, but needs it in its converter only. Users need
    # not have it: its memory is not theirs.
    sys.modules["torch"] = None  # type: ignore[assignment]
    return importlib.import_module(name)


def _ctranslate2(order: Order) -> dict[str, Any]:
    kind = "cuda" if order.on_gpu else "cpu"
    return {"device": kind, "device_index": order.gpu_index, "compute_type": order.dtype}


class Transformers(RecordingsRunner):
    """Times `WhisperForConditionalGeneration.generate` from files to text."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        library, self._model = _load_transformers(order)
        self._extract = library.WhisperFeatureExtractor.from_pretrained(order.model)
        self._tokenizer = library.AutoTokenizer.from_pretrained(order.model)
        encoder = self._model.get_encoder()
        encoder.forward = self.clock.stage("encode")(encoder.forward)
        self._options: dict[str, Any] = {
            "num_beams": order.beams,
            "do_sample": False,
            "temperature": 0.0,
            "return_timestamps": True,
            "condition_on_prev_tokens": False,
        }
        if self._model.generation_config.is_multilingual:
            self._options |= {"language": order.language, "task": "transcribe"}

    def texts(self) -> list[str]:
        # It leaves the decoding of files to others; the time is counted with its features.
        with self.clock.stage("features"):
            recordings = [read_samples(path) for path in self.order.audio]
        cut = self._chunked if self.order.mode == "chunked" else self._sequential
        return cut(recordings)

    def _chunked(self, recordings: Sequence[_Samples]) -> list[str]:
        windows = [
            (number, samples[start : start + WINDOW_SAMPLES])
            for number, samples in enumerate(recordings)
            for start in range(0, len(samples), WINDOW_SAMPLES)
        ]
        texts_of: list[list[str]] = [[] for _ in recordings]
        for batch in batches(windows, self.order.batch):
            texts = self._texts([samples for _, samples in batch], padding="max_length")
            for (number, _), text in zip(batch, texts, strict=True):
                texts_of[number].append(text.strip())
        return [" ".join(texts) for texts in texts_of]

    def _sequential(self, recordings: Sequence[_Samples]) -> list[str]:
        # Beside recordings of about its length, one is padded least.
        by_length = sorted(range(len(recordings)), key=lambda number: -len(recordings[number]))
        text_of = [""] * len(recordings)
        for numbers in batches(by_length, self.order.batch):
            batch = [recordings[number] for number in numbers]
            short = len(batch[0]) <= WINDOW_SAMPLES
            texts = self._texts(batch, padding="max_length" if short else "longest")
            for number, text in zip(numbers, texts, strict=True):
                text_of[number] = text.strip()
        return text_of

    def _texts(self, batch: Sequence[_Samples], *, padding: str) -> list[str]:
        with self.clock.stage("features"):
            inputs = self._extract(
                list(batch),
                sampling_rate=SAMPLE_RATE_HZ,
                padding=padding,
                truncation=padding == "max_length",
                return_attention_mask=True,
                return_tensors="pt",
            ).to(self._model.device)
            features = inputs.input_features.to(self._model.dtype)
        tokens = self._model.generate(
            features, attention_mask=inputs.attention_mask, **self._options
        )
        texts: list[str] = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts


class TransformersWindows(WindowsRunner):
    """Times the encoder, and the search that `generate` is built on."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._torch = importlib.import_module("torch")
        self._library, self._model = _load_transformers(order)
        self._outputs = importlib.import_module("transformers.modeling_outputs").BaseModelOutput

    def encode(self) -> Any:
        features = self._torch.from_numpy(self.features)
        with self._torch.inference_mode():
            encoder = self._model.get_encoder()
            return encoder(features.to(self._model.device, self._model.dtype)).last_hidden_state

    def decode(self, encoded: Any, num_tokens: int) -> list[int]:
        prompt = self._torch.tensor([self.prompt] * len(encoded), device=self._model.device)
        settings = self._library.GenerationConfig(
            max_new_tokens=num_tokens,
            num_beams=self.order.beams,
            do_sample=False,
            suppress_tokens=[self.end],
            decoder_start_token_id=self.prompt[0],
            bos_token_id=self.end,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        with self._torch.inference_mode():
            # Whisper's own `generate` cuts audio and reads timestamps; this is what it calls.
            tokens = self._library.GenerationMixin.generate(
                self._model,
                encoder_outputs=self._outputs(last_hidden_state=encoded),
                decoder_input_ids=prompt,
                generation_config=settings,
            )
        return [tokens.shape[1] - prompt.shape[1]] * len(tokens)


def _load_transformers(order: Order) -> tuple[Any, Any]:
    warnings.simplefilter("ignore")
    torch, library = (importlib.import_module(name) for name in ("torch", "transformers"))
    from corpus_asr.families.loading import resolve_dtype

    library.logging.set_verbosity_error()
    torch.set_num_threads(order.threads)
    device = torch.device(order.device)
    model = library.WhisperForConditionalGeneration.from_pretrained(
        order.model, dtype=resolve_dtype(order.dtype, device)
    )
    return library, model.eval().to(device)


class OpenAI(RecordingsRunner):
    """Times `whisper.transcribe` from files to text; it knows one window at a time only."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._library, self._model = _load_openai(order)
        encoder = self._model.encoder
        encoder.forward = self.clock.stage("encode")(encoder.forward)

    def texts(self) -> list[str]:
        with self.clock.stage("features"):
            recordings = [read_samples(path) for path in self.order.audio]
        options: dict[str, Any] = {}
        if self.order.settings == "thresholds-off":
            options = {
                "beam_size": self.order.beams if self.order.beams > 1 else None,
                "temperature": 0.0,
                "compression_ratio_threshold": None,
                "logprob_threshold": None,
                "no_speech_threshold": None,
                "condition_on_previous_text": False,
            }
        return [
            self._library.transcribe(
                self._model,
                samples,
                language=self.order.language,
                fp16=self.order.dtype == "float16",
                **options,
            )["text"].strip()
            for samples in recordings
        ]


class OpenAIWindows(WindowsRunner):
    """Times the encoder, and `whisper.decode` on what it encoded."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._torch = importlib.import_module("torch")
        self._library, self._model = _load_openai(order)
        self._half = order.dtype == "float16"
        if self._half:
            self._model.half()

    def encode(self) -> Any:
        features = self._torch.from_numpy(self.features).to(self.order.device)
        with self._torch.inference_mode():
            return self._model.encoder(features.half() if self._half else features)

    def decode(self, encoded: Any, num_tokens: int) -> list[int]:
        options = self._library.DecodingOptions(
            language="en",
            sample_len=num_tokens,
            beam_size=self.order.beams if self.order.beams > 1 else None,
            suppress_tokens=[self.end],
            without_timestamps=True,
            fp16=self._half,
        )
        # With beams it decodes a single window only, as its `transcribe` does at any time.
        groups = [encoded] if self.order.beams == 1 else encoded.split(1)
        return [
            len(result.tokens)
            for group in groups
            for result in self._library.decode(self._model, group, options)
        ]


def _load_openai(order: Order) -> tuple[Any, Any]:
    if order.dtype not in _OPENAI_DTYPES:
        raise ConfigError(
            f"loading openai-whisper in {order.dtype}: expected one of {', '.join(_OPENAI_DTYPES)}"
        )
    warnings.simplefilter("ignore")
    importlib.import_module("torch").set_num_threads(order.threads)
    file = converted("openai", order)
    library = importlib.import_module("whisper")
    return library, library.load_model(str(file), device=order.device)


if __name__ == "__main__":
    write = {"ctranslate2": _to_ctranslate2, "openai": _to_openai}[sys.argv[1]]
    final = Path(sys.argv[3])
    unfinished = final.with_name(f"unfinished-{final.name}")
    write(Path(sys.argv[2]), unfinished)
    # A converter that is killed leaves no folder that the next worker takes for a checkpoint.
    unfinished.rename(final)
