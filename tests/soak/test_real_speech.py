"""The whole pipeline on real speech, over awkward files."""

import json
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines.driver import run
from tests.support.corpora import outcomes_in
from tests.support.tables import run_config

pytestmark = pytest.mark.slow

GREEDY = {
    "beam_size": 1,
    "temperature": 0.0,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}

# What each kind of awkward file may end as.
SPEECH = ("speech", "speech_partial", "speech_hard", "speech_no_reference", "speech_overlap",
          "speech_repeated")  # fmt: skip
ENDINGS = {kind: {"ok"} for kind in SPEECH} | {
    "speech_or_error": {"ok", "failed"},
    "silence_or_speech": {"ok", "no_speech"},
    "no_speech": {"no_speech"},
    "error": {"failed"},
    "error_or_empty": {"failed", "no_speech"},
}


def real_job(model: Path, *, source: dict[str, Any], output: dict[str, Any]) -> RunConfig:
    return run_config(
        "", "", source=source, output=output, extract={"item_timeout_s": 60}, decoding=GREEDY,
        model={"checkpoint": str(model), "compute_type": "float32"},
    )  # fmt: skip


def test_every_awkward_file_ends_as_it_should(
    speech: Path, float_model: Path, tmp_path: Path
) -> None:
    assert_awkward_files_end_as_expected(speech, float_model, tmp_path, local=True)


@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_a_model_that_works_for_minutes_after_extraction_ends_them_all_on_ray(
    speech: Path, whisper_base: Path, tmp_path: Path
) -> None:
    """Some seven minutes on two busy cores, of which extraction takes the first."""
    assert_awkward_files_end_as_expected(speech, whisper_base, tmp_path, local=False)


def assert_awkward_files_end_as_expected(
    speech: Path, model: Path, tmp_path: Path, *, local: bool
) -> None:
    folder = speech / "awkward"
    source = {"uri": str(folder), "exclude": ["manifest.jsonl", "*.rttm"]}
    output = tmp_path / "output"
    config = real_job(model, source=source, output={"uri": str(output)})
    run(config, local=local, progress=None)
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
