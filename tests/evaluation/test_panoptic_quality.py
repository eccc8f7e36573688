import json

import pytest
from mmdet.evaluation.metrics import coco_panoptic_metric
from mmdet.registry import DATASETS
from mmengine.registry import METRICS, DefaultScope
from mmengine.structures import PixelData
from tiny_panoptic import METAINFO, panoptic_dataset, write_panoptic_data

from mmsparse.errors import UsageError


@pytest.fixture
def root(tmp_path):
    return write_panoptic_data(tmp_path / 'data')


def build(root):
    settings = dict(
        type='mmsparse.PanopticQuality',
        ann_file=str(root / 'panoptic.json'),
        seg_prefix=str(root / 'segments'),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        return METRICS.build(settings)


def change(root, function):
    path = root / 'panoptic.json'
    content = json.loads(path.read_text())
    function(content)
    path.write_text(json.dumps(content))


needs_panopticapi = pytest.mark.skipif(
    coco_panoptic_metric.panopticapi is None, reason='panopticapi is not installed'
)


@needs_panopticapi
def test_a_perfect_prediction_has_a_quality_of_100(root):
    metric = build(root)
    metric.dataset_meta = METAINFO
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmsparse.LoadPanopticSegments', num_things_classes=2),
        dict(type='PackDetInputs'),
    ]
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(panoptic_dataset(root, pipeline=pipeline))
    samples = [dataset[i]['data_samples'] for i in range(len(dataset))]
    for sample in samples:
        truth = sample.gt_instances
        masks = truth.masks.to_tensor(int, 'cpu')
        values = truth.labels + 1000 * (truth.labels < 2) * (truth.labels.cumsum(0) + 1)
        segments = (masks * values[:, None, None]).sum(0, keepdim=True)
        sample.pred_panoptic_seg = PixelData(sem_seg=segments)

    metric.process({}, [sample.to_dict() for sample in samples])
    found = metric.evaluate(len(dataset))

    assert found['coco_panoptic/PQ'] == pytest.approx(100)
    assert found['coco_panoptic/PQ_st'] == pytest.approx(100)


def test_a_missing_package_is_named_with_its_installation(root, monkeypatch):
    monkeypatch.setattr(coco_panoptic_metric, 'panopticapi', None)

    with pytest.raises(
        UsageError, match=r'pip install --no-deps panopticapi-lite==0\.2\.0'
    ):
        build(root)


@needs_panopticapi
@pytest.mark.parametrize(('flag', 'missing'), [(0, 'things'), (1, 'stuff')])
def test_a_kind_without_classes_is_refused(root, flag, missing):
    def mark(content):
        for category in content['categories']:
            category['isthing'] = flag

    change(root, mark)

    with pytest.raises(UsageError, match=f'it has none of {missing} '):
        build(root)


@needs_panopticapi
def test_other_images_than_jpeg_are_refused(root):
    change(root, lambda content: content['images'][1].update(file_name='2.bmp'))

    with pytest.raises(UsageError, match=r"must have images that .*; got '2\.bmp'"):
        build(root)
