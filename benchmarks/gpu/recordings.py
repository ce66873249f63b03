"""Parts of real recordings as log-mel features, and what the packaged model says of them on a CPU.

`python -m benchmarks.gpu.recordings` makes both files from tests/data/spoken, for which it needs
the whole package; reading them takes the engine's own libraries alone.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.segments import Segment, SpeechSpan
from corpus_asr.storage.model_files import PACKAGED_FOLDER
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.windows import PartRequest

MODEL = PACKAGED_FOLDER / "whisper-tiny.en"
HERE = Path(__file__).resolve().parent
FEATURES = HERE / "features.npz"
EXPECTED = HERE / "expected.json"

# One try per window: no threshold may turn a difference in rounding into another text.
GREEDY = DecodingSettings(temperature=(0.0,), beam_size=1)

# In the public domain. So many parts of each, of one to two windows: 1.5 MB of features at most.
RECORDINGS = {"inaugural.flac": 1, "newgate.mp3": 2}
_PART_S = 45.0


def read_parts() -> list[PartRequest]:
    """Read the committed parts."""
    about = json.loads(EXPECTED.read_text(encoding="utf-8"))
    with np.load(FEATURES) as features:
        return [
            PartRequest(
                recording_id=one["recording"],
                part=one["part"],
                features=features[name],
                num_samples=one["num_samples"],
                pad_value=one["pad_value"],
                start_s=one["start_s"],
                speech=tuple(SpeechSpan(start_s=start, end_s=end) for start, end in one["speech"]),
            )
            for name, one in about.items()
        ]


def read_texts() -> list[str]:
    """Read what a CPU says of each part in float32, with `GREEDY`."""
    return [one["text"] for one in json.loads(EXPECTED.read_text(encoding="utf-8")).values()]


def transcribed(
    engine: Engine, parts: Iterable[PartRequest], decoding: DecodingSettings = GREEDY
) -> list[tuple[Segment, ...]]:
    """Return the segments of each part."""
    futures = [engine.submit(replace(part, decoding=decoding)) for part in parts]
    return [future.result().segments for future in futures]


def text_of(segments: Sequence[Segment]) -> str:
    """Join the text of a part."""
    return "".join(segment.text for segment in segments).strip()


def extract_parts(recordings: Path, names: Iterable[str] = RECORDINGS) -> list[PartRequest]:
    """Extract the parts as a run does."""
    from corpus_asr.config.extraction import ExtractSettings
    from corpus_asr.stages.extraction import PartExtractor
    from corpus_asr.stages.parts import OK, ExtractRequest
    from corpus_asr.stages.transcribe import part_request

    extract = PartExtractor(folder=str(MODEL), settings=ExtractSettings(part_s=_PART_S))
    return [
        part_request(row | {"recording_id": name})
        for name in names
        for row in extract(ExtractRequest(uri=str(recordings / name)))
        if isinstance(row, dict) and row["part"] < RECORDINGS[name] and row["status"] == OK
    ]


def write(parts: Sequence[PartRequest]) -> None:
    """Write features and text."""
    with Engine.from_folder(MODEL, decoding=GREEDY, device="cpu", dtype="float32") as engine:
        texts = [text_of(segments) for segments in transcribed(engine, parts)]
    names = [f"{part.recording_id}:{part.part}" for part in parts]
    features: Any = {name: part.features for name, part in zip(names, parts, strict=True)}
    np.savez_compressed(FEATURES, **features)
    about = {
        name: {
            "recording": part.recording_id,
            "part": part.part,
            "num_samples": part.num_samples,
            "pad_value": part.pad_value,
            "start_s": part.start_s,
            "speech": [(span.start_s, span.end_s) for span in part.speech or ()],
            "text": text,
        }
        for name, part, text in zip(names, parts, texts, strict=True)
    }
    EXPECTED.write_text(f"{json.dumps(about, indent=1, ensure_ascii=False)}\n", encoding="utf-8")


if __name__ == "__main__":
    write(extract_parts(HERE.parents[1] / "tests" / "data" / "spoken"))
