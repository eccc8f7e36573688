import dataclasses
import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from mmsparse import doctor
from mmsparse.doctor import Setup, find_conflicts

SOUND = Setup(
    versions={
        'torch': '2.12.1+cpu',
        'torchvision': '0.27.1',
        'numpy': '2.4.6',
        'setuptools': '80.10.2',
        'mmengine': '0.10.7',
        'mmcv': '2.1.0',
        'mmdet': '3.3.0',
        'mmsegmentation': '1.2.2',
        'mmpretrain': '1.2.0',
        'openmim': '0.3.9',
    },
    operators='CPU',
)
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpretrain', 'openmim')
REQUIRED = [
    Requirement('torch>=2.1'),
    Requirement("mmcv>=2.1,<2.2; extra == 'openmmlab'"),
    Requirement("mmdet>=3.3,<4; extra == 'openmmlab'"),
    Requirement("setuptools>=70,<81; extra == 'openmmlab'"),
    Requirement("onedl-mmcv>=2.3.3,<2.4; extra == 'onedl'"),
]


def with_versions(**versions):
    renamed = {name.replace('_', '-'): value for name, value in versions.items()}
    return dataclasses.replace(SOUND, versions=SOUND.versions | renamed)


def without(*names):
    versions = {k: v for k, v in SOUND.versions.items() if k not in names}
    return dataclasses.replace(SOUND, versions=versions)


def with_onedl(**versions):
    base = without(*OPENMMLAB)
    onedl = {'onedl-mmengine': '0.10.12', 'onedl-mmdetection': '3.5.1'}
    renamed = {name.replace('_', '-'): value for name, value in versions.items()}
    return dataclasses.replace(base, versions=base.versions | onedl | renamed)


def with_failure(module, error):
    return dataclasses.replace(SOUND, failure=(module, error))


def test_a_sound_setup_has_no_conflicts():
    assert find_conflicts(SOUND, REQUIRED) == []


@pytest.mark.parametrize(
    ('setup', 'problem', 'command'),
    [
        pytest.param(
            with_versions(onedl_mmcv='2.3.6', onedl_mmdetection='3.5.1'),
            'mmcv and onedl-mmcv, mmdet and onedl-mmdetection are the same modules',
            'mmsegmentation mmpretrain openmim && MMCV_WITH_OPS=1 pip install '
            '--force-reinstall --no-cache-dir --no-deps --no-build-isolation '
            "'mmcv<2.2,>=2.1' && pip install 'mmsparse[openmmlab]'",
            id='both stacks',
        ),
        pytest.param(
            with_versions(mmcv_lite='2.1.0'),
            'mmcv-lite has no operators',
            'pip uninstall --yes mmcv-lite mmcv; MMCV_WITH_OPS=1 pip install',
            id='mmcv-lite beside mmcv',
        ),
        pytest.param(
            with_onedl(mmcv_lite='2.1.0'),
            'mmcv-lite has no operators',
            "--no-build-isolation 'onedl-mmcv<2.4,>=2.3.3'",
            id='mmcv-lite beside the hosts of OneDL',
        ),
        pytest.param(
            without('torch'),
            'torch is not installed',
            "pip install 'torch>=2.1'",
            id='no torch',
        ),
        pytest.param(
            without(*OPENMMLAB),
            'mmengine is not installed',
            "pip install 'mmsparse[backbones]'",
            id='no host and no mmengine',
        ),
        pytest.param(
            without('mmengine'),
            'mmengine is not installed',
            'pip install mmengine',
            id='hosts without mmengine',
        ),
        pytest.param(
            dataclasses.replace(
                SOUND, versions={'torch': '2.12.1', 'onedl-mmdetection': '3.5.1'}
            ),
            'onedl-mmengine is not installed',
            'pip install onedl-mmengine',
            id='hosts of OneDL without mmengine',
        ),
        pytest.param(
            dataclasses.replace(
                without('mmcv'), failure=('mmdet', "No module named 'mmcv.ops'")
            ),
            "import mmdet: No module named 'mmcv.ops'",
            "--no-build-isolation 'mmcv<2.2,>=2.1'",
            id='no mmcv',
        ),
        pytest.param(
            dataclasses.replace(
                with_onedl(), failure=('mmdet', "No module named 'mmengine'")
            ),
            "import mmdet: No module named 'mmengine'",
            'pip install onedl-mmengine',
            id='no mmengine of OneDL',
        ),
        pytest.param(
            with_versions(mmcv='2.2.0'),
            'mmcv 2.2.0 is outside <2.2,>=2.1',
            "--no-build-isolation 'mmcv<2.2,>=2.1'",
            id='mmcv that mmdet refuses',
        ),
        pytest.param(
            with_versions(mmdet='2.28.2'),
            'mmdet 2.28.2 is outside <4,>=3.3',
            "pip install 'mmdet<4,>=3.3'",
            id='old mmdet',
        ),
        pytest.param(
            with_versions(torch='1.13.1', numpy='1.26.4'),
            'torch 1.13.1 is outside >=2.1',
            "pip install 'torch>=2.1'",
            id='old torch',
        ),
        pytest.param(
            with_versions(torch='2.1.0', numpy='2.2.6'),
            'torch 2.1.0 cannot exchange arrays with numpy 2.2.6',
            "pip install 'numpy<2'",
            id='numpy 2 beside old torch',
        ),
        pytest.param(
            with_failure('pkg_resources', "No module named 'pkg_resources'"),
            'import pkg_resources: No module',
            "pip install 'setuptools>=70,<81'",
            id='no pkg_resources',
        ),
        pytest.param(
            with_versions(setuptools='84.2.1'),
            'setuptools 84.2.1 is outside <81,>=70',
            "pip install 'setuptools<81,>=70'",
            id='setuptools that has no pkg_resources',
        ),
        pytest.param(
            with_failure('mmcv.ops', "No module named 'mmcv._ext'"),
            'mmcv has no operators compiled for this torch',
            "--no-build-isolation 'mmcv==2.1.0'",
            id='mmcv without operators',
        ),
        pytest.param(
            with_failure('mmcv.ops', 'ImportError: _ext.so: undefined symbol: _ZN3c10'),
            'mmcv has no operators compiled for this torch',
            '--no-cache-dir',
            id='mmcv compiled for another torch',
        ),
        pytest.param(
            with_failure('torchvision', 'operator torchvision::nms does not exist'),
            'import torchvision: operator',
            'pip install --force-reinstall torch torchvision',
            id='torchvision of another build than torch',
        ),
        pytest.param(
            with_failure('cv2', 'libGL.so.1: cannot open shared object file'),
            'import cv2: libGL.so.1',
            'apt-get install libgl1',
            id='system library of OpenCV',
        ),
        pytest.param(
            with_failure('mmseg', "ModuleNotFoundError: No module named 'ftfy'"),
            "No module named 'ftfy'",
            'pip install ftfy',
            id='package that a host forgot to require',
        ),
        pytest.param(
            with_failure('cv2', "ModuleNotFoundError: No module named 'cv2'"),
            "import cv2: ModuleNotFoundError: No module named 'cv2'",
            'pip install opencv-python',
            id='package of another name than its module',
        ),
        pytest.param(
            with_failure('mmdet', "ModuleNotFoundError: No module named 'PIL.Image'"),
            "No module named 'PIL.Image'",
            'pip install pillow',
            id='module inside such a package',
        ),
        pytest.param(
            with_failure('mmdet', 'AttributeError: no attribute x'),
            'import mmdet: AttributeError',
            'pip install --force-reinstall mmdet',
            id='anything else',
        ),
        pytest.param(
            dataclasses.replace(SOUND, gpu='NVIDIA H200, compute capability 9.0'),
            'compiled for the CPU only',
            'FORCE_CUDA=1 MMCV_WITH_OPS=1 pip install',
            id='GPU without operators',
        ),
    ],
)
def test_a_conflict_is_told_with_the_command_that_mends_it(setup, problem, command):
    (found,) = find_conflicts(setup, REQUIRED)
    assert problem in found.problem
    assert command in found.command


def test_a_stack_of_onedl_alone_is_sound():
    setup = with_onedl(onedl_mmcv='2.3.6', setuptools='84.2.1')
    assert find_conflicts(setup, REQUIRED) == []


def test_hosts_that_are_not_there_are_listed():
    lines = list(doctor.describe(with_onedl()))
    assert 'onedl-mmcv            not installed' in lines
    assert 'onedl-mmengine        0.10.12' in lines
    assert not any(line.startswith('mmcv ') for line in lines)


def test_the_first_import_that_fails_is_told(monkeypatch):
    def load(module):
        if module in ('mmcv.ops', 'mmdet'):
            raise ModuleNotFoundError("No module named 'mmcv._ext'\nmore")

    monkeypatch.setattr(doctor, 'import_module', load)
    failure = doctor.first_failure(SOUND.versions)
    assert failure == (
        'mmcv.ops',
        "ModuleNotFoundError: No module named 'mmcv._ext'",
    )
    assert doctor.first_failure({'torch': '2.1.0'}) is None


def test_the_command_prints_versions_and_fails_on_a_conflict(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['doctor'])
    monkeypatch.setattr(doctor, 'examine', lambda: with_versions(mmcv_lite='2.1.0'))
    assert doctor.main() == 1
    printed = capsys.readouterr().out
    assert 'numpy           2.4.6\n' in printed
    assert 'stack           openmmlab\n' in printed
    assert 'conflict: mmcv-lite' in printed
    assert 'no conflicts found' not in printed


def test_the_environment_of_the_tests_is_sound():
    done = subprocess.run(
        [sys.executable, '-m', 'mmsparse.doctor'],
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith('no conflicts found\n')
    assert 'mmcv.ops' in done.stdout
