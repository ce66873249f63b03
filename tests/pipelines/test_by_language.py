"""Recordings are transcribed by the model for their language, as that model alone would."""

from pathlib import Path
from typing import Any

import pytest

from corpus_asr.confidence import ConfidenceModel
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.families.qwen3_asr.tokenizer import Qwen3ASRPrompts
from corpus_asr.pipelines.driver import run
from corpus_asr.stages.transcribe import EngineSpec, load_engine
from corpus_asr.storage.model_files import model_revision
from corpus_asr.storage.run_state.run_files import write_calibration
from corpus_asr.storage.run_state.table_names import LABEL_ROWS
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.checkpoints import tiny_whisper
from tests.support.corpora import CLIPS, job, redo
from tests.support.parakeet import parakeet_checkpoint
from tests.support.qwen3_asr import qwen3_asr_pair
from tests.support.tables import rows_of, stored_segments, with_section
from tests.support.tokenizers import tiny_tokenizer

pytestmark = pytest.mark.long

ENGLISH, GERMAN = "english.wav", "german.opus"
SHORT: dict[str, Any] = {"max_target_positions": 24}
Said = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    tiny_tokenizer(folder / "tokenizer")
    return [
        tiny_whisper(folder / name, seed=seed, tokenizer=folder / "tokenizer", **SHORT)
        for seed, name in ((0, "main"), (2, "other"))
    ]


def one_job(models: list[Path], output: Path, **decoding: Any) -> RunConfig:
    config = job(
        CLIPS, models[0], output,
        extract={"vad_filter": False},
        source={"uri": [str(CLIPS / ENGLISH), str(CLIPS / GERMAN)]},
        decoding={"temperature": 0.0, "logprob_threshold": None, "no_speech_threshold": None,
                  "compression_ratio_threshold": None, **decoding},
    )  # fmt: skip
    return with_section(config, "model", compute_type="float32")


@pytest.fixture(scope="module")
def codes(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two languages of which the main model finds the first likelier in one clip each."""
    config = one_job(models, tmp_path_factory.mktemp("labels") / "out").model_copy(
        update={"pipeline": "classify_audio"}
    )
    config = with_section(config, "classification", windows="first_speech", top_k=1000)
    run(config, local=True, progress=None)
    found: dict[str, dict[str, float]] = {ENGLISH: {}, GERMAN: {}}
    for row in rows_of(stored_segments(OutputStore(config.output.uri), rows=LABEL_ROWS)):
        found[Path(row["uri"]).name][row["label"]] = row["probability"]
    lead = {code: found[ENGLISH][code] / found[GERMAN][code] for code in found[ENGLISH]}
    pairs = [
        (a, b)
        for a in lead for b in Qwen3ASRPrompts.languages.keys() & lead
        if found[ENGLISH][a] > found[ENGLISH][b] and found[GERMAN][b] > found[GERMAN][a]
    ]  # fmt: skip
    return max(pairs, key=lambda pair: lead[pair[0]] / lead[pair[1]])


def said_in(config: RunConfig, *columns: str) -> Said:
    found: Said = {}
    for row in rows_of(stored_segments(OutputStore(config.output.uri))):
        key = Path(row["uri"]).name
        found.setdefault(key, []).append(tuple(row[name] for name in ("start_s", "text", *columns)))
    return {name: sorted(rows) for name, rows in found.items()}


@pytest.fixture(scope="module", params=["parakeet_tdt", "qwen3_asr"])
def across(
    request: pytest.FixtureRequest,
    models: list[Path],
    codes: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunConfig:
    """A finished job that sends the second language to a model of another family."""
    folder = tmp_path_factory.mktemp("across")
    timed = request.param == "parakeet_tdt"
    config = one_job(models, folder / "out", language=codes, word_timestamps=timed)
    if timed:
        parakeet_checkpoint("TDT", folder / request.param)
    else:
        qwen3_asr_pair(folder / request.param, seed=4, ends=1.0)
    config = with_section(config, "model", by_language={codes[1]: str(folder / request.param)})
    run(config, local=True, progress=None)
    return config


EVERYTHING = ("end_s", "words", "confidence", "avg_logprob", "language")


def test_a_model_of_another_family_says_what_it_says_alone(
    across: RunConfig, codes: tuple[str, str], tmp_path: Path
) -> None:
    other = across.model.by_language[codes[1]]
    alone = with_section(across, "model", by_language={}, checkpoint=other)
    alone = with_section(alone, "decoding", language=codes[1])
    alone = with_section(alone, "source", uri=(str(CLIPS / GERMAN),))
    alone = with_section(alone, "output", uri=str(tmp_path / "alone"))
    run(alone, local=True, progress=None)
    found = said_in(across, *EVERYTHING)
    assert found[GERMAN] == said_in(alone, *EVERYTHING)[GERMAN]
    assert bool(found[GERMAN][0][3]) == across.decoding.word_timestamps
    named = said_in(across, "model", "model_revision", "calibration")
    expected = (other, model_revision(Path(other)), "default")
    assert {row[-3:] for row in named[GERMAN]} == {expected}
    assert {row[-3] for row in named[ENGLISH]} == {across.model.checkpoint}


def test_a_calibration_of_one_family_is_not_used_for_another(
    across: RunConfig, codes: tuple[str, str]
) -> None:
    before = said_in(across, "confidence")
    fitted = ConfidenceModel(name="fitted", offset=3.0, weights=(0.5, 0.0, 0.0, 0.0))
    write_calibration(OutputStore(across.output.uri), fitted, fitted={})
    for name in (ENGLISH, GERMAN):
        redo(across, name)
    assert run(across, local=True, progress=None).processed == 2
    after = said_in(across, "confidence", "calibration")
    assert {row[-1] for row in after[ENGLISH]} == {"fitted"}
    assert [row[:-1] for row in after[GERMAN]] == before[GERMAN]
    assert {row[-1] for row in after[GERMAN]} == {"default"}


def test_settings_that_one_of_the_families_cannot_honour_are_refused_by_name(
    across: RunConfig, codes: tuple[str, str]
) -> None:
    reads_once = across.decoding.word_timestamps
    for settings, message in (
        ({"condition_on_prev_tokens": True}, r"decoding\.condition_on_prev_tokens: .*(_tdt|_asr)"),
        ({"beam_size": 5}, r"decoding\.beam_size: found 5, but parakeet_tdt")
        if reads_once
        else ({"word_timestamps": True}, r"decoding\.word_timestamps: .* qwen3_asr"),
        ({"window_s": 60.0}, r"decoding\.window_s: found 60"),
    ):
        config = with_section(across, "decoding", **settings)
        with pytest.raises(ConfigError, match=message) as refused:
            load_engine(EngineSpec(config=config, device="cpu"))
        if "window_s" not in settings:  # Whisper's own windows are shorter
            assert f"model.by_language.{codes[1]}" in str(refused.value)
