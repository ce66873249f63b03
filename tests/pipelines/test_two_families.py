"""Runs of models of different families are compared, and their texts chosen, for pseudo-labels."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from corpus_asr.config.run import PseudoLabelConfig, Select
from corpus_asr.errors import ConfigError
from corpus_asr.labelling import dataset
from corpus_asr.pipelines.driver import run
from corpus_asr.pipelines.pseudo_label import label
from tests.support.checkpoints import tiny_whisper
from tests.support.corpora import CLIPS
from tests.support.parakeet import parakeet_checkpoint
from tests.support.recognizers import WORDS
from tests.support.runs import InThisProcess
from tests.support.tables import run_config
from tests.support.tokenizers import tiny_tokenizer

pytestmark = pytest.mark.long

CLIP = str(CLIPS / "english.wav")
PLANTED = "tests.support.recognizers:Counting"
NO_RULES: dict[str, Any] = {
    "max_disagreement": None, "min_avg_logprob": None, "max_compression_ratio": None,
    "max_chars_per_s": None, "max_words_per_s": None, "max_word_chars": None,
    "min_unique_words": None, "max_repeats": None, "max_no_speech_prob": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Output folders of one clip's runs: by a Whisper, a Parakeet, and planted texts."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_tokenizer(folder / "tokenizer")
    whisper = tiny_whisper(
        folder / "whisper", tokenizer=folder / "tokenizer", max_target_positions=24
    )
    models: dict[str, dict[str, Any]] = {
        "whisper": {"checkpoint": str(whisper)},
        "parakeet": {"checkpoint": str(parakeet_checkpoint("CTC", folder / "ctc").folder)},
        "planted": {"recognizer": PLANTED, "checkpoint": "planted"},
        "untimed": {"recognizer": PLANTED.replace("Counting", "Untimed"), "checkpoint": "untimed"},
    }
    for name, model in models.items():
        config = run_config(
            CLIP, folder / "out" / name, model=model | {"compute_type": "float32"},
            extract={"vad_filter": False}, transcribe={"slots": 1},
            decoding={"word_timestamps": True, "temperature": 0.0, "logprob_threshold": None,
                      "no_speech_threshold": None, "compression_ratio_threshold": None,
                      "language": "en" if name == "whisper" else "auto"},
        )  # fmt: skip
        run(config, local=True, progress=None)
    return {name: str(folder / "out" / name) for name in models}


def selected(
    runs: dict[str, str], own: str, other: str, to: Path, select: Select = "own"
) -> list[dict[str, Any]]:
    config = PseudoLabelConfig.model_validate(
        {
            "pipeline": "pseudo_label",
            "source": {"uri": CLIP},
            "model": {"checkpoint": "some/model"},
            "output": {"uri": runs[own]},
            "dataset": {"uri": str(to), "workers": 1, "validation_fraction": 0.0},
            "selection": NO_RULES | {"against": runs[other], "select": select},
        }
    )
    label(config)
    rows: list[dict[str, Any]] = pq.read_table(to / "selection").to_pylist()
    return rows


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "IsolatedGenerator", InThisProcess)


def test_the_more_confident_words_are_chosen_across_families(
    runs: dict[str, str], tmp_path: Path
) -> None:
    # Whisper says noise, and is not sure of it.
    rows = selected(runs, "whisper", "planted", tmp_path / "whisper", "fuse")
    said = " ".join(row["text"] for row in rows)
    assert all(word in said for word in WORDS)
    own = selected(runs, "planted", "whisper", tmp_path / "planted", "fuse")
    assert {row["from_other"] for row in own} == {0.0}
    assert [row["text"].strip() for row in own] == ["one two, three.", "Four"]


def test_what_two_families_agree_on_is_measured_in_the_language_that_is_known(
    runs: dict[str, str], tmp_path: Path
) -> None:
    for own, other in (("parakeet", "whisper"), ("whisper", "parakeet"), ("planted", "whisper")):
        rows = selected(runs, own, other, tmp_path / f"{own}-{other}")
        assert {row["language"] for row in rows} == {"en"}
        if own != "parakeet":
            assert {row["disagreement"] for row in rows} == {1.0}
    rows = selected(runs, "untimed", "planted", tmp_path / "untimed")
    assert {row["disagreement"] for row in rows} == {1.0}


def test_texts_without_words_are_compared_but_not_chosen_from(
    runs: dict[str, str], tmp_path: Path
) -> None:
    for own, other in (("untimed", "planted"), ("planted", "untimed")):
        with pytest.raises(ConfigError, match=r"found segments without words in \S*/untimed, exp"):
            selected(runs, own, other, tmp_path / own, "fuse")
