# Shard gradients and optimizer states over all processes, by MMEngine's FlexibleRunner
# and torch's FSDP. The model is one unit: wrapped submodules would get their weights
# only if called as modules, which the heads of mmdet and mmseg are not.
strategy = dict(
    type='mmsparse.FSDPStrategy',
    model_wrapper=dict(type='MMFullyShardedDataParallel', use_orig_params=True),
    state_dict_cfg='full',  # one file, as without FSDP
)
