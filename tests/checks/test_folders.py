"""Class folders and label files of classifiers."""

import json
import re

import pytest
from mmengine.config import Config
from PIL import Image

from mmsparse.apis import register_host
from mmsparse.checks import check_data

NAMES = ('cat', 'dog', 'horse')


@pytest.fixture
def folders(tmp_path):
    """Return the config of a classifier, with a folder per class and split."""
    register_host('mmpretrain')
    loaders = {}
    for split in ('train', 'val'):
        for name in NAMES:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new('RGB', (8, 8)).save(tmp_path / split / name / 'a.png')
        dataset = dict(type='CustomDataset', data_root=str(tmp_path), data_prefix=split)
        loaders[f'{split}_dataloader'] = dict(dataset=dataset)
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(head=dict(type='LinearClsHead', num_classes=3)),
            val_evaluator=dict(type='Accuracy', topk=(1,)),
            **loaders,
        )
    )


def test_right_folders_pass(folders):
    assert check_data(folders, 'mmpretrain') == []


@pytest.mark.parametrize('num_classes', [2, 1000])
def test_a_head_with_another_number_of_classes_is_an_error(
    folders, refused, num_classes
):
    folders.model.head.num_classes = num_classes

    refused(
        folders,
        f'model.head.num_classes={num_classes}, but the data set of train_dataloader '
        f'has 3 classes: cat, dog, horse. Set num_classes of every head to 3.',
    )


@pytest.mark.parametrize('part', ['data_preprocessor', 'model.data_preprocessor'])
def test_mixup_with_another_number_of_classes_is_an_error(folders, refused, part):
    mixup = dict(augments=[dict(type='Mixup', alpha=0.8)])
    folders.merge_from_dict({f'{part}.num_classes': 1000, 'model.train_cfg': mixup})

    refused(
        folders,
        f'{part}.num_classes=1000, which mixup needs, but the data set of '
        f'train_dataloader has 3 classes: cat, dog, horse.',
    )
    folders.model.train_cfg.augments = None
    check_data(folders, 'mmpretrain')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'val_evaluator.topk': (1, 5)}, 'val_evaluator.topk=(1, 5)'),
        (
            {'val_evaluator': [dict(type='Accuracy', topk=5)]},
            'val_evaluator[0].topk=5',
        ),
        ({'model.head.topk': (1, 5), 'model.head.cal_acc': True}, 'model.head.topk='),
    ],
)
def test_more_predictions_than_classes_are_an_error(folders, refused, options, message):
    folders.merge_from_dict(options)

    refused(folders, message)
    refused(folders, 'but there are 3 classes; set topk=(1,).')


def test_the_unused_topk_of_a_head_passes(folders):
    folders.model.head.topk = (1, 5)

    check_data(folders, 'mmpretrain')


def test_a_class_folder_that_validation_lacks_is_an_error(folders, refused, tmp_path):
    (tmp_path / 'val' / 'dog').rename(tmp_path / 'val' / 'Dog')

    refused(
        folders,
        f'val_dataloader.dataset: {tmp_path}/val has other class folders than '
        f'{tmp_path}/train, without dog and with Dog, which shifts the labels; create '
        f'missing folders (they may be empty) and remove the others.',
    )


def test_an_empty_class_folder_is_noted_in_training_only(folders, tmp_path):
    (tmp_path / 'val' / 'dog' / 'a.png').unlink()
    assert check_data(folders, 'mmpretrain') == []

    (tmp_path / 'train' / 'cat' / 'a.png').unlink()
    assert check_data(folders, 'mmpretrain') == [
        'train_dataloader.dataset: no images in the class folders cat.'
    ]


def test_folders_without_any_image_are_an_error(folders, refused, tmp_path):
    folders.train_dataloader.dataset.extensions = ('.webp',)

    refused(folders, f'no images in the class folders of {tmp_path}/train; extensions')


def test_a_folder_without_class_folders_is_an_error(folders, refused, tmp_path):
    folders.train_dataloader.dataset.data_prefix = 'train/cat'

    refused(
        folders, f'{tmp_path}/train/cat must have one folder per class; it has none'
    )


def test_the_recipe_of_imagenet_on_other_folders_is_an_error(
    folders, refused, tmp_path
):
    folders.train_dataloader.dataset = dict(
        type='ImageNet', data_root=str(tmp_path), data_prefix='train'
    )

    refused(
        folders,
        f'train_dataloader.dataset: {tmp_path}/train has 3 class folders (cat, dog, '
        f"horse), but the data set has 1000 classes; use type='CustomDataset', which",
    )


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('cat', 'dog'), 'has 2 classes; correct metainfo.classes'),
        (
            ('dog', 'cat', 'horse'),
            'metainfo.classes must be in the order of the folders, cat, dog, horse, '
            'which numbers them; got dog, cat, horse.',
        ),
    ],
)
def test_names_that_contradict_the_folders_are_an_error(
    folders, refused, classes, message
):
    folders.train_dataloader.dataset.metainfo = dict(classes=classes)

    refused(folders, message)


def test_other_names_for_the_folders_pass(folders):
    for loader in (folders.train_dataloader, folders.val_dataloader):
        loader.dataset.metainfo = dict(classes=('Katze', 'Hund', 'Pferd'))

    check_data(folders, 'mmpretrain')


@pytest.fixture
def listed(folders, tmp_path):
    """Return the config with a list of files and labels for training."""
    (tmp_path / 'train.txt').write_text('cat/a.png 0\ndog/a.png 1\nhorse/a.png 2\n')
    folders.train_dataloader.dataset.update(
        ann_file='train.txt', metainfo=dict(classes=NAMES)
    )
    return folders


def test_right_labels_pass(listed):
    assert check_data(listed, 'mmpretrain') == []


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'cat/a.png 1\nhorse/a.png 3\n',
            'has the label 3, but there are 3 classes: labels must be from 0 to 2.',
        ),
        (
            'cat/a.png cat\n',
            'line 1: must be FILE LABEL, with a space and an integer from 0; got '
            "'cat/a.png cat'.",
        ),
        (
            'cat/a.png 0\n\ndog/a.png 1\n',
            'line 2: must be FILE LABEL, with a space and ',
        ),
        ('', 'train.txt is empty.'),
    ],
)
def test_wrong_labels_are_an_error(listed, refused, tmp_path, text, message):
    (tmp_path / 'train.txt').write_text(text)

    refused(listed, message)


def test_labels_beyond_the_outputs_of_the_head_are_an_error(listed, refused):
    listed.model.head.num_classes = 2
    del listed.train_dataloader.dataset['metainfo']

    refused(
        listed, 'has the label 2, but there are 2 classes: labels must be from 0 to'
    )


def test_labels_that_never_occur_are_noted(listed, tmp_path):
    (tmp_path / 'train.txt').write_text('cat/a.png 0\ndog/a.png 1\n')

    assert check_data(listed, 'mmpretrain') == [
        'train_dataloader.dataset: no image of the classes horse.'
    ]


def test_a_missing_folder_is_named(folders, refused, tmp_path):
    folders.train_dataloader.dataset.data_prefix = 'training'

    refused(folders, f'no such folder: {tmp_path}/training; {tmp_path} has train, val')


def test_data_that_are_downloaded_pass(tmp_path):
    register_host('mmpretrain')
    dataset = dict(type='CIFAR10', data_root=str(tmp_path / 'none'), split='train')
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(head=dict(type='LinearClsHead', num_classes=10)),
            train_dataloader=dict(dataset=dataset),
        )
    )

    assert check_data(cfg, 'mmpretrain') == []


def test_the_classes_of_a_json_file_are_checked(folders, refused, tmp_path):
    path = tmp_path / 'train.json'
    sample = dict(img_path='train/cat/a.png', gt_label=1)
    content = dict(metainfo=dict(classes=NAMES[:2]), data_list=[sample])
    path.write_text(json.dumps(content))
    folders.train_dataloader.dataset = dict(
        type='BaseDataset', data_root=str(tmp_path), ann_file='train.json'
    )
    folders.pop('val_dataloader')
    refused(folders, 'model.head.num_classes=3, but the data set of train_dataloader')

    path.write_text('[]')
    refused(folders, f'{path} must have the keys metainfo and data_list')


@pytest.mark.parametrize('name', ['.ipynb_checkpoints', '__MACOSX'])
def test_the_folder_of_a_tool_is_an_error(folders, refused, tmp_path, name):
    (tmp_path / 'train' / name).mkdir()

    refused(folders, f'the folder {tmp_path}/train/{name} would be a class; remove it.')


def test_images_with_another_extension_are_noted(folders, tmp_path):
    for name in ('b.webp', 'c.webp', 'notes.txt', '.d.webp'):
        (tmp_path / 'train' / 'cat' / name).write_text('')

    [note] = check_data(folders, 'mmpretrain')

    assert re.match(
        r'train_dataloader\.dataset: 2 images are not used, such as cat/[bc]\.webp; '
        r'add their extension to extensions',
        note,
    )


def test_images_behind_a_link_are_found(folders, tmp_path):
    (tmp_path / 'train' / 'cat').rename(tmp_path / 'cats')
    (tmp_path / 'train' / 'cat').mkdir()
    (tmp_path / 'train' / 'cat' / 'link').symlink_to(tmp_path / 'cats')

    assert check_data(folders, 'mmpretrain') == []


def test_a_prefix_under_another_key_is_an_error(folders, refused):
    folders.train_dataloader.dataset.data_prefix = dict(img='train')

    refused(folders, 'dataset.data_prefix must have the key img_path; got img.')


def test_images_of_a_list_that_do_not_exist_are_an_error(listed, refused, tmp_path):
    (tmp_path / 'train.txt').write_text('cat/a.png 0\ntrain/dog/a.png 1\n')

    refused(
        listed,
        f'1 of 2 images of {tmp_path}/train.txt do not exist, the first is '
        f'{tmp_path}/train/train/dog/a.png; correct data_prefix',
    )


def test_absolute_paths_in_a_list_pass(listed, tmp_path):
    lines = [f'{tmp_path}/train/{name}/a.png {i}' for i, name in enumerate(NAMES)]
    (tmp_path / 'train.txt').write_text('\n'.join(lines))

    assert check_data(listed, 'mmpretrain') == []


def test_a_list_in_another_encoding_is_an_error(listed, refused, tmp_path):
    (tmp_path / 'train.txt').write_bytes('käse/a.png 0\n'.encode('latin-1'))

    refused(listed, f'train_dataloader.dataset.ann_file: {tmp_path}/train.txt must be')


@pytest.fixture
def json_list(folders, tmp_path):
    """Return the config with a JSON file for training, and how to write it."""

    def write(*samples):
        content = dict(metainfo=dict(classes=NAMES), data_list=samples)
        (tmp_path / 'train.json').write_text(json.dumps(content))
        return folders

    folders.train_dataloader.dataset = dict(
        type='BaseDataset',
        data_root=str(tmp_path),
        ann_file='train.json',
        data_prefix='train',
    )
    return write


@pytest.mark.parametrize(
    ('sample', 'message'),
    [
        (dict(img_path='cat/a.png', gt_label=3), 'has the label 3, but there are 3'),
        (dict(img_path='cat/a.png', gt_label=[0, 4]), 'has the label 4, but there'),
        (dict(img_path='cat/b.png', gt_label=0), '1 of 1 images of'),
        (dict(file='cat/a.png'), "data_list[0] must have img_path; got {'file'"),
    ],
)
def test_wrong_samples_of_a_json_file_are_an_error(json_list, refused, sample, message):
    refused(json_list(sample), message)


def test_right_samples_of_a_json_file_pass(json_list):
    labels = dict(img_path='cat/a.png', gt_label=[0, 1, 2])
    assert check_data(json_list(labels), 'mmpretrain') == []

    assert check_data(json_list(dict(img_path='cat/a.png')), 'mmpretrain') == []


def test_folds_of_one_folder_pass_and_the_same_folder_is_noted(folders):
    train, val = folders.train_dataloader, folders.val_dataloader
    val.dataset.data_prefix = 'train'
    assert check_data(folders, 'mmpretrain') == [
        'val_dataloader.dataset has the files of train_dataloader.dataset: its metrics '
        'are of training images.'
    ]

    for loader in (train, val):
        loader.dataset = dict(type='KFoldDataset', fold=0, dataset=loader.dataset)
    assert check_data(folders, 'mmpretrain') == []


def test_downloaded_data_in_one_folder_pass(folders, tmp_path):
    for split, loader in (('train', 'train'), ('test', 'val')):
        folders[f'{loader}_dataloader'].dataset = Config(
            dict(type='CIFAR10', data_root=str(tmp_path), split=split)
        )._cfg_dict
    folders.model.head.num_classes = 10

    assert check_data(folders, 'mmpretrain') == []


def test_names_in_a_file_pass(folders, tmp_path):
    (tmp_path / 'names.txt').write_text('\n'.join(NAMES))
    for loader in (folders.train_dataloader, folders.val_dataloader):
        loader.dataset.metainfo = dict(classes=str(tmp_path / 'names.txt'))

    assert check_data(folders, 'mmpretrain') == []


def test_a_loss_with_another_number_of_classes_is_an_error(folders, refused):
    folders.model.head.loss = dict(type='LabelSmoothLoss', num_classes=4)

    refused(folders, 'model.head.loss.num_classes=4 must be model.head.num_classes=3.')
