"""What is measured: the engines there are, which were asked for, and the order a worker gets.

In: names from the command line. Out: `Case`s, and `Order`s that travel to worker processes as
JSON. Imports no engine: what is installed is found out without loading it.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Literal

from corpus_asr.errors import ConfigError

OURS = "corpus-asr"
INSTALL = "pip install 'corpus-asr[bench]'"

Mode = Literal["sequential", "chunked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
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


_HERE = "corpus_asr.benchmark.engines"

ENGINES: Mapping[str, EngineEntry] = MappingProxyType(
    {
        OURS: EngineEntry(
            transcribing=f"{_HERE}.ours_transcribing:Transcribing",
            decoding=f"{_HERE}.ours_decoding:Decoding",
            cpu_dtypes=("auto",),
            cuda_dtypes=("auto",),
        ),
        "faster-whisper-batched": EngineEntry(
            transcribing=f"{_HERE}.ctranslate:BatchedTranscribing",
            decoding=None,
            modules=("faster_whisper", "ctranslate2", "transformers"),
            cpu_dtypes=("int8",),
        ),
        "faster-whisper": EngineEntry(
            transcribing=f"{_HERE}.ctranslate:Transcribing",
            decoding=f"{_HERE}.ctranslate:Decoding",
            modules=("faster_whisper", "ctranslate2", "transformers"),
            cpu_dtypes=("int8",),
        ),
        "transformers": EngineEntry(
            transcribing=f"{_HERE}.huggingface:Transcribing",
            decoding=f"{_HERE}.huggingface:Decoding",
            modules=("transformers",),
            cpu_dtypes=("float32", "bfloat16"),
            cuda_dtypes=("float16", "bfloat16"),
        ),
        "openai-whisper": EngineEntry(
            transcribing=f"{_HERE}.openai:Transcribing",
            decoding=f"{_HERE}.openai:Decoding",
            modules=("whisper",),
        ),
    }
)
PEERS = tuple(name for name in ENGINES if name != OURS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One engine in one type: a row of the table."""

    engine: str
    dtype: str

    @property
    def label(self) -> str:
        """How the row is called."""
        return f"{self.engine} {self.dtype}"

    @property
    def is_ours(self) -> bool:
        """Whether this is the engine the others are compared with."""
        return self.engine == OURS


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Everything a worker needs to know; the same for all engines but for the case."""

    engine: str
    dtype: str
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
    audio: tuple[str, ...] = ()
    language: str = "en"
    mode: Mode = "sequential"
    tokens_per_window: int = 0

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
    entry = ENGINES[OURS]
    return [
        Case(engine=OURS, dtype=dtype)
        for dtype in dict.fromkeys(dtypes or (entry.cuda_dtypes if cuda else entry.cpu_dtypes))
    ]


def peer_cases(wanted: Sequence[str] | None, *, cuda: bool, shapes: bool) -> list[Case]:
    """Return the cases of the peers asked for.

    Args:
        wanted: `NAME` or `NAME:DTYPE`; None means every peer in its usual types.
        cuda: whether a GPU is measured, whose usual types are others.
        shapes: whether encoder and decoder are measured alone.

    Raises:
        ConfigError: a name is not known, or does not apply.
    """
    offered = [name for name in PEERS if not shapes or ENGINES[name].decoding is not None]
    cases: list[Case] = []
    for text in offered if wanted is None else wanted:
        name, _, dtype = text.partition(":")
        if name not in PEERS:
            near = difflib.get_close_matches(name, PEERS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"choosing peers: found {name!r}, expected some of {', '.join(PEERS)}, each with "
                f":DTYPE if need be, or none{hint}"
            )
        if name not in offered:
            raise ConfigError(
                f"choosing peers: {name} differs from faster-whisper in how it cuts audio alone, "
                "and with --shape there is no audio; leave it out"
            )
        entry = ENGINES[name]
        dtypes = (dtype,) if dtype else entry.cuda_dtypes if cuda else entry.cpu_dtypes
        cases += [Case(engine=name, dtype=one) for one in dtypes]
    return list(dict.fromkeys(cases))


def missing_modules(case: Case) -> list[str]:
    """Return what would have to be installed to measure this case."""
    return [name for name in ENGINES[case.engine].modules if find_spec(name) is None]
