"""The C library keeps freed memory where a training asks for it."""

import subprocess
import sys

import pytest

from mmsparse.engine import memory

# Bytes of the process before and after large blocks are freed.
PROGRAM = """
import runpy, sys

def resident():
    return 4096 * int(open('/proc/self/statm').read().split()[1])

if sys.argv[1] == 'keep':
    assert runpy.run_path(sys.argv[2])['keep_freed_memory']()
before = resident()
blocks = [bytes([i]) * 2**26 for i in range(1, 4)]
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc')
def test_freed_blocks_stay_with_the_process_only_if_asked():
    kept, returned = (
        int(
            subprocess.check_output(
                [sys.executable, '-c', PROGRAM, word, memory.__file__]
            )
        )
        for word in ('keep', 'return')
    )

    assert kept > 2 * 2**26
    assert returned < 2**26


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr('platform.libc_ver', lambda: ('musl', '1.2'))
    monkeypatch.setattr('ctypes.CDLL', None)

    assert not memory.keep_freed_memory()
