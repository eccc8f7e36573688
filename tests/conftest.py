import gc
import os
import socket
import subprocess
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path

import fast_mmengine  # noqa: F401, changes mmengine
import pytest
import torch
from digits import dataset
from forked import Forked
from mmengine.registry import DefaultScope
from mmengine.utils import digit_version, get_installed_path

from mmsparse.doctor import installed_versions

ROOT = Path(__file__).parents[1]
# Expected failures in other stacks: text of the test's id or report, and the reason.
FAULTS = {}
if 'onedl-mmengine' in installed_versions():
    DINO = "onedl-mmdetection's DINO has more parameters, as it encodes boxes by more"
    FOLDER = (
        "onedl-mim assumes that the first file in a package's RECORD is in the folder "
        'of its module'
    )
    FAULTS |= {
        'number_of_parameters[dino': DINO,
        '4851370 == 4720298': DINO,
        '.dist-info/model-index.yml or': FOLDER,
        '__editable___mmsparse_0_1_0_finder.py': FOLDER,
        "Can't determine a unique package given abbreviation mmdet": 'onedl-mim knows '
        'onedl-mmdetection only by its full name',
        'the_same_state[iterations': 'onedl-mmengine does not skip the data of '
        'previous iterations when a training by iterations is resumed',
    }
if digit_version(torch.__version__) < digit_version('2.9'):
    FAULTS['Constraints violated (L['] = 'export for any size needs torch 2.9'
if not hasattr(torch, 'get_autocast_dtype'):
    NO_HALF = 'torch 2.1 does not compute in float16 on CPUs'
    FAULTS |= {
        "module 'torch.export' has no attribute 'Dim'": 'export needs torch 2.9',
        "module 'torch.library' has no attribute": 'custom operators need torch 2.4',
        'torch._dynamo.exc.': 'the compiler of torch 2.1 supports less',
        'AutocastCPU only support Bfloat16': NO_HALF,
        '"bmm" not implemented for \'Half\'': NO_HALF,
        'attn_mask dtype to be bool or to match query dtype': 'autocast of torch 2.1 '
        'ignores the attention mask on CPUs',
        'torch.float8_e4m3fn is not recognized': 'torch 2.1 does not save float8',
        'Stream() takes no arguments': 'FSDP of torch 2.1 needs a GPU',
        'test_bfloat16_stays_near_single_precision[dat]': 'gradients of DAT in '
        'bfloat16 are further from single precision with torch 2.1',
        'the_same_state[iterations': 'mmengine 0.10.0 does not skip the data of '
        'previous iterations when a training by iterations is resumed',
        'cannot_be_read_is_named[97% of a .jpg]': 'OpenCV 4.8 pads cut-off JPEGs',
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Report the failures in FAULTS as expected."""
    report = yield
    text = f'{report.nodeid}\n{report.longreprtext}'
    for symptom, reason in FAULTS.items():
        if report.failed and symptom in text:
            report.outcome, report.wasxfail = 'skipped', reason
    return report


if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'  # GPU kernels run as Python.


@pytest.fixture
def on_cpu(monkeypatch):
    """Return a function that changes the settings of the ops on CPUs."""
    from mmsparse.ops import _devices  # torch imports Triton, which reads the variable

    def change(**settings):
        changed = replace(_devices.CPU, **settings)
        monkeypatch.setattr(_devices, 'CPU', changed)

    return change


@pytest.fixture
def logged_by(monkeypatch):
    """Return a function that records the lines which modules log."""

    def record(*modules):
        lines = []
        for module in modules:
            monkeypatch.setattr(
                module, 'print_log', lambda text, *_, **__: lines.append(text)
            )
        return lines

    return record


@pytest.fixture
def clean_registries():
    """Remove the backbones and layers that a test registers."""
    from mmsparse.models.backbones import BACKBONES
    from mmsparse.registry import MODELS

    registries = (BACKBONES, MODELS.module_dict)
    before = [dict(known) for known in registries]
    yield
    for known, kept in zip(registries, before, strict=True):
        for name in set(known) - set(kept):
            del known[name]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_default_scope():
    """Remove the scope that a runner or an inferencer of an earlier test has set."""
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def no_default_dropout():
    """Reset mmcv's default, which a layer with ``dropout`` in an earlier test set."""
    if layers := sys.modules.get('mmcv.cnn.bricks.transformer'):
        options = signature(layers.MultiheadAttention).parameters
        options['dropout_layer'].default['drop_prob'] = 0.0


def pytest_collection_finish():
    """Keep imported modules out of garbage collections."""
    gc.freeze()


@pytest.fixture(scope='session')
def small_digits(tmp_path_factory):
    """A working directory with a few images and scenes in data/digits."""
    folder = tmp_path_factory.mktemp('digits')
    settings = dataset.Settings(
        seed=0,
        train_scenes=16,
        val_scenes=8,
        train_images_per_scan=1,
        val_images_per_scan=1,
    )
    all_keys = dataset.image_keys

    def few_keys(scans, settings):
        few = {scan for split in scans.splits.values() for scan in split[:40].tolist()}
        keys = all_keys(scans, settings)
        return [key for key in keys if key[1] == dataset.SCENE or key[2] in few]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, 'image_keys', few_keys)
        dataset.prepare(folder / 'data' / 'digits', settings, force=False)
    return folder


@pytest.fixture(scope='session')
def run_tool():
    """Run a command of tools/ in a folder; return the completed process."""

    def run(tool, *args, cwd, check=True):
        done = Forked(ROOT / 'tools' / tool, *args, cwd=cwd).finish()
        if check:
            assert_success(done)
        return done

    return run


@pytest.fixture(scope='session')
def run_host():
    """Run train.py or test.py of mmdet, mmseg or mmpretrain as `mim` does."""

    def run(host, tool, *args, cwd, **variables):
        command = Path(get_installed_path(host), '.mim', 'tools', tool)
        return Forked(command, *args, cwd=cwd, **variables).finish()

    return run


@pytest.fixture(scope='session')
def train_in_two():
    """Train in two processes; return the completed process of rank 0."""

    def train(config, *options, cwd):
        address = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), WORLD_SIZE='2')
        command = (ROOT / 'tools/train.py', config, '--launcher', 'pytorch', *options)
        ranks = [
            Forked(*command, cwd=cwd, **address, RANK=rank, LOCAL_RANK=rank)
            for rank in '01'
        ]
        first, second = (process.finish() for process in ranks)
        assert_success(first)
        assert_success(second)
        return first

    return train


@pytest.fixture(scope='session')
def dist_train():
    """Train in two processes with tools/dist_train.sh; return the completed process."""

    def train(config, *options, cwd):
        command = [ROOT / 'tools' / 'dist_train.sh', config, '2', *options]
        settings = dict(
            PYTHON=sys.executable, PORT=free_port(), PYTHONWARNINGS='ignore'
        )
        return subprocess.run(
            command,
            cwd=cwd,
            capture_output=True,
            text=True,
            env=os.environ | settings,
            timeout=300,
        )

    return train


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def assert_success(done):
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
