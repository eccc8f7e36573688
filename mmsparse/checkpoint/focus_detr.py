"""The key names of detrex's Focus-DETR, and ours."""

import re

_RENAMES = (
    (r'^(neck\..*)\.norm\.', r'\1.gn.'),
    (r'^transformer\.level_embeds$', 'level_embed'),
    (r'^transformer\.tgt_embed\.', 'query_embedding.'),
    (r'^transformer\.enc_output\.', 'memory_trans_fc.'),
    (r'^transformer\.enc_output_norm\.', 'memory_trans_norm.'),
    (r'^transformer\.alpha$', 'token_selector.alpha'),
    (r'^transformer\.enc_mask_predictor\.', 'token_selector.'),
    (r'^transformer\.(encoder\.layers\.\d+)\.attentions\.0\.', r'\1.token_attn.'),
    (r'^transformer\.(encoder\.layers\.\d+)\.norm2\.', r'\1.token_norm.'),
    (r'^transformer\.(encoder\.layers\.\d+)\.attentions\.1\.', r'\1.self_attn.'),
    (r'^transformer\.(decoder\.layers\.\d+)\.attentions\.0\.', r'\1.self_attn.'),
    (r'^transformer\.(decoder\.layers\.\d+)\.attentions\.1\.', r'\1.cross_attn.'),
    (r'^transformer\.((en|de)coder\.)', r'\1'),
    (r'\.ffns\.0\.', '.ffn.'),
    (r'^class_embed\.', 'bbox_head.cls_branches.'),
    (
        r'^bbox_embed\.(\d+)\.layers\.(\d+)',
        lambda x: f'bbox_head.reg_branches.{x[1]}.{2 * int(x[2])}',
    ),
    (r'^label_enc\.', 'dn_query_generator.label_embedding.'),
)


def rename_key(official: str) -> str:
    """Translate a key.

    Args:
        official: Name in the official state dict.

    Returns:
        Name in the state dict of our detector.
    """
    for pattern, replacement in _RENAMES:
        official = re.sub(pattern, replacement, official)
    return official
