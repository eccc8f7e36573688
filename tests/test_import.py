import subprocess
import sys

import pytest

import mmsparse.models

HOSTS = ('mmdet', 'mmseg', 'mmpretrain')


def imported_by(statement):
    program = f'import sys\n{statement}\nprint(*sys.modules)'
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program],
        capture_output=True,
        text=True,
        check=True,
    )
    *printed, modules = done.stdout.splitlines()
    return printed, set(modules.split())


def test_the_ops_need_torch_only():
    _, modules = imported_by('import mmsparse, mmsparse.ops')

    assert 'torch' in modules
    assert modules.isdisjoint({*HOSTS, 'mmengine', 'mmcv'})


def test_the_models_import_without_any_host_and_print_nothing():
    printed, modules = imported_by('import mmsparse.models')

    assert modules.isdisjoint(HOSTS)
    assert not printed


@pytest.mark.parametrize('scope', HOSTS)
def test_the_registry_resolves_under_a_host_without_custom_imports(scope):
    _, modules = imported_by(
        f'from {scope}.registry import MODELS\n'
        "MODELS.build(dict(type='mmsparse.BiFormer', arch='nano'))"
    )

    assert 'mmsparse.models' in modules


def test_a_detector_brings_mmdet():
    _, modules = imported_by('from mmsparse.models import FocusDETR, FocusDETRHead')

    assert 'mmdet' in modules
    assert 'mmseg' not in modules


def test_a_detector_is_found_by_its_name_after_a_backbone():
    _, modules = imported_by(
        'from mmdet.registry import MODELS\n'
        "MODELS.build(dict(type='mmsparse.BiFormer', arch='nano'))\n"
        "assert 'mmsparse.models.detectors' not in sys.modules\n"
        "assert MODELS.get('mmsparse.FocusDETR').__name__ == 'FocusDETR'"
    )

    assert 'mmsparse.models.detectors' in modules


@pytest.mark.parametrize(
    'wanted', ["MODELS.get('mmsparse.FocusDETR')", 'mmsparse.models.FocusDETR']
)
def test_without_mmdet_all_but_the_detectors_work(wanted):
    printed, _ = imported_by(
        "sys.modules['mmdet'] = None\n"
        'import mmsparse.checkpoint, mmsparse.models, parity\n'
        'from mmengine.registry import MODELS\n'
        "MODELS.build(dict(type='mmsparse.BiFormer', arch='nano'))\n"
        f'try: {wanted}\n'
        'except ModuleNotFoundError as error: print(error.name)'
    )

    assert printed == ['mmdet.models']


def test_models_has_no_other_names():
    with pytest.raises(AttributeError, match="has no attribute 'YOLO'"):
        _ = mmsparse.models.YOLO
