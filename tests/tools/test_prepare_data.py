"""Public data sets: a few files in each public layout, prepared, read by the hosts."""

import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import prepare_data
import pytest
from mmdet.datasets import CocoDataset, CocoPanopticDataset
from mmengine.config import Config
from mmpretrain.datasets import CustomDataset
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from PIL import Image
from public_data import bccd, camvid, cifar10, coco128
from public_data.cifar10 import CLASSES

REAL = Path(
    os.environ.get('MMSPARSE_DATA', Path(__file__).parents[3] / 'shared' / 'data')
)
VOC = '<annotation><size><width>64</width><height>48</height></size>{}</annotation>'
OBJECT = (
    '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>'
    '<ymax>{}</ymax></bndbox></object>'
)
CELLS = [('WBC', 5, 5, 24, 20), ('RBC', 1, 1, 10, 10), ('RBC', 1, 1, 10, 10)]
POINT = ('RBC', 30, 30, 30, 30)
SPLITS = ('train', 'val', 'test')


def photo(path, size=(64, 48), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (value, value, value)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_bccd(root):
    for number, split in enumerate(SPLITS):
        name = f'BloodImage_{number:05}'
        photo(root / 'JPEGImages' / f'{name}.jpg')
        cells = [*CELLS, POINT] if split == 'val' else CELLS
        text = VOC.format(''.join(OBJECT.format(*cell) for cell in cells))
        write(root / 'Annotations' / f'{name}.xml', text)
        write(root / 'ImageSets' / 'Main' / f'{split}.txt', f'{name}\n')


def make_camvid(root):
    labels = np.arange(64 * 48).reshape(48, 64) % 12
    for split in SPLITS:
        for number in range(2):
            photo(root / split / f'{number}.jpg')
            path = root / f'{split}annot' / f'{number}.png'
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(labels.astype(np.uint8)).save(path)


def make_cifar10(root):
    for split in ('train', 'test'):
        for value, name in enumerate(CLASSES):
            photo(root / split / name / '0000.jpg', (32, 32), 10 * value)


def make_batches(root):
    """CIFAR-10 as its authors have it: red, green and blue of ten images a batch."""
    root.mkdir()
    for name in (name for names in cifar10.SPLITS.values() for name in names):
        pixels = np.repeat(np.arange(30, dtype=np.uint8).reshape(10, 3), 1024, 1)
        batch = dict(data=pixels, labels=list(range(10)))
        (root / name).write_bytes(pickle.dumps(batch))


COCO = CocoPanopticDataset.METAINFO
# Ids with a gap, as those of COCO, and stuff first.
CATEGORIES = [
    *(dict(id=i, name=x, isthing=0) for i, x in enumerate(COCO['stuff_classes'], 101)),
    *(dict(id=i, name=x, isthing=1) for i, x in enumerate(COCO['thing_classes'], 11)),
]
IDS = {x['name']: x['id'] for x in CATEGORIES}
# Rows, columns, id, category and iscrowd.
SEGMENTS = [
    (slice(0, 24), slice(16, 48), 300, 'bowl', 0),
    (slice(24, 48), slice(0, 32), 70000, 'person', 1),
    (slice(24, 48), slice(32, 64), 7, 'table-merged', 0),
]
OUTLINES = f"""\
{IDS['bowl']} 0.25 0 0.75 0 0.75 0.5 0.25 0.5
{IDS['person']} 0 0.5 0.5 0.5 0.5 1 0 1
"""
BOX = f'{COCO["thing_classes"].index("bowl")} 0.5 0.25 0.5 0.5'


def make_coco128(root):
    """A photograph of each split with a bowl, a group of people, and a table."""
    for split, number in (('train2017', 9), ('val2017', 139)):
        name = f'{number:012}'
        photo(root / 'images' / split / f'{name}.jpg')
        write(root / coco128.BOXES / split / f'{name}.txt', BOX)
        write(root / coco128.BOXES / split / 'missing.txt', BOX)
        write(root / coco128.OUTLINES / split / f'{name}.txt', OUTLINES)
        ids, classes = np.zeros((48, 64), int), np.zeros((48, 64), np.uint8)
        for rows, columns, segment, category, _ in SEGMENTS:
            ids[rows, columns], classes[rows, columns] = segment, IDS[category]
        annotation = dict(image_id=number, file_name=f'{name}.png')
        annotation['segments_info'] = [
            dict(
                id=x,
                category_id=IDS[category],
                iscrowd=crowd,
                bbox=[0, 0, 9, 9],
                area=81,
            )
            for _, _, x, category, crowd in SEGMENTS
        ]
        image = dict(id=number, file_name=f'{name}.jpg', width=64, height=48)
        panoptic = dict(images=[image], annotations=[annotation], categories=CATEGORIES)
        path = root / coco128.PANOPTIC / f'panoptic_{split}.json'
        write(path, json.dumps(panoptic))
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1)
        for folder, pixels in (
            (path.with_suffix(''), colors.astype(np.uint8)),
            (root / coco128.SEMANTIC / split, classes),
        ):
            folder.mkdir(parents=True)
            Image.fromarray(pixels).save(folder / f'{name}.png')


MAKE = dict(
    bccd=make_bccd, camvid=make_camvid, cifar10=make_cifar10, coco128=make_coco128
)


@pytest.fixture(scope='session')
def public(tmp_path_factory):
    """A folder with a few files of each data set, by its name."""
    folder = tmp_path_factory.mktemp('public')
    for name, make in MAKE.items():
        make(folder / name)
    return folder


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder; return what it printed, or its error."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['prepare_data.py', *map(str, args)])
        prepare_data.main()
        return capsys.readouterr().out

    return run


def pack(folder, path):
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(folder.rglob('*.*')):
            archive.write(file, file.relative_to(folder.parent))
    return path


def test_bccd_is_coco_with_its_faults_by_name(public, prepare):
    printed = prepare('bccd', public / 'bccd', '--partial')

    assert 'boxes of one pixel, left out: 1: BloodImage_00001 (RBC)' in printed
    assert 'cells labeled twice, both kept: 3: BloodImage_00000 (RBC), Blo' in printed
    assert printed.endswith('data/bccd\n')
    classes = ('RBC', 'WBC', 'Platelets')
    data = CocoDataset(
        data_root='data/bccd',
        ann_file='annotations/val.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes),
    )
    (image,) = [data.get_data_info(i) for i in range(len(data))]
    assert Path(image['img_path']).is_file()
    found = [(x['bbox_label'], x['bbox']) for x in image['instances']]
    # Pixels count from 1 and both ends belong to the box.
    assert found == [(1, [4, 4, 24, 20]), *[(0, [0, 0, 10, 10])] * 2]


def test_camvid_is_read_by_mmseg_with_void_ignored(public, prepare):
    prepare('camvid', public / 'camvid', '--partial')

    prefix = dict(img_path='images/test', seg_map_path='annotations/test')
    data = BaseSegDataset(
        data_root='data/camvid',
        data_prefix=prefix,
        metainfo=dict(classes=tuple('abcdefghijk')),
        pipeline=[dict(type='mmseg.LoadAnnotations')],
    )
    assert len(data) == 2
    labels = data[0]['gt_seg_map']
    assert set(np.unique(labels)) == {*range(11), 255}
    assert (labels.ravel()[:12] == [*range(11), 255]).all()


@pytest.fixture(scope='module')
def photographs(public, tmp_path_factory, run_tool):
    """COCO128 as it is prepared; the folder, and what was printed."""
    folder = tmp_path_factory.mktemp('photographs')
    done = run_tool(
        'prepare_data.py', 'coco128', public / 'coco128', '--partial', cwd=folder
    )
    return folder / 'data/coco128', done.stdout


def test_coco128_is_read_as_coco(photographs):
    folder, _ = photographs
    bowl, people = (45, 0, [16, 0, 48, 24]), (0, 1, [0, 24, 32, 48])
    for name, expected, corners in (
        ('boxes', [bowl], [0]),
        ('instances', [bowl, people], [8, 8]),
    ):
        data = CocoDataset(
            data_root=str(folder),
            ann_file=f'annotations/{name}_val2017.json',
            data_prefix=dict(img='val2017/'),
        )
        (image,) = [data.get_data_info(i) for i in range(len(data))]
        assert Path(image['img_path']).is_file()
        assert (image['img_id'], data.cat_ids) == (139, list(range(11, 91)))
        found = image['instances']
        assert expected == [
            (x['bbox_label'], x['ignore_flag'], x['bbox']) for x in found
        ]
        assert [sum(map(len, x.get('mask', ()))) for x in found] == corners


def test_coco128_is_read_as_panoptic_data(photographs):
    folder, _ = photographs
    data = CocoPanopticDataset(
        data_root=str(folder),
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(img='train2017/', seg='annotations/panoptic_train2017/'),
    )

    (image,) = [data.get_data_info(i) for i in range(len(data))]
    assert Path(image['seg_map_path']).is_file()
    assert [x['id'] for x in image['segments_info']] == [300, 70000, 7]


def test_label_maps_of_coco128_are_read_as_ade20k(photographs):
    folder, _ = photographs
    data = ADE20KDataset(
        data_root=str(folder / 'ade'),
        data_prefix=dict(
            img_path='images/validation', seg_map_path='annotations/validation'
        ),
        pipeline=[dict(type='mmseg.LoadAnnotations')],
    )

    labels = data[0]['gt_seg_map']

    expected = np.full((48, 64), 255)
    for rows, columns, _, category, _ in SEGMENTS:
        expected[rows, columns] = COCO['classes'].index(category)
    assert (labels == expected).all()


def test_faults_of_coco128_are_named(photographs):
    _, printed = photographs

    people = '000000000009 (person), 000000000139 (person)'
    assert f'groups outlined as one object, iscrowd=1: 2: {people}' in printed
    assert 'label files without image, left out: 2: object_detection/' in printed
    assert 'overlap less' not in printed


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        (
            coco128.OUTLINES / 'val2017/000000000139.txt',
            OUTLINES.splitlines()[0],
            'has 1 objects',
        ),
        (coco128.OUTLINES / 'val2017/000000000139.txt', None, 'are not both there'),
        (
            coco128.PANOPTIC / 'panoptic_val2017.json',
            '{"images',
            'is damaged .* repeat',
        ),
        (coco128.PANOPTIC / 'panoptic_val2017.json', '{}', 'has no annotations, categ'),
        (coco128.BOXES / 'val2017/000000000139.txt', '80 0 0 1 1', 'unknown class: 1'),
        (coco128.SEMANTIC / 'val2017/000000000139.png', 3, 'has the label 3, which is'),
    ],
)
def test_other_files_than_those_of_coco128_are_errors(
    name, content, message, public, prepare, tmp_path
):
    source = tmp_path / 'coco128'
    shutil.copytree(public / 'coco128', source)
    (source / name).unlink()
    if isinstance(content, int):
        Image.fromarray(np.full((48, 64), content, np.uint8)).save(source / name)
    elif content is not None:
        (source / name).write_text(content)
    else:  # counted as another file
        write(source / coco128.OUTLINES / 'val2017' / 'other.txt', '')

    with pytest.raises(prepare_data.UsageError, match=message):
        prepare('coco128', source, '--partial')
    assert not Path('data/coco128').exists()


@pytest.mark.parametrize('pickled', [False, True])
def test_cifar10_is_read_by_mmpretrain(pickled, public, prepare, tmp_path):
    source = public / 'cifar10'
    if pickled:
        source = tmp_path / 'cifar-10-batches-py'
        make_batches(source)

    prepare('cifar10', source, '--partial')

    data = CustomDataset(data_root='data/cifar10', data_prefix='train')
    found = [data.get_data_info(i) for i in range(len(data))]
    assert data.metainfo['classes'] == CLASSES
    number = 5 if pickled else 1
    assert [x['gt_label'] for x in found] == [
        i for i in range(10) for _ in range(number)
    ]
    pixels = np.asarray(Image.open(found[-1]['img_path']))
    assert pixels.shape == (32, 32, 3)
    if pickled:
        assert (pixels == [27, 28, 29]).all()


def test_a_pickle_that_runs_code_is_refused(prepare, tmp_path):
    make_batches(tmp_path / 'batches')
    (tmp_path / 'batches/test_batch').write_bytes(pickle.dumps(os.getcwd))

    with pytest.raises(prepare_data.UsageError, match='names posix.getcwd'):
        prepare('cifar10', tmp_path / 'batches', '--partial')


PIXELS = np.zeros((10, 3072), np.uint8)


@pytest.mark.parametrize(
    ('batch', 'message'),
    [
        (dict(data=PIXELS, labels=list(range(9))), 'is (shorter|longer) than'),
        (dict(data=PIXELS, labels=[-1] * 10), 'expected labels from 0 to 9, got -1'),
        (dict(data=PIXELS, labels=[10] * 10), 'expected labels from 0 to 9, got 10'),
        (dict(data=PIXELS, labels=3), 'not iterable'),
        (dict(data=PIXELS.astype(float), labels=[0] * 10), 'expected pixels of 8 bits'),
        (dict(data=PIXELS[:, 1:], labels=[0] * 10), 'cannot reshape'),
        (dict(data=[0], labels=[0]), 'no attribute'),
        (dict(labels=[0]), 'data'),
        ([PIXELS], 'indices'),
    ],
)
def test_a_damaged_batch_of_cifar10_is_an_error(batch, message, prepare, tmp_path):
    make_batches(tmp_path / 'batches')
    (tmp_path / 'batches/test_batch').write_bytes(pickle.dumps(batch))

    expected = f'test_batch is no whole batch of CIFAR-10 .*{message}.*repeat'
    with pytest.raises(prepare_data.UsageError, match=expected):
        prepare('cifar10', tmp_path / 'batches', '--partial')


TRAINED = (  # a config of each kind
    'shunted-nano_1xb64-3e_cifar10',
    'atss_shunted-nano_1xb8-14e_bccd',
    'deformable-detr-refine-twostage_shunted-nano_1xb4-5e_bccd',
    'focus-detr_shunted-nano_1xb4-8e_bccd',
    'fpn_shunted-nano_1xb8-600i_camvid',
    'upernet_shunted-nano_1xb8-600i_camvid',
    'atss_shunted-nano_1xb8-24e_coco128',
)


@pytest.fixture(scope='session')
def prepared(public, tmp_path_factory, run_tool):
    """A working directory with the data sets."""
    folder = tmp_path_factory.mktemp('prepared')
    for name in MAKE:
        run_tool('prepare_data.py', name, public / name, '--partial', cwd=folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('name', TRAINED)
def test_a_config_trains_two_iterations(name, prepared, run_tool):
    length = 'max_iters' if name.endswith('camvid') else 'max_epochs'

    run_tool(
        *('train.py', f'{name}.py', '--cfg-options', f'train_cfg.{length}=2'),
        *('train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2'),
        cwd=prepared,
    )

    (log,) = (prepared / 'work_dirs' / name).glob('*/*.log')
    assert re.search(r'(Epoch|Iter)\(val\)', log.read_text())


@pytest.mark.parametrize('name', MAKE)
def test_a_dry_run_only_draws(name, public, prepare, tmp_path):
    sheet = Path(prepare(name, public / name, '--partial', '--dry-run').split()[-1])

    assert [x.name for x in tmp_path.glob('data/*')] == [f'{name}_samples.png']
    assert Image.open(sheet).width == 1280


def test_a_zip_is_unpacked_and_replaces_only_what_was_written(
    public, prepare, tmp_path
):
    archive = pack(public / 'bccd', tmp_path / 'bccd.zip')
    prepare('bccd', archive, '--partial')
    with pytest.raises(prepare_data.UsageError, match='--force replaces it'):
        prepare('bccd', archive, '--partial')
    prepare('bccd', archive, '--partial', '--force')
    assert json.loads(Path('data/bccd/meta.json').read_text())['name'] == 'bccd'
    with pytest.raises(prepare_data.UsageError, match='other files'):
        prepare('bccd', archive, '--partial', '--force', '--out', '.')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['bccd', 'missing.zip'], 'no such file or folder: missing.zip'),
        (['bccd', 'cut.zip'], 'is no whole zip'),
        (['bccd', '{}/camvid'], 'has no ImageSets/Main'),
        (['bccd', '{}/bccd'], 'has 3 of 364 label files .* incomplete or changed'),
        (['camvid', '{}/camvid'], 'has 2 of 367 train images'),
    ],
)
def test_missing_and_incomplete_downloads_are_errors(
    options, message, public, prepare, tmp_path
):
    whole = pack(public / 'bccd', tmp_path / 'whole.zip').read_bytes()
    Path('cut.zip').write_bytes(whole[:-100])

    with pytest.raises(prepare_data.UsageError, match=message):
        prepare(*(option.format(public) for option in options))
    assert not Path('data').exists()


def test_labels_out_of_range_and_of_another_size_are_errors(prepare, tmp_path):
    make_camvid(tmp_path / 'camvid')
    path = tmp_path / 'camvid/trainannot/0.png'
    for labels, message in (
        (np.full((48, 64), 12, np.uint8), 'has the label 12; expected 0 to 11'),
        (np.zeros((8, 8), np.uint8), 'image of size 64x48, got .* of shape .8, 8.'),
    ):
        Image.fromarray(labels).save(path)
        with pytest.raises(prepare_data.UsageError, match=message):
            prepare('camvid', tmp_path / 'camvid', '--partial')


@pytest.mark.parametrize('name', MAKE)
def test_the_real_files_are_whole(name, prepare):
    archive = REAL / f'{name}.zip'
    if not archive.is_file():
        pytest.skip(f'no {archive}; MMSPARSE_DATA is the folder of the zips')
    prepare(name, archive, '--dry-run')


def test_configs_have_the_classes_that_are_written():
    base = Path(__file__).parents[2] / 'configs' / '_base_'
    scenes = Config.fromfile(base / 'camvid.py').metainfo
    cells = Config.fromfile(base / 'bccd.py').bccd_metainfo

    assert tuple(scenes.classes) == camvid.CLASSES
    assert tuple(map(tuple, scenes.palette)) == camvid.PALETTE
    assert tuple(cells.classes) == bccd.CLASSES
