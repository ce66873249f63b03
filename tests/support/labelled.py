"""A run's output folder over recordings in which every second has a tone of its own."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.config.run import PseudoLabelConfig, RunConfig
from corpus_asr.storage.run_state.start import begin_run
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import describe
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import share_of_tone, tone, wav_bytes
from tests.support.commits import commit, results

_USUAL = {
    "language": "en", "task": "transcribe", "confidence": 0.9, "avg_logprob": -0.25,
    "no_speech_prob": 0.0, "compression_ratio": 1.2, "temperature": 0.0, "tokens": [1],
}  # fmt: skip

Said = tuple[float, float, str] | tuple[float, float, str, Mapping[str, Any]]


def tone_hz(second: int) -> float:
    """Return the tone of a second."""
    return 300.0 + 100.0 * second


def write_tones(path: Path, *, seconds: int, num_channels: int = 1) -> None:
    """Write a recording; the second channel is 50 Hz above the first."""
    rows = [
        np.concatenate([tone(1.0, hz=tone_hz(at) + 50 * row) for at in range(seconds)], axis=1)
        for row in range(num_channels)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav_bytes(np.concatenate(rows), rate_hz=SAMPLE_RATE_HZ))


def seconds_heard(samples: np.ndarray) -> list[int]:
    """Return which seconds of a recording whole seconds of samples are."""
    found = []
    for start in range(0, len(samples) - SAMPLE_RATE_HZ + 1, SAMPLE_RATE_HZ):
        second = samples[start : start + SAMPLE_RATE_HZ]
        shares = [share_of_tone(second, tone_hz(at)) for at in range(60)]
        found.append(int(np.argmax(shares)))
    return found


@dataclass(frozen=True)
class Transcribed:
    """Recordings and what a run made of them."""

    folder: Path

    @property
    def audio(self) -> Path:
        return self.folder / "audio"

    def config(
        self, *, output: str = "output", to: str = "set", **sections: Any
    ) -> PseudoLabelConfig:
        values: dict[str, Any] = {
            "pipeline": "pseudo_label",
            "source": {"uri": str(self.audio)},
            "model": {"checkpoint": "some/model"},
            "output": {"uri": str(self.folder / output)},
            **sections,
        }
        dataset = {"uri": str(self.folder / to), "workers": 1, "validation_fraction": 0.0}
        return PseudoLabelConfig.model_validate(
            values | {"dataset": dataset | sections.get("dataset", {})}
        )

    def uri(self, name: str) -> str:
        return str(self.audio / name)

    def run(
        self,
        said: Mapping[str, Sequence[Said]],
        *,
        output: str = "output",
        extract: Mapping[str, Any] | None = None,
    ) -> OutputStore:
        """Write tables as if a run had heard this in the recordings, which have to be there."""
        store = OutputStore(str(self.folder / output))
        config = RunConfig.model_validate(
            {
                "source": {"uri": str(self.audio)},
                "extract": dict(extract or {}),
                "model": {"checkpoint": "some/model"},
                "output": {"uri": store.uri},
            }
        )
        begin_run(store, config, f"settings-{output}")
        rows = [row for name, segments in said.items() for row in self._rows(name, segments)]
        commit(store, results(*rows))
        return store

    def _rows(self, name: str, said: Sequence[Said]) -> list[dict[str, Any]]:
        uri = self.uri(name)
        version = describe(uri)
        apart: dict[int | None, list[dict[str, Any]]] = {}
        for start_s, end_s, text, *more in said:
            values = dict(more[0]) if more else {}
            segments = apart.setdefault(values.pop("channel", None), [])
            row = {"segment": len(segments), "start_s": start_s, "end_s": end_s, "text": f" {text}"}
            segments.append(_USUAL | row | values)
        lasts_s = (Path(uri).stat().st_size - 44) / 2 / SAMPLE_RATE_HZ / max(1, len(apart))
        parts = list(apart.items()) or [(None, [])]
        return [
            {
                "recording_id": recording_id(uri), "uri": uri,
                "size_bytes": version.size_bytes, "etag": version.etag,
                "part": part, "last_part": part == len(parts) - 1, "channel": channel,
                "part_start_s": 0.0, "part_end_s": lasts_s, "duration_s": lasts_s,
                "status": "ok" if segments else "no_speech", "attempts": 1,
                "language": "en", "segments": segments or None,
            }
            for part, (channel, segments) in enumerate(parts)
        ]  # fmt: skip


class InThisProcess:
    """Stands for `IsolatedGenerator` where no crash is expected: without its second of start."""

    def __init__(self, target: str, *, init_kwargs: dict[str, Any], timeout_s: float) -> None:
        module, _, name = target.partition(":")
        assert timeout_s > 0
        self._cut = getattr(importlib.import_module(module), name)(**init_kwargs)

    def run(self, item: Any) -> Iterator[Any]:
        yield from self._cut(item)

    def close(self) -> None:
        """Nothing to end."""
