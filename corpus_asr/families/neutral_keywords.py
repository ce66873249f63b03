"""Keywords of transformers' `from_pretrained` and `save_pretrained` without effect here.

One list for networks, configurations, tokenizers, feature extractors, processors and auto classes.
A keyword that would have an effect is rejected with a suggested replacement.
"""

from typing import Any

# Control how the reference loads and saves, not the result: any value.
_OF_LOADING = (
    "use_fast", "trust_remote_code", "code_revision", "resume_download", "mirror", "tqdm_class",
    "low_cpu_mem_usage", "max_memory", "offload_folder", "offload_state_dict", "offload_buffers",
    "weights_only", "from_tf", "from_flax", "allow_all_kernels", "use_kernels", "disable_mmap",
    "fusion_config", "user_agent", "_from_auto", "_from_pipeline", "_fast_init", "_commit_hash",
)  # fmt: skip
_OF_SAVING = (
    "save_function", "legacy_format", "save_format", "save_peft_format", "save_original_format",
    "distributed_checkpoint", "is_main_process", "safe_serialization", "max_shard_size",
    "use_diff",
)  # fmt: skip

# Accepted only as None, False or empty; other values are rejected with this message.
_QUANTIZED = (
    "load the model, then call torch.ao.quantization.quantize_dynamic; or transcribe with "
    'corpus_asr.Transcriber(..., compute_type="int8")'
)
_ONE_DEVICE = "a model is on one device; use torch's own FSDP or DataParallel after loading"
_INSTEAD = {
    "proxies": "set the environment variable HTTPS_PROXY",
    "use_auth_token": "pass it as token",
    "variant": "only models have it",
    "quantization_config": _QUANTIZED,
    "load_in_8bit": _QUANTIZED,
    "load_in_4bit": _QUANTIZED,
    "gguf_file": "GGUF is not read; take the checkpoint it was made of",
    "state_dict": "only models take it",
    "generation_config": "only models take it",
    "output_loading_info": "only models have it",
    "key_mapping": "rename the keys of a state dict, and pass that as state_dict",
    "adapter_name": "load adapters with peft.PeftModel.from_pretrained",
    "adapter_kwargs": "load adapters with peft.PeftModel.from_pretrained",
    "tp_plan": _ONE_DEVICE,
    "tp_size": _ONE_DEVICE,
    "device_mesh": _ONE_DEVICE,
    "distributed_config": _ONE_DEVICE,
    "kernel_config": "kernels are torch's own",
    "experts_implementation": "there are no experts in these networks",
}
_NOTHING: tuple[Any, ...] = (None, False, "", {}, [])


def drop_neutral(options: dict[str, Any], *, saving: bool = False) -> None:
    """Remove the keywords without effect from `options`; raises TypeError for others."""
    problems = []
    for name in [*options]:
        value = options[name]
        if name in (_OF_SAVING if saving else _OF_LOADING):
            del options[name]
        elif name in _INSTEAD:
            if not any(value is nothing or value == nothing for nothing in _NOTHING):
                problems.append(f"{name}={value!r}: {_INSTEAD[name]}")
            del options[name]
        elif saving and value is None:
            del options[name]
    if problems:
        doing = "saving" if saving else "loading"
        raise TypeError(f"{doing}: found {'; '.join(problems)}; leave it out")
