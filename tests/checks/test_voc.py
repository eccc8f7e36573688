"""Classes of data in VOC's XML format."""

import pytest
from mmengine.config import Config
from PIL import Image

from mmsparse.apis import register_host
from mmsparse.checks import check_data

XML = (
    '<annotation><size><width>40</width><height>30</height></size><object>'
    '<name>{}</name><part><name>head</name></part></object></annotation>'
)


@pytest.fixture
def xml(tmp_path):
    register_host('mmdet')
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'JPEGImages').mkdir()
    for name in ('cat', 'dog'):
        Image.new('RGB', (40, 30)).save(tmp_path / 'JPEGImages' / f'{name}.jpg')
        (tmp_path / 'Annotations' / f'{name}.xml').write_text(XML.format(name))
    (tmp_path / 'train.txt').write_text('cat\ndog\n')
    dataset = dict(
        type='XMLDataset',
        metainfo=dict(classes=('cat', 'dog')),
        ann_file=str(tmp_path / 'train.txt'),
        data_prefix=dict(sub_data_root=str(tmp_path)),
    )
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(bbox_head=dict(type='RetinaHead', num_classes=2)),
            train_dataloader=dict(dataset=dataset),
        )
    )


def test_right_names_pass(xml):
    assert check_data(xml, 'mmdet') == []


def test_names_that_no_object_has_are_an_error(xml, refused, tmp_path):
    xml.train_dataloader.dataset.metainfo.classes = ('Cat', 'Dog')

    refused(
        xml,
        f'train_dataloader.dataset.metainfo.classes: no object in {tmp_path}/train.txt '
        f"has one of Cat, Dog; its objects are 'cat', 'dog'. Spell them as in the "
        f'files.',
    )


def test_objects_that_are_no_class_and_classes_without_objects_are_noted(xml):
    xml.train_dataloader.dataset.metainfo.classes = ('cat', 'cow')

    assert check_data(xml, 'mmdet') == [
        "train_dataloader.dataset: objects that are no class: 1 of 'dog'.",
        'train_dataloader.dataset: no object of cow.',
    ]


@pytest.mark.parametrize('name', ['Annotations/dog.xml', 'JPEGImages/dog.jpg'])
def test_missing_files_are_counted(xml, refused, tmp_path, name):
    (tmp_path / name).rename(tmp_path / name.replace('dog', 'Dog'))

    refused(
        xml,
        f'1 of 2 files that {tmp_path}/train.txt names are missing, first '
        f'{tmp_path}/{name}; ',
    )


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('<annotation>', 'dog.xml is not valid XML: no element found'),
        ('<annotation><object/></annotation>', 'dog.xml: object 0 has no name.'),
    ],
)
def test_malformed_files_are_named(xml, refused, tmp_path, content, message):
    (tmp_path / 'Annotations' / 'dog.xml').write_text(content)

    refused(xml, message)


@pytest.mark.parametrize(
    'content',
    [
        '<annotation><object><part><name>head</name></part><name>{}</name></object>'
        '</annotation>',
        '<?xml version="1.0" encoding="ISO-8859-1"?><annotation><folder>\xfc</folder>'
        '<object id="1"><name>{}</name></object></annotation>',
    ],
    ids=['part before name', 'another encoding'],
)
def test_names_are_read_as_by_mmdet(xml, tmp_path, content):
    for name in ('cat', 'dog'):
        path = tmp_path / 'Annotations' / f'{name}.xml'
        path.write_text(content.format(name), encoding='latin-1')

    assert check_data(xml, 'mmdet') == []


def test_spaces_around_names_are_part_of_them(xml, refused, tmp_path):
    for name in ('cat', 'dog'):
        path = tmp_path / 'Annotations' / f'{name}.xml'
        path.write_text(XML.format(f' {name} '))

    refused(xml, "its objects are ' cat ', ' dog '.")


def test_images_to_test_may_have_no_objects(xml, tmp_path):
    for name in ('cat', 'dog'):
        (tmp_path / 'Annotations' / f'{name}.xml').write_text('<annotation/>')
    xml.val_dataloader = xml.pop('train_dataloader')

    assert check_data(xml, 'mmdet') == []


def test_joined_data_sets_may_have_different_objects(xml, tmp_path):
    files = [tmp_path / f'{name}.txt' for name in ('cat', 'dog')]
    for path in files:
        path.write_text(path.stem)
    one = xml.train_dataloader.dataset.to_dict()
    joined = [dict(one, ann_file=str(path)) for path in files]
    xml.train_dataloader.dataset = dict(type='ConcatDataset', datasets=joined)

    assert check_data(xml, 'mmdet') == []
