"""A whole training: what it writes, what it refuses, and that stopping it changes nothing."""

import math
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.errors import CheckpointError, ConfigError, EngineError
from corpus_asr.models.stored_weights import stored_tensors
from corpus_asr.training import trainer
from corpus_asr.training.evaluation import Evaluation
from corpus_asr.training.group import Group
from corpus_asr.training.job import Finetune
from corpus_asr.training.objective import Losses, Objective
from corpus_asr.training.store import TrainingStore
from corpus_asr.training.trainer import Record
from tests.support.checkpoints import tiny_speech2text
from tests.support.training_jobs import tiny_student, training, write_sets


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings and a checkpoint."""
    folder = tmp_path_factory.mktemp("place")
    write_sets(folder)
    tiny_student(folder, dropout=0.1)
    return folder


def run(config: FinetuneConfig, *, stop_after: int | None = None) -> list[Record | Evaluation]:
    """Train, or stop like a killed process does: after a step, with nothing written."""
    found: list[Record | Evaluation] = []
    for event in Finetune(config, group=Group()).run():
        found.append(event)
        if isinstance(event, Record) and event.step == stop_after:
            break
    return found


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: stored.read() for name, stored in stored_tensors(folder).items()}


@pytest.fixture(scope="module")
def whole(place: Path) -> list[Record | Evaluation]:
    """What happens in an undisturbed training."""
    return run(training(place, place / "model", "whole"))


def test_each_step_is_told(whole: list[Record | Evaluation], place: Path) -> None:
    records = [event for event in whole if isinstance(event, Record)]
    assert [record.step for record in records] == [1, 2, 3, 4]
    assert all(record.loss > 0 and record.tokens > 0 for record in records)
    assert records[0].rate == pytest.approx(5e-4)
    log = TrainingStore(str(place / "whole"), endpoint_url=None, keep=1).log()
    assert [row["loss"] for row in log] == [record.loss for record in records]


def test_a_training_that_was_killed_ends_with_the_same_weights(
    whole: list[Record | Evaluation], place: Path
) -> None:
    config = training(place, place / "model", "killed")
    run(config, stop_after=3)  # the checkpoint is that of step 2
    resumed = run(config)
    assert [event.step for event in resumed if isinstance(event, Record)] == [3, 4]
    expected, found = (weights_in(place / name / "model") for name in ("whole", "killed"))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    log = TrainingStore(str(place / "killed"), endpoint_url=None, keep=1).log()
    assert [row["step"] for row in log] == [1, 2, 3, 4]


def test_a_finished_training_is_not_done_again(
    whole: list[Record | Evaluation], place: Path
) -> None:
    before = (place / "whole/checkpoints/step-00000004/state.json").stat().st_mtime_ns
    assert run(training(place, place / "model", "whole")) == []
    assert (place / "whole/checkpoints/step-00000004/state.json").stat().st_mtime_ns == before


def test_transformers_loads_the_model(whole: list[Record | Evaluation], place: Path) -> None:
    folder = place / "whole" / "model"
    network, told = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert transformers.WhisperProcessor.from_pretrained(folder).tokenizer("ask").input_ids
    begun = weights_in(place / "model")
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, begun[n])}
    fixed = {"model.encoder.embed_positions.weight"}
    assert changed == begun.keys() - fixed


def test_batches_in_pieces_are_the_same_batches(place: Path) -> None:
    still = {"checkpoint": str(place / "model"), "dropout": 0.0}
    losses = []
    for at_once in (1, 2):
        config = training(
            place,
            place / "model",
            f"pieces-{at_once}",
            model=still,
            training={"windows_at_once": at_once, "steps": 2},
        )
        losses.append([event.loss for event in run(config) if isinstance(event, Record)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_seed_decides_every_step(place: Path, dropout: float) -> None:
    """Threads that compute windows side by side end in no certain order."""
    losses = []
    for name in ("first", "again"):
        config = training(
            place,
            place / "model",
            f"seed-{name}-{dropout}",
            model={"checkpoint": str(place / "model"), "dropout": dropout},
            training={"batch_windows": 6, "steps": 2},
        )
        losses.append([event.loss for event in run(config) if isinstance(event, Record)])
    assert losses[0] == losses[1]


def test_windows_are_computed_side_by_side(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, both = Objective.forward, threading.Barrier(2, timeout=60)

    def meeting(*given: Any, **named: Any) -> Losses:
        both.wait()  # for the other window: broken if that comes after this one
        return forward(*given, **named)

    monkeypatch.setattr(Objective, "forward", meeting)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        still = {"checkpoint": str(place / "model"), "dropout": 0.0}
        run(training(place, place / "model", "side", model=still, training={"steps": 1}))
    finally:
        torch.set_num_threads(threads)


def test_frozen_parts_are_written_as_they_were(place: Path) -> None:
    config = training(
        place, place / "model", "frozen", model={"freeze": ["model.encoder.*"]},
        training={"steps": 1},
    )  # fmt: skip
    run(config)
    begun, found = weights_in(place / "model"), weights_in(place / "frozen" / "model")
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, begun[name])}
    assert changed
    assert not any(name.startswith("model.encoder.") for name in changed)


@pytest.mark.slow
def test_the_best_model_is_kept(place: Path) -> None:
    config = training(
        place,
        place / "model",
        "best",
        data={"validation": [str(place / "validation" / "manifest.jsonl")]},
        training={"steps": 2},
        evaluation={"every_steps": 1, "max_windows": 2},
    )
    found = [event for event in run(config) if isinstance(event, Evaluation)]
    assert [one.windows for one in found] == [2, 2, 2]
    rates = [one.wer for one in found]
    assert all(rate is not None for rate in rates)
    state = TrainingStore(str(place / "best"), endpoint_url=None, keep=1).latest()
    assert state is not None
    assert state.account["best"] == min(rate for rate in rates if rate is not None)
    assert (place / "best" / "model" / "model.safetensors").is_file()


def test_another_training_in_the_same_folder_is_refused(
    whole: list[Record | Evaluation], place: Path
) -> None:
    config = training(place, place / "model", "whole", training={"learning_rate": 1e-4})
    with pytest.raises(ConfigError, match=r"other settings.*another output\.uri"):
        run(config)


def test_other_families_are_refused(place: Path, tmp_path: Path) -> None:
    other = tiny_speech2text(tmp_path / "s2t")
    with pytest.raises(CheckpointError, match="expected a Whisper"):
        Finetune(training(place, other, "s2t"), group=Group())


def test_nothing_to_learn_from_is_told(place: Path, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"path": "gone.wav", "text": "ask", "language": "en"}\n')
    config = training(
        place, place / "model", "none",
        data={"train": [str(tmp_path / "m.jsonl")], "cache": str(tmp_path / "cache")},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"nothing to learn from in 1 passages.*gone\.wav"):
        Finetune(config, group=Group())


def test_sounds_that_nobody_tells_are_not_waited_for(place: Path) -> None:
    config = training(place, place / "model", "sounds", training={"phones_weight": 0.2})
    with pytest.raises(ConfigError, match=r"no passage with phones in data\.train"):
        Finetune(config, group=Group())


def test_the_encoder_may_learn_first_and_the_decoder_next(place: Path) -> None:
    learning = {"steps": 6, "encoder_steps": 2, "decoder_steps": 3, "ctc_weight": 0.5}
    # Longer than from the checkpoint to the step it goes on with.
    learning |= {"decoder_memory_windows": 3, "decoder_audio_s": 60.0}

    def events(output: str, stop_after: int | None = None) -> list[Record | Evaluation]:
        config = training(place, place / "model", output, training=learning)
        return run(config, stop_after=stop_after)

    records = [event for event in events("first") if isinstance(event, Record)]
    events("stopped", 3)  # the checkpoint is that of step 2, when only the encoder has learnt
    events("stopped", 5)  # and now that of step 4, before which something was heard
    assert [event.step for event in events("stopped") if isinstance(event, Record)] == [5, 6]
    first, stopped = (weights_in(place / name / "model") for name in ("first", "stopped"))
    assert all(torch.equal(tensor, stopped[name]) for name, tensor in first.items())
    assert [set(record.parts) for record in records] == [
        {"ctc"},
        {"ctc"},
        {"labels"},
        {"labels"},
        {"labels"},
        {"labels", "ctc"},
    ]


def test_what_does_not_learn_yet_stays_as_it_is(place: Path) -> None:
    learning = {"encoder_steps": 1, "decoder_steps": 3, "ctc_weight": 0.5, "weight_decay": 0.5}
    evaluation = {"keep": "last"}
    for steps, output in ((1, "heard"), (4, "written")):
        sections = {"training": {**learning, "steps": steps}, "evaluation": evaluation}
        run(training(place, place / "model", output, **sections))
    start, heard, written = (
        weights_in(folder)
        for folder in (place / "model", place / "heard/model", place / "written/model")
    )
    for name, changes in (
        ("model.encoder.conv1.weight", [True, False]),
        ("model.decoder.layers.0.fc1.weight", [False, True]),
    ):
        weights = (start[name], heard[name], written[name])
        assert [not torch.equal(*pair) for pair in pairwise(weights)] == changes


def test_an_encoder_that_would_learn_nothing_first_is_refused(place: Path) -> None:
    config = training(place, place / "model", "nothing", training={"encoder_steps": 3})
    with pytest.raises(ConfigError, match=r"encoder_steps: found 3 steps and no loss"):
        Finetune(config, group=Group())


def test_a_missing_language_is_told_before_training(place: Path) -> None:
    said = (place / "train" / "manifest.jsonl").read_text(encoding="utf-8")
    manifest = place / "train" / "no-language.jsonl"
    manifest.write_text(said.replace('"en"', "null"), encoding="utf-8")
    sections = {"data": {"train": [str(manifest)], "cache": str(place / "no-language")}}
    with pytest.raises(ConfigError, match=r"give data\.language"):
        Finetune(training(place, place / "model", "no-language", **sections), group=Group())


def test_data_that_changed_is_another_training(place: Path) -> None:
    manifest = place / "train" / "growing.jsonl"
    lines = (place / "train" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    manifest.write_text("\n".join(lines[:6]), encoding="utf-8")
    data = {"train": [str(manifest)], "cache": str(place / "growing-cache")}
    config = training(place, place / "model", "growing", data=data, training={"steps": 2})
    run(config)
    manifest.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match="other data"):
        run(config)


@pytest.mark.slow
def test_a_machine_with_less_memory_may_go_on(place: Path) -> None:
    config = training(place, place / "model", "smaller", training={"windows_at_once": 2})
    run(config, stop_after=3)
    fewer = training(place, place / "model", "smaller", data={"cache": str(place / "cache-2")})
    assert [event.step for event in run(fewer) if isinstance(event, Record)] == [3, 4]


@pytest.mark.parametrize(
    ("name", "cut_share", "decoder_steps"), [("cut", 0.5, 0), ("stretches", 0.0, 3)]
)
def test_what_depends_on_windows_at_once_has_to_keep_it(
    place: Path, name: str, cut_share: float, decoder_steps: int
) -> None:
    def job(at_once: int) -> FinetuneConfig:
        return training(
            place,
            place / "model",
            name,
            training={"windows_at_once": at_once, "decoder_steps": decoder_steps},
            windows={"cut_share": cut_share},
        )

    run(job(2), stop_after=3)
    with pytest.raises(ConfigError, match="training with other settings"):
        run(job(1))


@pytest.mark.slow
def test_a_model_is_written_where_nothing_is_said_in_validation(place: Path) -> None:
    silent = place / "validation" / "silent.jsonl"
    silent.write_text('{"path": "000.wav", "text": ""}\n', encoding="utf-8")
    sections = {"data": {"validation": [str(silent)]}, "training": {"steps": 1}}
    run(training(place, place / "model", "silent", **sections))
    assert (place / "silent" / "model" / "model.safetensors").is_file()


def test_gradients_that_are_no_numbers_end_the_training(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "clip", lambda *_: math.inf)
    monkeypatch.setattr(trainer, "_MAX_OVERFLOWS", 2)
    with pytest.raises(EngineError, match=r"step 2.*lower\s+training\.learning_rate"):
        run(training(place, place / "model", "overflow"))


def test_less_memory_than_needed_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(trainer.Trainer, "_step", full)
    with pytest.raises(EngineError, match=r"step 1: found too little memory.*windows_at_once"):
        run(training(place, place / "model", "full"))


@pytest.mark.slow
def test_half_precision_learns_the_same(place: Path) -> None:
    model = {"checkpoint": str(place / "model"), "dropout": 0.0}
    losses = [
        [event.loss for event in run(config) if isinstance(event, Record)]
        for dtype in ("float32", "bfloat16")
        for config in [training(place, place / "model", dtype, model={**model, "dtype": dtype})]
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
