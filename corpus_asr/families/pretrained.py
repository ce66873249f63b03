"""Base classes of the networks: load, save, resize the vocabulary, and compute the loss."""

import sys
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float
from corpus_asr.errors import CheckpointError
from corpus_asr.families.generation_config import GENERATION_NAME
from corpus_asr.families.layers.kv_cache import TokenCache
from corpus_asr.families.layers.stack import Stack, check_tokens
from corpus_asr.families.loading import DTYPES, resolve_device
from corpus_asr.families.model_config import CONFIG_NAME, ModelConfig
from corpus_asr.families.outputs import Seq2SeqLMOutput, Seq2SeqModelOutput
from corpus_asr.families.saved_files import Uploads, finish_saving, made_folder, take_source
from corpus_asr.families.weights import (
    given_tensors,
    load_weights,
    loading_info,
    save_weights,
    share_parameter,
    stored_tensors,
    without_weights,
)
from corpus_asr.storage.model_files import fetch_checkpoint


class PreTrainedModel(nn.Module, Uploads):
    """Base of the networks; `state_dict()` keys equal those of the same class in transformers."""

    base_model_prefix = "model"
    main_input_name = "input_features"
    config_class: ClassVar[type[ModelConfig]]

    # PEFT, accelerate and the Trainer of transformers require this name.
    _tied_weights_keys: ClassVar[dict[str, str]] = {}
    """Parameters that share another's weights."""
    _left_over: ClassVar[tuple[str, ...]] = ()
    """Prefixes of stored names that this class does not use."""
    _fresh: ClassVar[tuple[str, ...]] = ()
    """Prefixes of names missing in checkpoints of other classes: initialized randomly."""
    _fixed: ClassVar[tuple[str, ...]] = ()
    """Computed parameters, which need not be stored."""
    _generation: ClassVar[Any] = None
    """Class of a checkpoint's generation settings; None for networks without decoding."""

    config: Any
    stored_dtype: torch.dtype | None = None
    """Data type of the checkpoint's weights if the caller chose none; else None."""
    # Set only with `device_map`, since training loops test whether it exists.
    hf_device_map: dict[str, torch.device]

    def __init__(self, config: Any) -> None:
        super().__init__()
        config.validate()
        self.name_or_path = config.name_or_path
        """Source of the checkpoint, which adapters record as their base."""
        self.config = config  # not copied: changes are shared, as in transformers
        self.generation_config: Any = None
        if self._generation is not None:
            self.generation_config = self._generation.from_model_config(config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str] | None,
        *,
        config: Any = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        use_safetensors: bool | None = None,
        ignore_mismatched_sizes: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
        generation_config: Any = None,
        output_loading_info: bool = False,
        variant: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint, a folder, URI or hub ID, ready for inference.

        Arguments are those of transformers, and `device` for the weights, by default the CPU.
        `dtype` None keeps the stored type; `generate` on a CPU then computes in the best type
        there. Without a name, `state_dict` has the weights and `config` the sizes.
        `generation_config` replaces the checkpoint's; `output_loading_info` returns the model and a
        dictionary of its missing, unexpected and mismatched keys, which else are an error. A
        `variant` such as fp16 selects the weights model.fp16.safetensors. Keywords are
        `SOURCE_OPTIONS`; all others override config.json. Raises CheckpointError; RuntimeError
        within a context of `torch.device("meta")`.
        """
        where = take_source(kwargs)
        known_keywords = {*vars(cls.config_class()), "num_labels", "hidden_size"}
        if unknown := sorted(kwargs.keys() - known_keywords):
            raise TypeError(
                f"{cls.__name__}.from_pretrained: found the unknown keyword {', '.join(unknown)}, "
                f"expected an argument of from_pretrained or a key of {CONFIG_NAME}; correct or "
                f"remove it"
            )
        is_given = state_dict is not None and config is not None
        if (pretrained_model_name_or_path is None) != is_given or (state_dict and not is_given):
            raise ValueError(
                f"{cls.__name__}.from_pretrained: found {pretrained_model_name_or_path!r} with "
                f"{'a' if state_dict is not None else 'no'} state_dict, expected a checkpoint, or "
                "None with state_dict and config; pass one of these"
            )
        if state_dict is not None:
            folder = Path("state_dict")
            stored = given_tensors(folder, state_dict)
        else:
            folder = fetch_checkpoint(str(pretrained_model_name_or_path), variant=variant, **where)
            stored = stored_tensors(folder, safetensors=use_safetensors, variant=variant)
        if config is None:
            config = cls.config_class.from_pretrained(folder, **kwargs)
        elif kwargs:
            config = cls.config_class.from_dict(config.to_dict(), **kwargs)
        if attn_implementation is not None:
            config.attn_implementation = attn_implementation
        config.name_or_path = str(pretrained_model_name_or_path or "")
        try:
            with without_weights():
                model = cls(config)
        except ValueError as error:
            raise CheckpointError(
                f"building the network of {folder / CONFIG_NAME}: {error}"
            ) from error
        dtype = torch_dtype if dtype is None else dtype
        drawn = load_weights(
            model,
            folder,
            stored,
            dtype=_dtype(dtype, config),
            device=_device(device, device_map),
            tied=cls._tied_weights_keys,
            fresh=(*cls._fixed, *cls._fresh),
            draw=model._draw,
            ignored=cls._left_over,
            redraw=ignore_mismatched_sizes,
            strict=not output_loading_info,
        )
        # Computed, not random: they need no training.
        untrained = [name for name in drawn if name not in cls._fixed]
        if untrained:
            warnings.warn(
                f"loading {pretrained_model_name_or_path} as {cls.__name__}: found no weights for "
                f"{', '.join(untrained)}, so these are random; train them before use",
                stacklevel=2,
            )
        if dtype in (None, "auto"):
            model.stored_dtype = model.dtype
        if device_map is not None:
            model.hf_device_map = {"": model.device}
        if cls._generation is not None and generation_config is not None:
            model.generation_config = cls._generation.from_dict(generation_config.to_dict())
        elif cls._generation is not None and state_dict is None:
            model.generation_config = cls._generation.from_pretrained(folder)
        model.eval()
        return (model, loading_info(model, stored, drawn)) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write weights, config.json and generation_config.json in the format of transformers.

        A `variant` such as fp16 is written as model.fp16.safetensors; other variants are kept.
        """
        if not is_main_process:
            return
        folder = made_folder(save_directory)
        state = self.state_dict() if state_dict is None else state_dict
        # safetensors does not allow shared memory.
        tied = self._keys_to_ignore_on_save or ()
        weights = {name: tensor for name, tensor in state.items() if name not in tied}
        names = save_weights(
            folder,
            weights,
            max_shard_size=max_shard_size,
            safe_serialization=safe_serialization,
            variant=variant,
        )
        self.config.architectures = [type(self).__name__]
        dtype = next((t.dtype for t in weights.values() if t.is_floating_point()), self.dtype)
        self.config.dtype = str(dtype).removeprefix("torch.")
        self.config.save_pretrained(folder)
        names.append(CONFIG_NAME)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
            names.append(GENERATION_NAME)
        finish_saving(folder, names, push_to_hub=push_to_hub, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, as in any module."""
        # The Trainer of transformers writes checkpoints by `save_pretrained` for its own class
        # only, and otherwise without config.json or not at all: every training or evaluation
        # precedes a save.
        module: Any = sys.modules.get("transformers.trainer")
        if module is not None and not isinstance(module.PreTrainedModel, tuple):
            module.PreTrainedModel = (module.PreTrainedModel, PreTrainedModel)
        return super().train(mode)

    @property
    def _keys_to_ignore_on_save(self) -> list[str] | None:
        # The Trainer of transformers calls this name to tie missing weights.
        tied = [
            name for name, source in self._tied_weights_keys.items() if self._shares(name, source)
        ]
        return tied or None

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class has a `generate` method."""
        return cls._generation is not None and hasattr(cls, "generate")

    @property
    def device(self) -> torch.device:
        """Device of the weights; the CPU for weights that hooks load on demand."""
        device = next(self.parameters()).device
        # accelerate uses a hook and weights on meta; inputs and results may be on any device.
        is_offloaded = device.type == "meta" and hasattr(self, "_hf_hook")
        return torch.device("cpu") if is_offloaded else device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of parameters; shared ones count once."""
        counted = {p for p in self.parameters() if p.requires_grad or not only_trainable}
        if exclude_embeddings:
            tables = [module for module in self.modules() if isinstance(module, nn.Embedding)]
            counted -= {p for table in tables for p in table.parameters()}
        return sum(p.numel() for p in counted)

    def tie_weights(self) -> None:
        """Tie the parameters that share weights, if the configuration has `tie_word_embeddings`."""
        if self.config.tie_word_embeddings:
            for target, source in self._tied_weights_keys.items():
                share_parameter(self, target, source)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute activations inside blocks during training instead of storing them.

        With `every_n_layers`, only those of every n-th block; with `offload`, a GPU's activations
        between blocks are stored in CPU memory.
        """
        options = activation_checkpointing_kwargs or {}
        # Both implementations of torch give the same results; they differ in allowed arguments.
        if options.keys() - {"use_reentrant"}:
            raise ValueError(
                f"enabling activation checkpointing: found {options}, expected use_reentrant at "
                "most; remove the rest"
            )
        if every_n_layers < 1:
            raise ValueError(
                f"enabling activation checkpointing: found every_n_layers {every_n_layers}, "
                f"expected 1 or more; correct it"
            )
        for stack in self._stacks():
            stack.gradient_checkpointing = True
            stack.checkpoint_every, stack.offload = every_n_layers, offload

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Alias of `activation_checkpointing_enable`, named as in version 4."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether training recomputes activations."""
        return any(stack.gradient_checkpointing for stack in self._stacks())

    is_gradient_checkpointing = is_activation_checkpointing

    @property
    def base_model(self) -> Any:
        """The network without its head; itself if it has none."""
        return getattr(self, self.base_model_prefix, self)

    def get_input_embeddings(self) -> nn.Module:
        """Return the input module."""
        raise NotImplementedError(
            f"a {type(self).__name__} has no single input module; use its submodules"
        )

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the output projection; None if there is none."""
        return None

    def enable_input_require_grads(self) -> None:
        """Make the input module's output require gradients although its weights are frozen."""
        # PEFT calls it for reentrant checkpointing around adapters, which is not used here.
        self.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output: output.requires_grad_(True)
        )

    def _stacks(self) -> list[Stack]:
        return [module for module in self.modules() if isinstance(module, Stack)]

    def _shares(self, target: str, source: str) -> bool:
        return self.get_parameter(target) is self.get_parameter(source)

    def _draw_weights(self) -> None:
        # As in transformers: normal distribution, norms one, biases zero.
        for name, parameter in self.named_parameters():
            self._draw(name, parameter)

    @torch.no_grad()
    def _draw(self, name: str, parameter: Tensor) -> None:
        if parameter.is_meta:  # within `without_weights`
            return
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "layer_norm" in name:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=self.config.init_std)
        # As nn.Embedding initializes its padding.
        if name.endswith("embed_tokens.weight") and self.config.pad_token_id is not None:
            parameter[self.config.pad_token_id] = 0.0


def _dtype(dtype: torch.dtype | str | None, config: ModelConfig) -> torch.dtype | None:
    if dtype == "auto":
        dtype = config.dtype
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    name = dtype.removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(
            f"loading weights: found dtype {dtype!r}, expected auto, {', '.join(DTYPES)}"
        )
    return DTYPES[name]


def _device(device: torch.device | str | None, device_map: Any) -> torch.device:
    if device is not None and device_map is not None:
        raise ValueError("loading weights: found device and device_map, expected one; remove one")
    if isinstance(device_map, dict):
        if set(device_map) != {""}:
            raise ValueError(
                f"loading weights: found a device_map of {sorted(device_map)}, expected only '', "
                "one device; remove the others"
            )
        device_map = device_map[""]
    if device_map is None:
        return torch.device(device or "cpu")
    if isinstance(device_map, int):
        device_map = f"cuda:{device_map}"
    name = str(device_map)
    is_known = name in ("auto", "cpu") or name.startswith("cuda")
    return resolve_device(name) if is_known else torch.device(name)


IGNORED_LABEL = -100
"""Label of tokens that the loss ignores."""


class TokenTables(PreTrainedModel):
    """An encoder and a decoder with its token embedding, in this module or in `model`."""

    def get_encoder(self) -> Any:
        """Return the encoder."""
        return getattr(self, "model", self).encoder

    def get_decoder(self) -> Any:
        """Return the decoder."""
        return getattr(self, "model", self).decoder

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        table: nn.Embedding = self.get_decoder().embed_tokens
        return table

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.get_decoder().embed_tokens = value

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Resize the token embedding; existing rows are kept.

        The number is rounded up to `pad_to_multiple_of`; new rows are the mean of the old ones, or
        random.
        """
        size = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size < 1:
            raise ValueError(f"resizing the vocabulary: found {size} tokens, expected at least 1")
        embedding, projection = self.get_input_embeddings(), self.get_output_embeddings()
        tied = all(self._shares(*names) for names in self._tied_weights_keys.items())
        for table in (embedding,) if tied or projection is None else (embedding, projection):
            table.weight = nn.Parameter(self._resized(table.weight, size, mean=mean_resizing))
        embedding.num_embeddings = self.config.vocab_size = size
        if projection is not None:
            projection.out_features = size
            projection.weight = embedding.weight if tied else projection.weight
        return embedding

    @torch.no_grad()
    def _resized(
        self, table: Float[Tensor, "vocab width"], size: int, *, mean: bool
    ) -> Float[Tensor, "_ width"]:
        more = max(0, size - len(table))
        # The mean gives new tokens average logits: random ones can dominate decoding.
        if mean:
            rows = table.mean(dim=0, keepdim=True).expand(more, -1)
        else:
            rows = table.new_empty(more, table.shape[1]).normal_(std=self.config.init_std)
        return torch.cat([table[:size], rows])


class Vocabulary(TokenTables):
    """A network with an output projection, tied to the token embedding or not."""

    accepts_loss_kwargs = False
    """Whether `forward` takes `num_items_in_batch`; read by the Trainer of transformers."""

    _projection: ClassVar[str]
    """Attribute path of the output projection in the network."""

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output projection."""
        projection: nn.Linear = getattr(self, self._projection)
        return projection

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: TokenCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the arguments of `forward` for the next tokens: those not yet in the cache."""
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        tokens = input_ids[:, start:]
        return {"decoder_input_ids": tokens, "past_key_values": past_key_values, **kwargs}

    def _add_projection(self) -> None:
        config = self.config
        projection = nn.Linear(config.d_model, config.vocab_size, bias=False)
        setattr(self, self._projection, projection)
        self._draw(f"{self._projection}.weight", projection.weight)
        self.tie_weights()

    def _scored(
        self,
        outputs: Seq2SeqModelOutput,
        labels: Tensor | None,
        return_dict: bool | None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        logits = self.get_output_embeddings()(outputs.last_hidden_state)
        other_outputs = {name: outputs[name] for name in outputs if name != "last_hidden_state"}
        loss = token_loss(logits, labels, num_items_in_batch)
        output = Seq2SeqLMOutput(loss=loss, logits=logits, **other_outputs)
        return output.as_asked(self.config, return_dict)

    def _check_labels(self, labels: Tensor) -> None:
        size = self.config.vocab_size
        check_tokens(labels, size, doing="training", what="labels", ignored=IGNORED_LABEL)

    def _decoder_inputs(
        self, labels: Tensor | None, ids: Tensor | None, embeds: Tensor | None
    ) -> Tensor | None:
        # Without IDs the decoder input is the labels shifted by one.
        if labels is None:
            return ids
        self._check_labels(labels)
        if ids is not None or embeds is not None:
            return ids
        if self.config.pad_token_id is None:
            raise ValueError(
                "training: config.pad_token_id is None, expected the token for ignored labels; "
                "set it, or pass decoder_input_ids"
            )
        shifted = F.pad(labels, (1, -1))
        shifted = shifted.masked_fill(shifted == IGNORED_LABEL, self.config.pad_token_id)
        shifted[:, :1] = self.config.decoder_start_token_id
        return shifted


def token_loss(
    logits: Float[Tensor, "batch token vocab"],
    labels: Tensor | None,
    num_items_in_batch: Tensor | int | None = None,
) -> Float[Tensor, "*_"] | None:
    """Return the mean cross entropy of (batch, token) labels; None without labels.

    With `num_items_in_batch` it is the sum divided by this number of labels: of all batches whose
    gradients are accumulated, so that each label counts the same.
    """
    if labels is None:
        return None
    if len(labels) == 1:
        # For every window, if one prompt is used for all.
        labels = labels.expand(len(logits), -1)
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"training: found labels of shape {tuple(labels.shape)}, expected "
            f"{tuple(logits.shape[:2])}, one for each decoder token"
        )
    targets = labels.to(logits.device, torch.long).flatten()
    if num_items_in_batch is None:
        return F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED_LABEL)
    total = F.cross_entropy(
        logits.flatten(0, 1), targets, ignore_index=IGNORED_LABEL, reduction="sum"
    )
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch
