"""Uses all of the CUDA module, in a process of its own, and prints one line. tests/runtime/test_cuda.py runs it."""

import ctypes

import numpy as np

from berxit.runtime.backends.tensorrt.cuda import Cuda
from berxit.runtime.errors import BerxitError

try:
    cuda = Cuda.open()
    gpu = cuda.gpu()
    stream, event = cuda.stream(), cuda.event()
    device = cuda.upload(np.arange(8, dtype=np.int32), stream)
    address, host = cuda.pinned(32)
    graph = cuda.capture(lambda: cuda.copy_out(address, device, 32, stream), stream)
    for _ in range(2):
        host[:] = 0
        cuda.launch(graph, stream)
        cuda.mark(event, stream)
        cuda.wait_for(event)
        assert host.view(np.int32).tolist() == list(range(8))
    cuda.free_graph(graph)
    cuda.close()
    driver = ctypes.CDLL("libcuda.so.1")
    kinds = (b"memory", b"pinned", b"stream", b"event", b"graph", b"launchable")
    alive = sum(driver.fakeLive(kind) for kind in kinds)
    capability = ".".join(map(str, gpu.capability))
    print(f"{gpu.name} {capability}: {driver.fakeCalls(b'cuGraphLaunch')} launches, {alive} alive")
except BerxitError as error:
    print(error)
