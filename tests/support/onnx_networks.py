"""Tiny ONNX networks, written byte by byte: the library that makes them is no dependency.

Source: the messages of `onnx/onnx.proto3`, of which a handful of fields are needed.
"""

from collections.abc import Sequence

FLOAT, INT64 = 1, 7
_VARINT, _BYTES = 0, 2


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _value(name: str, shape: Sequence[int | str], kind: int) -> bytes:
    axes = [_field(1, _field(1 if isinstance(axis, int) else 2, axis)) for axis in shape]
    tensor = _field(1, kind) + _field(2, b"".join(axes))
    return _field(1, name) + _field(2, _field(1, tensor))


def mean_network(
    *shape: int | str,
    axis: int | None = 1,
    keep: bool = False,
    kind: int = FLOAT,
    inputs: int = 1,
    times: int = 1,
) -> bytes:
    """Return a network that gives the mean over an axis of its first input, or for None itself.

    Where the axis is kept, it has that mean so many times.
    """
    width = [each for at, each in enumerate(shape) if at != axis or keep]
    out = [times if at == axis and keep else each for at, each in enumerate(width)]
    attributes = b""
    if axis is not None:
        axes = _field(1, "axes") + _field(8, axis) + _field(20, 7)
        kept = _field(1, "keepdims") + _field(3, int(keep)) + _field(20, 2)
        attributes = _field(5, axes) + _field(5, kept)
    operator = "Identity" if axis is None else "ReduceMean"
    node = _field(1, "input0") + _field(2, "mean") + _field(4, operator) + attributes
    over = _field(1, "axis") + _field(3, axis or 0) + _field(20, 2)
    joined = times * _field(1, "mean") + _field(2, "out") + _field(4, "Concat") + _field(5, over)
    graph = _field(1, node) + _field(1, joined) + _field(2, "mean")
    graph += b"".join(_field(11, _value(f"input{at}", shape, kind)) for at in range(inputs))
    graph += _field(12, _value("out", out, kind))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))
