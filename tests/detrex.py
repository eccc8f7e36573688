"""Keys of detrex's Focus-DETR, as in its specification."""

import re

# Patterns of mmsparse's keys and detrex's, applied in this order.
NAMES = (
    (r'^backbone\.conv1\.', 'backbone.stem.conv1.'),
    (r'^backbone\.bn1\.', 'backbone.stem.conv1.norm.'),
    (r'^backbone\.layer(\d)', lambda x: f'backbone.res{int(x[1]) + 1}'),
    (r'^(backbone.*)\.bn(\d)\.', r'\1.conv\2.norm.'),
    (r'^(backbone.*)\.downsample\.0\.', r'\1.shortcut.'),
    (r'^(backbone.*)\.downsample\.1\.', r'\1.shortcut.norm.'),
    (r'^(neck.*)\.gn\.', r'\1.norm.'),
    (r'^((en|de)coder\.)', r'transformer.\1'),
    (r'\.(cross_attn|(?<=encoder\.layers\.\d\.)self_attn)\.', '.attentions.1.'),
    (r'\.(token_attn|self_attn)\.', '.attentions.0.'),
    (r'\.token_norm\.', '.norm2.'),
    (r'\.ffn\.', '.ffns.0.'),
    (r'^level_embed$', 'transformer.level_embeds'),
    (r'^query_embedding\.', 'transformer.tgt_embed.'),
    (r'^memory_trans_fc\.', 'transformer.enc_output.'),
    (r'^memory_trans_norm\.', 'transformer.enc_output_norm.'),
    (r'^token_selector\.alpha', 'transformer.alpha'),
    (r'^token_selector\.', 'transformer.enc_mask_predictor.'),
    (r'^dn_query_generator\.label_embedding\.', 'label_enc.'),
    (r'^bbox_head\.cls_branches\.', 'class_embed.'),
    (
        r'^bbox_head\.reg_branches\.(\d)\.(\d)',
        lambda x: f'bbox_embed.{x[1]}.layers.{int(x[2]) // 2}',
    ),
)


def detrex_key(key):
    for pattern, replacement in NAMES:
        key = re.sub(pattern, replacement, key)
    return key
