"""Configuration of decoder-only text models, which several families have inside; torch-free.

Names, defaults and meanings are those of `transformers.Qwen3Config`, version 5.23.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from corpus_asr.families.model_config import Count, ModelConfig, Size


@dataclass(kw_only=True, init=False)
class TextConfig(ModelConfig):
    """Sizes of pre-norm blocks with rotary positions, grouped-query attention and gated layers."""

    model_type: ClassVar[str] = "qwen3"

    vocab_size: Size = 151936
    hidden_size: Size = 4096
    intermediate_size: Size = 22016
    num_hidden_layers: Count = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size = 32
    """Heads of keys and values; each serves as many heads of queries."""
    head_dim: Size = 128
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    max_position_embeddings: Size = 32768
    rope_theta: float = 10_000.0
    """Base of the rotary positions' wavelengths."""
    rope_type: str = "default"
    use_sliding_window: bool = False
    layer_types: tuple[str, ...] | None = None

    @classmethod
    def _canonical(cls, content: dict[str, Any], num_labels: int | None) -> dict[str, Any]:
        content = super()._canonical(content, num_labels)
        # Earlier files name the base beside the scaling, which is null for none.
        for name in ("rope_parameters", "rope_scaling"):
            parameters = content.pop(name, None) or {}
            fields = {"rope_theta": "rope_theta", "type": "rope_type", "rope_type": "rope_type"}
            content |= {fields[key]: parameters[key] for key in fields if key in parameters}
        return content

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> Self:
        # Before unknown keys are set aside.
        return super()._from_content(cls._canonical(dict(content), None))

    def validate(self) -> None:
        """Raise for sizes and settings that a network cannot have, or that are not computed."""
        super().validate()
        heads = self.num_key_value_heads
        fits = self.num_attention_heads % heads == 0
        self.require(fits, "num_attention_heads", f"a multiple of {heads} num_key_value_heads")
        self.require(self.head_dim % 2 == 0, "head_dim", "an even number")
        self.require(self.rope_type == "default", "rope_type", "'default'")
        self.require(not self.use_sliding_window, "use_sliding_window", "false")
        kinds = set(self.layer_types or ()) <= {"full_attention"}
        self.require(kinds, "layer_types", "full_attention of every layer")
