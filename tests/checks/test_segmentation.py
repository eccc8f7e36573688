"""Checks of configs of mmseg: crops, files, label values, batches, pooled norms."""

import re

import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from PIL import Image

from mmsparse.apis import register_host
from mmsparse.checks import check_config, check_data
from mmsparse.checks.segmentation import check_crops, check_pooling
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


def test_crops_are_part_of_the_checks_of_mmseg():
    register_host('mmseg')
    cfg = config(crop=999)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.type = 'BaseSegDataset'
        loader.sampler = dict(type='DefaultSampler')

    with pytest.raises(UsageError, match=r'crop_size=\(999, 999\) is larger'):
        check_config(cfg, 'mmseg')


@pytest.fixture
def scenes(tmp_path):
    """Return the config of three images in the layout of ADE20K."""
    register_host('mmseg')
    for folder in ('images', 'annotations'):
        (tmp_path / folder).mkdir()
    for name in 'abc':
        labels = Image.fromarray(np.eye(8, dtype='uint8'))
        labels.save(tmp_path / 'annotations' / f'{name}.png')
        Image.new('L', (8, 8)).save(tmp_path / 'images' / f'{name}.jpg')
    dataset = dict(
        type='BaseSegDataset',
        metainfo=dict(classes=('paper', 'ink')),
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='annotations'),
        pipeline=[dict(type='LoadImageFromFile')],
    )
    head = dict(type='FCNHead', num_classes=2)
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(decode_head=head, auxiliary_head=[head, head]),
            train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dataset)),
            val_dataloader=dict(batch_size=2, dataset=dataset),
        )
    )


def test_complete_data_pass(scenes):
    before = scenes.pretty_text

    assert check_data(scenes, 'mmseg', ('train_dataloader',)) == []
    check_data(scenes, 'mmseg')

    assert scenes.pretty_text == before


def test_missing_label_files_are_counted_and_the_first_is_named(
    scenes, refused, tmp_path
):
    folder = tmp_path / 'annotations'
    (folder / 'b.png').rename(folder / 'b_label.png')
    (folder / 'c.png').unlink()

    refused(
        scenes,
        f'train_dataloader: 2 of 3 label files are missing, first {folder}/b.png; '
        f"found a.png, b_label.png; change seg_map_suffix='.png' or add the files.",
    )


def test_a_folder_without_images_of_the_suffix_is_named(scenes, refused, tmp_path):
    dataset = scenes.train_dataloader.dataset.dataset
    dataset.img_suffix = '.tif'
    found = f'{tmp_path}/images; found a.jpg, b.jpg, c.jpg; change'
    refused(scenes, f'no images *.tif in {found}')

    dataset.data_prefix.img_path = 'photos'
    refused(
        scenes,
        f'train_dataloader.dataset.dataset.data_prefix.img_path: no such folder: '
        f'{tmp_path}/photos; {tmp_path} has annotations, images',
    )


@pytest.mark.parametrize('suffix', ['.JPG', '.jpeg', '.png'])
def test_labeled_images_of_another_suffix_are_counted(
    scenes, refused, tmp_path, suffix
):
    (tmp_path / 'images' / 'b.jpg').rename(tmp_path / 'images' / f'b{suffix}')

    refused(
        scenes,
        f"train_dataloader.dataset.dataset.img_suffix='.jpg': 1 of 3 labeled images in "
        f'{tmp_path}/images end otherwise and would not be used, first b{suffix}; '
        f'rename them to *.jpg.',
    )


def test_images_without_labels_and_label_maps_next_to_images_pass(scenes, tmp_path):
    Image.new('L', (8, 8)).save(tmp_path / 'images' / 'd.png')
    check_data(scenes, 'mmseg')

    for path in (tmp_path / 'annotations').iterdir():
        path.rename(tmp_path / 'images' / path.name)
    for loader in (scenes.train_dataloader.dataset, scenes.val_dataloader):
        loader.dataset.data_prefix = dict(img_path='images', seg_map_path='images')
    check_data(scenes, 'mmseg')


@pytest.mark.parametrize('head', ['decode_head', 'auxiliary_head'])
def test_another_number_of_classes_is_an_error(scenes, refused, head):
    settings = dict(_delete_=True, type='FCNHead', num_classes=150)
    scenes.merge_from_dict({f'model.{head}': settings})

    refused(
        scenes,
        f'model.{head}.num_classes=150, but the data set of train_dataloader has 2 '
        f'classes: paper, ink. Set num_classes of every head to 2.',
    )


def test_another_number_of_classes_in_the_pipeline_is_an_error(scenes, refused):
    check = dict(type='mmsparse.CheckSegLabels', num_classes=150)
    scenes.val_dataloader.dataset.pipeline.append(check)

    refused(
        scenes,
        'val_dataloader.dataset.pipeline[1].num_classes=150, but the data set has 2 '
        'classes: paper, ink; set it to 2.',
    )


def test_masks_of_0_and_255_are_an_error(scenes, refused, tmp_path):
    for path in (tmp_path / 'annotations').iterdir():
        Image.fromarray(255 * np.eye(8, dtype='uint8')).save(path)

    refused(
        scenes,
        'train_dataloader.dataset.dataset: all 3 label maps have the values 0, 255 '
        'only, at most one of the 2 classes (255 is ignored); labels must be class '
        'indices from 0, for example 1 instead of 255 in masks.',
    )


def test_classes_that_never_occur_are_noted(scenes):
    for loader in (scenes.train_dataloader.dataset, scenes.val_dataloader):
        loader.dataset.metainfo.classes = ('paper', 'ink', 'stain', 'glue')
    for head in (scenes.model.decode_head, *scenes.model.auxiliary_head):
        head['num_classes'] = 4

    assert check_data(scenes, 'mmseg', ('train_dataloader',)) == [
        'train_dataloader.dataset.dataset: no pixel has the classes stain, glue.'
    ]


def test_masks_with_one_other_label_pass(scenes, tmp_path):
    for name in 'ab':
        path = tmp_path / 'annotations' / f'{name}.png'
        Image.fromarray(255 * np.eye(8, dtype='uint8')).save(path)

    check_data(scenes, 'mmseg')


def test_validation_images_of_different_sizes_in_a_batch_are_an_error(
    scenes, refused, tmp_path
):
    Image.new('L', (10, 8)).save(tmp_path / 'images' / 'b.jpg')
    refused(
        scenes,
        'val_dataloader.batch_size=2, but mmseg evaluates batches of images of one '
        'size; got 8x8 and 10x8 pixels in one batch. Set val_dataloader.batch_size=1.',
    )

    resize = dict(type='Resize', scale=(40, 40), keep_ratio=True)
    scenes.val_dataloader.dataset.pipeline.append(resize)
    refused(scenes, 'got 40x32 and 40x40 pixels in one batch')

    scenes.val_dataloader.dataset.pipeline[1]['keep_ratio'] = False
    check_data(scenes, 'mmseg')
    del scenes.val_dataloader.dataset.pipeline[1]
    scenes.val_dataloader.batch_size = 1
    check_data(scenes, 'mmseg')


def test_rotated_images_have_their_size_on_the_screen(scenes, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, size in (('a', (8, 12)), ('b', (12, 8))):
        image = Image.new('RGB', size)
        path = tmp_path / 'images' / f'{name}.jpg'
        image.save(path, **(dict(exif=exif) if name == 'b' else {}))

    check_data(scenes, 'mmseg')


def test_unknown_transforms_and_unreadable_images_leave_the_sizes_unknown(
    scenes, tmp_path
):
    Image.new('L', (10, 8)).save(tmp_path / 'images' / 'b.jpg')
    scenes.val_dataloader.dataset.pipeline.append(dict(type='RandomRotate'))
    check_data(scenes, 'mmseg')

    del scenes.val_dataloader.dataset.pipeline[1]
    (tmp_path / 'images' / 'a.jpg').write_bytes(b'')
    check_data(scenes, 'mmseg')


def test_data_in_another_file_system_are_not_checked(scenes):
    for loader in (scenes.train_dataloader.dataset, scenes.val_dataloader):
        loader.dataset.backend_args = dict(backend='petrel')
        loader.dataset.img_suffix = '.tif'

    check_data(scenes, 'mmseg')


def test_a_data_set_with_a_layout_of_another_class_passes(scenes, tmp_path):
    (tmp_path / 'before').mkdir()
    (tmp_path / 'after').mkdir()
    dataset = scenes.val_dataloader.dataset
    dataset.type = 'BaseCDDataset'
    dataset.data_prefix = dict(
        img_path='before', img_path2='after', seg_map_path='annotations'
    )
    scenes.val_dataloader.batch_size = 1
    for name in 'abc':
        for folder in ('before', 'after'):
            Image.new('L', (8, 8)).save(tmp_path / folder / f'{name}.jpg')

    check_data(scenes, 'mmseg')


def test_a_metric_without_names_of_classes_is_an_error(scenes, refused):
    scenes.val_evaluator = dict(type='IoUMetric')
    for loader in (scenes.train_dataloader.dataset, scenes.val_dataloader):
        del loader.dataset['metainfo']

    refused(
        scenes,
        'val_dataloader.dataset.metainfo has no classes, which val_evaluator needs; ',
    )


def upernet(norm='BN', size=1, launcher='none', **changes):
    head = dict(type='UPerHead', pool_scales=(1, 2), norm_cfg=dict(type=norm))
    return Config(
        dict(
            launcher=launcher,
            model=dict(decode_head=dict(head, **changes)),
            train_dataloader=dict(batch_size=size),
        )
    )


@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
def test_pooling_to_one_value_with_one_image_is_an_error(norm):
    with pytest.raises(
        UsageError,
        match=rf'train_dataloader.batch_size=1: {norm} in model.decode_head, UPerHead, '
        'would normalize a single value per channel; set batch_size to at least 2',
    ):
        check_pooling(upernet(norm))


@pytest.mark.parametrize(
    'settings',
    [
        dict(size=2),
        dict(norm='GN'),
        dict(pool_scales=(2, 3)),
        dict(type='FCNHead'),
        dict(norm='SyncBN', launcher='pytorch'),
    ],
    ids=str,
)
def test_other_pooling_passes(settings):
    check_pooling(upernet(**settings))


def write_labels(folder, values):
    for path in (folder / 'annotations').iterdir():
        Image.fromarray(np.resize(values, (8, 8)).astype('uint8')).save(path)


@pytest.mark.parametrize(
    ('number', 'loss', 'right'),
    [
        (1, dict(type='CrossEntropyLoss', use_sigmoid=True), True),
        (1, [dict(type='CrossEntropyLoss', use_sigmoid=True), dict(type='Mine')], True),
        (1, dict(type='CrossEntropyLoss'), False),
        (1, None, False),
        (3, dict(type='CrossEntropyLoss', use_sigmoid=True), False),
    ],
)
def test_one_output_with_a_sigmoid_separates_two_classes(
    scenes, refused, number, loss, right
):
    head = dict(_delete_=True, type='FCNHead', num_classes=number)
    scenes.merge_from_dict({'model.decode_head': head})
    if loss:
        scenes.model.decode_head.loss_decode = loss

    if right:
        check_data(scenes, 'mmseg')
    else:
        refused(scenes, f'model.decode_head.num_classes={number}, but the data set')


def test_images_of_a_list_must_exist(scenes, refused, tmp_path):
    (tmp_path / 'list.txt').write_text('a\nb\nc\n')
    (tmp_path / 'images' / 'b.jpg').rename(tmp_path / 'images' / 'b.JPG')
    dataset = scenes.train_dataloader.dataset.dataset
    dataset.ann_file = str(tmp_path / 'list.txt')
    refused(scenes, f'1 of 3 image files are missing, first {tmp_path}/images/b.jpg;')

    dataset.indices = 1
    check_data(scenes, 'mmseg', ('train_dataloader',))


def test_a_suffix_of_more_than_an_extension_is_compared(scenes, refused, tmp_path):
    for path in (tmp_path / 'images').iterdir():
        path.rename(tmp_path / 'images' / f'{path.stem}_left.jpg')
    for path in (tmp_path / 'annotations').iterdir():
        path.rename(tmp_path / 'annotations' / f'{path.stem}_labels.png')
    for loader in (scenes.train_dataloader.dataset, scenes.val_dataloader):
        loader.dataset.update(img_suffix='_left.jpg', seg_map_suffix='_labels.png')
    Image.new('L', (8, 8)).save(tmp_path / 'images' / 'a_right.jpg')
    check_data(scenes, 'mmseg')

    path = tmp_path / 'images' / 'b_left.jpg'
    path.rename(path.with_suffix('.png'))
    refused(scenes, '1 of 3 labeled images in')


@pytest.mark.parametrize('names', [('a.tif',), ('._a.jpg', '._a.png')])
def test_more_images_of_used_labels_and_hidden_files_pass(scenes, tmp_path, names):
    for name in names:
        for folder in ('images', 'annotations'):
            (tmp_path / folder / name).touch()

    check_data(scenes, 'mmseg')


def test_labels_that_are_no_class_are_noted(scenes, tmp_path):
    write_labels(tmp_path, [0, 1, 2, 255])
    assert check_data(scenes, 'mmseg', ('train_dataloader',)) == [
        'train_dataloader.dataset.dataset: label maps have the values 2, which are no '
        'class; labels must be from 0 to 1, or 255 to be ignored.'
    ]

    scenes.train_dataloader.dataset.dataset.ignore_index = 2
    assert check_data(scenes, 'mmseg', ('train_dataloader',)) == []


class MaskToClass(BaseTransform):
    """A transform that makes class 1 of 255."""

    def transform(self, results):
        """Return the results."""
        return results


def test_labels_that_the_pipeline_may_change_pass(scenes, tmp_path):
    write_labels(tmp_path, [0, 255])
    scenes.train_dataloader.dataset.dataset.pipeline = [dict(type=MaskToClass)]

    check_data(scenes, 'mmseg', ('train_dataloader',))


def test_a_joined_data_set_may_have_one_class(scenes, tmp_path):
    one = scenes.train_dataloader.dataset.dataset.to_dict()
    (tmp_path / 'blank').mkdir()
    for name in 'abc':
        Image.new('L', (8, 8)).save(tmp_path / 'blank' / f'{name}.png')
    blank = dict(one, data_prefix=dict(img_path='images', seg_map_path='blank'))
    joined = dict(type='ConcatDataset', datasets=[one, blank])
    scenes.train_dataloader.dataset = joined

    check_data(scenes, 'mmseg', ('train_dataloader',))
