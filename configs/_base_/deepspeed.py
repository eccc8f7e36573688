# Shard weights, gradients and optimizer states over all processes, by MMEngine's
# FlexibleRunner and DeepSpeed's ZeRO. DeepSpeed must be installed.
strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=3))
