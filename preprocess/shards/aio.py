"""Many reads, each at its own offset into its own memory, in one system call.

Linux's ``io_submit``, by way of libc. What it reads through the page cache or from a network file
system is there when it returns; the interpreter's lock is given up once for all reads, where
``os.preadv`` gives it up for each and may wait for another thread to get it back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections import deque

import numpy as np
import numpy.typing as npt

DEPTH = 128  # reads a call; contexts of a node share fs.aio-max-nr, 65,536 by default
_PREAD = 0  # IOCB_CMD_PREAD
# io_setup, io_destroy, io_getevents, io_submit
_CALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_REQUEST = np.dtype(
    {  # struct iocb of linux/aio_abi.h; what has no name here stays zero
        "names": ["number", "opcode", "descriptor", "address", "size", "offset"],
        "formats": ["i8", "u2", "u4", "u8", "u8", "i8"],
        "offsets": [0, 16, 20, 24, 32, 40],
        "itemsize": 64,
    }
)
_EVENT = np.dtype([("number", "i8"), ("request", "u8"), ("result", "i8"), ("result2", "i8")])

Requests = npt.NDArray[np.void]

# kept for the next call: to close one takes the kernel some thirty milliseconds
_idle: deque[Queue] = deque()


def new_requests(*shape: int) -> Requests:
    """Return requests to be filled in: ``descriptor``, ``address``, ``size`` and ``offset``."""
    return np.zeros(shape, _REQUEST)


def read_many(requests: Requests) -> npt.NDArray[np.int64]:
    """Read ``size`` bytes at ``offset`` of each file to ``address``, from any thread.

    Returns:
        How many bytes came of each; 0 of all, or -errno of one, is for the caller to read again by
        other means, which tell what is wrong: not every system, container or file has this call.
    """
    try:
        queue = _idle.pop() if _idle else Queue()
        lengths = queue.read(requests)
    except (IndexError, OSError):  # another thread was faster, or it cannot be done
        return np.zeros(requests.shape, np.int64)
    _idle.append(queue)
    return lengths


class Queue:
    """A context of the kernel, for one call at a time.

    Raises:
        OSError: there is no such call here, it is forbidden, or the node has no context left.
    """

    def __init__(self) -> None:
        self._context = ctypes.c_ulong(0)
        calls = _CALLS.get(platform.machine()) if sys.platform == "linux" else None
        if calls is None:
            raise OSError(errno.ENOSYS, "io_submit is not known here")
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        setup, self._destroy, self._getevents, self._submit = map(ctypes.c_long, calls)
        self._call(setup, ctypes.c_uint(DEPTH), ctypes.byref(self._context))
        self._events = np.zeros(DEPTH, _EVENT)
        self._into = ctypes.c_void_p(self._events.ctypes.data)

    def __del__(self) -> None:
        if self._context.value:
            self._syscall(self._destroy, self._context)

    def read(self, requests: Requests) -> npt.NDArray[np.int64]:
        """Carry requests out; return how many bytes came of each, or -errno.

        Raises:
            OSError: the kernel refuses a request or the context.
        """
        numbers, lengths = np.arange(requests.size), np.zeros(requests.size, np.int64)
        requests["number"], requests["opcode"] = numbers.reshape(requests.shape), _PREAD
        pointers = requests.ctypes.data + numbers * _REQUEST.itemsize
        first, done = pointers.ctypes.data, 0
        while done < requests.size:
            num = ctypes.c_long(min(DEPTH, requests.size - done))
            start = ctypes.c_void_p(first + done * pointers.itemsize)
            # at the first request that it refuses the kernel stops, and tells how many it took
            taken = self._call(self._submit, self._context, num, start)
            wanted = ctypes.c_long(taken)
            self._call(self._getevents, self._context, wanted, wanted, self._into, None)
            events = self._events[:taken]
            lengths[events["number"]] = events["result"]
            done += taken
        return lengths.reshape(requests.shape)

    def _call(self, number: ctypes.c_long, *arguments: object) -> int:
        result: int = self._syscall(number, *arguments)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, errno.errorcode.get(code, ""))
        return result


os.register_at_fork(after_in_child=_idle.clear)  # contexts belong to the parent
