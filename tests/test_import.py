import subprocess
import sys

import pytest

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
