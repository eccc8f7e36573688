"""Count what operations read and write, and what tensors hold, without computing."""

import weakref
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode, addmm_flop, sdpa_flop

aten = torch.ops.aten


class Counter(TorchDispatchMode):
    """Count bytes of the operations inside the context, forward and backward.

    Attributes:
        moved: Bytes that all operations read and write; views move none.
        peak: Most bytes of tensors from inside that exist at a time.
    """

    def __init__(self):
        super().__init__()
        self.moved = self.peak = self._held = 0
        self._storages = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.moved += sum(
                x.numel() * x.element_size() for x in tensors(args, kwargs, out)
            )
        for x in tensors(out):
            self._hold(x.untyped_storage())
        return out

    def _hold(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            weakref.finalize(storage, self._free, key, size)
            self._held += size
            self.peak = max(self.peak, self._held)

    def _free(self, key, size):
        self._storages.discard(key)
        self._held -= size


def tensors(*tree):
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


def flop_counter():
    """Return torch's counter, with the operations that it leaves out on a CPU."""

    def count_fused(q, k, v, *args, out_shape=None, **kwargs):
        return sdpa_flop(q, k, v)

    def count_in_place(x, a, b, out_shape=None, **kwargs):
        return addmm_flop(x, a, b)

    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: count_fused,
            aten.addmm_: count_in_place,
        },
    )


@contextmanager
def fake(model, device='cpu'):
    """Replace all tensors of a model by such without data; no GPU is needed for cuda.

    Yields:
        Nothing; tensors that are made inside have no data either.
    """
    with FakeTensorMode(allow_non_fake_inputs=False):
        for module in model.modules():
            for name, x in module._parameters.items():
                if x is not None:
                    empty = torch.empty(x.shape, dtype=x.dtype, device=device)
                    module._parameters[name] = nn.Parameter(empty, x.requires_grad)
            for name, x in module._buffers.items():
                if x is not None:
                    empty = torch.empty(x.shape, dtype=x.dtype, device=device)
                    module._buffers[name] = empty
        yield
