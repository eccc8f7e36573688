# What makes training safe, by tools/train.py and by mim train mmdet, mmseg and
# mmpretrain: a runner that checks config and data first, and hooks. A config that sets
# custom_hooks replaces them: let it add to _base_.custom_hooks instead.
runner_type = 'mmsparse.CheckedRunner'
custom_hooks = [
    dict(type='mmsparse.SafeCheckpoints'),
    dict(type='mmsparse.StopAtNaN'),
    dict(type='mmsparse.NameSampleFiles'),
    dict(type='mmsparse.ExplainErrors'),
    dict(type='mmsparse.RepeatableRandomness'),
    dict(type='mmsparse.ReplaceOperators'),  # for a GPU without nvcc, and bfloat16
]

# Configs need no import to name `mmsparse.X`. But inferencers read the checkpoint
# before they build the model, and torch >= 2.6 refuses checkpoints of mmengine until
# mmsparse is imported (mmsparse/checkpoint/mmengine.py).
custom_imports = dict(imports=['mmsparse.registry'], allow_failed_imports=False)
