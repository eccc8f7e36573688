"""Distributed training on CPUs, for which mmengine and torch have GPU code only."""

from typing import Any

import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from torch import Tensor, cat, contiguous_format, nn, no_grad
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from mmsparse.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """DistributedDataParallel on CPUs, with synchronized batch normalization.

    Arguments are those of torch's ``DistributedDataParallel``.
    """

    def __init__(self, module: nn.Module, **settings: Any) -> None:
        settings['device_ids'] = None  # those of GPUs
        super().__init__(replace_sync_batchnorm(module), **settings)


class CPUSyncBatchNorm(_BatchNorm):
    """Batch normalization over the images of all processes, on CPUs.

    torch's SyncBatchNorm computes the same, but accepts tensors on a GPU only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, ...) to (B, C, ...)."""
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        axes = (0, *range(2, x.ndim))
        shape = (1, -1, *(1 for _ in axes[1:]))
        count = x.new_tensor([x.numel() // x.shape[1]])
        *_, count = sums = _Sum.apply(cat([x.sum(axes), count]))
        mean = sums[:-1] / count
        centered = x - mean.view(shape)
        var = _Sum.apply(centered.square().sum(axes)) / count
        self._track(mean, var * count / (count - 1))
        x = centered * (var + self.eps).rsqrt().view(shape)
        return x * self.weight.view(shape) + self.bias.view(shape)

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept tensors with any number of axes."""

    @no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)


class _Sum(Function):
    """Sum of a tensor over all processes; its gradient is summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.apply(grad)


def replace_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Make every SyncBatchNorm in a module a CPUSyncBatchNorm, in place; return it."""
    for child in module.modules():
        if isinstance(child, nn.SyncBatchNorm):
            child.__class__ = CPUSyncBatchNorm  # has the same tensors and settings
    return module
