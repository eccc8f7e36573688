import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import _cli

import numpy as np
import prepare_digits
import pytest
from digits import dataset
from digits import scenes as digits_scenes
from mmdet.datasets import CocoDataset
from mmpretrain.datasets import CustomDataset
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image
from pycocotools.coco import COCO

TOOLS = Path(__file__).parents[2] / 'tools'
SETTINGS = dataset.Settings(
    seed=3,
    train_scenes=12,
    val_scenes=8,
    train_images_per_scan=2,
    val_images_per_scan=1,
)
OPTIONS = (
    '--seed 3 --train-scenes 12 --val-scenes 8 '
    '--train-images-per-scan 2 --val-images-per-scan 1'
)
SPLITS = ('train', 'val')
ALL_SCANS = dataset.load_scans(SETTINGS.seed)


def few_scans(seed):
    splits = {'train': ALL_SCANS.splits['train'][:60]}
    splits['val'] = ALL_SCANS.splits['val'][:40]
    return dataset.Scans(ALL_SCANS.images, ALL_SCANS.labels, splits)


@pytest.fixture(autouse=True)
def few_scans_only(monkeypatch):
    monkeypatch.setattr(dataset, 'load_scans', few_scans)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'digits'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, 'load_scans', few_scans)
        dataset.prepare(out, SETTINGS, force=False)
    return out


@pytest.fixture
def copied(digits, tmp_path):
    """A copy of the digits that a test may change."""
    return shutil.copytree(digits, tmp_path / 'digits')


@pytest.fixture
def run(monkeypatch):
    """Run the command line in this process; return what it ends with."""

    def run_main(out, options=OPTIONS):
        arguments = ['prepare_digits.py', '--out', str(out), *options.split()]
        monkeypatch.setattr(sys, 'argv', arguments)
        previous = signal.getsignal(signal.SIGTERM)
        try:
            _cli.run(prepare_digits.main, ValueError)
        except SystemExit as end:
            return end.code
        finally:
            signal.signal(signal.SIGTERM, previous)

    return run_main


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def read_coco(digits, split):
    return COCO(str(digits / f'detection/annotations/{split}.json'))


def scans_of_classification(digits, split):
    files = (digits / 'classification' / split).glob('*/*.jpg')
    return {int(path.name.split('_')[0]) for path in files}


def scans_of_detection(digits, split):
    return {digit['scan'] for digit in read_coco(digits, split).anns.values()}


def test_same_seed_gives_the_same_bytes(digits, tmp_path):
    dataset.prepare(tmp_path / 'again', SETTINGS, force=False)
    assert contents(tmp_path / 'again') == contents(digits)


def test_every_written_file_is_known(digits):
    names = dataset.list_files(digits)
    assert all(dataset.WRITTEN.fullmatch(name) for name in names)
    assert len(names) == 60 * 2 + 40 + 20 * 3 + 3


def test_scans_are_split_once_and_stratified():
    train, val = (ALL_SCANS.splits[split] for split in SPLITS)
    assert sorted([*train, *val]) == list(range(1797))
    assert len(val) == 360
    assert set(np.bincount(ALL_SCANS.labels[val])) <= {35, 36, 37}


@pytest.mark.parametrize('scans_of', [scans_of_classification, scans_of_detection])
def test_no_scan_is_in_both_splits(digits, scans_of):
    train, val = (scans_of(digits, split) for split in SPLITS)
    expected = few_scans(SETTINGS.seed).splits
    assert train and train <= set(expected['train'])
    assert val and val <= set(expected['val'])
    assert not train & val


@pytest.mark.parametrize('split', SPLITS)
def test_images_are_in_the_folder_of_their_class(digits, split):
    for path in (digits / 'classification' / split).glob('*/*.jpg'):
        assert int(path.parent.name) == ALL_SCANS.labels[int(path.name[:4])]


@pytest.mark.parametrize('split', SPLITS)
def test_boxes_are_tight_and_inside_and_of_16_to_64_pixels(digits, split):
    coco = read_coco(digits, split)
    for digit in coco.anns.values():
        rows, columns = np.nonzero(coco.annToMask(digit))
        left, top, width, height = digit['bbox']
        assert (left, top) == (columns.min(), rows.min())
        assert left + width == columns.max() + 1 <= 128
        assert top + height == rows.max() + 1 <= 128
        assert digit['area'] == len(rows)
        assert digit['iscrowd'] == 0
        assert 16 <= max(width, height) <= 64


@pytest.mark.parametrize('split', SPLITS)
def test_annotations_have_the_class_of_their_scan(digits, split):
    coco = read_coco(digits, split)
    for digit in coco.anns.values():
        name = coco.cats[digit['category_id']]['name']
        assert name == str(ALL_SCANS.labels[digit['scan']])


@pytest.mark.parametrize('seed', range(40))
def test_scenes_have_two_to_six_digits_with_little_occlusion(seed):
    image, digits = digits_scenes.draw_scene(
        ALL_SCANS.images,
        ALL_SCANS.labels,
        ALL_SCANS.splits['train'],
        128,
        np.random.default_rng(seed),
    )
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    assert 2 <= len(digits) <= 6
    assert np.sum([digit.mask for digit in digits], axis=0).max() == 1
    for digit in digits:
        assert digit.mask.sum() >= (1 - digits_scenes.MAX_HIDDEN) * digit.area
        left, top, right, bottom = digits_scenes.tight_box(digit.mask)
        assert 16 <= max(right - left, bottom - top) <= 64


@pytest.mark.parametrize('side', [17, 30, 63])
def test_a_glyph_has_the_given_size_within_a_pixel(side):
    for scan in range(20):
        rng = np.random.default_rng(scan)
        alpha = digits_scenes.render_glyph(ALL_SCANS.images[scan], side, rng)
        left, top, right, bottom = digits_scenes.tight_box(alpha > 0.5)
        assert abs(max(right - left, bottom - top) - side) <= 1


def test_a_dip_in_the_ink_is_filled_to_the_lowest_ink_around_it():
    ink = np.zeros((7, 7), np.float32)
    ink[1:6, 1:6] = 9
    ink[2:5, 2:5] = 4
    ink[1, 3] = 6
    expected = ink.copy()
    expected[2:5, 2:5] = 6
    assert (digits_scenes._fill_dips(ink) == expected).all()


@pytest.mark.parametrize('split', SPLITS)
def test_mmdet_reads_the_detection_layout(digits, split):
    detection = CocoDataset(
        data_root=str(digits / 'detection'),
        ann_file=f'annotations/{split}.json',
        data_prefix=dict(img=f'{split}/'),
        metainfo=dict(classes=dataset.CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=16),
        pipeline=[],
    )
    assert len(detection) == SETTINGS.scenes(split)
    for index in range(len(detection)):
        scene = detection.get_data_info(index)
        assert Image.open(scene['img_path']).size == (128, 128)
        assert 2 <= len(scene['instances']) <= 6
        assert {digit['ignore_flag'] for digit in scene['instances']} == {0}


@pytest.mark.parametrize('split', SPLITS)
def test_mmseg_reads_labels_that_equal_the_masks(digits, split):
    folder = dataset.ADE_SPLITS[split]
    segmentation = BaseSegDataset(
        data_root=str(digits / 'segmentation'),
        data_prefix=dict(
            img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}'
        ),
        metainfo=dict(classes=('background', *dataset.CLASSES)),
        reduce_zero_label=False,
        pipeline=[],
    )
    coco = read_coco(digits, split)
    assert len(segmentation) == len(coco.imgs)
    for index in range(len(segmentation)):
        label_map = LoadAnnotations()(segmentation.get_data_info(index))['gt_seg_map']
        expected = np.zeros((128, 128), np.uint8)
        for digit in coco.imgToAnns[index]:
            expected[coco.annToMask(digit) == 1] = digit['category_id']
        assert (label_map == expected).all()


def test_detection_and_segmentation_have_the_same_scenes(digits):
    for split, folder in dataset.ADE_SPLITS.items():
        detection = contents(digits / 'detection' / split)
        assert detection == contents(digits / 'segmentation/images' / folder)


@pytest.mark.parametrize('split', SPLITS)
def test_mmpretrain_finds_ten_classes(digits, split):
    classification = CustomDataset(
        data_root=str(digits), data_prefix=f'classification/{split}'
    )
    assert classification.CLASSES == dataset.CLASSES
    scans = few_scans(SETTINGS.seed).splits[split]
    assert len(classification) == len(scans) * SETTINGS.images_per_scan(split)


def test_a_second_run_reports_that_the_data_set_is_complete(digits, run, capsys):
    before = contents(digits)
    assert run(digits) is None
    assert 'complete' in capsys.readouterr().out
    assert contents(digits) == before


def test_the_first_run_prints_folder_and_counts(run, tmp_path, capsys):
    assert run(tmp_path / 'digits') is None
    printed = capsys.readouterr().out
    assert f'wrote {tmp_path / "digits"}\n' in printed
    assert '12 train scenes' in printed
    assert '40 val images of one digit' in printed
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def test_other_settings_need_force(run, copied):
    other = OPTIONS.replace('--val-scenes 8', '--val-scenes 2')
    assert '--force' in run(copied, other)
    assert len(list(copied.glob('detection/val/*'))) == 8
    assert run(copied, f'{other} --force') is None
    assert len(list(copied.glob('detection/val/*'))) == 2


def test_a_missing_file_is_reported(run, copied):
    (copied / 'detection/train/00003.jpg').unlink()
    assert 'incomplete' in run(copied)


@pytest.mark.parametrize('force', ['', ' --force'])
def test_a_folder_of_other_data_is_left_alone(run, tmp_path, force):
    (tmp_path / 'meta.json').write_text('{"mine": 1}')
    (tmp_path / 'photo.jpg').write_text('mine')
    before = contents(tmp_path)
    assert 'choose another --out' in run(tmp_path, OPTIONS + force)
    assert contents(tmp_path) == before


def test_force_keeps_files_that_a_user_added(run, copied):
    (copied / 'detection/notes.txt').write_text('mine')
    assert run(copied) is None
    assert 'detection/notes.txt' in run(copied, f'{OPTIONS} --force')
    assert (copied / 'detection/notes.txt').read_text() == 'mine'


def test_an_empty_folder_is_filled(run, tmp_path):
    out = tmp_path / 'digits'
    out.mkdir()
    assert run(out) is None
    assert json.loads((out / 'meta.json').read_text())['version'] == dataset.VERSION


def test_an_interrupted_build_leaves_nothing(run, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, 'draw_scene', interrupt)
    assert 'interrupted' in run(tmp_path / 'digits')
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_keeps_the_old_digits(run, copied, monkeypatch):
    before = contents(copied)
    monkeypatch.setattr(dataset, 'write_json', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(copied, f'{OPTIONS} --force')
    assert contents(copied.parent) == {f'digits/{k}': v for k, v in before.items()}


def test_a_terminated_build_leaves_nothing(tmp_path):
    command = [sys.executable, TOOLS / 'prepare_digits.py', '--out', tmp_path / 'd']
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 15
    while not list(tmp_path.glob('.d-*/built/classification/train/*/*.jpg')):
        assert time.time() < deadline
        time.sleep(0.02)
    process.terminate()
    _, printed = process.communicate(timeout=15)
    assert process.returncode == 1
    assert printed.endswith('interrupted: nothing was written\n')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--train-scenes 0', '--train-scenes must be at least 1, got 0'),
        ('--val-scenes -3', '--val-scenes must be at least 1, got -3'),
        (
            '--train-images-per-scan 0',
            '--train-images-per-scan must be at least 1, got 0',
        ),
        ('--val-images-per-scan 0', '--val-images-per-scan must be at least 1, got 0'),
        ('--seed -1', '--seed must be 0 to 2**32 - 1, got -1'),
    ],
)
def test_invalid_values_are_reported_in_one_line(run, tmp_path, options, message):
    assert run(tmp_path / 'digits', options) == f'error: {message}'
    assert list(tmp_path.iterdir()) == []


def test_a_file_as_output_folder_is_reported_in_one_line(run, tmp_path):
    (tmp_path / 'digits').write_text('mine')
    assert run(tmp_path / 'digits') == f'error: {tmp_path / "digits"} is not a folder'


def test_a_folder_that_cannot_be_written_is_reported_in_one_line(run, tmp_path):
    (tmp_path / 'file').write_text('')
    out = tmp_path / 'file/digits'
    assert run(out).startswith(f'error: cannot write {out}: ')
    assert (tmp_path / 'file').read_text() == ''


def test_nothing_is_written_without_scikit_learn(run, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real load_scans
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ModuleNotFoundError):
        run(tmp_path / 'digits')
    assert list(tmp_path.iterdir()) == []
