"""One way to open an ONNX file: on the CPU, one thread unless asked, quiet.

One thread and batches of one make a score a function of its frame alone, and let the engine run as many workers as there are cores.
Price: a single frame takes longer than it could.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import DataError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["open_session"]

_ONLY_ERRORS = 3


def open_session(path: Path, *, intra_op_num_threads: int = 1) -> InferenceSession:
    """An `onnxruntime` session over a checked file.

    Raises:
        DataError: if the file is no ONNX model that this onnxruntime can run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ONLY_ERRORS
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exception classes derive from Exception directly
        raise DataError(f"{path} cannot be run by onnxruntime {onnxruntime.__version__}: {error}") from error
