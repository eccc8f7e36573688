# Gradients and the states of the optimizer spread over all processes, by MMEngine's
# FlexibleRunner and torch's FSDP. The model is one unit: parts wrapped for themselves
# would get their weights only if called as modules, which the hosts' heads are not.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(type='MMFullyShardedDataParallel', use_orig_params=True),
    state_dict_cfg='full',  # one file, as of any other training
)
