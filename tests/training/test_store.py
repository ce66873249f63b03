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
        [{"step": 1, "grad_norm": math.inf, "parts": {"labels": math.nan}}, {"step": 2}]
    )
    assert store.log() == [{"step": 1, "grad_norm": None, "parts": {"labels": None}}, {"step": 2}]
    made = tmp_path / "made"
    made.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.json"):
        (made / name).write_text(name)
    store.save_folder("model", made, last="config.json")
    found = {uri.rsplit("/", 1)[-1] for uri in store._store.all_names("model")}
    assert found == {"config.json", "model.safetensors", "vocab.json"}
