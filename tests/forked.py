"""Commands in forks of a process that has imported torch and OpenMMLab.

A new process imports for longer than most commands of the tests take.
"""

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

import fast_mmengine  # noqa: F401, changes mmengine in the forks

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(
    [
        *('torch._dynamo', 'torchvision', 'sklearn.datasets', 'matplotlib.pyplot'),
        *(f'{host}.{x}' for host in ('mmdet', 'mmseg') for x in ('apis', 'models')),
        *('mmpretrain.apis', 'mmengine.analysis', 'torch.utils.cpp_extension'),
        *('matplotlib.backends.backend_agg', 'filled_caches'),
    ]
)


class Forked:
    """A command that runs in a fork; its output goes to files.

    Args:
        command: Path of a Python file, and its arguments.
        cwd: The working directory.
        warn: Whether warnings are shown.
        **variables: Environment variables that differ from those of this process.
    """

    def __init__(self, *command, cwd, warn=False, **variables):
        self.command = [str(part) for part in command]
        self._output = tempfile.TemporaryDirectory()
        self._paths = [Path(self._output.name, name) for name in ('out', 'err')]
        env = {**os.environ, **variables}
        self._process = SERVER.Process(
            target=_main, args=(self.command, str(cwd), warn, env, *self._paths)
        )
        _start_server()
        self._process.start()

    def finish(self, timeout=300):
        """Wait for the end; return the completed process."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self.command, timeout)
        out, err = (path.read_text() for path in self._paths)
        self._output.cleanup()
        return subprocess.CompletedProcess(
            self.command, self._process.exitcode, out, err
        )


@cache
def _start_server():
    """Start the process that forks; it imports modules of this folder, too."""
    paths = (str(Path(__file__).parent), os.environ.get('PYTHONPATH'))
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths))):
        forkserver.ensure_running()


def _main(command, cwd, warn, env, *outputs):
    gc.freeze()
    for stream, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    multiprocessing.set_start_method(None, force=True)
    if not warn:
        warnings.simplefilter('ignore')
    paths = [*filter(None, env.get('PYTHONPATH', '').split(os.pathsep))]
    if not {*paths} <= {*sys.path}:
        sys.modules.pop('pkg_resources', None)  # it knows the packages of the old path
    sys.path[:] = [
        str(Path(command[0]).parent),
        *paths,
        *filter(_is_installed, sys.path),
    ]
    sys.argv = command
    runpy.run_path(command[0], run_name='__main__')


def _is_installed(path):
    """Whether a folder of sys.path is none that pytest has added."""
    folder = Path(path)
    return folder.is_relative_to(sys.prefix) or not folder.is_relative_to(ROOT)
