from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import DumpResults, Evaluator
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel
from mmengine.registry import HOOKS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import nn

from mmsparse.evaluation import (
    KeptTokenRecall,
    KeptTokensHook,
    record_kept_tokens,
)
from mmsparse.ops.tokens import select_tokens

SIZES = ((2, 3), (1, 1))
CENTERS = torch.rand(2, 7, 2)
# The best tokens are 6, 0, 5; in the second image 3, 4, 1, and two are padding.
SCORES = torch.tensor([[5, 0, 1, 2, 3, 4, 6], [0, 3, 1, 5, 4, 9, 9]]) * 1.0
PADDING = torch.zeros(2, 7, dtype=torch.bool)
PADDING[1, 5:] = True


class Encoder(nn.Module):
    def forward(self, query, **inputs):
        return query


class Detector(nn.Module):
    """The parts of a Focus-DETR that the recording uses."""

    def __init__(self):
        super().__init__()
        self.token_selector = nn.Identity()
        self.encoder = Encoder()

    def forward(self, mode='predict'):
        selection = select_tokens(SCORES, PADDING, torch.tensor([7, 5]), 0.4, (1, 0.4))
        self.encoder(
            query=None, selection=selection, centers=CENTERS, level_sizes=SIZES
        )
        return [BaseDataElement(), BaseDataElement()]


def test_each_batch_is_recorded_until_the_handle_is_removed():
    detector, recorded = Detector(), []
    handle = record_kept_tokens(detector, recorded.append)

    detector()
    handle.remove()
    detector()

    (tokens,) = recorded
    assert tokens.level_sizes == SIZES
    assert torch.equal(tokens.centers, CENTERS)
    kept = [[layer.nonzero().flatten().tolist() for layer in x] for x in tokens.kept]
    assert kept == [[[0, 5, 6], [6]], [[1, 3, 4], [3]]]


@pytest.mark.parametrize('stage', ['val', 'test'])
def test_samples_have_the_tokens_during_validation_and_test(stage):
    with DefaultScope.overwrite_default_scope('mmdet'):
        hook = HOOKS.build(dict(type='mmsparse.KeptTokensHook'))
    detector = Detector()
    runner = SimpleNamespace(model=detector)

    getattr(hook, f'before_{stage}')(runner)
    during = detector()
    getattr(hook, f'after_{stage}')(runner)
    after = detector()

    for i, sample in enumerate(during):
        assert torch.equal(sample.token_centers, CENTERS[i])
        assert sample.kept_tokens.sum(1).tolist() == [3, 1]
    assert 'kept_tokens' not in after[0]
    assert not detector._forward_hooks
    assert not detector.encoder._forward_pre_hooks


def test_a_wrapped_detector_is_recorded():
    from mmengine.model import MMDistributedDataParallel

    wrapped = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = Detector()

    KeptTokensHook().before_test(SimpleNamespace(model=wrapped))

    assert 'kept_tokens' in wrapped.module()[0]


def test_augmented_images_have_no_recall_of_kept_tokens():
    class Augmented(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            return data_samples_list

    evaluator = Evaluator([KeptTokenRecall(), DumpResults('predictions.pkl')])
    loop, logger = SimpleNamespace(evaluator=evaluator), MMLogger.get_current_instance()
    detector = Detector()
    detector.test_step = detector.forward

    KeptTokensHook().before_test(
        SimpleNamespace(model=Augmented(detector), test_loop=loop, logger=logger)
    )

    assert [type(metric) for metric in evaluator.metrics] == [DumpResults]
    assert not detector._forward_hooks


def test_a_detector_that_selects_no_tokens_is_an_error():
    with pytest.raises(ValueError, match='must select tokens, .*; got Linear'):
        record_kept_tokens(nn.Linear(1, 1), print)
