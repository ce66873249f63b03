"""What is measured: engines, recordings, and the order that travels to a worker process as JSON.

No engine is imported: what is installed is found out without loading it.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from corpus_asr.errors import ConfigError
from corpus_asr.units import SAMPLE_RATE_HZ

OURS = "corpus-asr"
INSTALL = "pip install 'corpus-asr[bench]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine that can be measured; `module:Name` of what does so in a worker."""

    transcribing: str
    """Measures whole recordings, from their files to text."""
    decoding: str | None
    """Measures encoder and decoder alone; None where another entry does so for this one."""
    modules: tuple[str, ...] = ()
    """What must be installed."""
    cpu_dtypes: tuple[str, ...] = ("float32",)
    """Measured when no type is asked for."""
    cuda_dtypes: tuple[str, ...] = ("float16",)
    has_thresholds: bool = True
    """Whether its defaults differ from `thresholds-off`."""


_RUNNERS = "corpus_asr.benchmark.engines"
_FASTER_WHISPER = ("faster_whisper", "ctranslate2", "transformers")

ENGINES: Mapping[str, Engine] = MappingProxyType(
    {
        OURS: Engine(
            transcribing="corpus_asr.benchmark.ours:OurRecordings",
            decoding="corpus_asr.benchmark.ours:OurWindows",
            cpu_dtypes=("auto",),
            cuda_dtypes=("auto",),
        ),
        "faster-whisper-batched": Engine(
            transcribing=f"{_RUNNERS}:BatchedFasterWhisper",
            decoding=None,
            modules=_FASTER_WHISPER,
            cpu_dtypes=("int8",),
        ),
        "faster-whisper": Engine(
            transcribing=f"{_RUNNERS}:FasterWhisper",
            decoding=f"{_RUNNERS}:CTranslate2Windows",
            modules=_FASTER_WHISPER,
            cpu_dtypes=("int8",),
        ),
        "transformers": Engine(
            transcribing=f"{_RUNNERS}:Transformers",
            decoding=f"{_RUNNERS}:TransformersWindows",
            modules=("transformers",),
            cpu_dtypes=("float32", "bfloat16"),
            cuda_dtypes=("float16", "bfloat16"),
            has_thresholds=False,
        ),
        "openai-whisper": Engine(
            transcribing=f"{_RUNNERS}:OpenAI",
            decoding=f"{_RUNNERS}:OpenAIWindows",
            modules=("whisper",),
        ),
    }
)
PEERS = tuple(name for name in ENGINES if name != OURS)

Settings = Literal["thresholds-off", "default"]
SETTINGS: tuple[Settings, ...] = get_args(Settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One engine in one type with one set of decoding options: a row of the table."""

    engine: str
    dtype: str
    settings: Settings = "thresholds-off"
    """`thresholds-off`: one try per window, the same for all; `default`: the engine's own."""

    @property
    def label(self) -> str:
        """How the row is called."""
        defaults = ", defaults" if self.settings == "default" else ""
        return f"{self.engine} {self.dtype}{defaults}"

    @property
    def missing_modules(self) -> list[str]:
        """What would have to be installed to measure this case."""
        return [name for name in ENGINES[self.engine].modules if find_spec(name) is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Case):
    """Everything a worker needs to know; the same for all engines but for the case."""

    runner: str
    """`module:Name` of what measures."""
    model: str
    """A checkpoint folder in Hugging Face layout."""
    scratch: str
    """A folder for checkpoints in other layouts, shared by the workers of one table."""
    device: str
    """`cpu` or `cuda:N`, never `auto`: all engines run on the same.

    A worker sees that GPU alone, and so as `cuda:0`.
    """
    threads: int
    batch: int
    beams: int
    """Those of `thresholds-off`; defaults have their own number."""
    audio: tuple[str, ...] = ()
    language: str = "en"
    mode: str = "sequential"
    """Or `chunked`."""
    tokens_per_window: int = 0

    @property
    def on_gpu(self) -> bool:
        """Whether the engines run on a GPU."""
        return self.device != "cpu"

    @property
    def gpu_index(self) -> int:
        """The number of that GPU."""
        return int(self.device.partition(":")[2] or 0)

    def to_json(self) -> str:
        """Write the order on one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Order":
        """Read what `to_json` wrote."""
        values = json.loads(line)
        return cls(**{**values, "audio": tuple(values["audio"])})


def our_cases(dtypes: Sequence[str], *, cuda: bool) -> list[Case]:
    """Return a case per type; any name goes, as the engine itself says which it knows."""
    usual = ENGINES[OURS].cuda_dtypes if cuda else ENGINES[OURS].cpu_dtypes
    return [Case(engine=OURS, dtype=dtype) for dtype in dict.fromkeys(dtypes or usual)]


def peer_cases(wanted: Sequence[str] | None, *, cuda: bool, shapes: bool) -> list[Case]:
    """Return the cases of the peers asked for, each perhaps with its type (`NAME:DTYPE`)."""
    offered = [name for name in PEERS if not shapes or ENGINES[name].decoding is not None]
    cases: list[Case] = []
    for text in offered if wanted is None else wanted:
        name, _, dtype = text.partition(":")
        if name not in PEERS:
            raise ConfigError(
                f"choosing peers: found {name!r}, expected some of {', '.join(PEERS)}, each with "
                f":DTYPE if need be, or none{nearest(name, PEERS)}"
            )
        if name not in offered:
            raise ConfigError(
                f"choosing peers: {name} differs from faster-whisper in how it cuts audio alone, "
                "and with --shape there is no audio; leave it out"
            )
        usual = ENGINES[name].cuda_dtypes if cuda else ENGINES[name].cpu_dtypes
        cases += [Case(engine=name, dtype=each) for each in ((dtype,) if dtype else usual)]
    return list(dict.fromkeys(cases))


def with_settings(cases: Sequence[Case], wanted: Sequence[str]) -> list[Case]:
    """Return each case once per set of options; an engine without thresholds once in all."""
    for name in wanted or ("none",):
        if name not in SETTINGS:
            raise ConfigError(
                f"choosing settings: found {name!r}, expected some of {', '.join(SETTINGS)}"
                f"{nearest(name, SETTINGS)}"
            )
    chosen = [name for name in SETTINGS if name in wanted]
    return [
        replace(case, settings=name)
        for case in cases
        for name in (chosen if ENGINES[case.engine].has_thresholds else chosen[:1])
    ]


def nearest(name: str, names: Sequence[str]) -> str:
    """Return which name is likely meant, as the end of a message; empty if none is near."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One file."""

    path: Path
    duration_s: float
    text: str | None
    """What is said in it."""


def find_recordings(files: Sequence[Path], manifest: Path | None) -> list[Recording]:
    """Return the files and those the manifest names; texts are from there or a .txt beside."""
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
    # Sizes alone are timed where Arrow is not installed.
    from corpus_asr.storage.manifest import read_manifest

    for row in read_manifest(str(manifest)):
        yield Path(row.uri), row.text()


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
    # Counted, as headers may claim anything; a broken file is refused before engines are loaded.
    with path.open("rb") as file, open_audio(file, uri=str(path)) as decoder:
        num_samples: int = sum(chunk.shape[1] for chunk in decoder)
    return num_samples / SAMPLE_RATE_HZ
