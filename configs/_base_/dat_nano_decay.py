# Weight decay of DAT-nano on the digits: none for the bias tables of deformable
# attention. Those of neighborhood attention, in the first block of a stage, decay: of
# the keys that match a parameter, only the longest applies.
dat_nano_decay = {
    'relative_position_bias_table': dict(decay_mult=0.0),
    **{f'stages.{i}.0.attn.relative_position_bias_table': dict() for i in range(3)},
}
