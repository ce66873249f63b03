"""A whole training and its folder: what it writes and refuses; stopping it changes nothing."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.errors import CheckpointError, ConfigError, EngineError
from corpus_asr.models.convert import convert
from corpus_asr.pipelines import finetune
from corpus_asr.training import trainer
from corpus_asr.training.job import Evaluation, Evaluator, Finetune, State, TrainingStore
from corpus_asr.training.trainer import Group, Losses, Objective, Record
from tests.support.checkpoints import tiny_speech2text
from tests.support.pages import parsed
from tests.support.parakeet import parakeet_pair
from tests.support.training import (
    assert_same_weights,
    tiny_student,
    training,
    weights_in,
    write_sets,
)

pytestmark = pytest.mark.long


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


def changed_weights(place: Path, output: str) -> set[str]:
    """Name the weights that a training has changed."""
    begun, found = weights_in(place / "model"), weights_in(place / output / "model")
    assert begun.keys() == found.keys()
    return {name for name, tensor in found.items() if not torch.equal(tensor, begun[name])}


def checkpoint_in(folder: Path) -> State:
    state = TrainingStore(str(folder), endpoint_url=None, keep=1).latest()
    assert state is not None
    return state


@pytest.fixture(scope="module")
def whole(place: Path) -> list[Record | Evaluation]:
    """What happens in an undisturbed training."""
    return run(training(place, place / "model", "whole"))


def test_each_step_is_recorded_and_logged(whole: list[Record | Evaluation], place: Path) -> None:
    records = [event for event in whole if isinstance(event, Record)]
    assert [record.step for record in records] == [1, 2, 3, 4]
    assert all(record.loss > 0 and record.tokens > 0 for record in records)
    assert records[0].lr == pytest.approx(5e-4)
    log = TrainingStore(str(place / "whole"), endpoint_url=None, keep=1).log()
    assert [row["loss"] for row in log] == [record.loss for record in records]
    page = parsed((place / "whole" / "report.html").read_text())
    [loss, rate] = page.all("figure")
    assert [len(each.all("rect", class_="target")) for each in (loss, rate)] == [4, 4]
    assert f"step 4: {records[-1].loss:.3g}" in loss.text


def test_a_training_that_was_killed_ends_with_the_same_weights(
    whole: list[Record | Evaluation], place: Path
) -> None:
    config = training(place, place / "model", "killed")
    run(config, stop_after=3)  # the checkpoint is that of step 2
    resumed = run(config)
    assert [event.step for event in resumed if isinstance(event, Record)] == [3, 4]
    assert_same_weights(place / "whole" / "model", place / "killed" / "model")
    log = TrainingStore(str(place / "killed"), endpoint_url=None, keep=1).log()
    assert [row["step"] for row in log] == [1, 2, 3, 4]


def test_a_finished_training_is_not_done_again_and_another_is_refused_in_its_folder(
    whole: list[Record | Evaluation], place: Path
) -> None:
    written = place / "whole/checkpoints/step-00000004/state.json"
    before = written.stat().st_mtime_ns
    assert run(training(place, place / "model", "whole")) == []
    assert written.stat().st_mtime_ns == before
    config = training(place, place / "model", "whole", training={"learning_rate": 1e-4})
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.001, not 0\.0001\), expected"):
        run(config)


def test_the_folder_of_a_run_or_a_data_set_gets_no_model(place: Path) -> None:
    notes = place / "labelled" / "_run" / "dataset.json"
    notes.parent.mkdir(parents=True)
    notes.write_text("{}")
    with pytest.raises(ConfigError, match=r"found _run/dataset\.json, .*another output\.uri"):
        finetune.run(training(place, place / "model", "labelled"), progress=None)
    assert [each.name for each in (place / "labelled").iterdir()] == ["_run"]


def test_transformers_loads_the_model(whole: list[Record | Evaluation], place: Path) -> None:
    folder = place / "whole" / "model"
    network, info = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert transformers.WhisperProcessor.from_pretrained(folder).tokenizer("ask").input_ids
    trained = dict(network.named_parameters()).keys()
    fixed = {"model.encoder.embed_positions.weight"}
    assert changed_weights(place, "whole") == trained - fixed


def losses_of(place: Path, output: str, **sections: Any) -> list[float]:
    events = run(training(place, place / "model", output, **sections))
    return [event.loss for event in events if isinstance(event, Record)]


@pytest.mark.slow
def test_batches_in_pieces_are_the_same_batches(place: Path) -> None:
    losses = []
    for size, accumulated in ((1, 2), (2, 1)):
        sizes = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulated,
            "max_steps": 2,
        }
        still = {"dropout": 0.0}
        losses.append(losses_of(place, f"pieces-{size}", model=still, training=sizes))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_a_seed_decides_every_step(place: Path) -> None:
    """Threads that compute windows side by side end in no certain order."""
    sections = {
        "model": {"dropout": 0.1},
        "training": {"gradient_accumulation_steps": 3, "max_steps": 2},
    }
    first, again = (losses_of(place, f"seed-{n}", **sections) for n in (1, 2))
    assert first == again


@pytest.mark.slow
def test_windows_are_computed_side_by_side(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, both = Objective.__call__, threading.Barrier(2, timeout=60)

    def meeting(*given: Any, **named: Any) -> Losses:
        both.wait()  # for the other window: broken if that comes after this one
        return forward(*given, **named)

    monkeypatch.setattr(Objective, "__call__", meeting)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        losses_of(place, "side", model={"dropout": 0.0}, training={"max_steps": 1})
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_frozen_parts_are_written_as_they_were(place: Path) -> None:
    losses_of(place, "frozen", model={"freeze": ["model.encoder.*"]}, training={"max_steps": 1})
    changed = changed_weights(place, "frozen")
    assert changed
    assert not any(name.startswith("model.encoder.") for name in changed)


def set_error_rates(monkeypatch: pytest.MonkeyPatch, wers: list[float | None]) -> None:
    """Let evaluations find these word error rates, one after the other."""
    left = iter(wers)

    def evaluation(*_: object) -> Evaluation:
        return Evaluation(windows=2, wer=next(left), cer=None, hallucinated_words=0, examples=())

    monkeypatch.setattr(Evaluator, "__call__", evaluation)


def evaluated(place: Path, output: str, **sections: Any) -> FinetuneConfig:
    """A training of two steps with an evaluation before and after each."""
    given: dict[str, Any] = {
        "data": {"validation": [str(place / "validation" / "manifest.jsonl")]},
        "training": {"max_steps": 2},
        "evaluation": {"eval_steps": 1, "max_windows": 2},
    }
    return training(place, place / "model", output, **{**given, **sections})


@pytest.mark.slow
def test_the_best_model_is_kept(place: Path) -> None:
    evaluations = [each for each in run(evaluated(place, "best")) if isinstance(each, Evaluation)]
    assert [each.windows for each in evaluations] == [2, 2, 2]
    rates = [each.wer for each in evaluations if each.wer is not None]
    assert len(rates) == 3
    assert checkpoint_in(place / "best").account["best"] == min(rates)
    assert (place / "best" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("dtype", "rank"), [pytest.param("float32", None, marks=pytest.mark.slow), ("float16", 2)]
)
def test_a_start_that_stays_the_best_is_written_as_it_was_stored(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, rank: int | None
) -> None:
    start = tmp_path / "start"
    convert(place / "model", start, dtype=dtype)
    set_error_rates(monkeypatch, [0.2, 0.3, 0.2])
    config = evaluated(
        place, f"start-{dtype}", model={"checkpoint": str(start)}, lora={"rank": rank}
    )
    done = finetune.run(config, progress=None)
    assert (done.kept_step, done.steps) == (0, 2)
    model = place / f"start-{dtype}" / "model"
    assert {str(tensor.dtype) for tensor in weights_in(model).values()} == {f"torch.{dtype}"}
    assert_same_weights(start, model)
    assert json.loads((model / "config.json").read_text())["dtype"] == dtype


@pytest.mark.slow
def test_the_step_that_was_kept_is_known(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: tuple[tuple[str, list[float | None], str, int], ...] = (
        ("best", [0.3, 0.1, 0.2], "best", 1),
        ("last", [0.3, 0.1, 0.2], "last", 2),
        ("unknown", [None] * 3, "best", 2),
    )
    for name, wers, keep, kept in cases:
        set_error_rates(monkeypatch, wers)
        evaluation = {"eval_steps": 1, "max_windows": 2, "keep": keep}
        config = evaluated(place, f"kept-{name}", evaluation=evaluation)
        assert finetune.run(config, progress=None).kept_step == kept, name
        weights = weights_in(place / f"kept-{name}" / "model")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_adapters_alone_are_trained_and_merged(place: Path, tmp_path: Path) -> None:
    losses_of(place, "lora", lora={"rank": 2}, training={"max_steps": 2})
    changed = changed_weights(place, "lora")
    assert changed
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)
    assert all(".lora_" in name for name in checkpoint_in(place / "lora").tensors)
    convert(place / "model", tmp_path / "merged", adapter=place / "lora" / "adapter")
    merged = weights_in(tmp_path / "merged")
    for name, tensor in weights_in(place / "lora" / "model").items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_adapters_that_were_killed_end_with_the_same_weights(place: Path) -> None:
    whole, killed = (
        training(place, place / "model", f"lora-{name}", lora={"rank": 2, "dropout": 0.3})
        for name in ("whole", "killed")
    )
    run(whole)
    run(killed, stop_after=3)  # the checkpoint is that of step 2
    resumed = run(killed)
    assert [event.step for event in resumed if isinstance(event, Record)] == [3, 4]
    assert_same_weights(place / "lora-whole" / "model", place / "lora-killed" / "model")
    adapters = [place / f"lora-{name}/adapter/adapter_model.safetensors"
                for name in ("whole", "killed")]  # fmt: skip
    first, second = map(load_file, adapters)
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_other_families_are_refused(place: Path, tmp_path: Path) -> None:
    other = tiny_speech2text(tmp_path / "s2t")
    with pytest.raises(CheckpointError, match="expected a Whisper"):
        Finetune(training(place, other, "s2t"), group=Group())
    parakeet = tmp_path / "tdt"
    parakeet_pair("TDT", parakeet)
    message = "to train it: found a parakeet_tdt, expected a Whisper.*train this one with transf"
    with pytest.raises(CheckpointError, match=message):
        Finetune(training(place, parakeet, "tdt"), group=Group())
    teacher = {"teacher": str(parakeet)}
    with pytest.raises(CheckpointError, match=r"parakeet_tdt.*expected"):
        Finetune(training(place, place / "model", "taught", distillation=teacher), group=Group())


def test_unusable_data_is_refused_before_training(place: Path, tmp_path: Path) -> None:
    rows = (place / "train" / "manifest.jsonl").read_text(encoding="utf-8")
    gone = '{"path": "gone.wav", "text": "ask", "language": "en"}'
    for folder, lines, message in (
        (tmp_path, gone, r"no usable utterance among 1.*gone\.wav"),
        (place / "train", rows.replace('"en"', "null"), r"give data\.language"),
    ):
        manifest = folder / "untaught.jsonl"
        manifest.write_text(lines, encoding="utf-8")
        data = {"train": [str(manifest)], "cache": str(tmp_path / folder.name)}
        with pytest.raises(ConfigError, match=message):
            Finetune(training(place, place / "model", "untaught", data=data), group=Group())


@pytest.mark.slow
def test_data_that_changed_is_another_training(place: Path) -> None:
    manifest = place / "train" / "growing.jsonl"
    lines = (place / "train" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    manifest.write_text("\n".join(lines[:6]), encoding="utf-8")
    data = {"train": [str(manifest)], "cache": str(place / "growing-cache")}
    config = training(place, place / "model", "growing", data=data, training={"max_steps": 2})
    run(config)
    manifest.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match="other data"):
        run(config)


@pytest.mark.slow
def test_a_machine_with_less_memory_may_go_on(place: Path) -> None:
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    config = training(place, place / "model", "smaller", training=sizes)
    run(config, stop_after=3)
    fewer = training(place, place / "model", "smaller", data={"cache": str(place / "cache-2")})
    assert [event.step for event in run(fewer) if isinstance(event, Record)] == [3, 4]


@pytest.mark.slow
def test_a_model_is_written_where_nothing_is_said_in_validation(place: Path) -> None:
    silent = place / "validation" / "silent.jsonl"
    silent.write_text('{"path": "000.wav", "text": ""}\n', encoding="utf-8")
    sections = {"data": {"validation": [str(silent)]}, "training": {"max_steps": 1}}
    run(training(place, place / "model", "silent", **sections))
    assert (place / "silent" / "model" / "model.safetensors").is_file()


def test_gradients_that_are_no_numbers_end_the_training(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: math.inf)
    monkeypatch.setattr(trainer, "_MAX_OVERFLOWS", 2)
    with pytest.raises(EngineError, match=r"step 2.*lower\s+training\.learning_rate"):
        run(training(place, place / "model", "overflow"))


def test_too_little_memory_names_the_settings(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(trainer.Trainer, "_step", full)
    with pytest.raises(EngineError, match=r"step 1: found too little.*batch_size"):
        run(training(place, place / "model", "full"))


@pytest.mark.slow
def test_half_precision_learns_the_same(place: Path) -> None:
    full, half = (
        losses_of(place, dtype, model={"dropout": 0.0, "compute_type": dtype})
        for dtype in ("float32", "bfloat16")
    )
    assert half == pytest.approx(full, rel=0.02)
    assert half != full


def state(step: int) -> State:
    return State({"weights.a": torch.full((2, 3), float(step))}, {"step": step, "best": None})


@pytest.fixture(params=["folder", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "folder" else f"memory://{tmp_path.name}"


def test_the_last_whole_checkpoint_is_found_and_old_ones_go(uri: str) -> None:
    store = TrainingStore(uri, endpoint_url=None, keep=2)
    assert store.latest() is None
    for step in (5, 10, 15):
        store.save(state(step))
    found = store.latest()
    assert found is not None
    assert found.step == 15
    assert torch.equal(found.tensors["weights.a"], torch.full((2, 3), 15.0))
    folders = {uri.split("/")[-2] for uri in store._store.all_names("checkpoints")}
    assert folders == {"step-00000010", "step-00000015"}


def test_what_is_left_of_an_old_checkpoint_goes_and_what_others_put_there_stays(
    tmp_path: Path,
) -> None:
    store = TrainingStore(str(tmp_path), endpoint_url=None, keep=1)
    for step, left in ((3, "state.json"), (4, "state.safetensors")):
        half = tmp_path / "checkpoints" / f"step-{step:08}"
        half.mkdir(parents=True)
        (half / left).write_text("{}", encoding="utf-8")
    store.save(state(5))
    note = tmp_path / "checkpoints" / "step-00000005" / "note.txt"
    note.write_text("the best so far", encoding="utf-8")
    store.save(state(10))
    assert note.read_text(encoding="utf-8") == "the best so far"
    folders = {path.name for path in tmp_path.glob("checkpoints/*")}
    assert folders == {"step-00000005", "step-00000010"}


def test_a_checkpoint_that_was_being_written_is_none_and_a_damaged_one_is_told(
    tmp_path: Path,
) -> None:
    store = TrainingStore(str(tmp_path), endpoint_url=None, keep=2)
    store.save(state(5))
    store.save(state(10))
    (tmp_path / "checkpoints/step-00000010/state.json").unlink()
    found = store.latest()
    assert found is not None
    assert found.step == 5
    (tmp_path / "checkpoints/step-00000005/state.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"step-00000005.*remove its folder"):
        store.latest()


def test_the_log_and_the_model_are_kept(uri: str, tmp_path: Path) -> None:
    store = TrainingStore(uri, endpoint_url=None, keep=2)
    assert store.log() == []
    # JSON whatever a step came to.
    store.write_log(
        [{"step": 1, "grad_norm": math.inf, "parts": {"labels": math.nan}}, {"step": 2}], steps=2
    )
    assert store.log() == [{"step": 1, "grad_norm": None, "parts": {"labels": None}}, {"step": 2}]
    made = tmp_path / "made"
    made.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.json"):
        (made / name).write_text(name)
    store.save_folder("model", made, last="config.json")
    found = {uri.rsplit("/", 1)[-1] for uri in store._store.all_names("model")}
    assert found == {"config.json", "model.safetensors", "vocab.json"}
