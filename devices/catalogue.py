"""Supported devices. A new device is one new entry in DEVICES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from berxit.devices.machine import Machine, is_jetson


@dataclass(frozen=True)
class Device:
    name: str
    description: str
    targets: tuple[str, ...]
    """Bundle targets that run on the device; the first is the default of ``berxit export``."""
    precision: str
    """Default precision of an export."""
    matches: Callable[[Machine], bool]
    """Returns True if a machine is such a device."""
    remedy: str
    """Instruction for a user who selects this device on another machine."""
    threads: int | None = None
    """Default number of CPU threads; None: ``default_threads()``."""
    workspace_mib: int = 1024
    """Workspace memory for the TensorRT builder, in MiB."""
    power_modes: tuple[str, ...] = ()
    """Power modes of all modules of the board in ascending order of power, as ``nvpmodel -q`` names them without the
    prefix MODE_. A module has some of them, and "super" modes exist from JetPack 6.2 on. Report the power mode with
    each measurement."""
    lengths: tuple[int, ...] = ()
    """Fixed input lengths of an exported bundle, up to the model's maximum; empty: any length. The Neural Engine needs
    fixed lengths. A version of the operating system before ``target_version`` may not support several lengths."""
    layout: str | None = None
    """Best memory layout of hidden states, for targets with several layouts."""
    target_version: str | None = None
    """Oldest version of the operating system to export for. JetPack 5 is the last version for Xavier."""
    in_an_app: bool = False
    """True for a device without Python, where an app runs the bundle."""
    compute_units: str | None = None
    """CoreML compute units, as coremltools names them: ALL, CPU_AND_NE, CPU_AND_GPU, CPU_ONLY. They are chosen when a
    bundle is loaded: the CoreML backend uses this value on a Mac, and an app passes it to the Swift package."""


def _board(*words: str) -> Callable[[Machine], bool]:
    return lambda machine: all(word.lower() in machine.board.lower() for word in words)


def _jetson(machine: Machine) -> bool:
    return is_jetson(machine.board)


def _macos(machine: Machine) -> bool:
    return machine.system == "Darwin"


def _any(machine: Machine) -> bool:
    return True


def _never(machine: Machine) -> bool:
    return False


_ON_THE_JETSON = "copy the bundle to the Jetson and run this command there; JetPack includes TensorRT"
_FIXED_LENGTHS = (32, 64, 128, 256, 512)
"""For the Neural Engine. Below 32 tokens, the fixed cost of a call is expected to exceed what a shorter length saves;
no device has been measured yet."""
_ON_THE_PHONE = "it has no Python; add the bundle to an app"

DEVICES: tuple[Device, ...] = (
    Device("jetson-orin-nano", "NVIDIA Jetson Orin Nano", ("tensorrt", "onnxruntime"), "fp16",
           _board("orin nano"), _ON_THE_JETSON,
           target_version="jetpack6", workspace_mib=512,
           power_modes=("7W", "10W", "15W", "25W", "MAXN_SUPER")),
    Device("jetson-orin-nx", "NVIDIA Jetson Orin NX", ("tensorrt", "onnxruntime"), "fp16",
           _board("orin nx"), _ON_THE_JETSON,
           target_version="jetpack6", workspace_mib=1024,
           power_modes=("10W", "15W", "20W", "25W", "MAXN", "40W", "MAXN_SUPER")),
    Device("jetson-agx-orin", "NVIDIA Jetson AGX Orin", ("tensorrt", "onnxruntime"), "fp16",
           _board("agx orin"), _ON_THE_JETSON,
           target_version="jetpack6", workspace_mib=2048,
           power_modes=("15W", "30W", "40W", "50W", "MAXN")),
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
           lengths=_FIXED_LENGTHS, target_version="ios18", layout="ane", compute_units="CPU_AND_NE"),
    Device("ipad", "iPad", ("coreml",), "fp16", _never, _ON_THE_PHONE, in_an_app=True,
           lengths=_FIXED_LENGTHS, target_version="ios18", layout="ane", compute_units="CPU_AND_NE"),
    Device("cpu", "any machine (CPU)", ("onnxruntime",), "fp32",
           _any, "run this command on any machine"),
)  # fmt: skip
"""Ordered from the most specific device to the most general; ``recognise`` returns the first match."""
