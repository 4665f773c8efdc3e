"""Settings of the system allocator for the memory of tensors that a step has freed."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_HEADROOM_BYTES = 1 << 28


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, for the tensors of its next step.

    By default glibc maps every large tensor anew and gives it back once it is freed; the kernel clears its
    pages each time, a tenth of a training step and more. The process stays as large as its largest step.

    Returns:
        Whether the allocator is glibc's; another one is left as it is.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function, or no handle to look it up by
        return False
    options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _HEADROOM_BYTES))
    return all(set_option(option, value) == 1 for option, value in options)
