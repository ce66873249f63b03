"""The weights of an ONNX file, node by node.

In: a file. Out: kinds of nodes with the arrays they hold, in the order of the graph. Knows nothing
of what they mean, and runs nothing.
"""

from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError as BrokenMessageError
from jaxtyping import Float32

WeightedNode = tuple[str, tuple[Float32[np.ndarray, "..."], ...]]
"""A node's `op_type` and its weights."""

_FLOAT = 1  # TensorProto.DataType

_FIELD = descriptor_pb2.FieldDescriptorProto
_ONE, _MANY = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED
_TEXT, _BYTES, _INT = _FIELD.TYPE_STRING, _FIELD.TYPE_BYTES, _FIELD.TYPE_INT64
# The fields that lead to the weights; protobuf passes over all others. The package onnx would bring
# the rest of the format, and as much code as everything else that an extract worker loads.
# Source: onnx/onnx.proto (ONNX 1.18), messages TensorProto, NodeProto, GraphProto, ModelProto.
_MESSAGES: dict[str, tuple[tuple[str, int, Any, Any], ...]] = {
    "Tensor": (
        ("dims", 1, _INT, _MANY),
        ("data_type", 2, _INT, _ONE),
        ("name", 8, _TEXT, _ONE),
        ("raw_data", 9, _BYTES, _ONE),
    ),
    "Node": (("input", 1, _TEXT, _MANY), ("op_type", 4, _TEXT, _ONE)),
    "Graph": (("node", 1, ".onnx.Node", _MANY), ("initializer", 5, ".onnx.Tensor", _MANY)),
    "Model": (("graph", 7, ".onnx.Graph", _ONE),),
}


def read_weights(path: Path) -> list[WeightedNode]:
    """Return the nodes that hold float32 weights.

    Raises:
        ValueError: the file is no ONNX file.
        OSError: it cannot be read.
    """
    try:
        graph = _model_class().FromString(path.read_bytes()).graph
        arrays = {
            tensor.name: np.frombuffer(tensor.raw_data, "<f4").reshape(tuple(tensor.dims))
            for tensor in graph.initializer
            if tensor.data_type == _FLOAT
        }
    except (BrokenMessageError, ValueError) as error:
        raise ValueError(f"reading {path}: {error}, expected an ONNX file") from error
    found = [
        (node.op_type, tuple(arrays[name] for name in node.input if name in arrays))
        for node in graph.node
    ]
    return [node for node in found if node[1]]


def _model_class() -> Any:
    """Build the class that reads `Model`."""
    file = descriptor_pb2.FileDescriptorProto(name="weights.proto", package="onnx", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, label in fields:
            entry = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                entry.type, entry.type_name = _FIELD.TYPE_MESSAGE, kind
            else:
                entry.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx.Model"))
