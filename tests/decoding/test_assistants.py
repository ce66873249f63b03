"""What can draft for what."""

from typing import Any

import pytest
import torch

from corpus_asr.decoding.assistants import check_assistant, listens
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.slot_model import WhisperDecoderSlots, WhisperSlotModel
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from tests.support.slots import ScriptedModel

SETTINGS: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "vocab_size": 60,
    "max_target_positions": 48,
    "max_source_positions": 20,
    "pad_token_id": 30,
    "bos_token_id": 30,
    "eos_token_id": 30,
    "decoder_start_token_id": 31,
}


def network(device: str = "cpu", **settings: Any) -> WhisperForConditionalGeneration:
    with torch.device(device):
        return WhisperForConditionalGeneration(WhisperConfig(**(SETTINGS | settings)))


def alone(whole: WhisperForConditionalGeneration) -> WhisperDecoderSlots:
    return WhisperDecoderSlots(whole.config, whole.model.decoder, whole.proj_out)


@pytest.fixture(scope="module")
def model() -> WhisperSlotModel:
    return network().slot_model()


def test_whatever_fits_may_draft(model: WhisperSlotModel) -> None:
    check_assistant(model, model)
    check_assistant(model, alone(network()))
    check_assistant(model, network(max_target_positions=64).slot_model())
    assert listens(model)
    assert not listens(alone(network()))
    assert listens(ScriptedModel([[1]]))


def test_another_vocabulary_is_an_error(model: WhisperSlotModel) -> None:
    with pytest.raises(ValueError, match="an assistant of 61 tokens for a model of 60"):
        check_assistant(model, network(vocab_size=61).slot_model())


def test_fewer_positions_are_an_error(model: WhisperSlotModel) -> None:
    with pytest.raises(ValueError, match="47 positions for a model of 48"):
        check_assistant(model, network(max_target_positions=47).slot_model())


def test_a_decoder_for_other_windows_is_an_error(model: WhisperSlotModel) -> None:
    other = network(d_model=8)
    with pytest.raises(ValueError, match=r"windows of \(20, 8\).*encodes \(20, 16\)"):
        check_assistant(model, alone(other))
    check_assistant(model, other.slot_model())  # listens for itself


def test_another_device_is_an_error(model: WhisperSlotModel) -> None:
    with pytest.raises(ValueError, match="an assistant on meta for a model on cpu"):
        check_assistant(model, network("meta").slot_model())
