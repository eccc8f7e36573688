"""Test-time augmentation of configs without settings for it."""

from pathlib import Path

import pytest
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner

from mmsparse.apis import read_config, use_tta
from mmsparse.errors import UsageError

CONFIGS = Path(__file__).parents[2] / 'configs'
TASKS = {
    'mmpretrain': 'biformer/biformer-nano_1xb32-9e_digits.py',
    'mmdet': 'biformer/atss_biformer-pico_1xb8-6e_digits.py',
    'mmseg': 'biformer/fpn_biformer-nano_1xb8-1600i_digits.py',
}


@pytest.fixture
def digits_config(small_digits, monkeypatch):
    monkeypatch.chdir(small_digits)
    return lambda host: read_config(str(CONFIGS / TASKS[host]))


@pytest.mark.parametrize('host', TASKS)
def test_images_and_flipped_images_are_predicted_and_merged(host, digits_config):
    cfg = digits_config(host)
    cfg.test_dataloader.batch_size = 2

    use_tta(cfg)

    with DefaultScope.overwrite_default_scope(host):
        batch = next(iter(Runner.build_dataloader(cfg.test_dataloader)))
        if 'data_preprocessor' in cfg:
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = MODELS.build(cfg.model).eval()
    plain, flipped = (inputs[0] for inputs in batch['inputs'])
    assert plain.equal(flipped.flip(-1))
    assert [x[0].flip for x in batch['data_samples']] == [False, True]
    assert len(model.test_step(batch)) == 2


def test_labels_of_flipped_images_are_those_of_the_file(digits_config):
    cfg = digits_config('mmseg')

    use_tta(cfg)

    with DefaultScope.overwrite_default_scope('mmseg'):
        sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
    labels = [x.gt_sem_seg.data for x in sample['data_samples']]
    assert labels[0].equal(labels[1])
    assert not labels[0].equal(labels[0].flip(-1))


def test_every_dataset_of_a_wrapped_one_is_augmented(digits_config):
    cfg = digits_config('mmdet')
    inner = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner, inner])

    use_tta(cfg)

    for dataset in cfg.test_dataloader.dataset.datasets:
        assert dataset.pipeline[-1].type == 'TestTimeAug'
        assert 'pipeline' not in cfg.test_dataloader.dataset


def test_a_named_pipeline_must_be_in_the_config(digits_config):
    with pytest.raises(UsageError, match='--tta needs flips in the config'):
        use_tta(digits_config('mmdet'), 'flips')


def test_masks_cannot_be_merged():
    path = CONFIGS / 'dat/mask-rcnn_dat-pp-tiny_32xb2-12e_coco.py'

    with pytest.raises(UsageError, match=r'got model.roi_head.mask_head. Test without'):
        use_tta(read_config(str(path)))
