"""openai-whisper with the weights of a Hugging Face checkpoint, to compare with."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
import whisper
from safetensors.torch import load_file
from whisper.tokenizer import get_tokenizer

# Parts of parameter names, theirs after ours; applied in order.
_RENAMES = (
    ("model.", ""),
    ("layers.", "blocks."),
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("self_attn_layer_norm", "attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("encoder_attn", "cross_attn"),
    ("self_attn", "attn"),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
    ("embed_tokens", "token_embedding"),
    ("embed_positions.weight", "positional_embedding"),
)


def openai_whisper(folder: Path) -> whisper.Whisper:
    """Load a checkpoint folder into openai-whisper's model, in float32."""
    config = json.loads((folder / "config.json").read_text())
    model = whisper.Whisper(
        whisper.ModelDimensions(
            n_mels=config["num_mel_bins"],
            n_audio_ctx=config["max_source_positions"],
            n_audio_state=config["d_model"],
            n_audio_head=config["encoder_attention_heads"],
            n_audio_layer=config["encoder_layers"],
            n_vocab=config["vocab_size"],
            n_text_ctx=config["max_target_positions"],
            n_text_state=config["d_model"],
            n_text_head=config["decoder_attention_heads"],
            n_text_layer=config["decoder_layers"],
        )
    )
    # Sinusoids, which not every file has.
    positions = model.encoder.positional_embedding
    weights: dict[str, torch.Tensor] = {"encoder.positional_embedding": positions}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name == "proj_out.weight":
            continue
        for old, new in _RENAMES:
            name = name.replace(old, new)
        weights[name] = tensor.float()
    model.load_state_dict(weights)
    with warnings.catch_warnings():
        # It leaves its vocabulary file open, which would fail whatever test comes next.
        warnings.simplefilter("ignore", ResourceWarning)
        get_tokenizer(multilingual=model.is_multilingual, num_languages=model.num_languages)
    return model.eval()


def read_audio(path: Path) -> np.ndarray:
    """Decode a file to 16 kHz mono float32 with the package's own decoder."""
    from corpus_asr.audio.decode import open_audio

    with path.open("rb") as file, open_audio(file, uri=str(path)) as decoder:
        return np.concatenate([chunk[0] for chunk in decoder])
