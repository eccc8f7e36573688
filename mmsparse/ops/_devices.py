"""Settings of the fast paths by class of device: from which size each of them pays.

A measured value says where it was measured. One that says "theory" was not: it is what
the hardware's limits suggest. ``tools/benchmark.py ops --tune`` measures the choice of
backends on a device; what it writes is stronger than the settings (``_tuning``).
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

HAS_AVX512 = 'AVX512' in torch.backends.cpu.get_cpu_capability()


@dataclass(frozen=True)
class Settings:
    """Sizes from which, or up to which, fast paths pay on a class of devices.

    Args:
        chunk_numel: Elements of the largest tensor of a chunk of images.
        checkpoint_min_numel: Elements from which a hidden feature map is computed again
            in the backward pass.
        math_max_logits: Logits of a head up to which matrix products and a softmax are
            faster than torch's fused attention, with a backward pass.
        math_max_logits_inference: The same without one.
        masked_max_tokens: Tokens up to which routed regions attend under a mask.
        masked_min_share: Share of the regions from which they do.
        gather_numel: Elements of the copies of keys and values of a chunk of regions.
        chunked_min_logits: Logits of a batch from which deformable attention computes
            a chunk of queries at a time.
        chunk_logits: Logits of such a chunk.
        tiled_min_logits: Logits of a head from which deformable attention interpolates
            its bias along rows and columns.
        tile_logits: Logits of a head that it then holds at a time.
        convolution_min_tokens: Tokens from which a linear layer is a 1x1 convolution.
    """

    chunk_numel: float
    checkpoint_min_numel: float
    math_max_logits: float
    math_max_logits_inference: float
    masked_max_tokens: float
    masked_min_share: float
    gather_numel: float
    chunked_min_logits: float
    chunk_logits: int
    tiled_min_logits: float
    tile_logits: int
    convolution_min_tokens: float


CPU = Settings(
    # 16 MiB. Measured for a hidden feature map of 49 MiB, as a share of the time
    # without chunks: 0.47 forward and 0.57 with backward for chunks of 12 MiB; 1.09 and
    # 1.07 where the C library keeps freed memory.
    chunk_numel=2**22,
    # 4 MiB: to compute small feature maps again saves hardly any memory.
    checkpoint_min_numel=2**20,
    # Measured, as a share of the fused kernel's time: a third at 16x16, two thirds at
    # 64x64, all of it at 196x196, 1.7 at 273x273.
    math_max_logits=64 * 64,
    # Measured on an Intel processor with AVX-512, one thread, as a share of the fused
    # kernel's time: 1.2 at 16x16, 1.5 at 49x49, 1.4 at 64x64, but with a backward pass
    # 0.8, 0.8 and 0.9. Not measured without AVX-512: there as with a backward pass.
    math_max_logits_inference=0 if HAS_AVX512 else 64 * 64,
    # Measured, as a share of the time of copies of keys: 0.4 at 196 tokens and a third
    # of the regions, and at 256 and a quarter; 2 at 400 and a quarter.
    masked_max_tokens=256,
    masked_min_share=1 / 4,
    gather_numel=2**23,
    chunked_min_logits=2**23,
    chunk_logits=2**20,
    tiled_min_logits=2**21,
    tile_logits=2**22,
    # Measured on an AMD processor with 2 threads, as a share of the time of BLAS:
    # forward 0.7 to 1.1 at 3136 tokens (the most at 64 channels), 0.8 to 1.6 at 784,
    # 1.0 to 2.4 at 49; with backward 0.8 to 1.1, 0.9 to 2.3 and 1.0 to 1.9.
    convolution_min_tokens=1024,
)

# Theory: memory is fast and allocated once, launches are what costs. So nothing is cut
# or computed again as long as it fits (limit_unless_fits); if it does not, chunks are
# as large as a GPU still fills well.
GPU = Settings(
    chunk_numel=inf,
    checkpoint_min_numel=inf,
    math_max_logits=0,
    math_max_logits_inference=0,
    # A mask excludes FlashAttention and is read by every head.
    masked_max_tokens=0,
    masked_min_share=1,
    gather_numel=2**26,  # 256 MiB in float32
    chunked_min_logits=0,
    chunk_logits=2**26,
    tiled_min_logits=inf,  # it computes head by head
    tile_logits=2**26,
    convolution_min_tokens=inf,
)


def settings_for(x: Tensor) -> Settings:
    """Return the settings of the device of a tensor; ``meta`` has those of a GPU."""
    return CPU if x.device.type == 'cpu' else GPU


def limit_unless_fits(limit: float, numel: int, x: Tensor) -> float:
    """Return how many elements a chunk may have: no limit where all fit on a GPU.

    A CPU keeps its limit, which is for its caches.

    Args:
        limit: Elements of a chunk in the settings.
        numel: Elements of what would be cut into chunks.
        x: Tensor of its dtype on its device.

    Returns:
        ``limit`` or infinity.
    """
    return limit if x.is_cpu or not _fits(numel * x.element_size(), x) else inf


def _fits(num_bytes: int, x: Tensor) -> bool:
    """Return whether half of the free memory of a GPU is enough; elsewhere, True.

    Its driver is asked about large tensors only: a sixteenth of the memory fits.
    """
    if not x.is_cuda or not torch.cuda.is_initialized():  # of FakeTensorMode, say
        return True
    total = torch.cuda.get_device_properties(x.device).total_memory
    if num_bytes < total // 16:
        return True
    free, _ = torch.cuda.mem_get_info(x.device)
    free += torch.cuda.memory_reserved(x.device)
    return num_bytes < (free - torch.cuda.memory_allocated(x.device)) // 2
