import dataclasses
import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from mmsparse import doctor
from mmsparse.doctor import NOT_COMPILED, Setup, find_conflicts, find_notes

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
    Requirement("mmengine>=0.10,<1; extra == 'openmmlab'"),
    Requirement("mmcv>=2.1,<2.2; extra == 'openmmlab'"),
    Requirement("mmdet>=3.3,<4; extra == 'openmmlab'"),
    Requirement("setuptools>=70,<81; extra == 'openmmlab'"),
    Requirement("onedl-mmcv>=2.3.3,<2.4; extra == 'onedl'"),
    Requirement("onedl-mmengine>=0.10.8,<1; extra == 'onedl'"),
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


def with_lite(version):
    base = without('mmcv')
    return dataclasses.replace(
        base,
        versions=base.versions | {'mmcv-lite': version},
        operators=NOT_COMPILED,
    )


def with_failure(module, error):
    return dataclasses.replace(SOUND, failure=(module, error))


def test_a_sound_setup_has_no_conflicts():
    assert not list(find_conflicts(SOUND, REQUIRED))


@pytest.mark.parametrize(
    ('setup', 'problem', 'command'),
    [
        pytest.param(
            with_versions(onedl_mmcv='2.3.6', onedl_mmdetection='3.5.1'),
            'two stacks install the same modules over each other: mmengine mmcv onedl-',
            'mmsegmentation mmpretrain openmim && MMCV_WITH_OPS=1 pip install '
            '--force-reinstall --no-cache-dir --no-deps --no-build-isolation '
            "'mmcv<2.2,>=2.1' && pip install 'mmsparse[openmmlab]'",
            id='both stacks',
        ),
        pytest.param(
            without('torch'),
            'torch is not installed',
            'pip install torch',
            id='no torch',
        ),
        pytest.param(
            without(*OPENMMLAB),
            'mmengine is not installed',
            "pip install 'mmsparse[backbones]'",
            id='neither stack',
        ),
        pytest.param(
            without('mmengine'),
            'mmengine is not installed',
            "pip install 'mmengine<1,>=0.10'",
            id='OpenMMLab stack without mmengine',
        ),
        pytest.param(
            dataclasses.replace(
                SOUND, versions={'torch': '2.12.1', 'onedl-mmdetection': '3.5.1'}
            ),
            'onedl-mmengine is not installed',
            "pip install 'onedl-mmengine<1,>=0.10.8'",
            id='OneDL stack without mmengine',
        ),
        pytest.param(
            with_onedl(openmim='0.3.9'),
            'over each other: onedl-mmengine onedl-mmdetection openmim',
            "--no-build-isolation 'onedl-mmcv<2.4,>=2.3.3' && "
            "pip install 'mmsparse[onedl]'",
            id='OneDL stack with a package of OpenMMLab',
        ),
        pytest.param(
            dataclasses.replace(
                SOUND,
                versions={'torch': '2.12.1', 'onedl-mmdetection': '3', 'openmim': '0'},
            ),
            'over each other: onedl-mmdetection openmim',
            "&& pip install 'mmsparse[openmmlab]'",
            id='both stacks, as many of each',
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
            with_failure('pkg_resources', "No module named 'pkg_resources'"),
            'import pkg_resources: No module',
            "pip install 'setuptools<81'",
            id='no pkg_resources',
        ),
        pytest.param(
            dataclasses.replace(
                with_lite('2.1.0'), failure=('mmseg', "No module named 'ftfy'")
            ),
            "No module named 'ftfy'",
            "pip install 'mmsparse[lite]'",
            id='missing dependency next to mmcv-lite',
        ),
        pytest.param(
            with_failure('mim', "No module named 'pip'"),
            'import mim: No module',
            'python -m ensurepip',
            id='no pip',
        ),
        pytest.param(
            with_versions(setuptools='84.2.1'),
            'setuptools 84.2.1 is outside <81,>=70',
            "pip install 'setuptools<81,>=70'",
            id='setuptools that has no pkg_resources',
        ),
        pytest.param(
            with_versions(mmcv_lite='2.1.0'),
            'mmcv and mmcv-lite install the same module',
            'pip uninstall --yes mmcv mmcv-lite && MMCV_WITH_OPS=1 pip install',
            id='mmcv with and without operators',
        ),
        pytest.param(
            with_lite('2.2.0'),
            'mmcv-lite 2.2.0 is outside <2.2,>=2.1',
            "pip install 'mmcv-lite<2.2,>=2.1'",
            id='mmcv-lite that mmdet refuses',
        ),
        pytest.param(
            with_versions(torch='2.2.2+cu121', numpy='2.1.0'),
            'torch 2.2.2+cu121 is compiled for numpy 1',
            "pip install 'numpy<2'",
            id='numpy 2 with old torch',
        ),
        pytest.param(
            with_failure('mmcv.ops', 'ImportError: _ext.so: undefined symbol: _ZN3c10'),
            'import mmcv.ops: ImportError: _ext.so: undefined symbol',
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
            with_failure('cv2', 'ImportError: numpy.core.multiarray failed to import'),
            'import cv2: ImportError: numpy.core.multiarray',
            "pip install 'numpy<2'",
            id='numpy 2 with OpenCV for numpy 1',
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
            "pip install 'mmsparse[openmmlab]'",
            id='dependency that mmseg does not declare',
        ),
        pytest.param(
            dataclasses.replace(
                with_onedl(), failure=('mmdet', "No module named 'shapely'")
            ),
            "import mmdet: No module named 'shapely'",
            "pip install 'mmsparse[onedl]'",
            id='missing dependency in the OneDL stack',
        ),
        pytest.param(
            dataclasses.replace(
                with_versions(transformers='5.24.0'),
                failure=('mmpretrain.models', 'TypeError: NoneType takes no arguments'),
            ),
            'import mmpretrain.models: TypeError: NoneType takes no arguments',
            "pip install 'transformers<4.50'",
            id='transformers without names that mmpretrain uses',
        ),
        pytest.param(
            with_failure('mmdet', 'AttributeError: no attribute x'),
            'import mmdet: AttributeError',
            'pip install --force-reinstall mmdet',
            id='any other failing import',
        ),
        pytest.param(
            dataclasses.replace(SOUND, gpu='NVIDIA H200, compute capability 9.0'),
            'compiled for the CPU only',
            'FORCE_CUDA=1 MMCV_WITH_OPS=1 pip install',
            id='GPU without operators',
        ),
    ],
)
def test_a_conflict_is_reported_with_the_command_that_fixes_it(setup, problem, command):
    ((found, fix),) = find_conflicts(setup, REQUIRED)
    assert problem in found
    assert command in fix


@pytest.mark.parametrize(
    ('setup', 'command'),
    [
        pytest.param(
            with_lite('2.1.0'),
            'pip uninstall --yes mmcv-lite && MMCV_WITH_OPS=1 pip install '
            '--force-reinstall --no-cache-dir --no-deps --no-build-isolation '
            "'mmcv<2.2,>=2.1'",
            id='mmcv-lite',
        ),
        pytest.param(
            dataclasses.replace(SOUND, operators=NOT_COMPILED),
            "--no-build-isolation 'mmcv<2.2,>=2.1'",
            id='mmcv',
        ),
        pytest.param(
            dataclasses.replace(with_onedl(onedl_mmcv='2.3.6'), operators=NOT_COMPILED),
            "--no-build-isolation 'onedl-mmcv<2.4,>=2.3.3'",
            id='mmcv of the OneDL stack',
        ),
    ],
)
def test_mmcv_without_operators_is_a_note(setup, command):
    ((note, fix),) = find_notes(setup, REQUIRED)

    assert "mmcv's operators are not compiled" in note
    assert fix.endswith(command)
    assert not list(find_conflicts(setup, REQUIRED))


def test_compiled_operators_need_no_note():
    assert not list(find_notes(SOUND, REQUIRED))


def test_the_onedl_stack_alone_has_no_conflicts():
    setup = with_onedl(onedl_mmcv='2.3.6', setuptools='84.2.1')
    assert not list(find_conflicts(setup, REQUIRED))


def test_missing_packages_of_the_stack_are_listed():
    lines = list(doctor.describe(with_onedl()))
    assert 'onedl-mmcv            not installed' in lines
    assert 'onedl-mmengine        0.10.12' in lines
    assert not any(line.startswith('mmcv ') for line in lines)


def test_the_first_failing_import_is_reported(monkeypatch):
    def load(module):
        if module in ('mmcv.ops', 'mmdet'):
            raise ImportError('_ext.so: undefined symbol: _ZN3c10\nmore')

    monkeypatch.setattr(doctor, 'import_module', load)
    monkeypatch.setattr(doctor, 'installed_versions', lambda: SOUND.versions)
    failure = doctor.examine().failure
    assert failure == (
        'mmcv.ops',
        'ImportError: _ext.so: undefined symbol: _ZN3c10',
    )
    monkeypatch.setattr(doctor, 'installed_versions', lambda: {'torch': '2.1.0'})
    assert doctor.examine().failure is None


def test_the_command_prints_versions_and_fails_on_a_conflict(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['doctor'])
    monkeypatch.setattr(doctor, 'examine', lambda: with_versions(torch='1.13.1'))
    assert doctor.main() == 1
    printed = capsys.readouterr().out
    assert 'numpy           2.4.6\n' in printed
    assert 'configs         /' in printed
    assert 'conflict: torch 1.13.1 is outside' in printed
    assert 'no conflicts found' not in printed


def test_the_test_environment_has_no_conflicts():
    done = subprocess.run(
        [sys.executable, '-m', 'mmsparse.doctor'],
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith('no conflicts found\n')
    assert 'mmcv.ops' in done.stdout
