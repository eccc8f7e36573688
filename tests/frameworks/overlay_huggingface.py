"""mmsparse.integrations.huggingface and its page, in a process with transformers."""

import sys
from pathlib import Path

import pytest
import torch
from page_code import run
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModelForImageClassification,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
)
from transformers.models.auto import auto_factory

import mmsparse
from mmsparse.checkpoint import write_checkpoint
from mmsparse.integrations.huggingface import (
    MMSparseBackbone,
    MMSparseConfig,
    MMSparseForImageClassification,
)

NAMES = ('biformer-nano', 'dat-nano', 'shunted-nano')


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # transformers would take the folder tests/datasets for the package datasets.
    tests = str(Path(__file__).parents[1])
    monkeypatch.setattr(sys, 'path', [path for path in sys.path if path != tests])


def assert_same_weights(module, expected):
    weights = module.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    for key, weight in expected.state_dict().items():
        assert weight.equal(weights[key]), key


def test_backbones_and_segmentors_are_built_trained_and_saved(capsys):
    names = run('huggingface', 'Backbone', capsys)
    assert names['backbone'].config.out_features == ['stage2', 'stage3', 'stage4']

    run('huggingface', 'Segmentation', capsys, names)
    loaded = names['model'].backbone
    assert isinstance(loaded, MMSparseBackbone)
    assert loaded.channels == [32, 64, 128, 256]


def test_classifiers_are_converted_fine_tuned_and_used_in_a_pipeline(capsys):
    model = mmsparse.create_model('biformer-tiny')
    write_checkpoint('biformer_tiny.pth', model.state_dict(), meta={})

    run('huggingface', 'Classification', capsys)

    loaded, info = AutoModelForImageClassification.from_pretrained(
        'biformer-tiny-in1k', output_loading_info=True
    )
    assert not any(info.values())
    assert_same_weights(loaded.model, model)


@pytest.mark.parametrize('name', NAMES)
def test_a_folder_serves_classifiers_backbones_and_mmsparse(name):
    config = MMSparseConfig(name, num_labels=7)
    model = MMSparseForImageClassification(config).eval()
    model.save_pretrained('model')
    images = torch.rand(2, 3, 64, 96)

    loaded = AutoModelForImageClassification.from_pretrained('model')
    own = mmsparse.create_model(
        name, num_classes=7, pretrained='model/model.safetensors'
    )
    backbone = MMSparseBackbone.from_pretrained('model', out_indices=[0, 3])
    expected = mmsparse.create_backbone(
        name, pretrained='model/model.safetensors', out_indices=(0, 3)
    )
    backbone.save_pretrained('backbone')
    classifier = MMSparseForImageClassification.from_pretrained('backbone')

    assert_same_weights(loaded.model, model.model)
    assert_same_weights(own, model.model)
    assert_same_weights(backbone.backbone, expected)
    assert torch.equal(own.eval()(images), model(images).logits)
    assert backbone(images).feature_maps[0].shape == (2, 32, 16, 24)
    assert classifier(images).logits.shape == (2, 7)


def test_the_loss_follows_the_type_of_the_labels():
    model = MMSparseForImageClassification(
        MMSparseConfig('biformer-nano', num_labels=2)
    )
    images = torch.rand(2, 3, 64, 64)

    outputs = model(images, labels=torch.tensor([0, 1]))
    expected = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 1]))

    torch.testing.assert_close(outputs.loss, expected)
    assert model(images).loss is None


def test_gradient_checkpointing_is_that_of_mmsparse():
    model = MMSparseForImageClassification(
        MMSparseConfig('biformer-nano', num_labels=2)
    )

    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    assert all(stage.with_cp for stage in model.model.backbone.stages)

    model.gradient_checkpointing_disable()
    assert not any(stage.with_cp for stage in model.model.backbone.stages)


def test_mask2former_takes_a_training_step():
    sizes = ('feature_size', 'mask_feature_size', 'hidden_dim', 'dim_feedforward')
    config = Mask2FormerConfig(
        backbone_config=MMSparseConfig('shunted-nano', out_indices=[0, 1, 2, 3]),
        **dict.fromkeys((*sizes, 'encoder_feedforward_dim'), 32),
        **dict.fromkeys(('encoder_layers', 'decoder_layers'), 1),
        num_attention_heads=4,
        num_queries=5,
        num_labels=2,
    )
    model = Mask2FormerForUniversalSegmentation(config)

    outputs = model(
        pixel_values=torch.rand(1, 3, 64, 96),
        mask_labels=[torch.ones(1, 64, 96)],
        class_labels=[torch.tensor([1])],
    )
    outputs.loss.backward()

    for name, weight in model.model.pixel_level_module.encoder.named_parameters():
        assert weight.grad.isfinite().all(), name


def test_auto_backbone_loads_a_repository_of_the_hub(monkeypatch):
    MMSparseBackbone(MMSparseConfig('biformer-nano')).save_pretrained('repository')
    # transformers looks up the name on the Hub before it loads anything.
    monkeypatch.setattr(auto_factory, 'hf_api', lambda: Hub())

    backbone = AutoBackbone.from_pretrained('repository', out_features=['stage1'])

    assert isinstance(backbone, MMSparseBackbone)
    assert backbone.channels == [32]


class Hub:
    def repo_exists(self, name):
        return True


def test_a_configuration_is_read_as_it_was_written():
    arguments = dict(drop_path_rate=0.1, regions_per_side=4)
    config = MMSparseConfig(
        'biformer-nano', out_indices=[1, 3], backbone_arguments=arguments
    )
    config.save_pretrained('config')

    loaded = AutoConfig.from_pretrained('config')

    assert loaded.to_diff_dict() == config.to_diff_dict()
    backbone = MMSparseBackbone(loaded).backbone
    assert backbone.stages[0][0].attn.regions_per_side == 4
    assert backbone.stages[-1][-1].drop_path.drop_prob == pytest.approx(0.1)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            dict(name='biformer-tinny'),
            "got 'biformer-tinny': did you mean 'biformer-tiny'",
        ),
        (dict(out_features=['stage5']), 'out_features must be a subset of stage_names'),
    ],
)
def test_unknown_names_and_stages_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MMSparseConfig(**arguments)
