"""Device memory that another process may map: the few calls of CUDA's runtime that torch hides.

Torch can export its own memory, too, but counts the uses in a named file under ``/dev/shm``, which
a killed process leaves behind, and warns at exit where the other process died. Here the memory has
no name, and belongs to nobody but its tensors.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any, Final, Self

import torch
from torch import Tensor

from ppll.errors import ChannelError

__all__ = ["HANDLE_BYTES", "DeviceMemory", "Unshareable", "pin", "unpin"]

HANDLE_BYTES: Final = 64
"""Of a handle of memory, and of one of an event."""

_OUT_OF_MEMORY: Final = 2
_LAZY_PEER_ACCESS: Final = 1
_FOR_ALL_CONTEXTS: Final = 1
_GRAIN_BYTES: Final = 2 << 20
"""What the driver hands out at once: of less, another process would map its neighbours as well."""


class Unshareable(ChannelError):
    """Device memory cannot be used by both processes; the message says why."""


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


@lru_cache(maxsize=1)
def _runtime() -> Any:
    """The library that torch itself has loaded.

    Raises:
        Unshareable: There is none.
    """
    major = str(torch.version.cuda).partition(".")[0]
    name = f"libcudart.so.{major}"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise Unshareable(f"cannot load {name}: {error}.") from error
    address, place = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
    library.cudaGetErrorString.restype = ctypes.c_char_p
    library.cudaMalloc.argtypes = [place, ctypes.c_size_t]
    library.cudaFree.argtypes = [address]
    library.cudaIpcGetMemHandle.argtypes = [ctypes.POINTER(_Handle), address]
    library.cudaIpcOpenMemHandle.argtypes = [place, _Handle, ctypes.c_uint]
    library.cudaIpcCloseMemHandle.argtypes = [address]
    library.cudaHostRegister.argtypes = [address, ctypes.c_size_t, ctypes.c_uint]
    library.cudaHostUnregister.argtypes = [address]
    return library


def _call(name: str, *arguments: object) -> int:
    """Call a function of the runtime; its error is forgotten there, or torch would report it."""
    code: int = getattr(_runtime(), name)(*arguments)
    if code:
        _runtime().cudaGetLastError()
    return code


def _explain(name: str, code: int) -> str:
    text: bytes = _runtime().cudaGetErrorString(code)
    return f"{name} says {text.decode(errors='replace')!r} ({code})"


class DeviceMemory:
    """A piece of a GPU's memory, there until the last tensor that lies in it is gone.

    ``reserve`` makes it and ``open`` maps that of another process.
    """

    def __init__(self, address: int, device: torch.device, *, is_ours: bool) -> None:
        self.device = device
        self._address = address
        self._is_ours = is_ours
        self._is_abandoned = False

    @classmethod
    def reserve(cls, num_bytes: int, device: torch.device) -> Self:
        """Memory of this process, which others may map.

        Raises:
            ChannelError: There is not so much.
            Unshareable: CUDA refuses for another reason.
        """
        found = ctypes.c_void_p()
        rounded = -(-num_bytes // _GRAIN_BYTES) * _GRAIN_BYTES
        with torch.cuda.device(device):
            code = _call("cudaMalloc", ctypes.byref(found), rounded)
        if code == _OUT_OF_MEMORY:
            raise ChannelError(
                f"cannot reserve {rounded / 2**20:,.0f} MiB for messages on {device}: it has not "
                "so much left. Lower runtime.capacity or data.batch_size."
            )
        if code or not found.value:
            raise Unshareable(f"{_explain('cudaMalloc', code)} on {device}.")
        return cls(found.value, device, is_ours=True)

    @classmethod
    def open(cls, handle: bytes, device: torch.device) -> Self:
        """Memory of another process, by its handle.

        Raises:
            Unshareable: It cannot be mapped.
        """
        found = ctypes.c_void_p()
        packed = _Handle.from_buffer_copy(handle)
        with torch.cuda.device(device):
            code = _call("cudaIpcOpenMemHandle", ctypes.byref(found), packed, _LAZY_PEER_ACCESS)
        if code or not found.value:
            raise Unshareable(f"{_explain('cudaIpcOpenMemHandle', code)} on {device}.")
        return cls(found.value, device, is_ours=False)

    @property
    def handle(self) -> bytes:
        """What another process opens it by.

        Raises:
            Unshareable: CUDA gives none.
        """
        handle = _Handle()
        with torch.cuda.device(self.device):
            code = _call("cudaIpcGetMemHandle", ctypes.byref(handle), self._address)
        if code:
            raise Unshareable(f"{_explain('cudaIpcGetMemHandle', code)} on {self.device}.")
        return bytes(handle)

    def tensor(self, offset: int, num_bytes: int) -> Tensor:
        """A part of it, uint8; the memory is there for as long as the tensor is."""
        span = _Span(self, self._address + offset, num_bytes)
        tensor = torch.as_tensor(span, device=self.device)
        assert tensor.data_ptr() == self._address + offset, "torch has copied it"
        return tensor

    def abandon(self) -> None:
        """Leave it to the end of the process: to let go of it might wait for another process."""
        self._is_abandoned = True

    def __del__(self) -> None:
        if not self._is_abandoned and not sys.is_finalizing():
            with torch.cuda.device(self.device):
                _call("cudaFree" if self._is_ours else "cudaIpcCloseMemHandle", self._address)


class _Span:
    """What torch makes a tensor of without a copy."""

    def __init__(self, memory: DeviceMemory, address: int, num_bytes: int) -> None:
        self._memory = memory
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def pin(address: int, num_bytes: int) -> bool:
    """Let GPUs copy from this host memory directly; whether they can now."""
    try:
        return not _call("cudaHostRegister", address, num_bytes, _FOR_ALL_CONTEXTS)
    except Unshareable:
        return False


def unpin(address: int) -> None:
    """Undo ``pin``, before the memory goes."""
    _call("cudaHostUnregister", address)
