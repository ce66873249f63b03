"""Small Parakeet networks of random weights, and features for them; needs torch alone."""

from typing import Any

import torch
from torch import Tensor

from corpus_asr.families.parakeet import config as configs
from corpus_asr.families.parakeet import model as networks

KINDS = ("CTC", "RNNT", "TDT")
BINS, VOCAB = 16, 12
BLANK = VOCAB - 1
ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_kernel_size": 5,
    "subsampling_conv_channels": 4,
    "num_mel_bins": BINS,
}


def settings_of(kind: str, **config: Any) -> dict[str, Any]:
    """Return the settings of a small network of `CTC`, `RNNT` or `TDT`, replaced by others."""
    blank = {"pad_token_id": BLANK} if kind == "CTC" else {"blank_token_id": BLANK}
    sizes = {} if kind == "CTC" else {"decoder_hidden_size": 16}
    return {"vocab_size": VOCAB, **blank, **sizes, **config}


def small_parakeet(kind: str, *, seed: int = 0, blanks: float = 6.0) -> Any:
    """Make a network of this package's."""
    config = getattr(configs, f"Parakeet{kind}Config")(encoder_config=ENCODER, **settings_of(kind))
    network = getattr(networks, f"Parakeet{kind}")(config).eval()
    randomize(network, seed=seed, blanks=blanks)
    return network


@torch.no_grad()
def randomize(network: Any, *, seed: int, blanks: float) -> None:
    """Draw weights with which a network says tokens and blanks; more `blanks` make these likelier.

    It may be one of transformers'.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Biases, norms and statistics too: zeros and ones would hide a mistake in their use.
        for parameter in network.parameters():
            parameter.normal_(std=0.4)
        for name, buffer in network.named_buffers():
            if "running_var" in name:
                buffer.uniform_(0.5, 2)
            elif "running_mean" in name:
                buffer.normal_()
    if not hasattr(network, "joint"):
        return
    # As of trained ones, what is said depends on the position and on what was said before, and is
    # often a blank; durations are seldom 0.
    for module in (network.encoder_projector, network.decoder):
        for parameter in module.parameters():
            parameter *= 3
    head = network.joint.head
    head.weight *= 3
    head.weight -= head.weight.mean(dim=1, keepdim=True)
    head.bias.zero_()
    head.bias[network.config.blank_token_id] = blanks
    head.bias[network.config.vocab_size :][:1] = -3.0


def features(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random features of rows of these lengths, padded with zeros, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    values = torch.randn(*mask.shape, BINS, generator=generator)
    return values * mask[..., None], mask
