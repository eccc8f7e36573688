"""Masks and names of predictions in a sample."""

import torch
from mmengine.config import Config

from mmsparse.visualization import ImageTransform, read_classes
from mmsparse.visualization.sample import _masks_to_image


def test_masks_are_flipped_back():
    transform = ImageTransform((4, 6), (4, 6)).resized((8, 12)).flipped('horizontal')
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)  # of mmdet, of the flipped image
    mask[0, 1, 0] = True

    found = _masks_to_image(mask, transform, torch.tensor([2.0, 2.0]))

    assert found.nonzero().tolist() == [[0, 1, 5]]


def test_masks_are_empty_outside_of_a_crop():
    transform = ImageTransform((4, 6), (4, 6)).cropped(1, 2, (2, 3))

    found = _masks_to_image(torch.ones(1, 2, 3).bool(), transform, torch.ones(2))

    expected = torch.zeros(1, 4, 6, dtype=torch.bool)
    expected[:, 1:3, 2:5] = True
    assert torch.equal(found, expected)


def test_class_names_are_first_those_of_the_training(tmp_path):
    dataset = dict(type='CustomDataset', classes=['a', 'b'])
    cfg = Config(
        dict(default_scope='mmpretrain', test_dataloader=dict(dataset=dataset))
    )
    file = tmp_path / 'trained.pth'
    meta = dict(dataset_meta=dict(classes=('cat', 'dog')))
    torch.save(dict(meta=meta, state_dict=dict(x=torch.ones(1))), file)

    assert read_classes(cfg, None) == (['a', 'b'], [])
    assert read_classes(cfg, str(file)) == (['cat', 'dog'], [])
