"""Settings that other packages read when they are imported, and the imports that need more than settings."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING

from facepipe.core.errors import UsageError
from facepipe.core.processors import compute_threads, visible_processors

if TYPE_CHECKING:
    import onnxruntime
    import openvino

_FATAL = 4
_TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
"""Read by torch, FAISS and NumPy's BLAS, and by OpenCV."""


def prepare_environment() -> None:
    """Switch ONNX Runtime's telemetry off and limit threads, in variables that the user has not set.

    From 1.32 on ONNX Runtime's wheels for Linux and macOS otherwise write a device id and an event database
    to `~/.cache/Microsoft`, look up a host and send events, from the moment they are imported.

    Other packages start a thread for every processor, whatever the process's CPU quota.
    """
    os.environ.setdefault(_TELEMETRY_VARIABLE, "1")
    try:
        threads = compute_threads()
    except UsageError:  # said by whoever computes
        return
    if threads != visible_processors():
        for name in THREAD_VARIABLES:
            os.environ.setdefault(name, str(threads))


def onnx_session(model: bytes, threads: int, *, unfold_weights: bool = False) -> onnxruntime.InferenceSession:
    """Open a session of ONNX Runtime on the CPU; the only place that imports it.

    Args:
        model: An ONNX file's content, checked by `facepipe.weights.onnx_file.require_self_contained`.
        threads: Within one operation.
        unfold_weights: Make floats of weights that are stored in fewer bits now, not in every run. Networks
            that compute in 8 bits compute in floats then.

    Raises:
        Exception: The model can't be loaded; each failure has a class of its own, without a common root.
    """
    import onnxruntime

    if os.environ.get(_TELEMETRY_VARIABLE) == "1":
        onnxruntime.disable_telemetry_events()  # on Windows, and where others imported it before facepipe
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Failures are raised as well: they are told once, in one line.
    options.log_severity_level = _FATAL
    onnxruntime.set_default_logger_severity(_FATAL)
    # Left to itself it takes its own format, too, whose files nobody has checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Threads spin while they wait within a run, not after it, when the next network needs the processors.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if unfold_weights:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@cache
def only_wanted_outputs() -> onnxruntime.RunOptions:
    """Return options of a run that computes no more than the outputs that are asked for."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    return options


def openvino_core() -> openvino.Core:
    """OpenVINO; the only place that imports it.

    Its import sends an event to Google Analytics and writes to `~/intel`, by a package that is hidden during
    the import.

    Raises:
        ImportError: It is not installed.
    """
    missing = object()
    before = sys.modules.get("openvino_telemetry", missing)
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if before is missing:
            del sys.modules["openvino_telemetry"]
        else:
            sys.modules["openvino_telemetry"] = before  # type: ignore[assignment]
    return openvino.Core()
