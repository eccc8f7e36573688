"""Train in the process of the tests, without the seconds that a new one takes."""

from collections.abc import Callable
from typing import Any

from mmengine.logging import MMLogger


def in_this_process(function: Callable, *args: Any) -> Any:
    """Call a function, in place of `training.runner.in_new_process`.

    As in a new process there are no loggers: mmengine names them by the second, so
    runners of one second would write to the log of the first.
    """
    MMLogger._instance_dict.clear()
    return function(*args)
