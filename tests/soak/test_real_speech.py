"""The whole pipeline on real speech: beside `transformers`, from S3, and over awkward files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines.driver import run
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.corpora import outcomes_in
from tests.support.references import read_audio
from tests.support.stores import environment, s3_server

pytestmark = pytest.mark.slow

GREEDY = {
    "temperature": 0.0,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}
# Our features are float16, theirs float32: now and then a word tips over.
MAX_WORDS_THAT_DIFFER = 0.005

# What each kind of awkward file may end as.
ENDINGS = {
    "speech": {"ok"},
    "speech_partial": {"ok"},
    "speech_hard": {"ok"},
    "speech_no_reference": {"ok"},
    "speech_overlap": {"ok"},
    "speech_repeated": {"ok"},
    "speech_or_error": {"ok", "failed"},
    "silence_or_speech": {"ok", "no_speech"},
    "no_speech": {"no_speech"},
    "error": {"failed"},
    "error_or_empty": {"failed", "no_speech"},
}


def real_job(model: Path, *, source: dict[str, Any], output: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "source": source,
            "extract": {"item_timeout_s": 60},
            "model": {"checkpoint": str(model), "dtype": "float32"},
            "decoding": GREEDY,
            "output": output,
        }
    )


def texts(output: Path) -> dict[str, str]:
    said: dict[str, str] = {}
    rows = [row for batch in OutputStore(str(output)).segments() for row in batch.to_pylist()]
    for row in sorted(rows, key=lambda row: (row["uri"], row["part"], row["segment"])):
        name = row["uri"].rpartition("/")[2]
        said[name] = said.get(name, "") + row["text"]
    return said


@pytest.fixture(scope="module")
def english(speech: Path, float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of the short English clips, read from a folder."""
    output = tmp_path_factory.mktemp("english") / "output"
    source = {"uri": str(speech / "english_short"), "exclude": ["manifest.jsonl"]}
    run(
        real_job(float_model, source=source, output={"uri": str(output)}), local=True, progress=None
    )
    return output


def test_short_clips_say_what_transformers_says(
    speech: Path, float_model: Path, english: Path
) -> None:
    processor = transformers.WhisperProcessor.from_pretrained(float_model)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        float_model, dtype=torch.float32
    ).eval()
    # The bound that OpenAI's own checkpoints carry in their generation settings.
    model.generation_config.max_initial_timestamp_index = 50
    ours = texts(english)
    differ = total = 0
    for path in sorted((speech / "english_short").iterdir()):
        if path.suffix == ".jsonl":
            continue
        inputs = processor(
            read_audio(path), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt"
        ).input_features
        ids = model.generate(inputs, return_timestamps=True, do_sample=False)
        theirs = processor.batch_decode(ids, skip_special_tokens=True)[0].split()
        differ += distance(ours.get(path.name, "").split(), theirs)
        total += len(theirs)
    assert total > 100
    assert differ / total <= MAX_WORDS_THAT_DIFFER


def distance(left: list[str], right: list[str]) -> int:
    """Words to insert, delete or replace (Levenshtein)."""
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, start=1):
        row, above = [i], row
        for j, other in enumerate(right, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
    return row[-1]


@pytest.mark.ray
def test_a_bucket_gives_the_rows_that_a_folder_gives(
    speech: Path, float_model: Path, english: Path
) -> None:
    with s3_server() as server, environment(server.environment):
        server.make_bucket("clips")
        server.make_bucket("tables")
        for path in (speech / "english_short").iterdir():
            server.put("clips", path.name, path.read_bytes())
        there: dict[str, Any] = {"endpoint_url": server.endpoint_url}
        config = real_job(
            float_model,
            source={"uri": "s3://clips", "exclude": ["manifest.jsonl"], **there},
            output={"uri": "s3://tables/run", **there},
        )
        run(config, local=False, progress=None)
        store = OutputStore("s3://tables/run", **there)
        assert rows_of(store) == rows_of(OutputStore(str(english)))


def rows_of(store: OutputStore) -> list[tuple[Any, ...]]:
    """Return everything said, in order, without what names the run or the place."""
    rows = [row for batch in store.segments() for row in batch.to_pylist()]
    return sorted(
        (row["uri"].rpartition("/")[2], row["part"], row["segment"], row["start_s"], row["end_s"],
         row["text"], tuple(row["tokens"]), row["language"], round(row["confidence"], 3))
        for row in rows
    )  # fmt: skip


def test_every_awkward_file_ends_as_it_should(
    speech: Path, float_model: Path, tmp_path: Path
) -> None:
    folder = speech / "awkward"
    source = {"uri": str(folder), "exclude": ["manifest.jsonl", "*.rttm"]}
    output = tmp_path / "output"
    config = real_job(float_model, source=source, output={"uri": str(output)})
    run(config, local=True, progress=None)
    found = outcomes_in(output)
    rows = {row["uri"].partition("/awkward/")[2]: row for row in found.values()}
    wrong = []
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        item = json.loads(line)
        row = rows.get(item["path"])
        if row is None:
            continue  # a folder, which no listing has
        if row["status"] not in ENDINGS.get(item["expect"], {"ok", "no_speech", "failed"}):
            wrong.append((item["path"], item["expect"], row["status"], row["error_kind"]))
        if row["status"] == "failed":
            assert row["error_kind"]
            assert len(row["error_message"]) > 20
    # The first packet of one is damaged, and ffmpeg gives up on it too; the music of the other
    # sounds like speech to Silero.
    assert {name for name, *_ in wrong} <= {"bad_bitflips.opus", "repo_video_music.mp4"}
