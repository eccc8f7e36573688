# DETRs train their backbone at a tenth of the rate. Of the custom keys that fit a
# parameter MMEngine takes the longest alone, and norm_decay_mult is for those that none
# fits: so what is not decayed in a backbone of ours stands here with its rate.
no_decay_in_slow_backbone = dict.fromkeys(
    (
        *('norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias', 'out_norms.'),
        *(
            'relative_position_bias_table',
            'attn.conv_offset.1.',
        ),  # DAT's tables, and norms before offsets
        # Swin's, of the hosts, beside the first.
        *('norm3.weight', 'norm3.bias', 'patch_embed.norm.', 'downsample.norm.'),
        *('coarse.norm.', 'fine.norm.'),  # of Shunted Transformer, as the next
        *(f'stages.{stage}.norm.' for stage in range(4)),
        *(
            f'downsamples.{stage}.{norm}.'
            for stage in range(4)
            for norm in ('1', '4', 'norm', 'conv.1', 'conv.4', 'conv.7')
        ),
    ),
    dict(lr_mult=0.1, decay_mult=0.0),
)
# Swin's tables, which are decayed.
no_decay_in_slow_backbone['relative_position_bias_table'] = dict(lr_mult=0.1)
