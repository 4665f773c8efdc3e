"""Where networks run: ONNX Runtime on the CPU by default, OpenVINO or torch on request, torch for CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

import cv2
import numpy as np

from facepipe.core.counting import counted
from facepipe.core.environment import only_wanted_outputs, onnx_session, openvino_core
from facepipe.core.errors import DeviceError, MissingExtraError, UsageError, WeightsError, one_line
from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.core.forks import never_free, watch_forks
from facepipe.core.processors import compute_threads
from facepipe.weights.cards import InputSpec, WeightCard
from facepipe.weights.registry import Weight

if TYPE_CHECKING:
    import openvino
    import torch

Engine = Literal["onnx", "openvino", "torch"]
RuntimeName = Literal["auto", "onnx", "openvino", "torch"]
RUNTIME_NAMES: tuple[str, ...] = get_args(RuntimeName)
_ENGINES: dict[Engine, str] = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "torch": "torch"}


@dataclass(frozen=True, slots=True)
class RuntimeChoice:
    """A runtime and its device, made by `choose_runtime`, which checks that they are available.

    Attributes:
        runtime: "onnx", "openvino" or "torch".
        device: "cpu", "cuda" or "cuda:N".
        threads: Threads within one operation on the CPU.
        calls: Number of concurrent calls of a network on the CPU, each on `threads` threads.
    """

    runtime: Engine
    device: str
    threads: int
    calls: int = 1

    def __str__(self) -> str:
        threads = f", {counted(self.threads * self.calls, 'thread')}" if self.device == "cpu" else ""
        return f"{_ENGINES[self.runtime]} on {self.device}{threads}"


class Network(Protocol):
    """A loaded network: one float32 batch (n, 3, h, w) in, its outputs as float32 arrays out.

    Threads may share it.
    """

    def run(self, batch: FloatArray, outputs: int | None = None) -> Sequence[FloatArray]:
        """Return the outputs in the network's order.

        Args:
            batch: float32 (n, 3, h, w).
            outputs: How many of them are wanted, the first ones; None: all. ONNX Runtime does not compute
                the others.

        Raises:
            WeightsError: The network can't compute them for such a batch, or not in the memory there is.
        """


def choose_runtime(
    runtime: RuntimeName = "auto", device: str = "auto", threads: int | None = None, calls: int = 1
) -> RuntimeChoice:
    """Choose a runtime. "auto" is ONNX Runtime on the CPU, and torch for a CUDA device.

    Args:
        runtime: One of `RUNTIME_NAMES`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Within one operation; None: a share of `compute_threads()` for each of `calls`.
        calls: How many calls of a network are to run side by side.

    Raises:
        UsageError: An unknown runtime or device, or a device that the asked-for runtime can't use.
        DeviceError: The device is missing here.
        MissingExtraError: torch or OpenVINO is asked for and not installed.
    """
    if runtime not in RUNTIME_NAMES:
        raise UsageError(f"unknown runtime {runtime!r}: expected one of {', '.join(RUNTIME_NAMES)}")
    on_cpu = device in ("auto", "cpu")
    if not on_cpu and device != "cuda" and not (device.startswith("cuda:") and device[5:].isdecimal()):
        raise UsageError(f"unknown device {device!r}: expected cpu, cuda or cuda:N")
    if runtime in ("onnx", "openvino") and not on_cpu:
        raise UsageError(f"runtime {runtime} runs on the CPU only; for {device} use --runtime torch")
    engine: Engine = runtime if runtime != "auto" else "onnx" if on_cpu else "torch"
    if engine == "torch":
        _require_torch(device)
    if engine == "openvino" and find_spec("openvino") is None:
        raise MissingExtraError("the OpenVINO runtime", "openvino")
    threads = threads or max(1, compute_threads() // calls)
    return RuntimeChoice(engine, "cpu" if on_cpu else device, threads, calls)


def open_network(weight: Weight, choice: RuntimeChoice) -> Network:
    """Load a weight's network for serving; its files are verified against the card.

    A process that is forked afterwards loads the network again at its first call there.

    Raises:
        WeightsError: A file is missing or damaged, or the weight does not fit the runtime.
        DeviceError: OpenVINO is installed and can't be loaded.
    """
    return ProcessNetwork(weight, choice)


class ProcessNetwork:
    """A network that a forked process opens again at its first call there.

    The threads of the parent's network are missing in the child: a call of it may wait for them forever.
    """

    def __init__(self, weight: Weight, choice: RuntimeChoice) -> None:
        self._weight, self._choice = weight, choice
        self._network: Network | None = _open(weight, choice)
        watch_forks(self)

    def run(self, batch: FloatArray, outputs: int | None = None) -> Sequence[FloatArray]:
        """See `Network.run`.

        Raises:
            DeviceError: In a forked process, where the network is on a CUDA device.
        """
        if self._network is None:
            self._network = _open_in_child(self._weight, self._choice)
        return self._network.run(batch, outputs)

    def leave_to_parent(self) -> None:
        """Forget the parent's network without freeing it."""
        if self._network is not None:
            never_free(self._network)
        self._network = None


def _open(weight: Weight, choice: RuntimeChoice) -> Network:
    if choice.runtime == "onnx":
        return OnnxNetwork(weight, choice.threads)
    if choice.runtime == "openvino":
        return OpenVinoNetwork(weight, choice)
    return TorchNetwork(weight, choice)


def _open_in_child(weight: Weight, choice: RuntimeChoice) -> Network:
    if choice.device != "cpu":
        raise DeviceError(
            f"{choice.device} can't be used in a process that was forked after the network was loaded: "
            "load it in that process, and start the process by the method 'spawn'"
        )
    # torch's OpenMP has no threads in a child and would wait for them.
    return _open(weight, replace(choice, threads=1) if choice.runtime == "torch" else choice)


class OnnxNetwork:
    """A network on ONNX Runtime, CPU."""

    def __init__(self, weight: Weight, threads: int) -> None:
        from facepipe.weights.files import read_onnx

        model = read_onnx(weight)
        try:
            self._session = onnx_session(model, threads)
        except Exception as error:  # each failure has a class of its own, without a common root
            reason = one_line(error)
            raise WeightsError(f"{weight.onnx_path}: ONNX Runtime can't load it: {reason}") from error
        its_input = _only_input(weight, self._session.get_inputs())
        self._path, self._input = weight.onnx_path, its_input.name
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._form = InputForm.of_shape(its_input.shape, weight.onnx_path)

    def run(self, batch: FloatArray, outputs: int | None = None) -> Sequence[FloatArray]:
        """See `Network.run`."""
        return self._form.run(partial(self._call, self._outputs[:outputs]), batch)

    def _call(self, outputs: Sequence[str], batch: FloatArray) -> Sequence[FloatArray]:
        try:
            found = self._session.run(outputs, {self._input: batch}, only_wanted_outputs())
            return cast(Sequence[FloatArray], found)
        except Exception as error:  # as when it is loaded
            raise WeightsError(f"{self._path}: ONNX Runtime can't run it: {one_line(error)}") from error


class OpenVinoNetwork:
    """A network on OpenVINO, CPU.

    It computes in 32-bit floats on every processor: OpenVINO's own choice depends on the processor, and
    moves vectors by 0.01 where that has units for shorter floats.
    """

    def __init__(self, weight: Weight, choice: RuntimeChoice) -> None:
        from facepipe.weights.files import read_onnx

        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": str(choice.calls),
            "INFERENCE_NUM_THREADS": str(choice.calls * choice.threads),
        }
        model = read_onnx(weight)
        core = _openvino_core()
        try:
            self._compiled = core.compile_model(core.read_model(BytesIO(model)), "CPU", settings)
        except RuntimeError as error:
            reason = one_line(error)
            raise WeightsError(f"{weight.onnx_path}: OpenVINO can't load it: {reason}") from error
        shape = _only_input(weight, self._compiled.inputs).get_partial_shape()
        self._form = InputForm.of_shape(
            [side.get_length() if side.is_static else None for side in shape], weight.onnx_path
        )
        self._path = weight.onnx_path
        self._idle: list[openvino.InferRequest] = []  # each serves one call at a time

    def run(self, batch: FloatArray, outputs: int | None = None) -> Sequence[FloatArray]:
        """See `Network.run`."""
        return self._form.run(self._call, batch)[:outputs]

    def _call(self, batch: FloatArray) -> Sequence[FloatArray]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            results = request.infer([batch], share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise WeightsError(f"{self._path}: OpenVINO can't run it: {one_line(error)}") from error
        outputs = [results[output] for output in self._compiled.outputs]
        self._idle.append(request)
        return outputs


def _openvino_core() -> openvino.Core:
    try:
        return openvino_core()
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        raise DeviceError(
            f"OpenVINO can't be loaded ({one_line(error)}): pip install --force-reinstall openvino, "
            "or use --runtime onnx"
        ) from error


class TorchNetwork:
    """A network on torch."""

    def __init__(self, weight: Weight, choice: RuntimeChoice) -> None:
        import torch

        from facepipe.runtime.architectures import load_network, serving_module

        if choice.device == "cpu":
            torch.set_num_threads(choice.threads)
        self._device = torch.device(choice.device)
        self._module: torch.nn.Module = serving_module(load_network(weight)).eval().to(self._device)

    def run(self, batch: FloatArray, outputs: int | None = None) -> Sequence[FloatArray]:
        """See `Network.run`."""
        import torch

        with torch.inference_mode():
            found = self._module(torch.from_numpy(batch).to(self._device))
        many = found if isinstance(found, tuple) else (found,)
        return [output.float().cpu().numpy() for output in many[:outputs]]


@dataclass(frozen=True, slots=True)
class InputForm:
    """The layout of an ONNX file's input, by its shape.

    Attributes:
        channels_last: (n, h, w, 3) instead of (n, 3, h, w).
        one_by_one: Only one image per call.
        side_px: Of the images, where it is fixed and they are square; None: any.
    """

    channels_last: bool
    one_by_one: bool
    side_px: int | None

    @classmethod
    def of_shape(cls, shape: Sequence[int | str | None], source: Path | None) -> InputForm:
        """Return the form of an input; sizes that are not fixed are names or None.

        Raises:
            WeightsError: It takes no batch of color images, or of several images only; names `source`.
        """
        fixed = [side if isinstance(side, int) else None for side in shape]
        batch, image = (fixed or [None])[0], fixed[1:]
        channels_last = image[:1] != [3] and image[2:] == [3]
        sides = {side for side in (image[:2] if channels_last else image[1:]) if side is not None}
        color = channels_last or image[:1] == [3] or image[:1] == [None]
        if len(image) != 3 or not color or batch not in (None, 1):
            raise WeightsError(
                f"{source}: expected an input of color images, (n, 3, h, w) or (n, h, w, 3) with any n or 1, "
                f"got {one_line(list(shape))}"
            )
        return cls(channels_last, batch == 1, sides.pop() if len(sides) == 1 else None)

    def run(self, call: Callable[[FloatArray], Sequence[FloatArray]], batch: FloatArray) -> list[FloatArray]:
        """Return the outputs for a batch (n, 3, h, w), of which `call` takes what this form has."""
        images = np.ascontiguousarray(batch.transpose(0, 2, 3, 1)) if self.channels_last else batch
        if not self.one_by_one or len(images) == 1:
            return list(call(images))
        single = [call(images[i : i + 1]) for i in range(len(images))]
        return [
            np.concatenate([np.atleast_1d(part) for part in parts]) for parts in zip(*single, strict=True)
        ]


def _only_input(weight: Weight, inputs: Sequence[Any]) -> Any:
    if len(inputs) != 1:
        raise WeightsError(f"{weight.onnx_path}: expected a network of one input, got {len(inputs)}")
    return inputs[0]


def require_shapes(card: WeightCard, outputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> None:
    """Check that a network's outputs are float arrays of these shapes.

    Raises:
        WeightsError: There are more or fewer, or of another form.
    """
    found = [getattr(output, "shape", ()) for output in outputs]  # a sequence or a map has none
    if found != list(shapes) or not all(output.dtype == np.float32 for output in outputs):
        raise WeightsError(
            f"{card.name}: by its card the network gives float32 of {_listed(shapes)}, "
            f"but it gives {_listed(found)}"
        )


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return one_line(", ".join(map(str, shapes)) or "nothing", 200)


def to_planes(image: UInt8Array, spec: InputSpec, out: FloatArray) -> None:
    """Write an RGB image (h, w, 3), preprocessed as the card says, to the top-left of `out` (3, H, W).

    The rest of `out` is left alone: zeros there are the padding that the networks were trained with.
    """
    height, width = image.shape[:2]
    planes = cv2.split(image)
    for i, plane in enumerate(planes if spec.channels == "rgb" else planes[::-1]):
        view = out[i, :height, :width]
        np.subtract(plane, np.float32(spec.mean[i]), out=view, dtype=np.float32)
        if spec.std[i] != 1:
            view *= np.float32(1 / spec.std[i])


def _require_torch(device: str) -> None:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("the torch runtime", "train") from error
    if not device.startswith("cuda"):
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(device[5:]) if ":" in device else 0
    if index >= count:
        raise DeviceError(
            f"{device} is not available: torch sees {counted(count, 'CUDA device')}; use --device cpu"
        )
