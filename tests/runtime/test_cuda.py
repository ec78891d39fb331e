"""The CUDA module on the real cuda-python and a fake driver; see fake_cuda."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import Driver, run_with_driver

from berxit.runtime.backends.tensorrt.cuda import Cuda, Gpu, no_gpu
from berxit.runtime.errors import BerxitError

SESSION = (Path(__file__).parent / "fake_cuda" / "session.py").read_text(encoding="utf-8")


def test_upload_is_complete_when_it_returns(cuda_driver: Driver) -> None:
    cuda, array = Cuda.open(), np.arange(1000, dtype=np.float32)
    address = cuda.upload(array, cuda.stream())
    np.testing.assert_array_equal(cuda_driver.at(address, array.nbytes).view(np.float32), array)


def test_copies_run_in_order_on_the_stream(cuda_driver: Driver) -> None:
    cuda = Cuda.open()
    stream, device = cuda.stream(), cuda.allocate(64)
    address, host = cuda.pinned(64)
    host[:32] = np.arange(32)
    cuda.copy_in(device, address, 32, stream)
    cuda.move(device + 32, device, 32, stream)
    cuda.copy_out(address + 32, device + 32, 32, stream)
    assert not np.array_equal(host[32:], host[:32])  # enqueued only
    cuda.wait(stream)
    np.testing.assert_array_equal(host[32:], host[:32])


def test_wait_for_event_runs_earlier_work_only(cuda_driver: Driver) -> None:
    cuda, ran = Cuda.open(), []
    stream, event = cuda.stream(), cuda.event()
    cuda_driver.launch(stream, lambda: ran.append("before"))
    cuda.mark(event, stream)
    cuda_driver.launch(stream, lambda: ran.append("after"))
    cuda.wait_for(event)
    assert ran == ["before"]
    cuda.wait(stream)
    assert ran == ["before", "after"]


def test_captured_work_runs_at_each_launch(cuda_driver: Driver) -> None:
    cuda, ran = Cuda.open(), []
    stream = cuda.stream()
    graph = cuda.capture(lambda: cuda_driver.launch(stream, lambda: ran.append(1)), stream)
    assert (ran, cuda_driver.live()) == ([], {"stream": 1, "launchable": 1})
    for _ in range(2):
        cuda.launch(graph, stream)
    cuda.wait(stream)
    assert len(ran) == cuda_driver.calls("cuGraphLaunch") == 2
    cuda.free_graph(graph)
    assert "launchable" not in cuda_driver.live()


@pytest.mark.parametrize("refused", ["wait", "allocate"])
def test_capture_returns_none_if_work_cannot_be_captured(refused: str, cuda_driver: Driver) -> None:
    cuda, ran = Cuda.open(), []
    stream = cuda.stream()
    work = {"wait": lambda: cuda.wait(stream), "allocate": lambda: cuda.allocate(8)}[refused]
    assert cuda.capture(work, stream) is None
    cuda_driver.launch(stream, lambda: ran.append(1))
    cuda.wait(stream)  # The stream works as before.
    assert ran == [1]
    assert cuda_driver.live() == {"stream": 1}


def test_capture_leaves_nothing_after_error_of_caller(cuda_driver: Driver) -> None:
    cuda = Cuda.open()
    stream = cuda.stream()
    with pytest.raises(ZeroDivisionError):
        cuda.capture(lambda: 1 // 0, stream)
    assert not cuda_driver.capturing(stream)
    assert cuda_driver.live() == {"stream": 1}


def test_gpu_uses_mapped_memory_in_place(cuda_driver: Driver) -> None:
    cuda = Cuda.open()
    address, host = cuda.mapped(256)
    host[:] = 7
    on_gpu = cuda_driver.at(address, 256)
    assert on_gpu.tolist() == host.tolist()
    on_gpu[:] = 9
    assert set(host) == {9}


def test_close_releases_everything_once(cuda_driver: Driver) -> None:
    cuda = Cuda.open()
    cuda.event(), cuda.allocate(0), cuda.pinned(10), cuda.upload(np.ones(3), cuda.stream())
    assert cuda_driver.live() == {"memory": 2, "pinned": 1, "stream": 1, "event": 1}
    cuda.close()
    cuda.close()
    assert cuda_driver.live() == {}


def test_all_or_nothing_releases_what_its_block_created(cuda_driver: Driver) -> None:
    cuda = Cuda.open()
    cuda.stream()
    cuda_driver.fail("cuEventCreate=2")
    with pytest.raises(BerxitError), cuda.all_or_nothing():
        cuda.allocate(10), cuda.pinned(10), cuda.event()
    assert cuda_driver.live() == {"stream": 1}
    with cuda.all_or_nothing():
        cuda.allocate(10)
    assert cuda_driver.live() == {"stream": 1, "memory": 1}


# --- errors --------------------------------------------------------------------------------------------------------


def use(cuda: Cuda) -> None:
    """Calls every method of the CUDA module that uses the driver."""
    cuda.gpu()
    stream, event = cuda.stream(), cuda.event()
    device = cuda.upload(np.ones(8, np.uint8), stream)
    address, _ = cuda.pinned(16)
    cuda.mapped(16)
    cuda.copy_out(address, device, 8, stream)
    graph = cuda.capture(lambda: cuda.copy_out(address, device, 8, stream), stream)
    try:
        if graph is not None:
            cuda.launch(graph, stream)
        cuda.move(cuda.allocate(8), device, 8, stream)
        cuda.mark(event, stream)
        cuda.wait_for(event)
    finally:
        if graph is not None:
            cuda.free_graph(graph)


def test_each_failed_call_raises_one_line_and_leaks_nothing(cuda_driver: Driver) -> None:
    cuda = Cuda.open()
    use(cuda)
    cuda.close()
    context = {name for name in cuda_driver.functions() if name.startswith(("cuCtx", "cuDevice", "cuInit"))}
    releases = {"cuMemFree": 2, "cuMemFreeHost": 2, "cuStreamDestroy": 1, "cuEventDestroy": 1, "cuGraphDestroy": 1,
                "cuGraphExecDestroy": 1}  # fmt: skip
    full = r"CUDA's cuda\w+ failed with cudaErrorMemoryAllocation: stop other programs that use the GPU[^\n]+"
    optional = {"cuStreamEndCapture", "cuGraphInstantiate"}  # Without a graph, work is enqueued call by call.
    for function in set(cuda_driver.functions()) - context:
        cuda_driver.reset()
        cuda_driver.fail(f"{function}=2")
        cuda = Cuda.open()
        if function in releases or function in optional:
            use(cuda)
        else:
            with pytest.raises(BerxitError) as raised:
                use(cuda)
                pytest.fail(f"{function} failed without an error")
            assert re.fullmatch(full, str(raised.value)), function
        cuda.close()
        assert sum(cuda_driver.live().values()) == releases.get(function, 0), function
    assert len(context) < len(cuda_driver.functions())


def test_error_of_a_kernel_reaches_later_calls(cuda_driver: Driver) -> None:
    cuda = Cuda.open()
    stream = cuda.stream()
    cuda_driver.launch(stream, lambda: 1 // 0)  # type: ignore[arg-type]
    for call in (lambda: cuda.wait(stream), lambda: cuda.allocate(8)):
        with pytest.raises(BerxitError, match="cudaErrorLaunchFailure: start this program again"):
            call()
    cuda_driver.errors.clear()


def test_wrong_addresses_and_handles_are_refused(cuda_driver: Driver) -> None:
    cuda = Cuda.open()
    stream, device = cuda.stream(), cuda.allocate(8)
    address, _ = cuda.pinned(16)
    for call, error in (
        (lambda: cuda.copy_in(device, address, 9, stream), "InvalidValue"),
        (lambda: cuda.copy_out(address, device + 1, 8, stream), "InvalidValue"),
        (lambda: cuda.call("cudaFree", device + 1), "InvalidValue"),
        (lambda: cuda.wait(1), "InvalidResourceHandle"),
        (lambda: cuda.call("cudaMalloc", 1 << 40), "MemoryAllocation"),
    ):
        with pytest.raises(BerxitError, match=f"failed with cudaError{error}: "):
            call()


# --- driver and cuda-python of other versions ----------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["12.2", "12.6", "13.2"])
def test_binding_of_the_extra_runs_on_every_driver(driver: str, cuda_driver: Driver) -> None:
    done = run_with_driver(SESSION, driver=driver)
    assert (done.stdout, done.stderr) == ("Orin 8.7: 2 launches, 0 alive\n", "")


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGetCount", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"])
def test_failed_initialization_is_one_line(function: str, cuda_driver: Driver) -> None:
    done = run_with_driver(SESSION, fail=f"{function}=999")
    assert re.fullmatch(r"CUDA's cuda\w+ failed with cudaErrorUnknown: start this program again, .*\n", done.stdout)


def test_open_without_gpu_names_remedy(cuda_driver: Driver) -> None:
    done = run_with_driver(SESSION, gpu="none")
    assert done.stdout == (
        "CUDA's cudaGetDeviceCount failed with cudaErrorNoDevice: run this on the Jetson, or on a machine whose"
        " nvidia-smi shows a GPU\n"
    )


def test_driver_older_than_cuda_python_names_both_versions(cuda_driver: Driver) -> None:
    # cuda-python 13 compares the versions itself; for the older one of the tests, the driver reports the error.
    done = run_with_driver(SESSION, driver="12.2", fail="cuInit=35")
    found = re.fullmatch(
        r"cuda-python is built for CUDA 12\.8, and the driver here supports CUDA up to 12\.2: (.*)\n", done.stdout
    )
    assert found, done
    assert "pip install" in found[1]


def test_open_without_driver_names_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDriver:
        @staticmethod
        def cudaGetDeviceCount() -> None:  # noqa: N802
            raise RuntimeError("Failed to dlopen libcuda.so.1")  # as cuda-python 12

    with pytest.raises(BerxitError, match=r"failed \(Failed to dlopen libcuda.so.1\): run this on the Jetson"):
        Cuda(NoDriver).call("cudaGetDeviceCount")  # type: ignore[arg-type]


def test_open_without_cuda_python_names_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert re.search(r"this needs cuda-python, which is not installed here: .*pip install", str(no_gpu()))


def test_gpu_of_integrated_device(cuda_driver: Driver) -> None:
    assert Cuda.open().gpu() == Gpu("Orin", (8, 7), 8)
    assert no_gpu() is None
