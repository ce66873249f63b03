"""Checkpoints, the model and the log in an output folder."""

import math
from pathlib import Path

import pytest
import torch

from corpus_asr.errors import CheckpointError
from corpus_asr.training.store import State, TrainingStore


def state(step: int) -> State:
    return State({"weights.a": torch.full((2, 3), float(step))}, {"step": step, "best": None})


@pytest.fixture(params=["folder", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "folder" else f"memory://{tmp_path.name}"


def test_the_last_whole_checkpoint_is_found(uri: str) -> None:
    store = TrainingStore(uri, endpoint_url=None, keep=2)
    assert store.latest() is None
    for step in (5, 10, 15):
        store.save(state(step))
    found = store.latest()
    assert found is not None
    assert found.step == 15
    assert torch.equal(found.tensors["weights.a"], torch.full((2, 3), 15.0))


def test_old_checkpoints_go(tmp_path: Path) -> None:
    store = TrainingStore(str(tmp_path), endpoint_url=None, keep=2)
    for step in (5, 10, 15):
        store.save(state(step))
    names = {path.name for path in tmp_path.glob("checkpoints/*")}
    assert names == {"step-00000010", "step-00000015"}


def test_what_others_put_beside_an_old_checkpoint_stays(tmp_path: Path) -> None:
    store = TrainingStore(str(tmp_path), endpoint_url=None, keep=1)
    store.save(state(5))
    note = tmp_path / "checkpoints" / "step-00000005" / "note.txt"
    note.write_text("the best so far", encoding="utf-8")
    store.save(state(10))
    assert note.read_text(encoding="utf-8") == "the best so far"


def test_a_checkpoint_that_was_being_written_is_none(tmp_path: Path) -> None:
    store = TrainingStore(str(tmp_path), endpoint_url=None, keep=2)
    store.save(state(5))
    store.save(state(10))
    (tmp_path / "checkpoints/step-00000010/state.json").unlink()
    found = store.latest()
    assert found is not None
    assert found.step == 5


@pytest.mark.parametrize("left", ["state.json", "state.safetensors"])
def test_what_is_left_of_a_checkpoint_before_those_that_stay_goes(
    tmp_path: Path, left: str
) -> None:
    store = TrainingStore(str(tmp_path), endpoint_url=None, keep=1)
    half = tmp_path / "checkpoints" / "step-00000003"
    half.mkdir(parents=True)
    (half / left).write_text("{}", encoding="utf-8")
    store.save(state(5))
    assert not half.exists()


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    store = TrainingStore(str(tmp_path), endpoint_url=None, keep=2)
    store.save(state(5))
    (tmp_path / "checkpoints/step-00000005/state.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"step-00000005.*remove its folder"):
        store.latest()


def test_the_log_is_json_whatever_a_step_came_to(tmp_path: Path) -> None:
    store = TrainingStore(str(tmp_path), endpoint_url=None, keep=2)
    store.write_log([{"step": 1, "grad_norm": math.inf, "parts": {"labels": math.nan}}])
    assert store.log() == [{"step": 1, "grad_norm": None, "parts": {"labels": None}}]


def test_the_log_and_the_model_are_kept(uri: str, tmp_path: Path) -> None:
    store = TrainingStore(uri, endpoint_url=None, keep=2)
    assert store.log() == []
    store.write_log([{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}])
    assert store.log() == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}]
    made = tmp_path / "made"
    made.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.json"):
        (made / name).write_text(name)
    store.save_folder("model", made, last="config.json")
    found = {uri.rsplit("/", 1)[-1] for uri in store._uris(f"{store.uri}/model")}
    assert found == {"config.json", "model.safetensors", "vocab.json"}
