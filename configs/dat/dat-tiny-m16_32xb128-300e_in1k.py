_base_ = './dat-tiny_32xb128-300e_in1k.py'

# The paper's appendix: Deformable DETR's attention in place of DAT's, with 16 sampled
# values for each query and head.
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base='tiny', block_types=('LS', 'LS', 'LM', 'LM'))
    )
)
