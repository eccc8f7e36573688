import re

import pytest
from mmengine.config import Config
from PIL import Image

from mmsparse.apis import check_data, register_host
from mmsparse.datasets.checks import check_crops
from mmsparse.errors import UsageError

SLIDE = dict(mode='slide', crop_size=(128, 128), stride=(85, 85))


def config(crop=128, padded=(128, 128), test_cfg=None, resize=None, padding=None):
    resize = resize or dict(scale=(256, 128), keep_ratio=True)
    preprocessor = dict(size=padded, test_cfg=padding)
    pipelines = dict(
        train=[dict(type='RandomCrop', crop_size=crop)],
        test=[dict(type='Resize', **resize)],
    )
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                data_preprocessor=preprocessor, decode_head={}, test_cfg=test_cfg or {}
            ),
            **{
                f'{name}_dataloader': dict(dataset=dict(pipeline=pipeline))
                for name, pipeline in pipelines.items()
            },
        )
    )


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(crop=(128, 96)),
        dict(padded=None, crop=(999, 999)),
        dict(test_cfg=SLIDE),
        dict(test_cfg=dict(SLIDE, crop_size=(128, 256), stride=(128, 256))),
        dict(test_cfg=dict(SLIDE, crop_size=(256, 128), stride=1)),  # portrait images
        dict(test_cfg=dict(mode='whole', crop_size=64, stride=99)),
        dict(test_cfg=dict(SLIDE, crop_size=160), padding=dict(size=(160, 256))),
        dict(test_cfg=dict(SLIDE, crop_size=160), padding=dict(size_divisor=160)),
        dict(test_cfg=dict(SLIDE, crop_size=640), resize=dict(scale_factor=2)),
    ],
    ids=str,
)
def test_crops_that_fit_pass(settings):
    check_crops(config(**settings))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            dict(crop=(128, 160)),
            'crop_size=(128, 160) is larger than the padded image, '
            'model.data_preprocessor.size=(128, 128)',
        ),
        (dict(crop=160), 'crop_size=(160, 160) is larger than the padded image'),
        (
            dict(test_cfg=dict(SLIDE, stride=(85, 129))),
            'stride must be from 1 to crop_size=(128, 128), or windows '
            'leave gaps; got stride=(85, 129).',
        ),
        (dict(test_cfg=dict(SLIDE, stride=0)), 'got stride=(0, 0)'),
        (
            dict(test_cfg=dict(mode='slide', stride=85)),
            "mode='slide' needs crop_size; got {'mode': 'slide', 'stride': 85}",
        ),
        (dict(test_cfg=dict(mode='slide')), 'needs crop_size and stride'),
        (
            dict(test_cfg=dict(SLIDE, crop_size=(160, 160))),
            'crop_size=(160, 160) is larger than any padded image of the test '
            'pipeline, (128, 256)',
        ),
        (
            dict(test_cfg=dict(SLIDE, crop_size=160), padding=dict(size_divisor=32)),
            'crop_size=(160, 160) is larger than any padded image',
        ),
        (
            dict(
                test_cfg=dict(SLIDE, crop_size=(256, 128)),
                resize=dict(scale=(256, 128)),
            ),
            'crop_size=(256, 128) is larger than any padded image of the test '
            'pipeline, (128, 256)',
        ),
    ],
    ids=[
        *('wider crop', 'larger crop', 'gaps', 'no step', 'no crop', 'neither'),
        *('large window', 'padded little', 'portrait window'),
    ],
)
def test_crops_that_do_not_fit_are_an_error(settings, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        check_crops(config(**settings))


def test_configs_of_other_libraries_are_not_checked():
    cfg = config(crop=999)
    cfg.default_scope = 'mmdet'

    check_crops(cfg)


@pytest.fixture
def scenes(tmp_path):
    """Return the config of three images in the layout of ADE20K."""
    register_host('mmseg')
    for folder, suffix in (('images', '.jpg'), ('annotations', '.png')):
        (tmp_path / folder).mkdir()
        for name in 'abc':
            Image.new('L', (8, 8)).save(tmp_path / folder / f'{name}{suffix}')
    dataset = dict(
        type='BaseSegDataset',
        metainfo=dict(classes=('paper', 'ink')),
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='annotations'),
        pipeline=[dict(type='Unknown')],
    )
    head = dict(num_classes=2)
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(decode_head=head, auxiliary_head=[head, head]),
            train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dataset)),
        )
    )


def test_complete_data_pass(scenes):
    before = scenes.pretty_text

    check_data(scenes)

    assert scenes.pretty_text == before


def test_missing_label_files_are_counted_and_the_first_is_named(scenes, tmp_path):
    (tmp_path / 'annotations' / 'b.png').rename(
        tmp_path / 'annotations' / 'b_label.png'
    )
    (tmp_path / 'annotations' / 'c.png').unlink()

    message = (
        f'train_dataloader: 2 of 3 label files are missing, first '
        f'{tmp_path}/annotations/b.png; found a.png, b_label.png; '
        f"change seg_map_suffix='.png' or add the files."
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        check_data(scenes)


def test_a_folder_without_images_of_the_suffix_is_named(scenes, tmp_path):
    dataset = scenes.train_dataloader.dataset.dataset
    dataset.img_suffix = '.tif'

    message = f'no images *.tif in {tmp_path}/images; found a.jpg, b.jpg, c.jpg; change'
    with pytest.raises(UsageError, match=re.escape(message)):
        check_data(scenes)

    dataset.data_prefix.img_path = 'photos'
    message = f'no images *.tif in {tmp_path}/photos; found no files; change'
    with pytest.raises(UsageError, match=re.escape(message)):
        check_data(scenes)


@pytest.mark.parametrize('head', ['decode_head', 'auxiliary_head'])
def test_another_number_of_classes_is_an_error(scenes, head):
    scenes.merge_from_dict({f'model.{head}': dict(_delete_=True, num_classes=150)})

    message = (
        f'model.{head}.num_classes=150, but the dataset of train_dataloader has 2 '
        f'classes: paper, ink. Set num_classes of every head'
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        check_data(scenes)


def test_data_in_another_file_system_are_not_checked(scenes):
    dataset = scenes.train_dataloader.dataset.dataset
    dataset.update(backend_args=dict(backend='petrel'), img_suffix='.tif')

    check_data(scenes)
