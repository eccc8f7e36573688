# What DAT's authors do not decay in segmentation: norms of the backbone, those of the
# heads excepted, and tables of relative positions.
without_decay = dict.fromkeys(
    (
        *('norm', 'attn.conv_offset.1.', 'downsamples.0.4.'),
        *(f'downsamples.{stage}.1.' for stage in range(4)),
        *('relative_position_bias_table', 'relative_position_bias_table'),
    ),
    dict(decay_mult=0.0),
)
