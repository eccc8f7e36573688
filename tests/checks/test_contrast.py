"""A note on images that are nearly constant once they are normalized."""

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmsparse.checks import check_data

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
NOTE = 'normalized images are nearly constant'


def paint(folder, low, high):
    """Write images whose left half has one color and whose right half another."""
    image = Image.new('RGB', (40, 30), tuple(low))
    image.paste(tuple(high), (20, 0, 40, 30))
    for path in folder.glob('*.jpg'):
        path.unlink()
        image.save(path.with_suffix('.png'))


@pytest.fixture
def cells(pets, tmp_path):
    """The config of a detector with bright images of low contrast."""
    paint(tmp_path / 'train', (170, 150, 160), (210, 200, 200))
    paint(tmp_path / 'val', (0, 0, 0), (255, 255, 255))
    for split in ('train', 'val'):
        file = tmp_path / f'{split}.json'
        file.write_text(file.read_text().replace('.jpg', '.png'))
    pets.model.data_preprocessor = dict(IMAGENET, bgr_to_rgb=True)
    return pets


def notes(cfg):
    return [x for x in check_data(cfg, cfg.default_scope) if NOTE in x]


def test_the_note_has_the_mean_and_deviation_of_the_images(cells):
    (note,) = notes(cells)
    assert note == (
        'train_dataloader.dataset: normalized images are nearly constant, 1.2 with a '
        'standard deviation of 0.4; set data_preprocessor.mean=[190.0, 175.0, 180.0] '
        'and std=[20.0, 25.0, 20.0], those of some of the images.'
    )
    cells.model.data_preprocessor.update(mean=[190.0, 175, 180], std=[20.0, 25, 20])
    assert notes(cells) == []


def test_channels_have_the_order_of_the_preprocessor(cells):
    cells.model.data_preprocessor.update(bgr_to_rgb=False)
    assert 'mean=[180.0, 175.0, 190.0] and std=[20.0, 25.0, 20.0]' in notes(cells)[0]


def test_gray_images_are_converted(cells, tmp_path):
    for path in (tmp_path / 'train').glob('*.png'):
        array = np.full((30, 40), 200, np.uint8)
        array[:, 20:] = 220
        Image.fromarray(array).save(path)
    assert 'mean=[210.0, 210.0, 210.0] and std=[10.0, 10.0, 10.0]' in notes(cells)[0]


@pytest.mark.parametrize(
    'changes',
    [
        {'load_from': 'model.pth'},
        {'model.backbone': dict(init_cfg=dict(type='Pretrained', checkpoint='x'))},
        {'model.data_preprocessor': dict(type='DetDataPreprocessor')},
        {'model.data_preprocessor': dict(mean=[117.0], std=[57.0])},
    ],
)
def test_other_settings_have_no_note(cells, changes):
    if 'model.data_preprocessor' in changes:
        del cells.model['data_preprocessor']
    cells.merge_from_dict(changes)
    assert notes(cells) == []


def test_blank_images_have_no_deviation_to_suggest(cells, tmp_path):
    for path in (tmp_path / 'train').glob('*.png'):
        Image.new('RGB', (40, 30), 'white').save(path)
    assert notes(cells) == []


def test_files_that_cannot_be_read_do_not_count(cells, tmp_path):
    for path in (tmp_path / 'train').glob('*.png'):
        path.write_bytes(b'')
    assert notes(cells) == []


def test_images_of_classifiers_are_in_folders_of_classes(tmp_path):
    for name in ('cat', 'dog'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'a.jpg').touch()
        paint(tmp_path / name, (170, 150, 160), (210, 200, 200))
    dataset = dict(type='CustomDataset', data_root=str(tmp_path))
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(head=dict(num_classes=2)),
            data_preprocessor=dict(IMAGENET, to_rgb=True),
            train_dataloader=dict(dataset=dataset),
        )
    )
    assert '1.2 with a standard deviation of 0.4' in notes(cfg)[0]
