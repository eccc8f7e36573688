"""Features of stages: extraction, hooks of distillation, and wrapping by FSDP."""

import pytest
import torch
from mmengine.model import BaseModel
from mmpretrain import FeatureExtractor
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from mmsparse.models import DAT, BiFormer, ShuntedTransformer
from mmsparse.models.backbones.base import Stage

BACKBONES = pytest.mark.parametrize('backbone', [DAT, BiFormer, ShuntedTransformer])


def test_features_of_images_are_extracted(model_files, small_digits):
    config, weights = model_files('mmpretrain')
    images = sorted(map(str, small_digits.glob('data/digits/classification/val/3/*')))
    stages = dict(out_indices=(0, 1, 2, 3))
    extract = FeatureExtractor(str(config), pretrained=str(weights), backbone=stages)

    (maps,) = extract(images[0], stage='backbone')
    pooled = extract(images[:2], stage='neck')

    assert [x.shape for x in maps] == [
        (32, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
        (256, 2, 2),
    ]
    assert [[len(x) for x in image] for image in pooled] == [[32, 64, 128, 256]] * 2
    for features, average in zip(maps, pooled[0], strict=True):
        torch.testing.assert_close(features.mean((1, 2)), average)


@pytest.mark.parametrize(
    ('stage', 'shape'),
    [('backbone', (2, 256, 2, 2)), ('neck', (2, 256)), ('pre_logits', (2, 256))],
)
def test_a_classifier_extracts_the_features_of_a_stage(stage, shape, model_files):
    extract = FeatureExtractor(*map(str, model_files('mmpretrain')))

    features = extract.model.extract_feat(torch.rand(2, 3, 64, 64), stage=stage)

    assert (features[-1] if isinstance(features, tuple) else features).shape == shape


class Distiller(BaseModel):
    """Teach the third stage of a backbone by that of another, recorded by hooks."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.recorded = {}
        for name in ('student', 'teacher'):
            stage = self.get_submodule(f'{name}.stages.2')
            stage.register_forward_hook(
                lambda module, args, output, name=name: self.recorded.update(
                    {name: output}
                )
            )

    def forward(self, inputs):
        self.student(inputs), self.teacher(inputs)
        return nn.functional.mse_loss(*self.recorded.values())


@BACKBONES
def test_recorders_of_distillation_see_the_stages(backbone):
    model = Distiller(backbone('nano'), backbone('nano'))

    loss = model(torch.rand(2, 3, 64, 64))
    loss.backward()

    assert loss > 0
    assert {name: x.shape for name, x in model.recorded.items()} == {
        'student': (2, 128, 4, 4),
        'teacher': (2, 128, 4, 4),
    }
    taught = [i for i, x in enumerate(model.student.stages) if has_gradient(x)]
    assert taught == [0, 1, 2]
    assert not has_gradient(model.teacher)


def has_gradient(module):
    return any(x.grad is not None for x in module.parameters())


@pytest.fixture
def process_group():
    store = distributed.HashStore()
    distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@BACKBONES
@pytest.mark.filterwarnings('ignore')  # of FSDP without a GPU
def test_fsdp_wraps_every_stage(backbone, process_group):
    model, x = backbone('nano').eval(), torch.rand(1, 3, 64, 64)
    (expected,) = model(x)

    wrapped = FullyShardedDataParallel(
        model, auto_wrap_policy=ModuleWrapPolicy({Stage}), device_id=torch.device('cpu')
    )

    units = [type(stage) for stage in wrapped.module.stages]
    assert units == [FullyShardedDataParallel] * 4
    (out,) = wrapped(x)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert all(map(has_gradient, wrapped.module.stages))
