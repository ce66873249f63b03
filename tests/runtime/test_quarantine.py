import threading
from typing import Any

import numpy as np
import pyarrow as pa

from corpus_asr.runtime.coordinator import PartKey, Quarantine
from corpus_asr.schemas import PARTS
from corpus_asr.stages.stage import one_row
from corpus_asr.stages.transcribe import EngineSpec, TranscribeStage
from tests.support.engines import ScriptedEngine, always


class Notebook:
    """A memory that also writes down what was asked of it."""

    def __init__(self, begun: dict[PartKey, int] | None = None) -> None:
        self.begun = dict(begun or {})
        self.said: list[tuple[str, list[PartKey]]] = []

    def unfinished(self, parts: Any) -> list[int]:
        return [self.begun.get(part, 0) for part in parts]

    def begin(self, parts: Any) -> None:
        self.said.append(("begin", list(parts)))
        for part in parts:
            self.begun[part] = self.begun.get(part, 0) + 1

    def end(self, parts: Any) -> None:
        self.said.append(("end", list(parts)))
        for part in parts:
            self.begun.pop(part, None)


def parts_of(*names: str) -> pa.Table:
    rows = [
        one_row(
            PARTS,
            {
                "recording_id": name,
                "uri": f"https://host/{name}?sig=secret",
                "part": 0,
                "last_part": True,
                "part_start_s": 0.0,
                "part_end_s": 1.0,
                "status": "ok",
                "num_samples": 16_000,
                "num_mel_bins": 4,
                "features": np.zeros((102, 4), np.float16),
                "pad_value": -1.5,
            },
        )
        for name in names
    ]
    return pa.concat_tables(rows)


def quarantine(engine: ScriptedEngine, memory: Notebook) -> Quarantine:
    stage = TranscribeStage(EngineSpec(checkpoint="c"), engine_factory=always(engine))
    return Quarantine(stage, memory)


def test_untroubled_parts_go_together_and_leave_no_trace():
    engine, memory = ScriptedEngine(), Notebook()
    results = quarantine(engine, memory)(parts_of("a", "b"))
    assert results.column("attempts").to_pylist() == [1, 1]
    assert [(verb, len(keys)) for verb, keys in memory.said] == [("begin", 2), ("end", 2)]
    assert memory.begun == {}


def test_suspects_are_tried_one_by_one():
    engine, memory = ScriptedEngine(), Notebook({("a", 0): 1, ("b", 0): 1})
    results = quarantine(engine, memory)(parts_of("a", "b", "c"))
    assert results.column("status").to_pylist() == ["ok"] * 3
    assert results.column("attempts").to_pylist() == [2, 2, 1]
    assert [len(keys) for _, keys in memory.said] == [1] * 6


def test_a_part_that_saw_two_deaths_is_poison_and_the_others_are_not():
    engine, memory = ScriptedEngine(), Notebook({("a", 0): 2, ("b", 0): 1})
    rows = quarantine(engine, memory)(parts_of("a", "b")).to_pylist()
    assert [row["status"] for row in rows] == ["failed", "ok"]
    assert rows[0]["error_kind"] == "poison"
    assert rows[0]["attempts"] == 2
    assert "part 0 of https://host/a?[hidden]: the worker died 2 times" in rows[0]["error_message"]
    assert [request.recording_id for request in engine.requests] == ["b"]


def test_a_suspect_runs_with_nothing_else_in_flight():
    engine, memory = ScriptedEngine(held=True), Notebook({("suspect", 0): 1})
    stage = quarantine(engine, memory)
    usual = threading.Thread(target=stage, args=(parts_of("a"),))
    usual.start()
    with engine.submitted:
        assert engine.submitted.wait_for(lambda: len(engine.requests) == 1, timeout=10)
    alone = threading.Thread(target=stage, args=(parts_of("suspect"),))
    alone.start()
    alone.join(timeout=0.2)
    assert [request.recording_id for request in engine.requests] == ["a"]
    engine.release()
    for caller in (usual, alone):
        caller.join(timeout=10)
        assert not caller.is_alive()
    assert [request.recording_id for request in engine.requests] == ["a", "suspect"]
