"""Loads ONNX networks for one thread; callers know their inputs and outputs."""

from pathlib import Path

import onnxruntime

from corpus_asr.errors import CheckpointError


def session_of(path: Path, *, what: str) -> onnxruntime.InferenceSession:
    """Load a network for one thread; `what` is its name in errors.

    Raises:
        CheckpointError: it cannot be read.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exception classes are not public
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"loading the {what} {path}: {first_line}, expected an ONNX network; replace the file"
        ) from error
