"""Show the progress of what takes long, on stderr."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

INTERVAL = 10  # seconds between two lines


class Progress:
    """A bar in a terminal; elsewhere, for example in a file, a line now and then.

    Both have the time that the rest may take.

    Args:
        label: What is done.
        total: Number of steps.
        unit: Name of the steps.
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.start = self.shown = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(desc=label, total=total, unit=f' {unit}')

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(
        self,
        cls: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, steps: int = 1) -> None:
        """Count finished steps."""
        self.done += steps
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(steps)
        elif now - self.shown >= INTERVAL:
            self.shown = now
            left = max(0, self.total - self.done) / self.done * (now - self.start)
            line = f'{self.label}: {self.done} of {self.total} {self.unit}'
            print(f'{line}, {left:.0f} s left', file=sys.stderr, flush=True)
