"""What is measured: rows (an engine with its options) and sets (rows, recordings, threads)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

_OURS, _PEERS = "benchmarks.worker", "benchmarks.engines"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One engine with one set of options."""

    name: str
    engine: str
    layout: str
    """Of the model; the folder of models has `LAYOUT-CHECKPOINT`."""
    speed: float
    """Seconds of audio per CPU second with whisper-base, as far as known: plans the time alone."""
    options: Mapping[str, Any] = field(default_factory=dict)
    multilingual: tuple[str, ...] = ()
    """Options that published checkpoints of one language do not take."""
    split: bool = False
    """Whether each thread is a worker of its own, which takes whole recordings."""
    peer: bool = True
    """Whether it runs in the environment of the peers."""

    def options_for(self, model: str, threads: int, models: Path) -> dict[str, Any]:
        """Return all that the engine is loaded with; `models` is the folder of models."""
        options = {
            "model": str(models / f"{self.layout}-{model}"),
            "threads": 1 if self.split else threads,
            **self.options,
        }
        if model.endswith(".en"):  # which takes none
            options = {key: options[key] for key in options if key not in self.multilingual}
        return options | ({"workers": threads} if self.split else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """Rows that are measured in turns on the same recordings: a table."""

    name: str
    rows: tuple[str, ...]
    threads: int
    model: str = "whisper-base"
    folder: str = "long"
    minutes: float | None = 30.0
    """At least so much audio of the folder; None for all of it."""
    rounds: int = 2
    faster: float = 1.0
    """How many times as fast as whisper-base the model is; plans the time alone."""

    def smaller(self, *, minutes: float | None, rounds: int | None) -> Self:
        """Return the set with less of the audio or fewer rounds, to try the rows."""
        return replace(self, minutes=minutes or self.minutes, rounds=rounds or self.rounds)


def _row(
    name: str, speed: float, *, of: str, engine: str, layout: str, given: Mapping[str, Any],
    multilingual: tuple[str, ...] = (), split: bool = False, peer: bool = False, **options: Any,
) -> Row:  # fmt: skip
    return Row(
        name=f"{of} {name}", engine=engine, layout=layout, speed=speed,
        options={**given, **options}, multilingual=multilingual, split=split, peer=peer,
    )  # fmt: skip


_HOST = {"device": "cpu", "language": "en"}
_ours = partial(
    _row, of="corpus-asr", engine=f"{_OURS}:corpus_asr", layout="hf",
    given={"dtype": "auto", **_HOST}, multilingual=("language",),
)  # fmt: skip
_faster_whisper = partial(
    _row, of="faster-whisper int8", engine=f"{_OURS}:faster_whisper", layout="ct2-int8",
    given={"dtype": "int8", **_HOST},
)  # fmt: skip
_openvino = partial(
    _row, of="OpenVINO GenAI int8", engine=f"{_PEERS}:openvino", layout="openvino-int8", peer=True,
    given={"language": "<|en|>", "task": "transcribe"}, multilingual=("language", "task"),
)  # fmt: skip
_whisper_cpp = partial(
    _row, of="whisper.cpp q8_0", engine=f"{_PEERS}:whisper_cpp", layout="ggml-q8_0", peer=True,
    given={"language": "en"},
)  # fmt: skip
_openai_whisper = partial(
    _row, of="openai-whisper float32", engine=f"{_PEERS}:openai_whisper", layout="openai",
    given={"language": "en"},
)  # fmt: skip


def _transformers(name: str, speed: float, dtype: str, beams: int = 1, **options: Any) -> Row:
    generate = {"language": "en", "task": "transcribe", "num_beams": beams}
    return _row(
        name, speed, of=f"transformers {dtype}", engine=f"{_OURS}:transformers", layout="hf",
        given={"dtype": dtype, "device": "cpu", "generate": generate}, **options,
    )  # fmt: skip


# Greedy, one temperature, speech detection, no prompt of previous text.
_FASTER_BEST: Mapping[str, Any] = {
    "beam_size": 1,
    "temperature": 0.0,
    "condition_on_previous_text": False,
    "vad_filter": True,
}

ROWS: Mapping[str, Row] = {
    "ours": _ours("(defaults: chunked)", 6.0),
    "ours-greedy": _ours("greedy, sequential", 6.5, strategy="sequential", beam_size=1),
    "ours-chunked": _ours("best: greedy, chunked", 7.0, strategy="chunked", beam_size=1),
    "ours-fast": _ours("quality fast", 7.0, quality="fast"),
    "ours-accurate": _ours("quality accurate", 4.0, quality="accurate"),
    "ours-int8": _ours("int8, greedy, chunked", 8.0, strategy="chunked", beam_size=1, dtype="int8"),
    "ours-chunked-beams": _ours("beam 5, chunked", 4.0, strategy="chunked", beam_size=5),
    "faster-batched": _faster_whisper("batched (defaults: beam 5, batch 8)", 7.0, batched=True),
    "faster-batched-best": _faster_whisper(
        "batched, best: beam 1, batch 8",
        9.0,
        batched=True,
        split=True,
        batch_size=8,
        **_FASTER_BEST,
    ),
    "faster-batched-one": _faster_whisper(
        "batched, beam 1, batch 8", 9.0, batched=True, batch_size=8, **_FASTER_BEST
    ),
    "faster": _faster_whisper("sequential (defaults: beam 5)", 4.0),
    "faster-best": _faster_whisper(
        "sequential, best: beam 1, VAD", 6.0, split=True, **_FASTER_BEST
    ),
    "openvino": _openvino("(defaults)", 9.0),
    "openvino-best": _openvino("best: timestamps", 9.0, split=True, return_timestamps=True),
    "openvino-one": _openvino("timestamps", 9.0, return_timestamps=True),
    "whisper.cpp": _whisper_cpp("(defaults of its program: beam 5)", 3.0, beams=True),
    "whisper.cpp-best": _whisper_cpp(
        "best: greedy, no fallback",
        5.5,
        split=True,
        greedy={"best_of": 1},
        temperature_inc=0.0,
        n_max_text_ctx=0,
    ),
    "openai-whisper": _openai_whisper("(defaults of its function: greedy)", 2.0),
    "transformers-beams": _transformers(
        "sequential (defaults of its pipeline: beam 5)",
        1.5,
        "float32",
        beams=5,
        return_timestamps=True,
    ),
    "transformers": _transformers("sequential, greedy", 2.7, "float32", return_timestamps=True),
    "transformers-chunked": _transformers(
        "best: chunks of 30 s, batch 8, greedy", 4.4, "float32", chunk_length_s=30, batch_size=8
    ),
    "transformers-bfloat16": _transformers(
        "chunks of 30 s, batch 8", 5.0, "bfloat16", chunk_length_s=30, batch_size=8
    ),
}

_CORE = (
    "ours", "ours-greedy", "ours-chunked", "ours-int8", "ours-accurate", "faster",
    "faster-batched", "faster-batched-best", "openvino", "openvino-best",
)  # fmt: skip
_BEST = ("ours", "ours-chunked", "faster-batched-best", "openvino-best")
_OTHERS = (
    "ours", "ours-chunked", "ours-int8", "faster", "faster-best", "faster-batched-one",
    "openvino-one", "whisper.cpp", "whisper.cpp-best", "transformers-beams", "transformers",
    "transformers-chunked", "openai-whisper",
)  # fmt: skip
_CLIPS = (
    "ours", "ours-fast", "ours-accurate", "faster", "faster-batched-best", "faster-best",
    "openvino-best",
)  # fmt: skip
_BEAMS = ("ours", "ours-greedy", "ours-accurate", "ours-chunked", "ours-chunked-beams")

# The most important first: what does not fit into the time limit is skipped.
SETS: tuple[Set, ...] = (
    Set(name="base, 2 threads", threads=2, rows=_CORE),
    Set(name="base, 1 thread", threads=1, rows=_BEST, rounds=1),
    Set(name="base, 2 threads, others", threads=2, rows=_OTHERS, minutes=6.0, rounds=1),
    Set(name="base, 2 threads, beams", threads=2, rows=_BEAMS, minutes=6.0, rounds=1),
    Set(
        name="tiny.en, 2 threads",
        threads=2,
        rows=_CORE,
        model="whisper-tiny.en",
        minutes=9.0,
        rounds=1,
        faster=1.8,
    ),
    # A clip of 5 s costs a window of 30 s.
    Set(
        name="base, 2 threads, clips",
        threads=2,
        rows=_CLIPS,
        folder="short",
        minutes=None,
        faster=0.2,
    ),
)
