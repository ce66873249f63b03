"""AdamW, learning rate schedules and frozen parameters.

In: networks and settings. Out: an optimizer and its state as plain tensors. Knows no data.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from corpus_asr.errors import CheckpointError, ConfigError

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRates:
    """The learning rate over the steps."""

    peak: float
    warmup_steps: int
    steps: int
    shape: Literal["linear", "cosine", "constant"]

    def at(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.shape == "linear":
            return self.peak * (1.0 - done)
        return (
            self.peak * (1.0 + math.cos(math.pi * done)) / 2
            if self.shape == "cosine"
            else self.peak
        )


def freeze(network: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """Freeze parameters whose names match a pattern; returns the others by name.

    Raises:
        ConfigError: a pattern matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"freezing {pattern!r}: found no parameter of that name among {len(names)}, such "
                f"as {names[0]}; correct model.freeze, for example model.encoder.*"
            )
    trained: dict[str, nn.Parameter] = {}
    for name, parameter in network.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            trained[name] = parameter
    if not trained:
        raise ConfigError(
            f"freezing {', '.join(patterns)}: found nothing left to train; correct model.freeze"
        )
    return trained


class NamedAdamW:
    """AdamW with its state by parameter names.

    Args:
        parameters: trained parameters by name.
        weight_decay: of matrices; norms and biases have none.
        betas: of the moments.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        self.parameters = dict(parameters)
        matrices = [p for p in self.parameters.values() if p.ndim > 1]
        vectors = [p for p in self.parameters.values() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)

    def step(self, rate: float) -> None:
        """Change the weights by their gradients, and clear those."""
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self._adamw.zero_grad()

    def skip(self) -> None:
        """Clear the gradients and change nothing."""
        self._adamw.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Return the moments as tensors by name."""
        return {
            f"{moment}.{name}": self._adamw.state[parameter][moment]
            for name, parameter in self.parameters.items()
            if parameter in self._adamw.state
            for moment in _MOMENTS
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore moments; parameters without a step yet have none.

        Raises:
            CheckpointError: they are not of these parameters.
        """
        known = {name for name in self.parameters if f"{_MOMENTS[0]}.{name}" in state}
        expected = {f"{moment}.{name}" for name in known for moment in _MOMENTS}
        if expected != set(state):
            wrong = sorted(expected ^ set(state))[:3]
            raise CheckpointError(
                f"resuming: found moments of other parameters ({', '.join(wrong)} and so on), "
                "expected those of the trained ones; resume with the same model.freeze and lora"
            )
        for name in known:
            parameter = self.parameters[name]
            # Fused AdamW wants all of them, the step's number too, where the parameter is.
            self._adamw.state[parameter] = {
                moment: state[f"{moment}.{name}"].to(parameter.device, copy=True)
                for moment in _MOMENTS
            }


def clip(parameters: Iterable[Tensor], longest: float) -> float:
    """Shorten the gradient to at most `longest`; returns its length before."""
    return float(nn.utils.clip_grad_norm_(list(parameters), longest))
