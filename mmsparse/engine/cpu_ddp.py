"""Several processes on CPUs: what MMEngine and torch do for GPUs only."""

from typing import Any

import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from torch import Tensor, cat, contiguous_format, nn, no_grad
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from mmsparse.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """A model in each process, with one gradient and the statistics of all.

    Args:
        module: The model.
        **settings: As of torch's ``DistributedDataParallel``.
    """

    def __init__(self, module: nn.Module, **settings: Any) -> None:
        settings['device_ids'] = None  # those of GPUs
        super().__init__(replace_sync_batchnorm(module), **settings)


class CPUSyncBatchNorm(_BatchNorm):
    """Batch normalization over the pictures of all processes.

    torch's SyncBatchNorm computes the same, but refuses tensors that are not on a GPU,
    and DistributedDataParallel refuses it there.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to (B, C, ...)."""
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
        """Take maps of any number of axes."""

    @no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)


class _Sum(Function):
    """The sum of a tensor over all processes, and of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.apply(grad)


def replace_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Let torch's SyncBatchNorm within a module run on CPUs.

    Args:
        module: The module, which is changed.

    Returns:
        The module; one of our kind in place of each of torch's, with the same tensors.
    """
    for child in module.modules():
        if isinstance(child, nn.SyncBatchNorm):
            child.__class__ = CPUSyncBatchNorm  # has the same tensors and settings
    return module
