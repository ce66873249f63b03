"""Low-rank adapters (LoRA): small trained matrices next to the frozen weights of linear layers.

Files are in PEFT's layout.

Source: Hu et al. 2021, section 4.1.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from corpus_asr.config.finetune import LoraSettings
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.saved_files import read_saved_bytes, write_json_object

ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Variants of PEFT that compute something else: their keys and what each has if it is off.
_VARIANTS: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
}


class LoraAdapters:
    """Adapters on the linear layers of a network, whose own weights become frozen.

    The network's modules and parameters keep their names; `seed` draws the adapters' first weights.
    """

    def __init__(self, network: nn.Module, config: LoraSettings, *, seed: int) -> None:
        rank = config.rank
        assert rank is not None, "without a rank there are no adapters"
        self._config = config
        self._scale = config.alpha / rank
        network.requires_grad_(False)
        self._layers = _target_layers(network, config.target_modules)
        self.parameters: dict[str, nn.Parameter] = {}
        """The trained matrices, in float32, by name."""
        draw = torch.Generator().manual_seed(seed)
        for name, layer in self._layers.items():
            down = torch.empty(rank, layer.in_features)
            # As torch draws the weights of linear layers; with zeros in the other matrix the
            # network computes what it did until the first step.
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=draw)
            up = torch.zeros(layer.out_features, rank)
            device = layer.weight.device
            self.parameters[name + _A] = nn.Parameter(down.to(device))
            self.parameters[name + _B] = nn.Parameter(up.to(device))
        self._hooks = self._hooked()

    def _hooked(self) -> list[RemovableHandle]:
        layers = self._layers.items()
        return [layer.register_forward_hook(partial(self._add, name)) for name, layer in layers]

    def _add(
        self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        hidden = F.dropout(inputs[0], self._config.dropout, layer.training)
        low = F.linear(hidden, self.parameters[name + _A])
        return output + self._scale * F.linear(low, self.parameters[name + _B])

    @contextmanager
    @torch.no_grad()
    def merged(self) -> Iterator[None]:
        """Let the network's weights have the adapters in them; after that, they are as before."""
        # Copies, as subtracting what was added would leave rounding behind.
        before = {name: layer.weight.clone() for name, layer in self._layers.items()}
        for name, layer in self._layers.items():
            down, up = self.parameters[name + _A], self.parameters[name + _B]
            layer.weight.add_(self._scale * (up @ down))
        # Gone, not idle: layers with hooks are slow to generate with.
        for hook in self._hooks:
            hook.remove()
        try:
            yield
        finally:
            self._hooks = self._hooked()
            for name, layer in self._layers.items():
                layer.weight.copy_(before[name])

    def save_pretrained(self, folder: Path, *, base: str) -> None:
        """Write the adapters of the checkpoint named `base` into a folder, as PEFT reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self._config
        tensors = {
            f"{_PREFIX}{name}": parameter.detach().cpu().contiguous()
            for name, parameter in self.parameters.items()
        }
        save_file(tensors, folder / ADAPTER_WEIGHTS_NAME, metadata={"format": "pt"})
        content = {
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": config.rank,
            "target_modules": sorted(config.target_modules),
            # PEFT wraps `generate` by the type of a task, and has none for speech.
            "task_type": None,
            "use_dora": False,
            "use_rslora": False,
        }
        write_json_object(folder / ADAPTER_CONFIG_NAME, content)


def merge_adapter(weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return all weights of a checkpoint with an adapter in PEFT's layout merged into them.

    What changed is in float32.
    """
    scale = _scale(folder)
    matrices = _matrices(folder)
    merged = dict(weights)
    for layer in sorted({name.removesuffix(_A).removesuffix(_B) for name in matrices}):
        # Checkpoints of a bare network name their tensors without `model.`.
        bare = f"{layer.removeprefix('model.')}.weight"
        name = bare if bare in weights else f"{layer}.weight"
        down, up = matrices.get(layer + _A), matrices.get(layer + _B)
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
            raise CheckpointError(
                f"reading {folder / ADAPTER_WEIGHTS_NAME}: found no matching pair lora_A and "
                f"lora_B for {layer}, expected both; copy the adapter again"
            )
        shape = len(up), down.shape[1]
        stored = weights.get(name)
        if stored is None or tuple(stored.shape) != shape or not stored.is_floating_point():
            found = "no such layer" if stored is None else f"{tuple(stored.shape)}"
            raise CheckpointError(
                f"merging {folder}: found {found} for {layer} in the checkpoint, expected a float "
                f"matrix of {shape}; give the checkpoint that the adapter was trained on"
            )
        merged[name] = stored.float() + scale * (up.float() @ down.float())
    return merged


def _target_layers(network: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    modules = dict(network.named_modules())
    # A tied weight belongs to two layers, of which an adapter would change only one.
    every = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    shared = every - {name for name, _ in network.named_parameters()}
    layers: dict[str, nn.Linear] = {}
    for target in targets:
        names = [name for name in modules if f".{name}".endswith(f".{target}")]
        for name in names or [target]:
            layer = modules.get(name)
            tied = f"{name}.weight" in shared
            if not isinstance(layer, nn.Linear) or tied:
                found = "no layer" if layer is None else f"a {type(layer).__name__}"
                raise ConfigError(
                    f"lora.target_modules: found {'a tied weight' if tied else found} at "
                    f"{name!r}, expected linear layers such as q_proj, k_proj, v_proj, out_proj, "
                    "fc1 or fc2; correct lora.target_modules"
                )
            layers[name] = layer
    return dict(sorted(layers.items()))


def _scale(folder: Path) -> float:
    path = folder / ADAPTER_CONFIG_NAME
    try:
        content: Any = json.loads(read_saved_bytes(path))
        kind, rank, alpha = content["peft_type"], int(content["r"]), float(content["lora_alpha"])
        others = [
            f"{key}: {content[key]}"
            for key, off in _VARIANTS.items()
            if key in content and content[key] not in off
        ]
        root = bool(content.get("use_rslora"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"reading {path}: found no usable file ({type(error).__name__}: {error}), expected "
            "peft_type, r and lora_alpha as PEFT writes them; give the folder of a LoRA adapter"
        ) from error
    if kind != "LORA" or rank < 1 or others:
        raise CheckpointError(
            f"reading {path}: found peft_type {kind}, r {rank}"
            f"{''.join(f', {other}' for other in others)}, expected plain LORA of rank 1 or more; "
            "merge this adapter with PEFT itself"
        )
    # Rank-stabilized LoRA. Source: Kalajdzievski 2023.
    return alpha / (math.sqrt(rank) if root else rank)


def _matrices(folder: Path) -> dict[str, Tensor]:
    path = folder / ADAPTER_WEIGHTS_NAME
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"reading {path}: found no usable file ({type(error).__name__}: {error}), expected the "
            "weights of a LoRA adapter; copy the adapter again"
        ) from error
    for name, tensor in stored.items():
        if not (name.startswith(_PREFIX) and name.endswith((_A, _B))):
            raise CheckpointError(
                f"reading {path}: found the tensor {name}, expected names such as "
                f"{_PREFIX}model.encoder.layers.0.self_attn.q_proj{_A}; merge this adapter with "
                "PEFT itself"
            )
        if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
            raise CheckpointError(
                f"reading {path}: found NaN, infinity or no floats in {name}, expected finite "
                "weights; copy the adapter again"
            )
    if not stored:
        raise CheckpointError(f"reading {path}: found no tensors, expected those of an adapter")
    return {name.removeprefix(_PREFIX): tensor for name, tensor in stored.items()}
