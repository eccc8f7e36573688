"""Training from a file that has no weights of the model ends in one line."""

from pathlib import Path

import pytest
import torch

from mmsparse.conversion.families import FAMILIES
from mmsparse.models import BiFormer

CONFIG = Path(__file__).parents[2] / 'configs/biformer/biformer-nano_1xb32-9e_digits.py'


def official():
    name = FAMILIES['biformer'].official
    weights = BiFormer('nano').state_dict()
    return {name(f'backbone.{key}', 'nano'): x for key, x in weights.items()}


def backbone():
    return BiFormer('nano').state_dict()


@pytest.mark.parametrize(
    ('content', 'option', 'message'),
    [
        (
            official,
            "model.backbone.init_cfg={'type': 'Pretrained', 'checkpoint': 'PATH'}",
            'official checkpoint of biformer; convert it, see docs/migration.md: '
            'python tools/convert_checkpoint.py PATH CONVERTED.pth',
        ),
        (
            official,
            'load_from=PATH',
            'official checkpoint of biformer; convert it, see docs/migration.md: '
            'python tools/convert_checkpoint.py PATH CONVERTED.pth',
        ),
        (
            backbone,
            'load_from=PATH',
            "set model.backbone.init_cfg={'type': 'Pretrained', 'checkpoint': 'PATH'} "
            'instead',
        ),
    ],
    ids=['official init_cfg', 'official load_from', 'backbone load_from'],
)
def test_training_ends_in_one_line(
    content, option, message, small_digits, tmp_path, run_tool
):
    path = tmp_path / 'a.pth'
    torch.save(content(), path)
    config = tmp_path / 'mine.py'
    text = f'_base_ = {str(CONFIG)!r}\n'
    name, _, value = option.replace('PATH', str(path)).partition('=')
    if name == 'load_from':
        text += f'load_from = {value!r}\n'
    else:
        text += f'model = dict(backbone=dict(init_cfg={value}))\n'
    config.write_text(text)

    done = run_tool(
        *('train.py', config, '--work-dir', tmp_path), cwd=small_digits, check=False
    )

    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ')
    assert last.endswith(message.replace('PATH', str(path)))
    assert 'Traceback' not in done.stderr
