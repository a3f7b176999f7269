"""A thin layer over the CUDA driver: device, stream, event, device and pinned memory, module, graph.

    with open_device() as device:
        stream = device.stream()
        x = device.upload(np.ones(4, np.float32))

Two backends do the same: cuda-bindings (the first choice) and PyCUDA, which Jetson users have. Importing this
module loads neither and needs no driver. Addresses, streams and events are the driver's own handles, so that memory
and streams of other libraries (CuPy, torch, PyCUDA, TensorRT) can be handed over as they are.

Nothing here waits for the device except what says so.
"""

from __future__ import annotations

from edgemm.device.arrays import ArrayView, array_view
from edgemm.device.device import Device, open_device
from edgemm.device.driver import BackendName, DeviceInfo, Driver
from edgemm.device.resources import Buffer, Event, Graph, Module, Stream, stream_handle

__all__ = [
    "ArrayView",
    "BackendName",
    "Buffer",
    "Device",
    "DeviceInfo",
    "Driver",
    "Event",
    "Graph",
    "Module",
    "Stream",
    "array_view",
    "open_device",
    "stream_handle",
]
