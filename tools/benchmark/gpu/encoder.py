"""Section: an encoder layer of the detectors, built from torch and the op alone."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmark.events import Passes, time_passes
from benchmark.gpu.job import Job, Step
from benchmark.gpu.results import Row
from benchmark.shapes import PYRAMID, cell_centers, concrete, multi_scale
from benchmark.tuning import dtype_name, timed

SHARES = {'Deformable DETR': 1.0, 'Focus-DETR': 0.3}  # of the tokens, as queries
BATCH, CHANNELS, HEADS, POINTS = 2, 256, 8, 4


class EncoderLayer(nn.Module):
    """Multi-scale deformable attention and a feed-forward network, both residual.

    Paper: `Deformable DETR <https://arxiv.org/abs/2010.04159>`_, section 4.1.
    """

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.grid = (HEADS, num_levels, POINTS)
        num_points = HEADS * num_levels * POINTS
        self.offsets = nn.Linear(CHANNELS, 2 * num_points)
        self.weights = nn.Linear(CHANNELS, num_points)
        self.value = nn.Linear(CHANNELS, CHANNELS)
        self.out = nn.Linear(CHANNELS, CHANNELS)
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(2))
        self.ffn = nn.Sequential(
            nn.Linear(CHANNELS, 8 * CHANNELS),
            nn.ReLU(),
            nn.Linear(8 * CHANNELS, CHANNELS),
        )

    def forward(
        self,
        tokens: Tensor,
        queries: Tensor,
        centers: Tensor,
        sizes: tuple[tuple[int, int], ...],
        steps: Tensor,
        backend: str,
    ) -> Tensor:
        """Attend from queries to tokens.

        Args:
            tokens: Cells of all levels, (B, N, C).
            queries: Some of them, (B, Q, C).
            centers: Their centers, (x, y) from 0 to 1, (Q, 2).
            sizes: Height and width of every level.
            steps: Width and height of every level, (levels, 2).
            backend: Of the op.

        Returns:
            (B, Q, C).
        """
        value = self.value(tokens).unflatten(-1, (HEADS, -1))
        # Locations in float32: bfloat16 would be wrong by cells.
        offsets = self.offsets(queries).float().unflatten(-1, (*self.grid, 2))
        points = centers[:, None, None, None] + offsets / steps[:, None]
        weights = self.weights(queries).unflatten(-1, (HEADS, -1)).softmax(-1)
        out = multi_scale.multi_scale_deformable_attention(
            value,
            points,
            weights.unflatten(-1, self.grid[1:]),
            sizes,
            backend=backend,
        )
        queries = self.norms[0](queries + self.out(out.flatten(2)))
        return self.norms[1](queries + self.ffn(queries))


def time_encoder(job: Job) -> Iterator[Step]:
    """Time an encoder layer with all backends of its attention.

    Args:
        job: Runs the steps.

    Yields:
        A step for every share of queries and dtype.
    """
    for dtype in (torch.bfloat16, torch.float32):
        for name, share in SHARES.items():
            yield Step(
                f'{name}, {dtype_name(dtype)}',
                partial(_time_layer, job, name, share, dtype),
            )


def _time_layer(job: Job, name: str, share: float, dtype: torch.dtype) -> Iterator[Row]:
    sizes = ((3, 4), (2, 1)) if job.smoke else PYRAMID
    centers = cell_centers(sizes, job.device)
    steps = centers.new_tensor([(width, height) for height, width in sizes])
    kept = torch.linspace(0, len(centers) - 1, round(share * len(centers))).long()
    kept = kept.to(job.device)
    layer = EncoderLayer(len(sizes)).to(job.device)
    tokens = torch.randn(BATCH, len(centers), CHANNELS, device=job.device)
    tokens.requires_grad_()
    args = (tokens, tokens[:, kept].detach(), centers[kept], sizes, steps)
    cotangent = torch.randn_like(args[1])
    leaves = (tokens, *layer.parameters())

    def forward(backend: str) -> Tensor:
        with torch.autocast(job.device.type, dtype, enabled=dtype != torch.float32):
            return layer(*args, backend)

    def train(backend: str) -> None:
        out = forward(backend)
        torch.autograd.grad(out, leaves, cotangent.to(out.dtype))

    candidates = {
        x: Passes(partial(forward, x), partial(train, x))
        for x in timed(concrete(multi_scale.BACKENDS), job.device)
    }
    for backend, measured in time_passes(candidates, job.device, job.seconds).items():
        yield dict(layer=name, dtype=dtype_name(dtype), backend=backend, **measured)
