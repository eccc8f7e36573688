from pathlib import Path

import pytest
import torch
from benchmark.precision import PRECISIONS, precision_candidates, read_images
from benchmark.timing import Stopwatch
from PIL import Image

from mmsparse.apis import read_config
from mmsparse.errors import UsageError

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / 'configs' / 'biformer' / 'biformer-nano_1xb32-9e_digits.py'


@pytest.fixture
def cfg():
    return read_config(str(CONFIG))


def test_the_error_is_relative_to_float32(cfg):
    (weights,) = (ROOT / 'weights').glob('biformer-nano*.pth')
    images = read_images(cfg, None, (64, 64), batch_size=2)

    candidates, errors = precision_candidates(cfg, str(weights), images, PRECISIONS)

    assert [x.name for x in candidates] == ['float32', 'bf16', 'int8']
    assert list(errors) == ['bf16', 'int8']
    assert all(0 < error < 0.1 for error in errors.values())
    for candidate in candidates:
        watch = Stopwatch(torch.device('cpu'))
        candidate.run(watch)
        assert list(watch.seconds) == ['forward']


def test_images_of_a_folder_are_normalized_by_the_config(cfg, tmp_path):
    for i in range(4):
        Image.new('RGB', (8, 8), (50 * i,) * 3).save(tmp_path / f'{i}.png')

    images = read_images(cfg, tmp_path, (16, 24), batch_size=2)

    assert images.shape == (2, 3, 16, 24)
    settings = cfg.data_preprocessor
    for image, level in zip(images, (0, 100), strict=True):
        expected = (level - torch.tensor(settings.mean)) / torch.tensor(settings.std)
        torch.testing.assert_close(image[:, 0, 0], expected)


def test_a_folder_with_too_few_images_is_an_error(cfg, tmp_path):
    with pytest.raises(UsageError, match=r'--images must have at least 2 .* has 0'):
        read_images(cfg, tmp_path, (16, 16), batch_size=2)
