"""The section on segmentation-models-pytorch, in a process that has it."""

import pytest
import segmentation_models_pytorch as smp
import torch
from page_code import run

import mmsparse

DECODERS = (
    *('UnetPlusPlus', 'MAnet', 'Linknet', 'FPN'),
    *('PSPNet', 'UPerNet', 'Segformer', 'DPT'),
)


def test_a_unet_trains_and_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    names = run('frameworks', 'segmentation-models-pytorch', capsys)

    model, images = names['model'].eval(), names['images']
    assert model.encoder.out_channels == [3, 0, 32, 64, 128, 256]
    assert smp.from_pretrained('my-unet').eval()(images).equal(model(images))


@pytest.mark.parametrize('name', DECODERS)
@pytest.mark.filterwarnings('ignore:Encoder does not have prefix tokens')
def test_other_decoders_take_a_backbone(name):
    mmsparse.register_timm()

    model = getattr(smp, name)('tu-mmsparse_biformer_nano', encoder_weights=None)

    assert model.eval()(torch.rand(1, 3, 64, 96)).shape == (1, 1, 64, 96)


@pytest.mark.parametrize('name', ['DeepLabV3', 'DeepLabV3Plus', 'PAN'])
def test_decoders_that_change_strides_are_refused(name):
    mmsparse.register_timm()

    with pytest.raises(TypeError, match='output_stride'):
        getattr(smp, name)('tu-mmsparse_biformer_nano', encoder_weights=None)


def test_encoders_have_pretrained_weights():
    mmsparse.register_timm()

    model = smp.FPN('tu-mmsparse_biformer_nano', encoder_weights=True)

    expected = mmsparse.create_model(
        'biformer-nano', pretrained=True, features_only=True
    ).state_dict()
    weights = model.encoder.model.state_dict()
    assert weights.keys() == expected.keys()
    for key, weight in weights.items():
        assert weight.equal(expected[key]), key
