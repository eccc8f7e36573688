"""A step of an installation: its commands, their progress, log and errors."""

import os
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import NoReturn

SHOW = '--progress-bar=raw'  # lines that Step parses; new in pip 24.1
# Patterns in the output of a failed command, and the reason to report.
REASONS = {
    r'No space left on device|Disk quota exceeded': 'the disk is full',
    r'Killed signal': 'the compiler was killed, most likely for lack of memory: '
    'MAX_JOBS=1 make install needs less',
    r'NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError'
    r'|SSLError|Connection (?:refused|reset)|Network is unreachable': 'the package '
    'index cannot be reached: check the network and pip config list',
    # pip prints this for a full disk, too.
    r'incomplete-download': 'a download was cut short: check the network and the free '
    'disk space',
    r'No matching distribution found for (\S+)': 'the package index has no {} for this '
    'Python and machine',
    r'ensurepip is not': 'this Python cannot create environments: install the package '
    'python3-venv',
    r'CUDA version \(([\d.]+)\) mismatches': 'nvcc {} does not fit this torch: install '
    'the CUDA toolkit that the log names, or run CUDA_VISIBLE_DEVICES= make install '
    'for CPU operators',
    r'(?:[Ee]rror|ERROR): (.+)': '{}',
    r'exit status -9$': 'it was killed, most likely for lack of memory',
    '': 'it failed',
}


class Step:
    """A step of the installation in an environment, timed from enter to exit."""

    def __init__(self, name: str, venv: Path) -> None:
        self.name = name
        self.venv = venv
        self.log = venv / 'install.log'
        self.started = self.shown = time.monotonic()

    def __enter__(self) -> 'Step':
        print(f'{self.name} ...', end='' if sys.stdout.isatty() else '\n', flush=True)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            seconds = time.monotonic() - self.started
            print(f'{clear_line()}{self.name}: {seconds:.0f} s', flush=True)

    def pip(self, *arguments: object, **variables: str) -> None:
        """Run the environment's pip, as :meth:`run` does."""
        start = ('-m', 'pip', '--disable-pip-version-check')
        self.run(self.venv / 'bin' / 'python', *start, *arguments, **variables)

    def run(self, *command: object, **variables: str) -> str:
        """Run a command in the project and return the end of its output."""
        words = [str(word) for word in command]
        path = f'{self.venv}/bin:{os.environ["PATH"]}'
        # /tmp is often too small for torch.
        variables = {'PATH': path, 'TMPDIR': f'{self.venv}/tmp', **variables}
        process = subprocess.Popen(
            words,
            cwd=self.venv.parent,
            env={**os.environ, **variables},
            close_fds=False,  # keeps main.lock() until the process ends
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        )
        tail = deque(maxlen=1000)
        with process, self.log.open('a') as log:
            log.write(f'$ {" ".join(words)}\n')
            for line in process.stdout:
                self.show(progress_of(line))
                if not line.startswith('Progress '):
                    log.write(line)
                    tail.append(line)
        output = ''.join(tail)
        if process.returncode:
            reason = reason_of(f'{output}\nexit status {process.returncode}')
            stop(f'{self.name}: {reason}; the log is {self.log}')
        return output

    def show(self, progress: str) -> None:
        """Print progress in place, or every 30 seconds without a terminal."""
        if progress and sys.stdout.isatty():
            print(f'{clear_line()}{self.name}: {progress}', end='', flush=True)
        elif progress and time.monotonic() - self.shown > 30:
            self.shown = time.monotonic()
            print(f'  {progress}', flush=True)


def stop(message: str) -> NoReturn:
    """Exit with the reason in one line."""
    sys.exit(f'{clear_line()}install: {message}')


def clear_line() -> str:
    """Return the characters that erase a terminal's current line."""
    return '\r\033[K' if sys.stdout.isatty() else ''


def progress_of(line: str) -> str:
    """Return the progress in a line of pip's or ninja's output; empty if none."""
    if compiled := re.match(r'\s*\[(\d+)/(\d+)\]', line):
        return 'compiled {} of {} files'.format(*compiled.groups())
    if downloaded := re.match(r'Progress (\d+) of (\d+)', line):
        done, size = map(int, downloaded.groups())
        return f'downloaded {done / 1e6:.0f} of {size / 1e6:.0f} MB'
    return 'installing' if line.startswith('Installing collected') else ''


def reason_of(output: str) -> str:
    """Return the likely reason for which a command with this output failed."""
    found = ((re.search(pattern, output), text) for pattern, text in REASONS.items())
    return next(text.format(*match.groups()) for match, text in found if match)
