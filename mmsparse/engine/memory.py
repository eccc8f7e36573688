"""Setting of the C library's allocator for repeated training and inference steps."""

import ctypes
import platform

# Of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
LARGEST = 2**31 - 1  # of an int


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next allocations of the process.

    By default, glibc returns large blocks, such as feature maps on a CPU, to the system
    when they are freed; the next step gets them again, zeroed page by page. With this,
    a process keeps its peak memory until it ends. The GPU's allocator of torch keeps
    freed memory anyway.

    Returns:
        Whether the C library is glibc and accepted it; nothing happens elsewhere.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # A threshold for mmap of more than 32 MiB is refused, no mmap at all is not.
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))
