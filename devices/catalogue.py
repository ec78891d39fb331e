"""The devices this project knows. A new one is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from berxit.devices.machine import Machine


@dataclass(frozen=True)
class Device:
    name: str
    description: str
    targets: tuple[str, ...]
    """Bundle targets that it runs, the one to export for first."""
    precision: str
    """What to export in, unless the user says otherwise."""
    is_this: Callable[[Machine], bool]
    """Is this machine one of these?"""
    how_to_get_there: str
    """What to do when it is not."""
    threads: int | None = None
    """CPU threads; None takes ``default_threads()``."""
    workspace_mib: int = 1024
    """Memory that TensorRT may try tactics in while it builds engines."""
    power_modes: tuple[str, ...] = ()
    """What ``nvpmodel`` offers, the strongest last: say which one a number was measured in."""
    lengths: tuple[int, ...] = ()
    """Input lengths to prepare bundles for, as far as the model goes; empty: any. The Neural Engine wants them. They go
    with ``target_version``: an older system may take no list of lengths."""
    layout: str | None = None
    """How hidden states lie best, where a target knows several."""
    target_version: str | None = None
    """The oldest system to export for; Xavier ends with JetPack 5."""
    in_an_app: bool = False
    """True for a device without Python, where an app runs the bundle."""
    compute_units: str | None = None
    """What CoreML should use, as coremltools names it: ALL, CPU_AND_NE, CPU_AND_GPU, CPU_ONLY. Chosen where a bundle is
    loaded: on a Mac this is the back end's default, an app says it to the Swift package."""


def _board(*words: str) -> Callable[[Machine], bool]:
    return lambda machine: all(word.lower() in machine.board.lower() for word in words)


def _jetson(machine: Machine) -> bool:
    """JetPack 5 leaves the word Jetson out of some boards' names."""
    return any(word in machine.board.lower() for word in ("jetson", "orin", "xavier"))


def _macos(machine: Machine) -> bool:
    return machine.system == "Darwin"


def _any(machine: Machine) -> bool:
    return True


def _never(machine: Machine) -> bool:
    return False


_ON_THE_JETSON = "copy the bundle to the Jetson, whose JetPack brings TensorRT, and run this command there"
_POWERS_OF_TWO = (16, 32, 64, 128, 256, 512)
_ON_THE_PHONE = "there is no Python on it; copy the bundle into an app"

DEVICES: tuple[Device, ...] = (
    Device("jetson-orin-nano", "NVIDIA Jetson Orin Nano", ("tensorrt", "onnxruntime"), "fp16",
           _board("orin nano"), _ON_THE_JETSON,
           target_version="jetpack6", workspace_mib=512,
           power_modes=("7W", "15W", "25W", "MAXN SUPER")),
    Device("jetson-orin-nx", "NVIDIA Jetson Orin NX", ("tensorrt", "onnxruntime"), "fp16",
           _board("orin nx"), _ON_THE_JETSON,
           target_version="jetpack6", workspace_mib=1024,
           power_modes=("10W", "15W", "25W", "MAXN")),
    Device("jetson-agx-orin", "NVIDIA Jetson AGX Orin", ("tensorrt", "onnxruntime"), "fp16",
           _board("agx orin"), _ON_THE_JETSON,
           target_version="jetpack6", workspace_mib=2048,
           power_modes=("15W", "30W", "50W", "MAXN")),
    Device("jetson-xavier", "NVIDIA Jetson Xavier NX or AGX Xavier", ("tensorrt", "onnxruntime"), "fp16",
           _board("xavier"), _ON_THE_JETSON,
           target_version="jetpack5", workspace_mib=512,
           power_modes=("10W", "15W", "20W", "30W", "MAXN")),
    Device("jetson", "any NVIDIA Jetson", ("tensorrt", "onnxruntime"), "fp16",
           _jetson, _ON_THE_JETSON, workspace_mib=512),
    Device("raspberry-pi", "Raspberry Pi 4 or 5, 64-bit system", ("onnxruntime",), "fp32",
           _board("raspberry pi"), "copy the bundle to the Raspberry Pi and run this command there"),
    Device("desktop-gpu", "desktop or server with an NVIDIA GPU", ("tensorrt", "onnxruntime"), "fp16",
           lambda machine: bool(machine.gpu) and not machine.board,
           "run this command on a machine whose nvidia-smi shows a GPU",
           target_version="tensorrt10",
           workspace_mib=4096),
    Device("mac", "Mac", ("coreml", "onnxruntime"), "fp16",
           _macos, "run this command on a Mac", target_version="macos15", compute_units="ALL"),
    Device("iphone", "iPhone", ("coreml",), "fp16", _never, _ON_THE_PHONE, in_an_app=True,
           lengths=_POWERS_OF_TWO, target_version="ios18", layout="ane", compute_units="CPU_AND_NE"),
    Device("ipad", "iPad", ("coreml",), "fp16", _never, _ON_THE_PHONE, in_an_app=True,
           lengths=_POWERS_OF_TWO, target_version="ios18", layout="ane", compute_units="CPU_AND_NE"),
    Device("cpu", "any machine, on its CPU", ("onnxruntime",), "fp32",
           _any, "run this command on any machine"),
)  # fmt: skip
"""From the most special to the most general: the first that fits is what a machine is."""
