_base_ = './dat-tiny-m16_32xb128-300e_in1k.py'

# As many sampled values for each query as DAT has keys for all queries.
model = dict(backbone=dict(arch=dict(num_points=(16, 16, 196, 49))))
