"""Training: checkpoints, distributed training on CPUs, and hooks."""
