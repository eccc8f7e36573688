"""Training stops with a report where the model computes NaN or infinite values."""

import json
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from scipy.optimize import linear_sum_assignment
from tiny_detectors import build_detector, build_host_detector
from torch import distributed, multiprocessing, nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader

from mmsparse.apis import build_model, read_config
from mmsparse.engine.cpu_ddp import CPUDistributedDataParallel
from mmsparse.engine.hooks.stop_at_nan import NotFiniteError, StopAtNaN
from mmsparse.engine.not_finite import first_bad_module

CONFIGS = Path(__file__).parents[2] / 'configs'
CLASSIFIER = CONFIGS / 'biformer/biformer-nano_1xb32-9e_digits.py'
DETECTOR = CONFIGS / 'focus_detr/focus-detr_biformer-nano_1xb4-4e_digits.py'
SEGMENTOR = CONFIGS / 'biformer/fpn_biformer-nano_1xb8-1600i_digits.py'
NAN, INF = float('nan'), float('inf')


class Model(BaseModel):
    """Two layers; a function of their outputs returns the losses."""

    def __init__(self, losses):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.losses = losses
        self.passes = 0

    def forward(self, x, data_samples=None, mode='loss'):
        self.passes += 1
        return self.losses(self.second(self.first(x)))


def loss(out):
    return dict(loss_a=out.square().mean(), acc=torch.tensor(NAN))


def match(out):
    linear_sum_assignment(out.detach().numpy())
    return loss(out)


def batch():
    names = ('a.jpg', 'b.jpg')
    samples = [BaseDataElement(metainfo=dict(img_path=x)) for x in names]
    return dict(x=torch.ones(2, 2), data_samples=samples)


@pytest.fixture
def step(tmp_path):
    """Train a model for a step under the hook, as a training does in iteration 7."""

    def run(model, data, wrapper=OptimWrapper, **settings):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        runner = SimpleNamespace(iter=6, work_dir=str(tmp_path), model=model)
        hook = HOOKS.build(dict(type='mmsparse.StopAtNaN'))
        hook.before_train(runner)
        hook.before_train_iter(runner, 6, data)
        return model.train_step(data, wrapper(optimizer, **settings))

    return run


@pytest.fixture
def report(tmp_path):
    return lambda: json.loads((tmp_path / 'nan_report.json').read_text())


@pytest.mark.parametrize('accumulative_counts', [1, 2])
def test_a_finite_step_is_that_without_the_hook(accumulative_counts, step, tmp_path):
    model, plain = Model(loss), Model(loss)
    plain.load_state_dict(model.state_dict())
    settings = dict(accumulative_counts=accumulative_counts)
    wrapper = OptimWrapper(torch.optim.SGD(plain.parameters(), lr=0.1), **settings)

    outputs = step(model, batch(), **settings)
    expected = plain.train_step(batch(), wrapper)

    assert outputs['loss'] == expected['loss']
    assert torch.equal(model.first.weight, plain.first.weight)
    assert model.passes == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('value', [NAN, INF, -INF])
def test_a_loss_stops_training_before_it_changes_weights(value, step, report, tmp_path):
    torch.save(dict(weight=torch.zeros(1)), tmp_path / 'iter_5.pth')
    model = Model(lambda out: dict(loss_a=out.sum() * 0 + value, loss_b=out.sum() * 0))
    before = model.first.weight.clone()

    with pytest.raises(
        NotFiniteError, match=r"losses {'loss': .*iteration 7\. .*nan_report.json"
    ):
        step(model, batch())

    assert torch.equal(model.first.weight, before)
    assert report() == dict(
        iteration=7,
        losses=dict(loss=str(value), loss_a=str(value), loss_b='0.0'),
        first='',
        weights=[],
        error='',
        files=['a.jpg', 'b.jpg'],
        last_checkpoint=str(tmp_path / 'iter_5.pth'),
    )


def test_the_report_names_the_first_module_of_a_loss(step, report):
    model = Model(loss)
    for parameter in model.parameters():
        parameter.data.fill_(1e25)

    with pytest.raises(NotFiniteError, match=r"'loss': .*, first in second, in iter"):
        step(model, batch())

    assert report()['first'] == 'second'
    assert report()['weights'] == []


def test_the_report_needs_no_checkpoint_and_no_files(step, report):
    with pytest.raises(NotFiniteError, match='last undamaged checkpoint: none'):
        step(Model(loss), dict(x=torch.full((2, 2), NAN)))

    assert report()['first'] == 'data_preprocessor'
    assert report()['files'] == [] and report()['last_checkpoint'] is None


@pytest.mark.parametrize(
    'error',
    [ValueError('2-D'), IndexError('index 9'), AssertionError(), RuntimeError()],
)
def test_other_errors_pass_unchanged(error, step, tmp_path):
    def fail(out):
        raise error

    with pytest.raises(type(error)) as info:
        step(Model(fail), batch())

    assert info.value is error and error.__cause__ is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'error',
    [ValueError('2-D'), IndexError('index 9'), AssertionError(), RuntimeError()],
)
def test_any_error_after_a_nan_output_stops_training_with_a_report(error, step, report):
    def fail(out):
        raise error

    model = Model(fail)
    model.first.weight.data.fill_(3e38)

    with pytest.raises(
        NotFiniteError, match=r'infinite predictions \(.*\), first in first, in iter'
    ) as info:
        step(model, batch())

    assert info.value.__cause__ is error
    assert report()['first'] == 'first' and report()['files'] == ['a.jpg', 'b.jpg']


@pytest.mark.parametrize('losses', [loss, match])
def test_nan_weights_are_named(losses, step, report):
    model = Model(losses)
    model.second.weight.data[0, 0] = NAN
    model.second.bias.data[0] = INF

    with pytest.raises(
        NotFiniteError, match=r'weights \(second.weight and 1 more\) in iteration 7'
    ):
        step(model, batch())

    assert report()['weights'] == ['second.weight', 'second.bias']


@pytest.mark.parametrize('cost', [NAN, INF])
def test_costs_of_a_matcher_stop_training_if_predictions_are_finite(cost, step, report):
    model = Model(lambda out: match(out.detach() * 0 + cost))

    with pytest.raises(NotFiniteError, match=r'infinite predictions \(.*matrix .*\)'):
        step(model, batch())

    assert report()['first'] == ''
    assert 'matrix' in report()['error']


def test_one_of_several_processes_does_not_repeat_its_step(step, report, monkeypatch):
    monkeypatch.setattr('mmsparse.engine.hooks.stop_at_nan.get_world_size', lambda: 2)

    def fail(out):
        raise IndexError

    model = Model(fail)
    model.first.weight.data.fill_(3e38)
    model.second.weight.data.fill_(0)

    with pytest.raises(NotFiniteError, match='first in out of fail, in iteration'):
        step(model, batch())

    assert model.passes == 1


def test_infinite_gradients_that_loss_scaling_skips_are_no_failure(step, tmp_path):
    class Scaling(OptimWrapper):
        def update_params(self, total):
            (total * 1e38 * 1e38).backward()
            assert not model.first.weight.grad.isfinite().all()

    model = Model(loss)

    step(model, batch(), Scaling)

    assert not list(tmp_path.iterdir())


def test_weights_that_the_last_update_made_nan_are_not_saved(report, tmp_path):
    class Steep(nn.Module):
        """Its output is finite and its gradient infinite."""

        def forward(self, out):
            return dict(loss=(out * 0).sqrt().sum())

    runner = Runner(
        model=Model(Steep()),
        work_dir=str(tmp_path),
        train_dataloader=DataLoader([0], collate_fn=lambda _: batch()),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        custom_hooks=[dict(type='mmsparse.StopAtNaN')],
        experiment_name=uuid4().hex,
    )

    with pytest.raises(NotFiniteError, match=r'weights \(first.weight and 3 more\)'):
        runner.train()

    assert report()['iteration'] == 1
    assert report()['files'] == ['a.jpg', 'b.jpg']
    assert not list(tmp_path.glob('*.pth'))


def train_on_one_nan_image(rank, folder):
    store = f'file://{folder}/store'
    distributed.init_process_group('gloo', store, world_size=2, rank=rank)
    model = CPUDistributedDataParallel(module=Model(match))
    runner = SimpleNamespace(iter=6, work_dir=folder, model=model)
    hook = StopAtNaN()
    hook.before_train(runner)
    data = batch()
    data['x'][rank] *= NAN if rank else 1
    hook.before_train_iter(runner, 6, data)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    model.train_step(data, wrapper)


@pytest.mark.slow
def test_one_of_two_processes_ends_both(report, tmp_path):
    with pytest.raises(ProcessRaisedException, match='NaN or infinite predictions'):
        multiprocessing.start_processes(
            train_on_one_nan_image,
            args=(str(tmp_path),),
            nprocs=2,
            start_method='forkserver',
        )

    assert report()['first'] == 'out of match'


def of_mmdet(name):
    return build_host_detector(f'{name}_coco.py')


DETECTORS = {
    'Focus-DETR': build_detector,
    'DETR': lambda: of_mmdet('detr/detr_r50_8xb2-150e'),
    'Deformable DETR': lambda: of_mmdet(
        'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e'
    ),
    'DINO': lambda: of_mmdet('dino/dino-4scale_r50_8xb2-12e'),
    'Mask2Former': lambda: of_mmdet('mask2former/mask2former_r50_8xb2-lsj-50e'),
    'Sparse R-CNN': lambda: of_mmdet('sparse_rcnn/sparse-rcnn_r50_fpn_1x'),
    'RetinaNet': lambda: of_mmdet('retinanet/retinanet_r50_fpn_1x'),
    'PAA': lambda: of_mmdet('paa/paa_r50_fpn_1x'),
    'Faster R-CNN': lambda: of_mmdet('faster_rcnn/faster-rcnn_r50_fpn_1x'),
}


@pytest.mark.parametrize('name', DETECTORS)
def test_a_detector_stops_where_its_outputs_are_infinite(name, step, report):
    model = DETECTORS[name]().train()
    shapes = [[3, 128, 128], [3, 112, 120]]
    data = demo_mm_inputs(2, shapes, num_classes=3, with_mask=True, use_box_type=True)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    assert first_bad_module(model, lambda: model.train_step(data, wrapper)) == ''
    for parameter in model.backbone.parameters():
        parameter.data.fill_(1e30)

    first = 'encoder' if name == 'DETR' else 'backbone.steps.0'  # DETR has one level
    with pytest.raises(NotFiniteError, match=rf'first in {first}.*, in iteration 7'):
        step(model, data)

    assert report()['weights'] == []


@pytest.mark.parametrize('config', [CLASSIFIER, SEGMENTOR])
def test_a_classifier_or_segmentor_names_its_first_infinite_output(config, step):
    model = build_model(read_config(str(config))).train()
    if config is CLASSIFIER:
        samples = [DataSample().set_gt_label(i) for i in range(2)]
    else:
        maps = dict(gt_sem_seg=PixelData(data=torch.zeros(1, 64, 64).long()))
        samples = [SegDataSample(metainfo=dict(img_shape=(64, 64)), **maps)] * 2
    inputs = [torch.randint(255, (3, 64, 64), dtype=torch.uint8) for _ in samples]
    data = dict(inputs=inputs, data_samples=samples)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    assert first_bad_module(model, lambda: model.train_step(data, wrapper)) == ''
    for parameter in model.backbone.parameters():
        parameter.data.fill_(1e30)

    with pytest.raises(NotFiniteError, match=r'losses {.*, first in backbone\.\w+'):
        step(model, data)


@pytest.mark.parametrize(
    ('config', 'batch_size', 'lr'),
    [
        (CLASSIFIER, 4, 1e30),
        pytest.param(DETECTOR, 2, 1e6, marks=pytest.mark.slow),
    ],
    ids=['classifier', 'detector'],
)
def test_a_diverging_training_stops_with_a_report(
    config, batch_size, lr, small_digits, run_tool
):
    work_dir = small_digits / 'work_dirs' / f'diverging-{config.stem}'
    done = run_tool(
        *('train.py', config, '--work-dir', work_dir, '--cfg-options'),
        *('train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=16'),
        *(f'train_dataloader.batch_size={batch_size}', 'param_scheduler=None'),
        *('default_hooks.checkpoint.by_epoch=False', 'optim_wrapper.clip_grad=None'),
        *('default_hooks.checkpoint.interval=1', f'optim_wrapper.optimizer.lr={lr}'),
        cwd=small_digits,
        check=False,
    )

    report = json.loads((work_dir / 'nan_report.json').read_text())
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('error: NaN or infinite')
    last = f'last undamaged checkpoint: {report["last_checkpoint"]}'
    assert last in done.stderr.splitlines()[-1]
    assert f'iter_{report["iteration"] - 1}.pth' in report['last_checkpoint']
    assert report['first'] in done.stderr.splitlines()[-1]
    assert report['first'].startswith(('backbone.', 'neck.', 'encoder.'))
    assert len(report['files']) == batch_size
    assert all((small_digits / name).is_file() for name in report['files'])
