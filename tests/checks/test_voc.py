"""Classes of data in VOC's XML format."""

import pytest
from mmengine.config import Config

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
    for name in ('cat', 'dog'):
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
        f'has one of Cat, Dog; its objects are cat, dog. Spell them as in the files.',
    )


def test_objects_that_are_no_class_and_classes_without_objects_are_noted(xml):
    xml.train_dataloader.dataset.metainfo.classes = ('cat', 'cow')

    assert check_data(xml, 'mmdet') == [
        'train_dataloader.dataset: objects that are no class: 1 of dog.',
        'train_dataloader.dataset: no object of cow.',
    ]


def test_a_missing_file_is_named(xml, refused, tmp_path):
    (tmp_path / 'Annotations' / 'dog.xml').unlink()

    refused(xml, f'train.txt names dog, but {tmp_path}/Annotations/dog.xml does not')
