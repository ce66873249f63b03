"""A made-up family's config.json: how loud is loud."""

from dataclasses import dataclass
from typing import ClassVar

from corpus_asr.families.model_config import GeneralSettings, ModelConfig


@dataclass(kw_only=True)
class LevelsSettings(GeneralSettings):
    """The fields beside those of every family."""

    num_words: int = 2
    threshold: float = 0.01


class LevelsConfig(ModelConfig, LevelsSettings):
    """What the network says: `loud` above the threshold, `quiet` below it."""

    model_type: ClassVar[str] = "levels"
    sizes: ClassVar[tuple[str, ...]] = ("num_words",)
    counts: ClassVar[tuple[str, ...]] = ()
    probabilities: ClassVar[tuple[str, ...]] = ("threshold",)
