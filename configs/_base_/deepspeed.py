# Weights, gradients and the states of the optimizer spread over all processes, by
# MMEngine's FlexibleRunner and DeepSpeed's ZeRO. DeepSpeed has to be installed.
runner_type = 'FlexibleRunner'
strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=3))
