"""Relatives of the detectors that are converted."""

import pytest
import torch
from test_deformable_detr import official_weights

from mmsparse.conversion import convert_official
from mmsparse.conversion.families import recognize

ENCODER, DECODER = 'transformer.encoder.layers.0', 'transformer.decoder.layers.0'
DEFORMABLE = (
    f'{ENCODER}.self_attn.sampling_offsets.weight',
    f'{DECODER}.cross_attn.sampling_offsets.weight',
    'backbone.0.body.conv1.weight',
    'input_proj.0.0.weight',
    'class_embed.0.weight',
    'bbox_embed.0.layers.0.weight',
)
DENSE = (
    f'{ENCODER}.self_attn.in_proj_weight',
    'backbone.0.body.conv1.weight',
    'input_proj.weight',
    'class_embed.weight',
    'bbox_embed.layers.0.weight',
)
DINO = (
    *DEFORMABLE,
    'label_enc.weight',
    'transformer.tgt_embed.weight',
    'transformer.enc_output.weight',
)
RELATIVES = {
    'DINO by IDEA-Research': (DINO, 'dino-4scale_r50_8xb2-12e_coco, or weights of'),
    'Grounding DINO by IDEA-Research': (
        (*DINO, 'bert.encoder.layer.0.output.dense.weight'),
        'weights of grounding_dino_swin-t',
    ),
    'DN-DETR by IDEA-Research': (
        (
            *DENSE,
            f'{DECODER}.ca_qcontent_proj.weight',
            'refpoint_embed.weight',
            'label_enc.weight',
        ),
        'mmdet has no DN-DETR; its DINO extends it',
    ),
    'DAB-DETR by IDEA-Research': (
        (*DENSE, f'{DECODER}.ca_qcontent_proj.weight', 'refpoint_embed.weight'),
        "take mmdet's own weights of dab-detr_r50_8xb2-50e_coco",
    ),
    'DAB-Deformable-DETR by IDEA-Research': (
        (*DEFORMABLE, 'refpoint_embed.weight', 'tgt_embed.weight'),
        'mmdet has none; its DINO extends it',
    ),
    'Conditional DETR by Atten4Vis': (
        (*DENSE, f'{DECODER}.ca_qcontent_proj.weight', 'query_embed.weight'),
        "take mmdet's own weights of conditional-detr_r50_8xb2-50e_coco",
    ),
    "detrex's Deformable DETR": (
        (f'{ENCODER}.attentions.0.sampling_offsets.weight', 'query_embedding.weight'),
        "take the authors' weights, which are converted, or mmdet's own",
    ),
    'RT-DETR': (
        (
            'encoder.encoder.0.layers.0.self_attn.in_proj_weight',
            'decoder.dec_score_head.0.weight',
            'decoder.dec_bbox_head.0.layers.0.weight',
        ),
        'mmdet has no RT-DETR',
    ),
}


@pytest.mark.parametrize('name', RELATIVES)
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('family', [None, 'deformable_detr', 'dino'])
def test_a_relative_is_named_with_the_way_out(name, prefix, family):
    keys, way_out = RELATIVES[name]
    weights = {prefix + key: torch.ones(1) for key in keys}

    with pytest.raises(ValueError) as info:
        convert_official(dict(model=weights), family)

    text = str(info.value)
    assert text.startswith(
        f'The file is a checkpoint of {name}, which is not converted; '
    )
    assert way_out in text
    assert recognize(weights).text in text
    assert not recognize(weights).convertible


def test_the_backbone_of_a_relative_is_converted():
    official = official_weights('two-stage')
    official |= {key: torch.ones(1) for key in DINO if key not in official}

    converted = convert_official(official, backbone_only=True)

    assert {key.partition('.')[0] for key in converted} == {'backbone'}
    with pytest.raises(ValueError, match='is a checkpoint of DINO by IDEA-Research'):
        convert_official(official)


@pytest.mark.parametrize('variant', ['plain', 'refine', 'two-stage'])
def test_official_weights_are_no_relative(variant):
    found = recognize(official_weights(variant))

    assert found.convertible
    assert found.text.startswith('an official checkpoint of deformable_detr; convert')


@pytest.mark.parametrize(
    ('family', 'keys'),
    [
        ('dino', [f'{ENCODER}.attentions.0.sampling_offsets.weight']),
        (
            'focus_detr',
            [
                f'{ENCODER}.attentions.0.attn.in_proj_weight',
                f'{ENCODER}.attentions.1.sampling_offsets.weight',
                'transformer.enc_mask_predictor.layer1.0.weight',
            ],
        ),
    ],
)
def test_weights_of_detrex_are_no_relative(family, keys):
    found = recognize([*keys, 'label_enc.weight', 'transformer.tgt_embed.weight'])

    assert found.text.startswith(f'an official checkpoint of {family}; convert')


def test_other_keys_are_not_recognized():
    assert recognize(['conv1.weight', 'layer1.0.conv1.weight']) is None
