"""What the same weights are called by OpenAI and by Hugging Face.

In: a tensor's name in one layout. Out: its name in the other. Knows names only: shapes and values
are the same in both.

Source: openai-whisper `model.py`; transformers/models/whisper/modeling_whisper.py.
"""

import re

_BLOCK = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm",
    "cross_attn.query": "encoder_attn.q_proj",
    "cross_attn.key": "encoder_attn.k_proj",
    "cross_attn.value": "encoder_attn.v_proj",
    "cross_attn.out": "encoder_attn.out_proj",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}
_WHOLE = {
    "encoder.conv1.weight": "model.encoder.conv1.weight",
    "encoder.conv1.bias": "model.encoder.conv1.bias",
    "encoder.conv2.weight": "model.encoder.conv2.weight",
    "encoder.conv2.bias": "model.encoder.conv2.bias",
    "encoder.positional_embedding": "model.encoder.embed_positions.weight",
    "encoder.ln_post.weight": "model.encoder.layer_norm.weight",
    "encoder.ln_post.bias": "model.encoder.layer_norm.bias",
    "decoder.token_embedding.weight": "model.decoder.embed_tokens.weight",
    "decoder.positional_embedding": "model.decoder.embed_positions.weight",
    "decoder.ln.weight": "model.decoder.layer_norm.weight",
    "decoder.ln.bias": "model.decoder.layer_norm.bias",
}
_OPENAI_BLOCK = re.compile(r"(encoder|decoder)\.blocks\.(\d+)\.(.+)\.(weight|bias)")
_HUGGINGFACE_BLOCK = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)")
_BLOCK_BACK = {theirs: ours for ours, theirs in _BLOCK.items()}
_WHOLE_BACK = {theirs: ours for ours, theirs in _WHOLE.items()}


def huggingface_name(name: str) -> str | None:
    """Return what Hugging Face calls OpenAI's tensor `name`; None if OpenAI has no such tensor."""
    match = _OPENAI_BLOCK.fullmatch(name)
    if match and match[3] in _BLOCK:
        return f"model.{match[1]}.layers.{match[2]}.{_BLOCK[match[3]]}.{match[4]}"
    return _WHOLE.get(name)


def openai_name(name: str) -> str | None:
    """Return what OpenAI calls Hugging Face's tensor `name`; None if there is no such tensor."""
    match = _HUGGINGFACE_BLOCK.fullmatch(name)
    if match and match[3] in _BLOCK_BACK:
        return f"{match[1]}.blocks.{match[2]}.{_BLOCK_BACK[match[3]]}.{match[4]}"
    return _WHOLE_BACK.get(name)
