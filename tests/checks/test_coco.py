"""Annotations in COCO format against classes, images and evaluators."""

import shutil

import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend
from pets import NAMES, write

from mmsparse.checks import check_data


def test_right_annotations_pass_without_notes(pets):
    assert check_data(pets, 'mmdet') == []


def set_classes(cfg, *names):
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo.classes = names


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (
            ('Cat', 'Dog', 'Horse'),
            'classes: Cat, Dog, Horse not in {path}/train.json; did you mean '
            "'cat'? Its categories are cat, dog, horse. Spell them as in the file.",
        ),
        (('cat', 'dogs', 'horse'), 'classes: dogs not in {path}/train.json; did you'),
        (
            ('dog', 'cat', 'horse'),
            'classes: mmdet numbers the classes in the order of {path}/train.json, so '
            'they must have it: cat, dog, horse; got dog, cat, horse.',
        ),
    ],
    ids=['all spelled otherwise', 'one spelled otherwise', 'another order'],
)
def test_names_that_are_not_those_of_the_file_are_an_error(
    pets, refused, tmp_path, names, message
):
    set_classes(pets, *names)

    message = message.format(path=tmp_path)
    refused(pets, f'train_dataloader.dataset.metainfo.{message}')


def test_missing_metainfo_is_an_error_with_the_names_to_set(pets, refused, tmp_path):
    for loader in (pets.train_dataloader, pets.val_dataloader):
        del loader.dataset['metainfo']

    refused(
        pets,
        f'train_dataloader.dataset.metainfo: not set, so that its '
        f'classes are the 80 of '
        f'CocoDataset, but {tmp_path}/train.json has cat, dog, horse; set '
        f"metainfo=dict(classes=('cat', 'dog', 'horse')) for every data set.",
    )


def test_a_part_of_the_classes_passes(pets):
    set_classes(pets, 'cat', 'horse')
    pets.model.bbox_head.num_classes = 2

    check_data(pets, 'mmdet')


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (
            'cat',
            "classes='cat' must be a tuple of names; for one class write ('cat',).",
        ),
        (('cat', 'cat', 'dog'), "classes has 'cat' twice."),
    ],
)
def test_malformed_classes_are_an_error(pets, refused, classes, message):
    pets.train_dataloader.dataset.metainfo.classes = classes

    refused(pets, f'train_dataloader.dataset.metainfo.{message}')


def test_metainfo_of_openmmlab_1_is_an_error(pets, refused):
    pets.train_dataloader.dataset.metainfo = dict(CLASSES=('cat', 'dog', 'horse'))

    refused(pets, 'metainfo.CLASSES has no effect in OpenMMLab 2.x; write classes')


@pytest.mark.parametrize('num_classes', [2, 80])
def test_a_head_with_another_number_of_classes_is_an_error(pets, refused, num_classes):
    pets.model.bbox_head.num_classes = num_classes

    refused(
        pets,
        f'model.bbox_head.num_classes={num_classes}, but the data set of '
        f'train_dataloader has 3 classes: cat, dog, horse. Set num_classes of every '
        f'head to 3.',
    )


HEADS = {
    'two stages': (
        dict(roi_head=dict(bbox_head=dict(type='Shared2FCBBoxHead', num_classes=9))),
        'model.roi_head.bbox_head.num_classes=9',
    ),
    'the default of the class': (
        dict(roi_head=dict(bbox_head=dict(type='Shared2FCBBoxHead'))),
        'model.roi_head.bbox_head.num_classes=80',
    ),
    'masks': (
        dict(roi_head=dict(mask_head=dict(type='FCNMaskHead', num_classes=9))),
        'model.roi_head.mask_head.num_classes=9',
    ),
    'cascade': (
        dict(
            roi_head=dict(
                bbox_head=[
                    dict(type='Shared2FCBBoxHead', num_classes=n) for n in (3, 3, 9)
                ]
            )
        ),
        'model.roi_head.bbox_head[2].num_classes=9',
    ),
    'things': (
        dict(
            panoptic_head=dict(
                type='MaskFormerHead', num_things_classes=9, num_stuff_classes=0
            )
        ),
        'model.panoptic_head.num_things_classes=9',
    ),
    'stuff': (
        dict(
            panoptic_head=dict(
                type='MaskFormerHead', num_things_classes=3, num_stuff_classes=53
            )
        ),
        'model.panoptic_head.num_stuff_classes=53',
    ),
    'weights of the loss': (
        dict(
            bbox_head=dict(
                type='RetinaHead',
                num_classes=3,
                loss_cls=dict(type='CrossEntropyLoss', class_weight=[1.0] * 81),
            )
        ),
        'model.bbox_head.loss_cls.class_weight has 81 values, but '
        'model.bbox_head.num_classes=3; give one per class.',
    ),
}


@pytest.mark.parametrize('case', HEADS)
def test_every_head_is_checked(pets, refused, case):
    model, message = HEADS[case]
    pets.model = model

    refused(pets, message)


def test_other_numbers_in_a_model_pass(pets):
    pets.model.update(
        backbone=dict(type='ResNet', num_classes=1000),
        rpn_head=dict(type='RPNHead', num_classes=1),
        roi_head=dict(
            bbox_head=dict(type='Shared2FCBBoxHead', num_classes=3),
            semantic_head=dict(type='FusedSemanticHead', num_classes=183),
        ),
    )

    check_data(pets, 'mmdet')


def test_validation_with_other_classes_is_an_error(pets, refused):
    pets.val_dataloader.dataset.metainfo.classes = ('cat', 'dog')

    refused(
        pets,
        'val_dataloader has 2 classes and train_dataloader 3; class 2 is none instead '
        "of 'horse'. Give every data set the same metainfo.classes in the same order.",
    )


def test_a_validation_file_with_another_order_is_an_error(pets, refused, tmp_path):
    write(tmp_path, 'val', names=('dog', 'cat', 'horse'))

    refused(pets, f'in the order of {tmp_path}/val.json, so they must have it: dog,')


def test_an_evaluator_with_the_file_of_other_images_is_an_error(
    pets, refused, tmp_path
):
    write(tmp_path, 'test', change=lambda coco: coco['images'].pop())
    pets.val_evaluator.ann_file = f'{tmp_path}/test.json'

    refused(
        pets,
        f'val_evaluator.ann_file={tmp_path}/test.json has other images than '
        f'{tmp_path}/val.json, which val_dataloader.dataset reads; set both to the '
        f'same file.',
    )
    pets.val_evaluator = dict(metrics=[pets.val_evaluator])
    refused(pets, 'val_evaluator.metrics[0].ann_file=')


def test_an_evaluator_with_a_copy_of_the_file_passes(pets, tmp_path):
    shutil.copy(tmp_path / 'val.json', tmp_path / 'copy.json')
    pets.val_evaluator.ann_file = f'{tmp_path}/copy.json'

    check_data(pets, 'mmdet')


def test_an_annotation_file_with_a_typo_is_named_with_those_that_exist(
    pets, refused, tmp_path
):
    pets.train_dataloader.dataset.ann_file = 'trains.json'
    refused(
        pets,
        f'train_dataloader.dataset.ann_file: no such file: {tmp_path}/trains.json; '
        f'{tmp_path} has train, train.json, val and 1 more',
    )

    pets.train_dataloader.dataset.ann_file = 'train.json'
    pets.val_evaluator.ann_file = f'{tmp_path}/vla.json'
    refused(
        pets,
        f'val_evaluator.ann_file: no such file: {tmp_path}/vla.json; set it to that of '
        f'the data set, {tmp_path}/val.json.',
    )


def test_missing_images_are_counted_and_the_first_is_named(pets, refused, tmp_path):
    (tmp_path / 'train' / 'b.jpg').rename(tmp_path / 'train' / 'b.jpeg')

    refused(
        pets,
        f'train_dataloader.dataset: 1 of 3 images of '
        f'{tmp_path}/train.json are missing, '
        f'first {tmp_path}/train/b.jpg; {tmp_path}/train has a.jpg, b.jpeg, c.jpg. '
        f'Change data_prefix.img, or file_name in the file.',
    )


def test_images_that_are_filtered_may_be_missing(pets, tmp_path):
    (tmp_path / 'train' / 'c.jpg').unlink()
    write(tmp_path, 'train', change=lambda coco: coco['annotations'].pop())
    pets.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)

    notes = check_data(pets, 'mmdet')

    assert notes == [
        f'train_dataloader.dataset: {tmp_path}/train.json has no box of horse.'
    ]


def change_box(i, **values):
    return lambda coco: coco['annotations'][i].update(values)


@pytest.mark.parametrize(
    ('values', 'reason'),
    [
        (dict(bbox=[5, 5, 0, 9]), 'width or height below 1 pixel'),
        (dict(bbox=[90, 5, 9, 9]), 'outside the image'),
        (dict(area=0), 'area of 0'),
        (dict(image_id=77), 'unknown image_id'),
    ],
)
def test_dropped_boxes_are_noted_with_their_number(pets, tmp_path, values, reason):
    write(tmp_path, 'train', change=change_box(1, **values))

    assert check_data(pets, 'mmdet') == [
        f'train_dataloader.dataset: 1 box (first id 2) of {tmp_path}/train.json not '
        f'used: {reason}.',
        f'train_dataloader.dataset: {tmp_path}/train.json has no box of dog.',
    ]


def test_data_whose_boxes_are_all_lost_are_an_error(pets, refused, tmp_path):
    def shrink(coco):
        for box in coco['annotations']:
            box['bbox'] = [0.5, 0.3, 0.2, 0.2]

    write(tmp_path, 'train', change=shrink)

    refused(
        pets,
        f'train_dataloader.dataset: no box of {tmp_path}/train.json can be used '
        f'(3 boxes (first id 1): width or height below 1 pixel). Correct the file.',
    )


@pytest.mark.parametrize('flag', ['iscrowd', 'ignore'])
def test_boxes_to_ignore_pass_unless_there_are_no_others(pets, refused, tmp_path, flag):
    extra = {'id': 9, 'image_id': 0, 'category_id': 1, 'bbox': [0, 0, 9, 9], flag: 1}
    extra['area'] = 81
    write(tmp_path, 'train', change=lambda coco: coco['annotations'].append(extra))
    assert check_data(pets, 'mmdet') == []

    write(
        tmp_path,
        'train',
        change=lambda coco: [box.update({flag: 1}) for box in coco['annotations']],
    )
    refused(pets, f'can be used (3 boxes (first id 1): {flag} is set). Correct')


def test_more_boxes_than_queries_are_noted(pets, tmp_path):
    write(
        tmp_path,
        'train',
        change=lambda coco: [box.update(image_id=0) for box in coco['annotations']],
    )
    pets.model.num_queries = 2

    assert check_data(pets, 'mmdet') == [
        'train_dataloader.dataset: a.jpg has 3 boxes, more than model.num_queries=2, '
        'the most that can be detected; increase it.'
    ]

    pets.train_dataloader.dataset.indices = 1
    assert check_data(pets, 'mmdet') == []  # others of the file are not used


def test_validation_on_training_images_is_noted(pets, tmp_path):
    pets.val_dataloader.dataset = pets.train_dataloader.dataset
    pets.val_evaluator.ann_file = f'{tmp_path}/train.json'

    assert check_data(pets, 'mmdet') == [
        'val_dataloader.dataset has the files of train_dataloader.dataset: its metrics '
        'are of training images.'
    ]


def test_an_unknown_category_is_an_error(pets, refused, tmp_path):
    write(tmp_path, 'val', change=change_box(2, category_id=9))

    refused(
        pets,
        f'{tmp_path}/val.json: 1 box (first id 3) with a category_id that is not in '
        f'categories; add the categories, or correct the ids.',
    )


def test_boxes_by_corners_are_recognized(pets, refused, tmp_path):
    def corners(coco):
        coco['annotations'] = [
            dict(coco['annotations'][i % 3], id=i, bbox=[20, 10, 36, 28])
            for i in range(9)
        ]

    write(tmp_path, 'train', change=corners)

    refused(pets, f'{tmp_path}/train.json: bbox must be (x, y, width, height); most')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda coco: coco['annotations'][1].pop('area'),
            'annotations[1] has no area; mmdet needs id, image_id, category_id, bbox, ',
        ),
        (
            lambda coco: coco['images'][2].pop('width'),
            'images[2] has no width; mmdet needs id, file_name, height, width.',
        ),
        (
            lambda coco: coco.pop('categories'),
            'must have lists of images, annotations, categories (COCO format); '
            'categories is missing.',
        ),
        (change_box(0, id=2), 'two annotations have the id 2.'),
        (
            change_box(0, bbox=[1, 2, 3]),
            'bbox of the annotation with id 1 must be (x, ',
        ),
        (
            change_box(0, bbox=[1, 2, 3, float('nan')]),
            'bbox of the annotation with id 1 must be (x, y, width, height); got [1, ',
        ),
        (
            lambda coco: coco['categories'][1].update(name='cat'),
            "two categories have the name 'cat'.",
        ),
        (lambda coco: coco['categories'][1].update(id=1), 'two categories have the id'),
        (change_box(1, area=None), 'annotations[1].area must be a number; got None.'),
        (
            change_box(1, bbox=None),
            'annotations[1].bbox must be (x, y, width, height); got None.',
        ),
        (
            lambda coco: coco['images'][0].update(width='40'),
            "images[0].width must be a number; got '40'.",
        ),
        (
            lambda coco: coco['images'][0].update(file_name=7),
            'images[0].file_name must be a name; got 7.',
        ),
        (
            change_box(1, image_id=[0]),
            'annotations[1].image_id must be a number or a name; got [0].',
        ),
    ],
    ids=[
        *('no area', 'no width', 'no categories', 'id twice', 'three values', 'nan'),
        *('name twice', 'category id twice', 'area', 'bbox', 'width', 'file name'),
        'image id',
    ],
)
def test_a_file_that_mmdet_cannot_read_is_an_error(
    pets, refused, tmp_path, change, message
):
    write(tmp_path, 'train', change=change)

    refused(pets, message)


def test_a_file_that_is_no_json_is_an_error(pets, refused, tmp_path):
    (tmp_path / 'train.json').write_text('{"images": [')

    refused(pets, f'{tmp_path}/train.json is not valid JSON: Expecting value: line 1')


def test_wrapped_and_joined_data_sets_are_checked(pets, refused, tmp_path):
    inner = pets.train_dataloader.dataset
    joined = dict(
        type='ConcatDataset', datasets=[inner, dict(inner, ann_file='no.json')]
    )
    pets.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=joined)

    refused(
        pets,
        f'train_dataloader.dataset.dataset.datasets[1].ann_file: no such file: '
        f'{tmp_path}/no.json',
    )


class Elsewhere(LocalBackend):
    """A file system of another machine."""


def test_data_elsewhere_are_not_checked(pets):
    register_backend('elsewhere', Elsewhere, force=True, prefixes='elsewhere')
    settings = (
        dict(data_root='elsewhere://pets/'),
        dict(data_root='data/nowhere', backend_args=dict(backend='elsewhere')),
    )
    loaders = (pets.train_dataloader, pets.val_dataloader)
    for loader, changes in zip(loaders, settings, strict=True):
        loader.dataset.update(changes)
    pets.val_evaluator.ann_file = 'elsewhere://pets/val.json'

    assert check_data(pets, 'mmdet') == []


def test_the_local_back_end_is_checked(pets, refused):
    pets.train_dataloader.dataset.update(
        data_root='data/nowhere', backend_args=dict(backend='local')
    )

    refused(pets, 'train_dataloader: no data at data/nowhere')


def test_only_the_data_of_the_given_loaders_must_exist(pets, tmp_path):
    (tmp_path / 'train.json').unlink()

    check_data(pets, 'mmdet', ('val_dataloader',))


def test_a_config_without_validation_is_accepted(pets):
    pets.val_cfg = pets.val_dataloader = pets.val_evaluator = None

    check_data(pets, 'mmdet')


def test_missing_data_in_a_wrapper_are_named(pets, refused):
    inner = dict(pets.val_dataloader.dataset, data_root='data/nowhere')
    wrapper = dict(type='RepeatDataset', times=1, dataset=inner)
    cfg = Config(dict(default_scope='mmdet', val_dataloader=dict(dataset=wrapper)))

    refused(
        cfg, 'val_dataloader: no data at data/nowhere; put the data there or change'
    )


@pytest.mark.parametrize(
    'change',
    [
        lambda coco: coco.pop('annotations'),
        lambda coco: coco['annotations'].clear(),
    ],
    ids=['no list', 'empty list'],
)
def test_annotations_are_needed_only_in_training(pets, refused, tmp_path, change):
    write(tmp_path, 'val', change=change)
    assert check_data(pets, 'mmdet') == []

    write(tmp_path, 'train', change=change)
    refused(pets, f'no box of {tmp_path}/train.json can be used (it has none of')


def join(cfg, *names):
    one = cfg.train_dataloader.dataset.to_dict()
    joined = [dict(one, ann_file=f'{name}.json') for name in names]
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=joined)


def test_joined_data_sets_may_have_other_classes_or_no_boxes(pets, tmp_path):
    write(tmp_path, 'negative', change=lambda coco: coco['annotations'].clear())
    write(tmp_path, 'unlabeled', change=lambda coco: coco.pop('annotations'))
    write(tmp_path, 'cats', change=lambda coco: coco['annotations'].pop())
    write(tmp_path, 'horses', change=lambda coco: coco['annotations'].pop(0))
    join(pets, 'negative', 'unlabeled', 'cats', 'horses')

    assert check_data(pets, 'mmdet') == []


def test_a_joined_data_set_of_which_all_is_filtered_is_an_error(
    pets, refused, tmp_path
):
    write(tmp_path, 'negative', change=lambda coco: coco['annotations'].clear())
    pets.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)
    join(pets, 'train', 'negative')

    refused(
        pets,
        f'train_dataloader.dataset.datasets[1]: {tmp_path}/negative.json has no images '
        f'that can be used.',
    )


def test_images_of_other_classes_and_beyond_indices_may_be_missing(pets, tmp_path):
    (tmp_path / 'train' / 'c.jpg').unlink()
    pets.train_dataloader.dataset.indices = 2
    assert check_data(pets, 'mmdet') == []

    del pets.train_dataloader.dataset['indices']
    pets.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)
    set_classes(pets, 'cat', 'dog')
    pets.model.bbox_head.num_classes = 2
    assert check_data(pets, 'mmdet') == []


def test_links_to_nothing_are_missing_and_addresses_are_not_checked(
    pets, refused, tmp_path
):
    (tmp_path / 'train' / 'a.jpg').unlink()
    (tmp_path / 'train' / 'a.jpg').symlink_to(tmp_path / 'nothing.jpg')
    refused(pets, f'1 of 3 images of {tmp_path}/train.json are missing')

    write(
        tmp_path,
        'train',
        change=lambda coco: [
            image.update(file_name=f'http://pets.org/{image["id"]}.jpg')
            for image in coco['images']
        ],
    )
    assert check_data(pets, 'mmdet') == []


def test_classes_may_be_the_lines_of_a_file(pets, tmp_path):
    (tmp_path / 'classes.txt').write_text('cat\ndog\nhorse\n')
    for loader in (pets.train_dataloader, pets.val_dataloader):
        loader.dataset.metainfo.classes = f'{tmp_path}/classes.txt'

    assert check_data(pets, 'mmdet') == []


def test_numbers_as_names_are_compared(pets, refused):
    set_classes(pets, 0, 1, 2)
    refused(pets, 'metainfo.classes: 0, 1, 2 not in')

    pets.train_dataloader.dataset.metainfo.classes = 3
    refused(pets, 'metainfo.classes=3 must be a tuple of names')


def test_a_data_set_that_reads_boxes_otherwise_is_not_checked(pets, tmp_path):
    write(tmp_path, 'train', change=lambda coco: coco['annotations'][0].pop('area'))

    class Corners(CocoDataset):
        def parse_data_info(self, raw_data_info):
            return dict(instances=[])

    pets.train_dataloader.dataset.type = Corners

    assert check_data(pets, 'mmdet') == []


def test_an_evaluator_needs_the_same_categories(pets, refused, tmp_path):
    pets.val_evaluator.ann_file = f'{tmp_path}/other.json'
    write(tmp_path, 'other', names=('dog', 'cat', 'horse'))
    refused(
        pets,
        f'val_evaluator.ann_file={tmp_path}/other.json has other categories than '
        f'{tmp_path}/val.json, which val_dataloader.dataset reads: dog, cat, horse '
        f'instead of cat, dog, horse; set both to the same file.',
    )

    (tmp_path / 'other.json').write_text('{')
    refused(pets, f'{tmp_path}/other.json is not valid JSON')


def test_an_evaluator_may_have_more_categories_and_folders_in_names(pets, tmp_path):
    pets.val_evaluator.ann_file = f'{tmp_path}/other.json'

    def move(coco):
        for image in coco['images']:
            image['file_name'] = f'val/{image["file_name"]}'

    write(tmp_path, 'other', names=(*NAMES, 'cow'), change=move)

    assert check_data(pets, 'mmdet') == []


PANOPTIC = dict(classes=('cat', 'sky'), thing_classes=('cat',), stuff_classes=('sky',))


@pytest.mark.parametrize(
    ('part', 'head', 'message'),
    [
        ('panoptic_head', dict(type='Mask2FormerHead'), 'num_things_classes=80'),
        (
            'semantic_head',
            dict(type='PanopticFPNHead', num_things_classes=1),
            'num_stuff_classes=53',
        ),
    ],
)
def test_defaults_of_panoptic_heads_are_checked(
    pets, refused, tmp_path, part, head, message
):
    dataset = dict(
        type='CocoPanopticDataset',
        metainfo=PANOPTIC,
        ann_file=f'{tmp_path}/train.json',
        data_prefix=dict(img=f'{tmp_path}/train', seg=f'{tmp_path}/train'),
    )
    model = {part: head}
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=model,
            train_dataloader=dict(dataset=dataset),
        )
    )
    refused(cfg, f'model.{part}.{message}, but the data set of train_dataloader has 2')

    cfg.model[part].update(num_things_classes=1, num_stuff_classes=1)
    assert check_data(cfg, 'mmdet') == []

    cfg.model[part].update(num_things_classes=9)
    cfg.train_dataloader.dataset.metainfo = dict(classes=('cat', 'sky'))
    assert check_data(cfg, 'mmdet') == []


def test_stuff_that_is_loaded_as_objects_has_boxes(refused, tmp_path, pets):
    dataset = dict(
        type='CocoPanopticDataset',
        metainfo=PANOPTIC,
        ann_file=f'{tmp_path}/train.json',
        data_prefix=dict(img=f'{tmp_path}/train', seg=f'{tmp_path}/train'),
        pipeline=[dict(type='mmsparse.LoadPanopticSegments')],
    )
    heads = dict(
        bbox_head=dict(type='DETRHead', num_classes=2),
        panoptic_fusion_head=dict(num_things_classes=1, num_stuff_classes=1),
    )
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=heads,
            train_dataloader=dict(dataset=dataset),
        )
    )
    assert check_data(cfg, 'mmdet') == []

    dataset['pipeline'] = [dict(type='LoadPanopticAnnotations')]
    cfg.train_dataloader.dataset = dataset
    refused(cfg, 'model.bbox_head.num_classes=2, but the data set of train_dataloader')


def test_masks_of_no_class_may_have_any_number(pets):
    mask = dict(type='FCNMaskHead', num_classes=80, class_agnostic=True)
    pets.model.roi_head = dict(mask_head=mask)

    assert check_data(pets, 'mmdet') == []
