"""A Parakeet network of `benchmarks.parakeet` as ONNX files, run by onnx-asr's own loop.

Needs an environment of its own with the project's packages, onnx, onnxruntime and onnx-asr; see
`--onnx-asr` of `benchmarks.parakeet`. The files have the inputs and outputs of NeMo's exports and
the shape of one batch; `int8` holds the weights of products in 8 bits, as published files do.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.parakeet import batch_of, cpu_s
from benchmarks.worker import Engine


class _Encoder(nn.Module):
    """Of transformers; features have NeMo's axes."""

    def __init__(self, network: Any, frames: int) -> None:
        super().__init__()
        self.encoder, self.head = network.encoder, getattr(network, "ctc_head", None)
        self.frames = frames

    def forward(self, audio_signal: Tensor, length: Tensor) -> Any:
        mask = torch.arange(self.frames)[None] < length[:, None]
        states = self.encoder(audio_signal.transpose(1, 2), attention_mask=mask).last_hidden_state
        if self.head is not None:
            return self.head(states).log_softmax(-1)
        return states.transpose(1, 2), (length - 1) // 8 + 1


class _Joint(nn.Module):
    """Prediction and joint network for one token and one position."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.projector, self.decoder = network.encoder_projector, network.decoder
        self.joint = network.joint

    def forward(self, encoded: Tensor, token: Tensor, count: Tensor, *state: Tensor) -> Any:
        hidden, kept = self.decoder.lstm(self.decoder.embedding(token), state)
        scores = self.joint(
            decoder_hidden_states=self.decoder.decoder_projector(hidden),
            encoder_hidden_states=self.projector(encoded.transpose(1, 2)),
        )
        return scores, count, *kept


def export(network: Any, features: Tensor, frames: Sequence[int], folder: Path) -> None:
    """Write the files that onnx-asr reads."""
    save: Callable[..., Any] = torch.onnx.export
    ctc = hasattr(network, "ctc_head")
    given = (features.transpose(1, 2).contiguous(), torch.tensor(frames))
    save(
        _Encoder(network, features.shape[1]).eval(), given, str(folder / "encoder.onnx"),
        dynamo=False, input_names=["audio_signal", "length"],
        output_names=["logprobs"] if ctc else ["outputs", "encoded_lengths"],
    )  # fmt: skip
    if not ctc:
        _export_joint(network, folder)
    # The last one: where it is, the others are.
    vocab = network.config.vocab_size
    names = [*(f"t{number} {number}" for number in range(vocab - 1)), f"<blk> {vocab - 1}"]
    (folder / "vocab.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def _export_joint(network: Any, folder: Path) -> None:
    save: Callable[..., Any] = torch.onnx.export
    one = torch.ones(1, dtype=torch.int32)
    config = network.config
    state = [torch.zeros(config.num_decoder_layers, 1, config.decoder_hidden_size)] * 2
    save(
        _Joint(network).eval(),
        (torch.randn(1, config.encoder_config.hidden_size, 1), one[None], one, *state),
        str(folder / "joint.onnx"), dynamo=False,
        input_names=[
            "encoder_outputs", "targets", "target_length", "input_states_1", "input_states_2",
        ],
        output_names=["outputs", "prednet_lengths", "output_states_1", "output_states_2"],
    )  # fmt: skip


def engine(
    model: str, *, library: str, head: str, dtype: str, threads: int, seconds: Sequence[float]
) -> Engine:
    """Export the network where no files of it are, and load these."""
    nemo = importlib.import_module("onnx_asr.models.nemo")
    runtime = importlib.import_module("onnxruntime")
    transformers = importlib.import_module("transformers")
    kind = getattr(transformers, f"ParakeetFor{head}")
    network = kind.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    features, frames = batch_of(network, seconds)
    folder = Path(model) / "onnx"
    if not (folder / "vocab.txt").exists():
        folder.mkdir(exist_ok=True)
        with torch.inference_mode():
            export(network, features, frames, folder)
    if dtype == "int8":
        quantization = importlib.import_module("onnxruntime.quantization")
        for path in ("encoder", "joint"):
            small = folder / f"{path}.int8.onnx"
            if (whole := folder / f"{path}.onnx").exists() and not small.exists():
                quantization.quantize_dynamic(whole, small, op_types_to_quantize=["MatMul"])
    del network
    suffix = ".int8.onnx" if dtype == "int8" else ".onnx"
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    encoder = "model" if head == "CTC" else "encoder"
    files = {encoder: folder / f"encoder{suffix}", "vocab": folder / "vocab.txt"}
    files |= {} if head == "CTC" else {"decoder_joint": folder / f"joint{suffix}"}
    loaded = getattr(nemo, f"NemoConformer{head.title()}")(
        files, lambda _: None, {"sess_options": options, "providers": ["CPUExecutionProvider"]}
    )
    given = features.transpose(1, 2).contiguous().numpy(), torch.tensor(frames).numpy()
    alone: dict[str, float] = {}

    def work(warm_up: Sequence[str]) -> dict[str, Any]:
        if warm_up:
            alone["encoder CPU s"] = cpu_s(lambda: loaded._encode(*given))
        found = list(loaded._decoding(*loaded._encode(*given)))
        return {"tokens": sum(len(list(row[0])) for row in found), **alone}

    return work
