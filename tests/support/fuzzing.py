"""A folder of mutated media through the whole pipeline in this process, with a scripted engine."""

from collections import Counter
from pathlib import Path

from corpus_asr.runtime.local import run_local
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.resources import resolve_resources, this_machine
from corpus_asr.stages.extract import EXTRACTOR
from corpus_asr.storage.run_state.plan import make_plan, read_packs
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.corpora import job, outcomes_in, tiny_model
from tests.support.engines import scripted_engine
from tests.support.mutations import write_mutated
from tests.support.scripted import committer_of


def fuzz(folder: Path, count: int, *, seed: int, item_timeout_s: float) -> Counter[str]:
    """Extract mutated files, check that each has one outcome, and count the outcomes by kind."""
    corpus, output = folder / "corpus", folder / "output"
    write_mutated(corpus, count, seed=seed)
    config = job(
        corpus,
        tiny_model(folder),
        output,
        extract={"part_s": 30, "item_timeout_s": item_timeout_s, "workers": 1, "pack_mb": 1},
    )
    store = OutputStore(str(output))
    plan = make_plan(config, store)
    assert plan.num_files == count
    run_local(
        config,
        read_packs(store, plan),
        committer_of(config),
        resources=resolve_resources(config, (this_machine(),), num_packs=plan.num_packs),
        progress=Progress(total_files=count, total_bytes=0, stream=None),
        engine_factory=scripted_engine,
        extractor=EXTRACTOR,
    )
    rows = outcomes_in(output)  # no part twice
    last = {name: row for (name, _), row in sorted(rows.items())}
    assert len(last) == count, "a file has no outcome"
    assert all(row["last_part"] for row in last.values())
    for row in last.values():
        if row["status"] == "failed":
            assert "; " in str(row["error_message"]), row  # what was found, and what to do
    return Counter(str(row["error_kind"] or row["status"]) for row in last.values())
