"""A whole training: what it writes, what it refuses, and that stopping it changes nothing."""

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
from corpus_asr.families.weights import stored_tensors
from corpus_asr.models.convert.folder import convert
from corpus_asr.pipelines import finetune
from corpus_asr.training import trainer
from corpus_asr.training.job import Evaluation, Evaluator, Finetune
from corpus_asr.training.store import TrainingStore
from corpus_asr.training.trainer import Group, Losses, Objective, Record
from tests.support.checkpoints import tiny_speech2text
from tests.support.training import tiny_student, training, write_sets


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
    assert records[0].lr == pytest.approx(5e-4)
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
    truncated = weights_in(place / "model")
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, truncated[n])}
    fixed = {"model.encoder.embed_positions.weight"}
    assert changed == truncated.keys() - fixed


def losses_of(place: Path, output: str, **sections: Any) -> list[float]:
    events = run(training(place, place / "model", output, **sections))
    return [event.loss for event in events if isinstance(event, Record)]


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


def test_a_seed_decides_every_step(place: Path) -> None:
    """Threads that compute windows side by side end in no certain order."""
    sections = {
        "model": {"dropout": 0.1},
        "training": {"gradient_accumulation_steps": 4, "max_steps": 2},
    }
    first, again = (losses_of(place, f"seed-{n}", **sections) for n in (1, 2))
    assert first == again


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


def test_frozen_parts_are_written_as_they_were(place: Path) -> None:
    config = training(
        place, place / "model", "frozen", model={"freeze": ["model.encoder.*"]},
        training={"max_steps": 1},
    )  # fmt: skip
    run(config)
    truncated, found = weights_in(place / "model"), weights_in(place / "frozen" / "model")
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, truncated[name])}
    assert changed
    assert not any(name.startswith("model.encoder.") for name in changed)


def told(monkeypatch: pytest.MonkeyPatch, wers: list[float | None]) -> None:
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
    config = evaluated(place, "best")
    found = [event for event in run(config) if isinstance(event, Evaluation)]
    assert [one.windows for one in found] == [2, 2, 2]
    rates = [one.wer for one in found]
    assert all(rate is not None for rate in rates)
    state = TrainingStore(str(place / "best"), endpoint_url=None, keep=1).latest()
    assert state is not None
    assert state.account["best"] == min(rate for rate in rates if rate is not None)
    assert (place / "best" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("dtype", "rank"), [("float32", None), ("float16", 2), ("bfloat16", None), ("bfloat16", 2)]
)
def test_a_start_that_stays_the_best_is_written_as_it_was_stored(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, rank: int | None
) -> None:
    start = tmp_path / "start"
    convert(place / "model", start, dtype=dtype)
    told(monkeypatch, [0.2, 0.3, 0.2])
    name = f"start-{dtype}-{rank}"
    config = evaluated(place, name, model={"checkpoint": str(start)}, lora={"rank": rank})
    done = finetune.run(config, progress=None)
    assert (done.kept_step, done.steps) == (0, 2)
    begun, found = weights_in(start), weights_in(place / name / "model")
    assert {str(tensor.dtype) for tensor in found.values()} == {f"torch.{dtype}"}
    assert all(torch.equal(tensor, begun[name]) for name, tensor in found.items())
    assert json.loads((place / name / "model/config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize(
    ("wers", "keep", "kept"),
    [([0.3, 0.1, 0.2], "best", 1), ([0.3, 0.1, 0.2], "last", 2), ([None] * 3, "best", 2)],
)
def test_the_step_that_was_kept_is_known(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    wers: list[float | None],
    keep: str,
    kept: int,
) -> None:
    told(monkeypatch, wers)
    evaluation = {"eval_steps": 1, "max_windows": 2, "keep": keep}
    config = evaluated(place, f"kept-{keep}-{wers[0]}", evaluation=evaluation)
    assert finetune.run(config, progress=None).kept_step == kept
    dtypes = {t.dtype for t in weights_in(place / f"kept-{keep}-{wers[0]}" / "model").values()}
    assert dtypes == {torch.float32}


def test_adapters_alone_are_trained_and_merged(place: Path, tmp_path: Path) -> None:
    config = training(place, place / "model", "lora", lora={"rank": 2}, training={"max_steps": 2})
    run(config)
    begun, found = weights_in(place / "model"), weights_in(place / "lora" / "model")
    assert begun.keys() == found.keys()
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, begun[name])}
    assert changed
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)
    state = TrainingStore(str(place / "lora"), endpoint_url=None, keep=1).latest()
    assert state is not None
    assert all(".lora_" in name for name in state.tensors)
    convert(place / "model", tmp_path / "merged", adapter=place / "lora" / "adapter")
    merged = weights_in(tmp_path / "merged")
    for name, tensor in found.items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=0)


def test_adapters_that_were_killed_end_with_the_same_weights(place: Path) -> None:
    lora = {"rank": 2, "dropout": 0.3}
    configs = [
        training(place, place / "model", f"lora-{name}", lora=lora) for name in ("whole", "killed")
    ]
    run(configs[0])
    run(configs[1], stop_after=3)  # the checkpoint is that of step 2
    resumed = run(configs[1])
    assert [event.step for event in resumed if isinstance(event, Record)] == [3, 4]
    for part, file in (("model", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        whole, killed = (load_file(f"{config.output.uri}/{part}/{file}") for config in configs)
        assert whole.keys() == killed.keys()
        assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())


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
    with pytest.raises(ConfigError, match=r"no usable utterance among 1.*gone\.wav"):
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


def test_less_memory_than_needed_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(trainer.Trainer, "_step", full)
    with pytest.raises(EngineError, match=r"step 1: found too little.*batch_size"):
        run(training(place, place / "model", "full"))


@pytest.mark.slow
def test_half_precision_learns_the_same(place: Path) -> None:
    full, half = (
        losses_of(place, dtype, model={"dropout": 0.0, "dtype": dtype})
        for dtype in ("float32", "bfloat16")
    )
    assert half == pytest.approx(full, rel=0.02)
    assert half != full
