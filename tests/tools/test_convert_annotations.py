"""Conversion of VOC, YOLO and LabelMe to COCO JSON and label maps."""

import json
import sys

import convert_annotations
import mmcv
import numpy as np
import pytest
from annotations.images import image_size
from annotations.instances import clip_polygon, polygon_area
from annotations.problems import INVALID, Problem
from mmdet.datasets import CocoDataset
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image
from pycocotools import mask

VOC = '<annotation><size><width>{}</width><height>{}</height></size>{}</annotation>'
OBJECT = (
    '<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin>'
    '<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
)


def voc(*objects, size=(40, 30)):
    """Return an XML file; objects are name, xmin, ymin, xmax, ymax."""
    return VOC.format(*size, ''.join(OBJECT.format(x[0], 0, *x[1:]) for x in objects))


def shape(label, points, shape_type='polygon', **settings):
    return dict(label=label, points=points, shape_type=shape_type, **settings)


def labelme(*shapes, size=(40, 30)):
    return json.dumps(dict(shapes=shapes, imageWidth=size[0], imageHeight=size[1]))


@pytest.fixture
def files(tmp_path):
    """Write files by name: text, or images of a size."""

    def write(contents):
        for name, content in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, tuple):
                Image.new('RGB', content, (90, 90, 90)).save(path)
                continue
            data = content if isinstance(content, bytes) else content.encode()
            path.write_bytes(data)

    return write


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Run the command in the folder; return exit status, output and error."""

    def run(line):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['convert_annotations.py', *line.split()])
        with pytest.raises(SystemExit) as end:
            convert_annotations.run(convert_annotations.main, OSError)
        status, printed = end.value.code, capsys.readouterr()
        if isinstance(status, str):
            return 1, printed.out, status
        return status, printed.out, printed.err

    return run


def read(path):
    return json.loads(path.read_text(encoding='utf-8'))


def test_boxes_of_voc(files, convert, tmp_path):
    files(
        {
            'JPEGImages/b.jpg': (40, 30),
            'JPEGImages/a.png': (50, 60),
            'Annotations/b.xml': voc(('wbc', 1, 2, 11, 22), ('rbc', 0, 0, 40, 30)),
        }
    )

    status, printed, _ = convert('voc Annotations out/train.json')

    assert status == 0
    assert read(tmp_path / 'out/train.json') == dict(
        images=[
            dict(id=1, file_name='a.png', width=50, height=60),
            dict(id=2, file_name='b.jpg', width=40, height=30),
        ],
        annotations=[
            dict(
                id=1,
                image_id=2,
                category_id=2,
                bbox=[1, 2, 10, 20],
                area=200,
                iscrowd=0,
                segmentation=[],
            ),
            dict(
                id=2,
                image_id=2,
                category_id=1,
                bbox=[0, 0, 40, 30],
                area=1200,
                iscrowd=0,
                segmentation=[],
            ),
        ],
        categories=[dict(id=1, name='rbc'), dict(id=2, name='wbc')],
    )
    assert printed.splitlines() == [
        'images without label file, kept without boxes: 1: JPEGImages/a.png',
        '2 images, 2 objects: rbc 1, wbc 1',
        "metainfo = dict(classes=('rbc', 'wbc'))",
        'out/train.json',
    ]


def test_pixels_from_one_are_both_included(files, convert, tmp_path):
    files(
        {
            'JPEGImages/a.jpg': (40, 30),
            'Annotations/a.xml': voc(('cat', 1, 1, 40, 30)),
        }
    )

    convert('voc Annotations out.json --one-based')

    assert read(tmp_path / 'out.json')['annotations'][0]['bbox'] == [0, 0, 40, 30]


def test_difficult_objects_are_ignored(files, convert, tmp_path):
    files(
        {
            'JPEGImages/a.jpg': (40, 30),
            'Annotations/a.xml': VOC.format(
                40, 30, OBJECT.format('cat', 1, 1, 2, 9, 9)
            ),
        }
    )

    _, printed, _ = convert('voc Annotations out.json')

    assert read(tmp_path / 'out.json')['annotations'][0]['iscrowd'] == 1
    assert 'difficult objects, iscrowd=1: 1: Annotations/a.xml: object 1' in printed


def test_boxes_and_polygons_of_yolo(files, convert, tmp_path):
    files(
        {
            'images/train/a.jpg': (40, 20),
            'labels/train/a.txt': '3 0.5 0.5 0.5 0.2\n\n1 0 0 0.5 0 0.5 1 0 1\n',
            'data.yaml': 'names: {3: dog, 1: cat, 7: cow}',
        }
    )

    status, _, error = convert('yolo labels/train out.json --classes data.yaml')

    assert status == 0, error
    coco = read(tmp_path / 'out.json')
    assert [x['name'] for x in coco['categories']] == ['cat', 'dog', 'cow']
    box, polygon = coco['annotations']
    assert (box['category_id'], box['bbox']) == (2, [10, 8, 20, 4])
    assert (polygon['category_id'], polygon['bbox']) == (1, [0, 0, 20, 20])
    assert polygon['segmentation'] == [[0, 0, 20, 0, 20, 20, 0, 20]]
    assert polygon['area'] == 400


def test_yolo_finds_its_classes_in_the_folder(files, convert, tmp_path):
    files(
        {
            'labels/classes.txt': 'cat\ndog\n',
            'labels/a.txt': '1 0.5 0.5 0.5 0.2',
            'images/a.jpg': (40, 20),
        }
    )

    status, printed, _ = convert('yolo labels out.json')

    assert status == 0
    assert '1 images, 1 objects: cat 0, dog 1' in printed
    assert 'without image' not in printed


def test_shapes_of_labelme(files, convert, tmp_path):
    files(
        {
            'a.jpg': (40, 30),
            'a.json': labelme(
                shape('cat', [[0, 0], [10, 0], [0, 10]]),
                shape('dog', [[30, 20], [20, 10]], 'rectangle'),
                shape('cow', [[20, 15], [20, 25]], 'circle'),
                shape('cat', [[20, 0], [30, 0], [30, 10]], group_id=4),
                shape('cat', [[30, 20], [40, 20], [40, 30]], group_id=4),
                shape('cat', [[3, 3]], 'point'),
            ),
        }
    )

    status, printed, _ = convert('labelme . out.json --classes cat dog cow')

    assert status == 0
    assert 'points, lines and masks, left out: 1: a.json: shape 6: point' in printed
    triangle, rectangle, circle, parts = read(tmp_path / 'out.json')['annotations']
    assert (triangle['bbox'], triangle['area']) == ([0, 0, 10, 10], 50)
    assert (rectangle['bbox'], rectangle['area']) == ([20, 10, 10, 10], 100)
    assert (rectangle['category_id'], circle['category_id']) == (2, 3)
    assert circle['bbox'] == [10, 5, 20, 20]
    assert circle['area'] == pytest.approx(np.pi * 100, rel=0.01)
    assert (parts['bbox'], parts['area']) == ([20, 0, 20, 30], 100)
    assert len(parts['segmentation']) == 2


def test_label_maps_for_mmseg(files, convert, tmp_path):
    files(
        {
            'images/train/a.jpg': (40, 30),
            'images/train/b.jpg': (20, 20),
            'labels/a.json': labelme(
                shape('dog', [[0, 0], [20, 30]], 'rectangle'),
                shape('cat', [[10, 10], [50, 10], [50, 20], [10, 20]]),
            ),
        }
    )

    status, printed, _ = convert(
        'labelme labels maps --images images/train --label-maps --draw 2'
    )

    assert status == 0
    classes = ('background', 'cat', 'dog')
    assert f'metainfo = dict(classes={classes})' in printed
    dataset = BaseSegDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images/train', seg_map_path='maps'),
        metainfo=dict(classes=classes),
        pipeline=[],
    )
    first, second = (
        LoadAnnotations()(dataset.get_data_info(i))['gt_seg_map'] for i in range(2)
    )
    expected = np.zeros((30, 40), int)
    expected[:, :20] = 2
    expected[10:20, 10:] = 1
    assert (first == expected).all()
    assert second.shape == (20, 20) and not second.any()


@pytest.mark.parametrize(
    'line',
    [
        'voc Annotations out.json --images JPEGImages',
        'yolo labels out.json --images JPEGImages --classes cat dog',
    ],
    ids=lambda line: line[:4],
)
def test_mmdet_reads_the_boxes(line, files, convert, tmp_path):
    files(
        {
            'JPEGImages/x/a.jpg': (40, 20),
            'Annotations/x/a.xml': voc(
                ('dog', 10, 8, 30, 12), ('cat', 0, 0, 20, 20), size=(40, 20)
            ),
            'labels/x/a.txt': '1 0.5 0.5 0.5 0.2\n0 0.25 0.5 0.5 1\n',
        }
    )

    status, _, error = convert(line)

    assert status == 0, error
    dataset = CocoDataset(
        ann_file=str(tmp_path / 'out.json'),
        data_prefix=dict(img=f'{tmp_path}/JPEGImages/'),
        metainfo=dict(classes=('cat', 'dog')),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[],
    )
    (info,) = (dataset.get_data_info(i) for i in range(len(dataset)))
    assert mmcv.imread(info['img_path']).shape == (info['height'], info['width'], 3)
    objects = [
        (x['bbox_label'], x['bbox'], x['ignore_flag']) for x in info['instances']
    ]
    assert objects == [(1, [10, 8, 30, 12], 0), (0, [0, 0, 20, 20], 0)]


def test_mmdet_reads_the_masks(files, convert, tmp_path):
    points = [[5, 5], [35, 5], [20, 25]]
    files({'a.jpg': (40, 30), 'a.json': labelme(shape('cat', points))})

    convert('labelme . out.json')

    dataset = CocoDataset(
        ann_file=str(tmp_path / 'out.json'),
        data_prefix=dict(img=f'{tmp_path}/'),
        metainfo=dict(classes=('cat',)),
        pipeline=[
            dict(type='mmdet.LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )
    (instance,) = dataset[0]['gt_masks'].masks
    assert instance.shape == (30, 40)
    assert instance.sum() == pytest.approx(300, rel=0.1)
    assert instance[6, 8] and instance[20, 20] and not instance[20, 8]


def test_classes_of_another_split_keep_their_order(files, convert, tmp_path):
    files(
        {
            'JPEGImages/a.jpg': (40, 30),
            'Annotations/a.xml': voc(('dog', 1, 1, 9, 9), ('ant', 1, 1, 9, 9)),
            'val/a.jpg': (40, 30),
            'val/a.json': labelme(shape('dog', [[0, 0], [9, 0], [9, 9]])),
        }
    )

    convert('voc Annotations train.json')
    status, _, _ = convert('labelme val val.json --classes train.json')

    assert status == 0
    train, val = (read(tmp_path / f'{split}.json') for split in ('train', 'val'))
    assert [x['name'] for x in train['categories']] == ['ant', 'dog']
    assert val['categories'] == train['categories']


def test_a_split_still_has_the_classes_of_all_files(files, convert, tmp_path):
    files(
        {
            'JPEGImages/a.jpg': (40, 30),
            'JPEGImages/b.jpg': (40, 30),
            'Annotations/a.xml': voc(('dog', 1, 1, 9, 9)),
            'Annotations/b.xml': voc(('ant', 1, 1, 9, 9)),
            'train.txt': 'a\n',
            'paths.txt': './JPEGImages/b.jpg\nJPEGImages/b.jpg\n',
        }
    )

    convert('voc Annotations train.json --split train.txt')
    _, printed, _ = convert('voc Annotations val.json --split paths.txt')

    train, val = (read(tmp_path / f'{split}.json') for split in ('train', 'val'))
    assert [x['name'] for x in train['categories']] == ['ant', 'dog']
    assert [x['file_name'] for x in train['images']] == ['a.jpg']
    assert [x['file_name'] for x in val['images']] == ['b.jpg']
    assert 'listed again, used once: 1: paths.txt:2: JPEGImages/b.jpg' in printed


NOTES = {
    'image without label': (
        {'JPEGImages/b.jpg': (9, 9)},
        'images without label file, kept without boxes: 1: JPEGImages/b.jpg',
    ),
    'label without image': (
        {'Annotations/b.xml': voc()},
        'label files without image, left out: 1: Annotations/b.xml',
    ),
    'no object': (
        {'JPEGImages/b.jpg': (9, 9), 'Annotations/b.xml': voc()},
        'images without object in their label file, kept without boxes: 1: '
        'JPEGImages/b.jpg',
    ),
    'across the border': (
        {'Annotations/a.xml': voc(('cat', -5, 3, 50, 9))},
        'objects that cross the border of the image, clipped: 1: Annotations/a.xml: '
        'object 1',
    ),
    'no area': (
        {'Annotations/a.xml': voc(('cat', 3, 3, 3, 9), ('cat', 50, 3, 60, 9))},
        'objects less than a pixel wide or high in the image, left out: 2: '
        'Annotations/a.xml: object 1: cat 3 3 3 9; Annotations/a.xml: object 2: cat 50 '
        '3 60 9',
    ),
    'another size': (
        {'Annotations/a.xml': voc(('cat', 1, 1, 9, 9), size=(30, 40))},
        'label files with another size than the image, see --draw: 1: '
        'Annotations/a.xml: 30x40, image 40x30',
    ),
}


@pytest.mark.parametrize(('changes', 'expected'), NOTES.values(), ids=NOTES)
def test_what_is_left_out_or_changed_is_reported(changes, expected, files, convert):
    valid = voc(('cat', 1, 1, 9, 9))
    files({'JPEGImages/a.jpg': (40, 30), 'Annotations/a.xml': valid} | changes)

    status, printed, error = convert('voc Annotations out.json')

    assert (status, error) == (0, '')
    assert printed.splitlines()[0] == expected


def test_boxes_are_clipped_to_the_image(files, convert, tmp_path):
    files(
        {
            'JPEGImages/a.jpg': (40, 30),
            'Annotations/a.xml': voc(('cat', -5, 3, 50, 9)),
        }
    )

    convert('voc Annotations out.json')

    (box,) = read(tmp_path / 'out.json')['annotations']
    assert (box['bbox'], box['area']) == ([0, 3, 40, 6], 240)


VALID = {'images/a.jpg': (40, 30), 'labels/a.txt': '0 0.5 0.5 0.2 0.2'}
YOLO = 'yolo labels out.json --classes cat dog'
ERRORS = {
    'too few values': (
        YOLO,
        {'labels/a.txt': '0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2'},
        'malformed entries: 1: labels/a.txt:2: expected class, x, y, width and height, '
        'or class and at least three points x y, got 4 values',
    ),
    'confidence': (
        YOLO,
        {'labels/a.txt': '0 0.5 0.5 0.2 0.2 0.9'},
        'malformed entries: 1: labels/a.txt:1: expected class, x, y, width and height, '
        'or class and at least three points x y, got 6 values',
    ),
    'no numbers': (
        YOLO,
        {'labels/a.txt': 'cat 0.5 0.5 0.2 0.2'},
        "malformed entries: 1: labels/a.txt:1: expected numbers, got 'cat 0.5 0.5 0.2 "
        "0.2'",
    ),
    'binary': (
        YOLO,
        {'labels/a.txt': b'\xff\xfe0'},
        "malformed entries: 1: labels/a.txt: 'utf-8' codec can't decode byte 0xff in "
        'position 0: invalid start byte',
    ),
    'unknown id': (
        YOLO,
        {'labels/a.txt': '2 0.5 0.5 0.2 0.2'},
        'objects of an unknown class: 1: labels/a.txt:1: class 2',
    ),
    'fraction': (
        YOLO,
        {'labels/a.txt': '0.5 0.5 0.5 0.2 0.2'},
        'objects of an unknown class: 1: labels/a.txt:1: class 0.5',
    ),
    'pixels': (
        YOLO,
        {'labels/a.txt': '0 20 15 8 6'},
        'values outside 0 to 1: 1: labels/a.txt:1: 20',
    ),
    'NaN': (
        YOLO,
        {'labels/a.txt': '0 0.5 nan 0.2 0.2'},
        'values outside 0 to 1: 1: labels/a.txt:1: nan',
    ),
    'same name': (
        YOLO,
        {'images/a.png': (40, 30)},
        'files that differ in the suffix only: 1: images/a.jpg and a.png',
    ),
    'unreadable': (
        YOLO,
        {'images/b.jpg': 'text'},
        'unreadable images: 1: images/b.jpg: cannot be decoded',
    ),
    'not listed': (
        f'{YOLO} --split val.txt',
        {'val.txt': 'images/a.jpg\n\nimages/b.jpg\n'},
        'listed images that are not in the folder: 1: val.txt:3: images/b.jpg',
    ),
    'unknown name': (
        'voc xml out.json --images images --classes dog',
        {'xml/a.xml': voc(('cat', 1, 1, 9, 9))},
        'objects of an unknown class: 1: xml/a.xml: object 1: cat',
    ),
    'corners exchanged': (
        'voc xml out.json --images images',
        {'xml/a.xml': voc(('cat', 9, 1, 1, 9))},
        'malformed entries: 1: xml/a.xml: object 1: expected xmin <= xmax and ymin <= '
        "ymax, got ['9', '1', '1', '9']",
    ),
    'not a number': (
        'voc xml out.json --images images',
        {'xml/a.xml': voc(('cat', 'x', 1, 1, 9))},
        'malformed entries: 1: xml/a.xml: object 1: expected numbers xmin, ymin, xmax, '
        "ymax, got ['x', '1', '1', '9']",
    ),
    'no name': (
        'voc xml out.json --images images',
        {'xml/a.xml': voc(('', 1, 1, 9, 9))},
        'malformed entries: 1: xml/a.xml: object 1: expected <name>',
    ),
    'not XML': (
        'voc xml out.json --images images',
        {'xml/a.xml': '<annotation>\n<size>\n'},
        'malformed entries: 1: xml/a.xml: no element found: line 3, column 0',
    ),
    'other XML': (
        'voc xml out.json --images images',
        {'xml/a.xml': '<html></html>'},
        'malformed entries: 1: xml/a.xml: expected <annotation>, got <html>',
    ),
    'not JSON': (
        'labelme json out.json --images images',
        {'json/a.json': '{\n"shapes": [,'},
        'malformed entries: 1: json/a.json: Expecting value: line 2 column 12 (char '
        '13)',
    ),
    'other JSON': (
        'labelme json out.json --images images',
        {'json/a.json': '[]'},
        'malformed entries: 1: json/a.json: expected shapes',
    ),
    'no points': (
        'labelme json out.json --images images',
        {'json/a.json': labelme(dict(label='cat'))},
        'malformed entries: 1: json/a.json: shape 1: expected label and points [[x, '
        'y], ...]',
    ),
    'two points': (
        'labelme json out.json --images images',
        {'json/a.json': labelme(shape('cat', [[1, 1], [2, 2]]))},
        'malformed entries: 1: json/a.json: shape 1: polygon with 2 points',
    ),
}


@pytest.mark.parametrize(('line', 'changes', 'expected'), ERRORS.values(), ids=ERRORS)
def test_invalid_entries_are_an_error_or_left_out(
    line, changes, expected, files, convert, tmp_path
):
    files(VALID | changes)

    status, _, error = convert(line)
    assert status == 1
    assert error.splitlines()[0] == f'error: {expected}'
    assert not (tmp_path / 'out.json').exists()

    status, printed, error = convert(f'{line} --skip-invalid')
    assert (status, error) == (0, '')
    assert f'left out: {expected}' in printed
    assert len(read(tmp_path / 'out.json')['images']) == 1


def test_all_faults_are_reported_at_once(files, convert):
    lines = '0 0.5 0.5\n' * 5 + '7 0.5 0.5 0.2 0.2\n'
    files(VALID | {'labels/a.txt': lines, 'labels/b.txt': ''})

    _, printed, error = convert(YOLO)

    assert 'label files without image, left out: 1: labels/b.txt' in printed
    malformed, unknown, advice = error.splitlines()
    assert malformed.startswith('error: malformed entries: 5: labels/a.txt:1: ')
    assert malformed.endswith('; and 2 more')
    assert unknown == 'error: objects of an unknown class: 1: labels/a.txt:6: class 7'
    assert advice == 'nothing written; --skip-invalid leaves these out'


def test_every_problem_is_tested():
    text = ' '.join(x[-1] for x in (*NOTES.values(), *ERRORS.values()))
    elsewhere = {Problem.REPEATED, Problem.NO_OUTLINE, Problem.DIFFICULT}
    assert {x for x in Problem if x.value not in text} == elsewhere
    assert not elsewhere & INVALID


REFUSED = {
    'no such folder: xml': ('voc xml out.json --images images', {}),
    'no such folder: JPEGImages': ('voc Annotations out.json', {}),
    'no files *.xml in labels; it has a.txt': (
        'voc labels out.json --images images',
        {},
    ),
    'no files *.jpg, *.jpeg, *.png, *.bmp, *.tif, *.tiff, *.webp in labels; it has '
    'a.txt': (f'{YOLO} --images labels', {}),
    'no label file has the name of an image, for example labels/a.txt and '
    'other/b.jpg': (f'{YOLO} --images other', {'other/b.jpg': (9, 9)}),
    'out.json exists; --force overwrites it': (YOLO, {'out.json': 'mine'}),
    'out_drawn exists; --force overwrites it': (
        f'{YOLO} --draw 1',
        {'out_drawn/mine.txt': ''},
    ),
    'no such file: val.txt': (f'{YOLO} --split val.txt', {}),
    'val.txt lists no images': (f'{YOLO} --split val.txt', {'val.txt': '\n'}),
    '--classes is needed, names or a file such as data.yaml: YOLO labels have numbers, '
    'and labels/classes.txt does not exist': ('yolo labels out.json', {}),
    '--classes: no such file: data.yaml': (
        'yolo labels out.json --classes data.yaml',
        {},
    ),
    '--classes: data.yaml must have one name per line (.txt), names (.yaml), or '
    "categories with id and name (.json): KeyError('names')": (
        'yolo labels out.json --classes data.yaml',
        {'data.yaml': 'nc: 2'},
    ),
    "--classes: each class needs a name that no other has; got ['cat', '', 'cat']": (
        'yolo labels out.json --classes names.txt',
        {'names.txt': 'cat\n\ncat\n'},
    ),
}


@pytest.mark.parametrize(('expected', 'case'), REFUSED.items(), ids=REFUSED)
def test_a_wrong_argument_is_one_line(expected, case, files, convert):
    line, changes = case
    files(VALID | changes)

    assert convert(line) == (1, '', f'error: {expected}')


def test_force_overwrites(files, convert, tmp_path):
    files(VALID | {'out.json': 'mine', 'out_drawn/mine.txt': ''})

    status, _, error = convert(f'{YOLO} --draw 1 --force')

    assert status == 0, error
    assert len(read(tmp_path / 'out.json')['annotations']) == 1


def test_drawings_show_the_boxes(files, convert, tmp_path):
    files(VALID | {'images/b.jpg': (40, 30), 'images/c.jpg': (40, 30)})

    _, printed, _ = convert(f'{YOLO} --draw 2')

    assert printed.splitlines()[-2:] == ['out_drawn', 'out.json']
    assert [path.name for path in (tmp_path / 'out_drawn').iterdir()] == ['a.jpg']
    with Image.open(tmp_path / 'out_drawn' / 'a.jpg') as image:
        pixels = np.asarray(image).astype(int)
    assert pixels.shape == (480, 640, 3)
    left, inside = pixels[240, 256], pixels[240, 320]
    assert left[0] - left[1] > 60
    assert abs(inside - 90).max() < 10


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif'])
@pytest.mark.parametrize('orientation', [None, 1, 2, 3, 4, 5, 6, 7, 8])
def test_sizes_are_those_that_mmcv_loads(suffix, orientation, tmp_path):
    path = tmp_path / f'a.{suffix}'
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new('RGB', (30, 20)).save(path, exif=exif)

    assert image_size(path) == mmcv.imread(path).shape[1::-1]


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', '1', 'I;16'])
def test_sizes_of_other_modes(mode, tmp_path):
    path = tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png')
    Image.new(mode, (30, 20)).save(path)

    assert image_size(path) == (30, 20)


@pytest.mark.parametrize('seed', range(20))
def test_a_clipped_polygon_covers_what_is_inside(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    radii = rng.uniform(10, 60, (7, 1))  # a star, not convex
    star = radii * np.stack([np.cos(angles), np.sin(angles)], -1) + 20

    clipped = clip_polygon(star, (50, 40))

    scale, shift = 8, 100  # a fine grid on which all points are positive
    runs = mask.frPyObjects([((star + shift) * scale).ravel().tolist()], 1600, 1600)
    filled = mask.decode(runs)[..., 0]
    window = filled[800 : 800 + 40 * scale, 800 : 800 + 50 * scale]
    assert polygon_area(clipped) == pytest.approx(window.sum() / scale**2, abs=3)
    assert clipped.min() >= 0 and (clipped <= (50, 40)).all()


def test_the_command_runs(files, run_tool, tmp_path):
    files(VALID)

    done = run_tool('convert_annotations.py', *YOLO.split(), cwd=tmp_path)

    assert done.stdout.splitlines()[-1] == 'out.json'
    assert done.stderr == ''
    help_text = run_tool('convert_annotations.py', 'labelme', '--help', cwd=tmp_path)
    assert '--label-maps' in help_text.stdout
