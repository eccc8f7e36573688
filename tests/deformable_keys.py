"""Keys of the official Deformable DETR and Sparse DETR, as in their specifications."""

import re

UNUSED = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CATEGORIES = [number for number in range(91) if number not in UNUSED]
# Keys of mmdet and official keys; the first that fits counts.
NAMES = (
    (r'backbone\.(.*)', r'backbone.0.body.\1'),
    (r'neck\.convs\.(\d)\.conv\.(.*)', r'input_proj.\1.0.\2'),
    (r'neck\.convs\.(\d)\.gn\.(.*)', r'input_proj.\1.1.\2'),
    (r'token_selector\.(.*)', r'transformer.enc_mask_predictor.\1'),
    (r'level_embed', 'transformer.level_embed'),
    (r'query_embedding\.weight', 'query_embed.weight'),
    (r'reference_points_fc\.(.*)', r'transformer.reference_points.\1'),
    (r'memory_trans_fc\.(.*)', r'transformer.enc_output.\1'),
    (r'memory_trans_norm\.(.*)', r'transformer.enc_output_norm.\1'),
    (r'pos_trans_fc\.(.*)', r'transformer.pos_trans.\1'),
    (r'(pos_trans_norm\..*)', r'transformer.\1'),
    (r'bbox_head\.cls_branches\.(.*)', r'class_embed.\1'),
    (r'bbox_head\.reg_branches\.(\d+)\.0\.(.*)', r'bbox_embed.\1.layers.0.\2'),
    (r'bbox_head\.reg_branches\.(\d+)\.2\.(.*)', r'bbox_embed.\1.layers.1.\2'),
    (r'bbox_head\.reg_branches\.(\d+)\.4\.(.*)', r'bbox_embed.\1.layers.2.\2'),
    (r'(encoder.*)\.norms\.0\.(.*)', r'transformer.\1.norm1.\2'),
    (r'(encoder.*)\.norms\.1\.(.*)', r'transformer.\1.norm2.\2'),
    (r'(decoder.*)\.norms\.0\.(.*)', r'transformer.\1.norm2.\2'),
    (r'(decoder.*)\.norms\.1\.(.*)', r'transformer.\1.norm1.\2'),
    (r'(decoder.*)\.norms\.2\.(.*)', r'transformer.\1.norm3.\2'),
    (r'(.*)\.ffn\.layers\.0\.0\.(.*)', r'transformer.\1.linear1.\2'),
    (r'(.*)\.ffn\.layers\.1\.(.*)', r'transformer.\1.linear2.\2'),
    (r'(decoder.*self_attn)\.attn\.(.*)', r'transformer.\1.\2'),
    (r'((?:encoder|decoder).*)', r'transformer.\1'),
)


def official_key(key, maps=3):
    """Translate a key of mmdet's Deformable DETR, or of Sparse DETR."""
    extra = r'neck\.extra_convs\.(\d)'
    key = re.sub(extra, lambda x: f'neck.convs.{maps + int(x[1])}', key)
    for pattern, replacement in NAMES:
        if found := re.fullmatch(pattern, key):
            return found.expand(replacement)
    raise AssertionError(key)
