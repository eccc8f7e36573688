"""Damaged and unusual images and labels in datasets of mmdet, mmseg and mmpretrain."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

from mmsparse.apis import register_host
from mmsparse.datasets.errors import (
    SampleError,
    blame_annotations,
    blame_files,
    check_image,
    name_sample_files,
)
from mmsparse.datasets.transforms import ORIENTATION
from mmsparse.engine.runner import CheckedRunner

ROOT = Path(__file__).parents[2]
RGB = Image.effect_noise((8, 6), 90).convert('RGB').resize((48, 36), Image.BICUBIC)
GRAY = np.asarray(RGB.convert('L'))
BGR = np.asarray(RGB)[..., ::-1]


def transparent(path):
    image = RGB.copy()
    image.putalpha(100)
    image.save(path)


def wide(path):
    Image.new('RGB', (20_000, 64), (9, 99, 199)).save(path)


# Images: how the file is made, its name, and the largest error of its colors.
UNUSUAL = {
    'CMYK': (lambda path: RGB.convert('CMYK').save(path, quality=95), 'a.jpg', 40),
    '16 bits': (lambda path: cv2.imwrite(path, BGR.astype('uint16') * 257), 'a.png', 0),
    '16 bits, gray': (
        lambda path: cv2.imwrite(path, GRAY.astype('uint16') * 257),
        'a.png',
        0,
    ),
    'RGBA': (transparent, 'a.png', 0),
    'gray': (lambda path: RGB.convert('L').save(path), 'a.png', 0),
    'gray, alpha': (lambda path: RGB.convert('LA').save(path), 'a.png', 0),
    'palette': (lambda path: RGB.convert('P').save(path), 'a.png', 0),
    'black and white': (lambda path: RGB.convert('1').save(path), 'a.png', 0),
    'progressive': (lambda path: RGB.save(path, progressive=True), 'a.jpg', 4),
    'one pixel': (lambda path: RGB.crop((5, 5, 6, 6)).save(path), 'a.png', 0),
    '20,000 pixels wide': (wide, 'a.png', 0),
}


def cut(share):
    def make(path):
        RGB.save(path)
        with open(path, 'rb') as file:
            content = file.read()
        with open(path, 'wb') as file:
            file.write(content[: int(len(content) * share)])

    return make


def text(content):
    def make(path):
        with open(path, 'wb') as file:
            file.write(content)

    return make


FAULTS = {
    'missing': (lambda path: None, '.png'),
    'empty': (text(b''), '.png'),
    'text': (text(b'no image'), '.png'),
    **{
        f'{share:.0%} of a {suffix}': (cut(share), suffix)
        for suffix in ('.png', '.jpg', '.bmp', '.webp', '.tiff')
        for share in (0.05, 0.5, 0.97)
        if (share, suffix) != (0.97, '.tiff')  # only its metadata are cut
    },
}


def load(host, dataset, workers=0):
    """Return all batches of a dataset, as a training loads them."""
    register_host(host)
    with DefaultScope.overwrite_default_scope(host):
        settings = dict(
            batch_size=1,
            num_workers=workers,
            dataset=dataset,
            sampler=dict(type='DefaultSampler', shuffle=False),
        )
        loader = CheckedRunner.build_dataloader(settings)
    for _ in range(2):  # the second call changes nothing
        name_sample_files(loader.dataset)
    return list(loader)


def classification(folder, **changes):
    (folder / 'cats').mkdir(exist_ok=True)
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    extensions = ('.png', '.jpg', '.bmp', '.webp', '.tiff')
    settings = dict(data_root=str(folder), pipeline=pipeline, extensions=extensions)
    return dict(type='CustomDataset', **(settings | changes))


def segmentation(folder, **changes):
    for name in ('images', 'maps'):
        (folder / name).mkdir(exist_ok=True)
    pipeline = [dict(type=f'Load{x}') for x in ('ImageFromFile', 'Annotations')]
    settings = dict(
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        img_suffix='.png',
        metainfo=dict(classes=('sky', 'sea', 'sand'), palette=[[0] * 3] * 3),
        pipeline=[*pipeline, dict(type='PackSegInputs')],
    )
    return dict(type='BaseSegDataset', **(settings | changes))


def detection(folder, annotations, **changes):
    (folder / 'found.json').write_text(
        annotations if isinstance(annotations, str) else json.dumps(annotations)
    )
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs'),
    ]
    settings = dict(
        data_root=str(folder),
        ann_file='found.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('cat',)),
        pipeline=pipeline,
    )
    return dict(type='CocoDataset', **(settings | changes))


COCO = dict(
    images=[dict(id=1, file_name='a.png', width=48, height=36)],
    annotations=[
        dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 9, 8], area=72, iscrowd=0)
    ],
    categories=[dict(id=1, name='cat')],
)


def dataset_with_image(host, folder, name, size=(48, 36)):
    """Return the settings of a dataset and the path of its image."""
    if host == 'mmpretrain':
        return classification(folder), folder / 'cats' / name
    if host == 'mmdet':
        image = dict(id=1, file_name=name, width=size[0], height=size[1])
        return detection(folder, COCO | dict(images=[image])), folder / name
    dataset = segmentation(folder, img_suffix=Path(name).suffix)
    Image.new('L', size).save(folder / 'maps' / 'a.png')
    return dataset, folder / 'images' / name


@pytest.mark.parametrize('host', ['mmpretrain', 'mmdet', 'mmseg'])
@pytest.mark.parametrize('image', UNUSUAL)
def test_unusual_images_are_read_as_8_bit_colors(image, host, tmp_path):
    make, name, tolerance = UNUSUAL[image]
    if image == 'one pixel' and host == 'mmseg':
        pytest.skip('mmseg squeezes label maps')
    sizes = {'one pixel': (1, 1), '20,000 pixels wide': (20_000, 64)}
    size = sizes.get(image, (48, 36))
    dataset, path = dataset_with_image(host, tmp_path, name, size)
    make(str(path))

    check_image(str(path))
    ((inputs,),) = (batch['inputs'] for batch in load(host, dataset))

    expected = RGB if 'gray, alpha' in image or '16 bits' in image else Image.open(path)
    if image in ('16 bits, gray', 'gray, alpha'):
        expected = RGB.convert('L')
    expected = np.asarray(expected.convert('RGB'))[..., ::-1].transpose(2, 0, 1)
    assert inputs.dtype == torch.uint8
    difference = abs(inputs.numpy().astype(int) - expected)
    assert difference.max() <= tolerance


@pytest.mark.parametrize('fault', FAULTS)
def test_an_image_that_cannot_be_read_is_named(fault, tmp_path):
    make, suffix = FAULTS[fault]
    path = tmp_path / f'a{suffix}'
    make(str(path))

    with pytest.raises(SampleError, match=rf'^not a readable image: {path}$'):
        check_image(str(path))


@pytest.mark.parametrize(
    ('fault', 'workers'),
    [('empty', 0), ('text', 0), ('50% of a .png', 0), ('50% of a .jpg', 1)],
)
def test_a_training_names_the_image(fault, workers, tmp_path):
    make, suffix = FAULTS[fault]
    dataset = classification(tmp_path)
    for name in ('a', 'c'):
        RGB.save(tmp_path / 'cats' / f'{name}.png')
    make(str(tmp_path / 'cats' / f'b{suffix}'))

    with pytest.raises(SampleError, match=rf'cats/b\{suffix}') as info:
        load('mmpretrain', dataset, workers)

    assert str(info.value).startswith(f'{tmp_path}/cats/b{suffix}: LoadImageFromFile')
    assert 'Replace the file, or remove it' in str(info.value)
    assert '\n' not in str(info.value)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (text(b''), r'images/a\.png and .*maps/a\.png: LoadAnnotations of 48 x 36'),
        (text(b'no map'), r'maps/a\.png'),
        (cut(0.5), r'maps/a\.png.*truncated'),
        (
            lambda path: RGB.save(path),
            r'maps/a\.png: a label map must have one label per pixel',
        ),
        (
            lambda path: Image.new('L', (48, 35)).save(path),
            r'maps/a\.png: the label map has height x width 35 x 48, but its image',
        ),
        (
            lambda path: Image.new('L', (48, 36), 3).save(path),
            r'maps/a\.png: labels must be from 0 to 2, .*got 3',
        ),
        (  # 257 becomes 1 in 8 bits
            lambda path: cv2.imwrite(path, np.full((36, 48), 257, 'uint16')),
            r'maps/a\.png: labels must be at most 255; got 257',
        ),
    ],
    ids=['empty', 'text', 'cut', 'colors', 'size', 'range', '16 bits'],
)
def test_a_training_names_the_label_map(make, message, tmp_path):
    dataset = segmentation(tmp_path)
    RGB.save(tmp_path / 'images' / 'a.png')
    make(str(tmp_path / 'maps' / 'a.png'))

    with pytest.raises(SampleError, match=message):
        load('mmseg', dataset)


FORMATS = {
    'L': lambda x: Image.fromarray(x),
    'P': lambda x: Image.fromarray(x).convert('P'),
    'I;16': lambda x: Image.fromarray(x.astype('uint16')),
}


@pytest.mark.parametrize('mode', FORMATS)
def test_label_maps_of_any_format_keep_their_labels(mode, tmp_path):
    dataset = segmentation(tmp_path)
    RGB.save(tmp_path / 'images' / 'a.png')
    labels = np.array([0, 1, 2, 255], dtype='uint8').repeat(12)[None].repeat(36, 0)
    FORMATS[mode](labels).save(tmp_path / 'maps' / 'a.png')

    (batch,) = load('mmseg', dataset)

    assert np.array_equal(batch['data_samples'][0].gt_sem_seg.data[0], labels)


def test_a_black_and_white_label_map_has_the_labels_0_and_1(tmp_path):
    dataset = segmentation(tmp_path)
    RGB.save(tmp_path / 'images' / 'a.png')
    RGB.convert('1').save(tmp_path / 'maps' / 'a.png')

    (batch,) = load('mmseg', dataset)

    labels = batch['data_samples'][0].gt_sem_seg.data[0]
    assert np.array_equal(labels, np.asarray(RGB.convert('1')))


@pytest.mark.parametrize('mode', ['1', 'P'])
def test_labels_that_cv2_changes_are_an_error(mode, tmp_path):
    dataset = segmentation(tmp_path)
    dataset['pipeline'][1] = dict(type='LoadAnnotations', imdecode_backend='cv2')
    RGB.save(tmp_path / 'images' / 'a.png')
    RGB.convert(mode).save(tmp_path / 'maps' / 'a.png')

    with pytest.raises(
        SampleError, match=r"a\.png: .*imdecode_backend='pillow' of Load"
    ):
        load('mmseg', dataset)


def test_labels_in_a_jpeg_are_an_error_that_says_so(tmp_path):
    dataset = segmentation(tmp_path, seg_map_suffix='.jpg')
    RGB.save(tmp_path / 'images' / 'a.png')
    RGB.convert('L').save(tmp_path / 'maps' / 'a.jpg')

    with pytest.raises(
        SampleError, match=r'labels must be .* save label maps as PNG\.'
    ):
        load('mmseg', dataset)


def sideways(path):
    """Write an image of 48 x 36 pixels that its EXIF tag rotates."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    RGB.save(path, exif=exif, quality=95)


BEFORE = "annotated before its EXIF rotation; set color_type='color_ignore_orientation'"
AFTER = (
    "annotated after its EXIF rotation, which .* ignores; set its color_type='color'"
)
# Arguments of LoadImageFromFile, the size in the annotations, and the error.
ROTATED = [
    (dict(imdecode_backend='cv2'), (36, 48), None),
    (dict(imdecode_backend='pillow'), (36, 48), None),
    (dict(imdecode_backend='cv2'), (48, 36), BEFORE),
    (dict(imdecode_backend='pillow'), (48, 36), BEFORE),
    (dict(color_type='color_ignore_orientation'), (48, 36), None),
    (dict(color_type='color_ignore_orientation'), (36, 48), AFTER),
]


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
@pytest.mark.parametrize(('settings', 'size', 'message'), ROTATED)
def test_exif_rotation_fits_the_annotations(settings, size, message, host, tmp_path):
    dataset, path = dataset_with_image(host, tmp_path, 'a.jpg', size)
    dataset['pipeline'][0].update(settings)
    sideways(path)

    if message:
        with pytest.raises(SampleError, match=rf'a\.jpg.* has .*{message}'):
            load(host, dataset)
    else:
        (batch,) = load(host, dataset)
        assert batch['inputs'][0].shape == (3, *size[::-1])


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_classifiers_get_images_rotated_by_exif(backend, tmp_path):
    dataset, path = dataset_with_image('mmpretrain', tmp_path, 'a.jpg')
    dataset['pipeline'][0].update(imdecode_backend=backend)
    sideways(path)

    (batch,) = load('mmpretrain', dataset)

    assert batch['inputs'][0].shape == (3, 48, 36)


def test_an_image_of_another_size_than_its_annotations_is_an_error(tmp_path):
    dataset, path = dataset_with_image('mmdet', tmp_path, 'a.png')
    RGB.resize((24, 18)).save(path)

    with pytest.raises(
        SampleError,
        match=rf'^{path}: the image has width x height 24 x 18, but its annotations '
        r'are for 48 x 36: it was resized, or .*; scale the annotations',
    ):
        load('mmdet', dataset)


def test_an_image_may_differ_by_one_pixel_from_its_annotations(tmp_path):
    dataset, path = dataset_with_image('mmdet', tmp_path, 'a.png')
    RGB.resize((49, 35)).save(path)

    (batch,) = load('mmdet', dataset)

    assert batch['inputs'][0].shape == (3, 35, 49)


@pytest.mark.parametrize('host', ['mmpretrain', 'mmdet', 'mmseg'])
def test_a_gray_image_that_pillow_would_make_white_is_an_error(host, tmp_path):
    dataset, path = dataset_with_image(host, tmp_path, 'a.png')
    dataset['pipeline'][0].update(imdecode_backend='pillow')
    UNUSUAL['16 bits, gray'][0](str(path))

    with pytest.raises(SampleError, match=rf"{path}: .*set imdecode_backend='cv2' of"):
        load(host, dataset)


@pytest.mark.parametrize(
    ('host', 'crop'),
    [
        ('mmpretrain', dict(type='RandomCrop', crop_size=99, pad_if_needed=True)),
        ('mmpretrain', dict(type='RandomResizedCrop', scale=99)),
        ('mmpretrain', dict(type='CenterCrop', crop_size=99)),
        ('mmdet', dict(type='RandomCrop', crop_size=(99, 99))),
        ('mmseg', dict(type='RandomCrop', crop_size=(99, 99))),
    ],
)
def test_an_image_may_be_smaller_than_a_crop(host, crop, tmp_path):
    dataset, path = dataset_with_image(host, tmp_path, 'a.png')
    dataset['pipeline'].insert(-1, crop)
    RGB.save(path)

    (batch,) = load(host, dataset)

    assert batch['inputs'][0].shape in ((3, 36, 48), (3, 99, 99))


@pytest.mark.parametrize(
    'annotations',
    [
        '',
        'no annotations',
        json.dumps(COCO)[:-40],
        [],
        COCO | dict(images=3),
        {key: COCO[key] for key in ('annotations', 'categories')},
        COCO | dict(annotations=[dict(COCO['annotations'][0], bbox=[1, 2, 9])]),
        COCO | dict(annotations=[dict(COCO['annotations'][0], bbox='1 2 9 8')]),
        COCO | dict(images=[dict(id=1, file_name='a.png')]),
    ],
    ids=[
        'empty',
        'text',
        'cut',
        'list',
        'number',
        'no images',
        'box of three',
        'text as box',
        'no size',
    ],
)
def test_a_training_names_the_annotations(annotations, tmp_path):
    RGB.save(tmp_path / 'a.png')
    dataset = detection(tmp_path, annotations)

    with pytest.raises(SampleError, match=rf'{tmp_path}/found\.json'):
        load('mmdet', dict(type='RepeatDataset', times=2, dataset=dataset))


def test_a_training_names_the_image_and_the_transform(tmp_path):
    dataset, path = dataset_with_image('mmdet', tmp_path, 'a.png', (20_000, 64))
    wide(path)
    resize = dict(type='Resize', scale=(100, 100), keep_ratio=True)
    dataset['pipeline'].insert(2, resize)

    with pytest.raises(
        SampleError,
        match=r'a\.png: Resize of 20000 x 64 pixels: .* Change the settings of this tr',
    ):
        load('mmdet', dict(type='ConcatDataset', datasets=[dataset]))


def test_good_data_stay_unchanged(tmp_path):
    RGB.save(tmp_path / 'a.png')

    (batch,) = load('mmdet', detection(tmp_path, COCO))

    assert np.array_equal(batch['inputs'][0].permute(1, 2, 0), BGR)
    assert batch['data_samples'][0].gt_instances.bboxes.tensor.tolist() == [
        [1, 2, 10, 10]
    ]


def test_the_annotations_of_a_metric_are_named():
    with (
        pytest.raises(SampleError, match=r"^val\.json: KeyError: 'images'"),
        blame_annotations([dict(type='CocoMetric', ann_file='val.json')]),
    ):
        raise KeyError('images')


def test_an_error_that_names_the_file_is_unchanged():
    with (
        pytest.raises(SampleError, match=r'^a\.png: labels are wrong$'),
        blame_files('a.png'),
    ):
        raise ValueError('a.png: labels are wrong')


@pytest.mark.slow
@pytest.mark.parametrize('command', ['tools/train.py', 'mim'])
def test_a_command_names_the_image_that_a_worker_cannot_read(
    command, small_digits, run_tool, run_host
):
    config = ROOT / 'configs/biformer/biformer-nano_1xb32-9e_digits.py'
    root = small_digits / 'broken'
    for split in ('train', 'val'):
        (root / split / 'cat').mkdir(parents=True, exist_ok=True)
        RGB.save(root / split / 'cat' / 'a.png')
    cut(0.5)(root / 'train/cat/b.png')
    options = (
        *('--work-dir', root / 'work_dir'),
        *('--cfg-options', f'train_dataloader.dataset.data_root={root}'),
        *(f'val_dataloader.dataset.data_root={root}', 'model.head.num_classes=1'),
        'train_dataloader.num_workers=1',
    )

    if command == 'mim':
        done = run_host('mmpretrain', 'train.py', config, *options, cwd=small_digits)
        start = 'mmsparse.datasets.errors.SampleError'
    else:
        done = run_tool('train.py', config, *options, cwd=small_digits, check=False)
        start = 'error'

    assert done.returncode == 1
    message = f'{start}: {root}/train/cat/b.png: LoadImageFromFile: '
    assert done.stderr.splitlines()[-1].startswith(message)
    assert (command == 'mim') == ('Traceback' in done.stderr)
