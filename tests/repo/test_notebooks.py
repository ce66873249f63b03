"""The notebooks: valid as committed, and executed whole over runs of this machine."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pyarrow as pa
import pytest
from nbclient import NotebookClient

from corpus_asr.pipelines.evaluate import evaluate
from corpus_asr.schemas import FILES
from corpus_asr.storage.run_state.finish import finish
from corpus_asr.storage.run_state.run_files import RunRecord
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.corpora import demo_corpus, job
from tests.support.tables import commit, part, results

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
REFERENCES = REPOSITORY / "tests" / "data" / "clips-references.jsonl"
MAX_BYTES = 300_000
NUM_PLOTS = {"01": 2, "02": 4, "03": 4, "04": 5}
CELL_LIMIT_S = 240


def notebook(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(found: Any) -> list[Any]:
    return [cell for cell in found.cells if cell.cell_type == "code"]


def outputs_of(found: Any, kind: str) -> list[str]:
    """Return everything that was shown as `kind`, such as text/html; printed text is text/plain."""
    shown = []
    for output in itertools.chain.from_iterable(cell.outputs for cell in code_cells(found)):
        if output.output_type == "stream" and kind == "text/plain":
            shown.append(output.text)
        elif "data" in output and kind in output.data:
            shown.append(output.data[kind])
    return shown


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_committed_notebook_is_valid_small_and_executed_from_top_to_bottom(name):
    found = notebook(name)
    nbformat.validate(found)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < MAX_BYTES
    counts = [cell.execution_count for cell in code_cells(found)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output.output_type for cell in code_cells(found) for output in cell.outputs}
    assert "error" not in kinds
    first = code_cells(found)[0].source
    assert 'os.environ.get("CORPUS_ASR_OUTPUT", "../output/demo")' in first
    assert len(outputs_of(found, "image/png")) == NUM_PLOTS[name[:2]]
    # An output may be in a bucket: neither a local path nor DuckDB's own access reads that here.
    assert not re.search(r"Path\(OUTPUT|read_parquet\(\$", "".join(c.source for c in found.cells))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two finished runs over the demo's clips and a broken file, which mishear in their ways."""
    folder = tmp_path_factory.mktemp("notebooks")
    corpus = demo_corpus(folder / "audio")
    references = moved_references(folder / "references.jsonl", corpus)
    listened(folder / "output", corpus, references, mishears=4)
    listened(folder / "other", corpus, references, mishears=6)
    return {
        "output": folder / "output",
        "other": folder / "other",
        "references": folder / "references.jsonl",
    }


def moved_references(path: Path, corpus: Path) -> list[dict[str, Any]]:
    """Write the demo's references for a copy of its clips, and return them."""
    rows = [json.loads(line) for line in REFERENCES.read_text().splitlines()]
    moved = [row | {"path": str(corpus / Path(row["path"]).name)} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in moved))
    return moved


def listened(
    folder: Path, corpus: Path, references: list[dict[str, Any]], *, mishears: int
) -> None:
    """Leave what a run does that mishears one word in so many, and deletes another."""
    store = OutputStore(str(folder))
    committed = [part_of(row["path"], mistaken(row["words"], mishears)) for row in references]
    silent = part("", 0, uri=str(corpus / "silence.flac"), texts=None, status="no_speech")
    broken = part(
        "", 0, uri=str(corpus / "broken.mp3"), texts=None, status="failed", duration_s=0.0,
        error_stage="extract", error_kind="not_audio", error_message="no audio", retryable=False,
    )  # fmt: skip
    commit(store, results(*committed, silent, broken))
    listing = pa.RecordBatch.from_pylist(
        [{name: row[name] for name in ("recording_id", "uri", "size_bytes", "etag")}
         for row in (*committed, silent, broken)],
        schema=FILES,
    )  # fmt: skip
    config = job(corpus, folder, folder, decoding={"beam_size": mishears})
    begun = "2026-01-01T00:00:00+00:00"
    beginning = RunRecord(run_id="run", fingerprint="f-r", started_at=begun, continues=False)
    spent = {"extract_s": 1.0, "encode_s": 4.0, "prefill_s": 1.0, "step_s": float(mishears)}
    finish(
        store, beginning, config, model_revision="r", listing=[listing], num_listed=5,
        extra={"committed": {"audio_s": 64.0}, "activity": spent},
    )  # fmt: skip


def mistaken(words: list[dict[str, Any]], every: int) -> list[dict[str, Any]]:
    """Return words recognized 30 ms late: one in so many wrong, the one before that deleted."""
    return [
        {
            "word": " wrong" if at % every == 0 else f" {word['word']}",
            "start_s": word["start_s"] + 0.03,
            "end_s": word["end_s"],
            "probability": 0.3 if at % every == 0 else 0.9,
        }
        for at, word in enumerate(words)
        if at % every != every - 1
    ]


def part_of(uri: str, words: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a part's row with ten words to a segment."""
    segments = [
        {
            "segment": at // 10, "start_s": words[at]["start_s"], "end_s": some[-1]["end_s"],
            "text": "".join(word["word"] for word in some), "tokens": [1, 2], "language": "en",
            "task": "transcribe", "confidence": 0.5 + 0.004 * at, "no_speech_prob": 0.001 * at,
            "words": some,
        }
        for at, some in ((at, words[at : at + 10]) for at in range(0, len(words), 10))
    ]  # fmt: skip
    return part(
        "", 0, uri=uri, texts=None, segments=segments, language="en",
        duration_s=words[-1]["end_s"], decode_s=0.1, transcribe_s=1.0,
    )  # fmt: skip


# What reads as a number of the run, by the notebook that prints it.
PRINTED = {
    "01": ("5 recordings", "not_audio", "<audio", "estimated fraction of correct words"),
    "02": ("word error rate", "<del"),
    "03": ("words with reference times",),
    "04": ("B - A", "decoding.beam_size"),
}


@pytest.fixture(scope="module")
def executed(runs: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """Execute all notebooks in one kernel, whose start takes longest; each begins anew."""
    notebooks = {name: notebook(name) for name in NOTEBOOKS}
    where = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=CELL_LIMIT_S, resources=where)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (*runs.items(), ("word", "e")):
            patch.setenv(f"CORPUS_ASR_{key.upper()}", str(value))
        for client.nb in notebooks.values():
            for cell in code_cells(client.nb):
                cell.outputs = []
            client.nb.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
            client.execute(cleanup_kc=False)
        yield notebooks
    client._cleanup_kernel()


@pytest.mark.notebook
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_over_another_output(
    name: str, runs: dict[str, Path], executed: dict[str, Any]
) -> None:
    found = executed[name]
    shown = "\n".join((*outputs_of(found, "text/plain"), *outputs_of(found, "text/html")))
    assert [text for text in PRINTED[name[:2]] if text not in shown] == []
    assert len(outputs_of(found, "image/png")) == NUM_PLOTS[name[:2]]
    if name.startswith("02"):
        expected = evaluate(str(runs["output"]), str(runs["references"])).wer
        assert expected is not None
        (rate,) = re.findall(
            r"word error rate ([\d.]+)%", "\n".join(outputs_of(found, "text/plain"))
        )
        assert float(rate) == pytest.approx(100 * expected, abs=0.06)
