"""Networks made for shorter windows out of others, with the same weights."""

import torch

from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.units import FRAMES_PER_POSITION

_POSITIONS = "model.encoder.embed_positions.weight"


def cut_network(
    network: WhisperForConditionalGeneration, *, frames: int
) -> WhisperForConditionalGeneration:
    """A network that takes windows of so many frames, and knows of no longer ones."""
    positions = frames // FRAMES_PER_POSITION
    config = WhisperConfig(**(network.config.to_dict() | {"max_source_positions": positions}))
    weights = dict(network.state_dict())
    weights[_POSITIONS] = weights[_POSITIONS][:positions]
    with torch.device(network.device):
        cut = WhisperForConditionalGeneration(config).to(network.dtype)
    cut.load_state_dict(weights)
    return cut.eval()
