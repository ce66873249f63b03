"""The Trainer of transformers, which saves networks of this package with their settings.

In: networks of `corpus_asr.models`, or of transformers. Out: what their own classes do; importing
this module takes transformers and accelerate.
"""

from pathlib import Path
from typing import Any

import transformers
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from corpus_asr.families.generation_config import GenerationConfig
from corpus_asr.families.pretrained import PreTrainedModel

__all__ = ["Seq2SeqTrainer", "Seq2SeqTrainingArguments", "Trainer", "TrainingArguments"]


class Trainer(transformers.Trainer):  # type: ignore[misc]
    """`transformers.Trainer`, whose checkpoints of this package's networks load by name."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The original calls `save_pretrained` of its own base class alone, and of others writes
        # the state dict: without config.json, and not at all where two names share a weight.
        network = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(network, PreTrainedModel):
            super()._save(output_dir, state_dict)
            return
        weights = network.stored_weights(network.state_dict() if state_dict is None else state_dict)
        super()._save(output_dir, weights)
        if self.args.should_save:
            network.save_settings(Path(output_dir or self.args.output_dir), weights)


class Seq2SeqTrainer(Trainer, transformers.Seq2SeqTrainer):  # type: ignore[misc]
    """`transformers.Seq2SeqTrainer`, whose checkpoints of this package's networks load by name."""

    @staticmethod
    def load_generation_config(gen_config_arg: Any) -> Any:
        """Return the settings given in the arguments, or those of a folder or a file."""
        if isinstance(gen_config_arg, GenerationConfig):
            return gen_config_arg
        return transformers.Seq2SeqTrainer.load_generation_config(gen_config_arg)
