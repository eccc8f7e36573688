"""Calls of the ops at the shapes of the models, and small ones that check results."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmsparse import ops
from mmsparse.ops import attention, deformable, multi_scale, neighborhood, routed

COPIES = 4  # of its largest tensor that a reference holds at a time, roughly
COMPILED = ('flex',)  # backends that torch.compile builds for every size, slowly
MASKED_LIMIT = 2**28  # logits of all images, above which no mask is tried

Size = tuple[int, int]
Draw = Callable[..., Tensor]  # random tensor of a shape


@dataclass(frozen=True)
class Call:
    """Arguments of an op.

    Args:
        leaves: Tensors that get a gradient.
        attend: Computes the op from the leaves and the name of a backend.
        constants: Further tensors, which it takes after the leaves.
    """

    leaves: tuple[Tensor, ...]
    attend: Callable[..., Tensor]
    constants: tuple[Tensor, ...] = ()

    def run(self, backend: str) -> Tensor:
        """Compute the op."""
        return self.attend(*self.leaves, *self.constants, backend=backend)

    def train(self, backend: str, cotangent: Tensor) -> tuple[Tensor, ...]:
        """Compute the op and the gradients of the leaves; return output and these."""
        out = self.run(backend)
        return (out.detach(), *torch.autograd.grad(out, self.leaves, cotangent))

    def cotangent(self) -> Tensor:
        """Draw a gradient of the output; its shape is known without a run."""
        tensors = (x.detach().to('meta') for x in (*self.leaves, *self.constants))
        out = self.attend(*tensors, backend='reference')
        return torch.randn(out.shape, device=self.leaves[0].device).to(out.dtype)

    def to_float64(self) -> 'Call':
        """Return the same call in double precision."""
        leaves = (x.detach().double().requires_grad_() for x in self.leaves)
        constants = (x.double() if x.is_floating_point() else x for x in self.constants)
        return Call(tuple(leaves), self.attend, tuple(constants))


@dataclass(frozen=True)
class Case:
    """A call of an op at given sizes.

    Args:
        op: Name of its function.
        shape: Where a model calls it, and with what.
        backends: Those that can be compared.
        sizes: What the op passes to ``fastest_backend``; None if it does not.
        numel: Elements of the largest tensor of the reference, as in its gradients.
        draw: Draws the arguments, from the function that draws features and the one
            that draws parameters and locations in float32.
    """

    op: str
    shape: str
    backends: tuple[str, ...]
    sizes: dict[str, int] | None
    numel: int
    draw: Callable[[Draw, Draw], Call]

    def call(self, device: torch.device, dtype: torch.dtype) -> Call:
        """Draw the arguments.

        Args:
            device: Their device.
            dtype: Of the features.

        Returns:
            The call.
        """

        def drawing(dtype: torch.dtype) -> Draw:
            def draw(*shape: int) -> Tensor:
                x = torch.randn(shape, device=device, generator=generator)
                return x.to(dtype).requires_grad_()

            return draw

        generator = torch.Generator(device).manual_seed(0)
        return self.draw(drawing(dtype), drawing(torch.float32))


def reference_fits(case: Case, device: torch.device, itemsize: int = 4) -> bool:
    """Return whether a device has the memory for the reference, by estimate.

    Args:
        case: The call.
        device: Its device.
        itemsize: Bytes of an element.

    Returns:
        Whether some tensors of that size take less than a quarter of a GPU's memory,
        or 4 GiB on another device.
    """
    limit = 2**32
    if device.type == 'cuda':
        limit = torch.cuda.get_device_properties(device).total_memory // 4
    return COPIES * itemsize * case.numel <= limit


def concrete(backends: Sequence[str]) -> tuple[str, ...]:
    """Return the backends of an op without ``auto``."""
    return tuple(x for x in backends if x != 'auto')


def routed_case(
    name: str, batch: int, grid: Size, region: Size, heads: int, width: int, topk: int
) -> Case:
    """Build a case of routed attention; some regions are read by many others."""
    size = (grid[0] * region[0], grid[1] * region[1])
    num_regions, num_tokens = grid[0] * grid[1], region[0] * region[1]
    backends = concrete(routed.BACKENDS)
    if batch * (num_regions * num_tokens) ** 2 > MASKED_LIMIT:
        backends = tuple(x for x in backends if x != 'masked')

    def draw(feature: Draw, parameter: Draw) -> Call:
        leaves = tuple(feature(batch, *size, width) for _ in range(3))
        popularity = 1.5 * parameter(batch, 1, num_regions)
        affinity = parameter(batch, num_regions, num_regions) + popularity
        routes = affinity.topk(topk).indices
        return Call(leaves, attend, (routes,))

    def attend(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, backend: str) -> Tensor:
        return routed.routed_attention(q, k, v, routes, grid, heads, backend=backend)

    return Case(
        'routed_attention',
        f'{name}: {batch}x{size[0]}x{size[1]}x{width}, {topk} of {num_regions} regions '
        f'of {num_tokens}',
        backends,
        dict(
            regions=num_regions,
            tokens=num_tokens,
            keys=topk * num_tokens,
            head_dim=width // heads,
        ),
        # The backward pass of its gather has a gradient for every pair of regions.
        batch * num_regions**2 * num_tokens * width,
        draw,
    )


def neighborhood_case(
    name: str, batch: int, size: Size, heads: int, width: int, kernel: int = 7
) -> Case:
    """Build a case of neighborhood attention."""

    def draw(feature: Draw, parameter: Draw) -> Call:
        q, k, v = (feature(batch, *size, width) for _ in range(3))
        table = parameter(heads, 2 * kernel - 1, 2 * kernel - 1)
        return Call((q, k, v, table), ops.neighborhood_attention)

    return Case(
        'neighborhood_attention',
        f'{name}: {batch}x{size[0]}x{size[1]}x{width}, kernel {kernel}',
        concrete(neighborhood.BACKENDS),
        dict(tokens=size[0] * size[1], kernel=kernel, head_dim=width // heads),
        batch * size[0] * size[1] * kernel**2 * width,
        draw,
    )


def deformable_case(
    name: str, batch: int, size: Size, keys: Size, heads: int, width: int, groups: int
) -> Case:
    """Build a case of deformable attention."""

    def draw(feature: Draw, parameter: Draw) -> Call:
        q = feature(batch, *size, width)
        k, v = (feature(batch, *keys, width) for _ in range(2))
        locations = parameter(batch, groups, *keys, 2).detach().tanh().requires_grad_()
        table = parameter(heads, *(2 * length - 1 for length in size))
        axes = tuple(torch.linspace(-1, 1, n, device=q.device) for n in size)
        return Call((q, k, v, locations, table), attend, axes)

    def attend(*args: Tensor, backend: str) -> Tensor:
        *leaves, rows, columns = args
        return ops.deformable_attention(*leaves, (rows, columns), backend=backend)

    return Case(
        'deformable_attention',
        f'{name}: {batch}x{size[0]}x{size[1]}x{width}, {keys[0]}x{keys[1]} keys',
        concrete(deformable.BACKENDS),
        dict(
            queries=size[0] * size[1],
            keys=keys[0] * keys[1],
            head_dim=width // heads,
        ),
        batch * heads * size[0] * size[1] * keys[0] * keys[1],
        draw,
    )


def shunted_case(
    name: str, batch: int, size: Size, heads: int, width: int, ratio: int
) -> Case:
    """Build a case of shunted attention, to keys of a ratio and of half of it."""
    lengths = [(size[0] // n) * (size[1] // n) for n in (ratio, ratio // 2)]

    def draw(feature: Draw, parameter: Draw) -> Call:
        q = feature(batch, size[0] * size[1], width)
        leaves = [feature(batch, n, width // 2) for n in (*lengths, *lengths)]
        return Call((q, *leaves), attend)

    def attend(q: Tensor, *leaves: Tensor, backend: str) -> Tensor:
        keys, values = leaves[:2], leaves[2:]
        return ops.shunted_attention(q, keys, values, heads, backend=backend)

    return Case(
        'shunted_attention',
        f'{name}: {batch}x{size[0]}x{size[1]}x{width}, reduced by {ratio}',
        concrete(attention.BACKENDS),
        None,
        batch * heads * size[0] * size[1] * max(lengths),
        draw,
    )


def window_case(
    name: str, batch: int, size: Size, heads: int, width: int, window: int, shift: int
) -> Case:
    """Build a case of window attention."""

    def draw(feature: Draw, parameter: Draw) -> Call:
        q, k, v = (feature(batch, *size, width) for _ in range(3))
        return Call((q, k, v, parameter(heads, window**2, window**2)), attend)

    def attend(*leaves: Tensor, backend: str) -> Tensor:
        return ops.window_attention(*leaves, window, shift, backend=backend)

    return Case(
        'window_attention',
        f'{name}: {batch}x{size[0]}x{size[1]}x{width}, window {window}, shift {shift}',
        concrete(attention.BACKENDS),
        None,
        batch * heads * size[0] * size[1] * window**2,
        draw,
    )


def multi_scale_case(
    name: str, batch: int, levels: Sequence[Size], num_queries: int, heads: int = 8
) -> Case:
    """Build a case of multi-scale deformable attention.

    Queries are cells of the levels, evenly spaced; they sample some cells around them.
    """
    head_dim, num_points = 32, 4
    num_cells = sum(height * width for height, width in levels)
    grid = (num_queries, heads, len(levels), num_points)

    def draw(feature: Draw, parameter: Draw) -> Call:
        value = feature(batch, num_cells, heads, head_dim)
        picked = torch.linspace(0, num_cells - 1, num_queries, device=value.device)
        centers = cell_centers(levels, value.device)[picked.long()]
        steps = centers.new_tensor([(width, height) for height, width in levels])
        with torch.no_grad():
            points = centers[:, None, None, None] + (
                2 * parameter(batch, *grid, 2) / steps[:, None]
            )
            weights = parameter(batch, *grid).flatten(3).softmax(-1)
        weights = weights.unflatten(3, grid[2:])
        leaves = (value, points.requires_grad_(), weights.requires_grad_())
        return Call(leaves, attend)

    def attend(*leaves: Tensor, backend: str) -> Tensor:
        return multi_scale.multi_scale_deformable_attention(
            *leaves, levels, backend=backend
        )

    return Case(
        'multi_scale_deformable_attention',
        f'{name}: batch {batch}, {num_queries} queries, {num_cells} cells of '
        f'{len(levels)} levels',
        concrete(multi_scale.BACKENDS),
        dict(queries=num_queries, samples=len(levels) * num_points, head_dim=head_dim),
        batch * num_queries * heads * num_points * head_dim,
        draw,
    )


def cell_centers(levels: Sequence[Size], device: torch.device) -> Tensor:
    """Return the centers of the cells of all levels, (x, y) from 0 to 1, (N, 2)."""
    centers = []
    for size in levels:
        axes = (((torch.arange(n, device=device) + 0.5) / n) for n in size)
        rows, columns = torch.meshgrid(*axes, indexing='ij')
        centers.append(torch.stack([columns, rows], dim=-1).flatten(0, 1))
    return torch.cat(centers)


PYRAMID = ((100, 168), (50, 84), (25, 42), (13, 21))  # of an image of 800x1344
CELLS = sum(height * width for height, width in PYRAMID)


def model_cases(batch: int = 128, large_batch: int = 2) -> Iterator[Case]:
    """Build the calls of the models, the most important first.

    Args:
        batch: Number of images of 224x224.
        large_batch: Number of images of 800x1344.

    Yields:
        The cases.
    """
    small, large = 'BiFormer-S', 'BiFormer-S 800x1344'
    dat, near = 'DAT-T', 'DAT-T++'
    sides = (7, 7)
    yield routed_case(f'{small} stage 3', batch, sides, (2, 2), 8, 256, 16)
    yield routed_case(f'{small} stage 1', batch, sides, (8, 8), 2, 64, 1)
    yield routed_case(f'{small} stage 2', batch, sides, (4, 4), 4, 128, 4)
    yield deformable_case(f'{near} stage 3', batch, (14, 14), (7, 7), 8, 256, 4)
    yield deformable_case(f'{dat} stage 3', batch, (14, 14), (14, 14), 12, 384, 3)
    yield deformable_case(f'{near} stage 1', batch, (56, 56), (7, 7), 2, 64, 1)
    yield neighborhood_case(f'{near} stage 3', batch, (14, 14), 8, 256)
    yield neighborhood_case(f'{near} stage 1', batch, (56, 56), 2, 64)
    yield multi_scale_case('encoder', large_batch, PYRAMID, CELLS)
    yield multi_scale_case('decoder', large_batch, PYRAMID, 900)
    sides = (16, 16)
    yield routed_case(f'{large} stage 3', large_batch, sides, (4, 6), 8, 256, 16)
    yield routed_case(f'{large} stage 2', large_batch, sides, (7, 11), 4, 128, 4)
    yield routed_case(f'{large} stage 1', large_batch, sides, (13, 21), 2, 64, 1)
    large = f'{near} 800x1344'
    keys = (25, 42)
    yield deformable_case(f'{large} stage 1', large_batch, (200, 336), keys, 2, 64, 1)
    yield neighborhood_case(f'{large} stage 1', large_batch, (200, 336), 2, 64)
    yield deformable_case(f'{large} stage 3', large_batch, (50, 84), keys, 8, 256, 4)
    yield neighborhood_case(f'{near} stage 2', batch, (28, 28), 4, 128)
    yield deformable_case(f'{near} stage 2', batch, (28, 28), (7, 7), 4, 128, 2)
    yield deformable_case(f'{dat} stage 4', batch, (7, 7), (7, 7), 24, 768, 6)
    kept = round(0.3 * CELLS)
    yield multi_scale_case('Focus-DETR encoder', large_batch, PYRAMID, kept)
    yield window_case(f'{dat} stage 1', batch, (56, 56), 3, 96, 7, 3)
    yield window_case(f'{dat} stage 3', batch, (14, 14), 12, 384, 7, 0)
    yield shunted_case('Shunted-S stage 1', batch, (56, 56), 2, 64, 8)
    yield shunted_case('Shunted-S stage 3', batch, (14, 14), 8, 256, 2)


def odd_cases(batch: int = 2) -> Iterator[Case]:
    """Build calls with sizes that no block of a kernel divides.

    Args:
        batch: Number of images.

    Yields:
        The cases.
    """
    yield routed_case('odd', batch, (3, 3), (7, 7), 2, 64, 4)
    yield routed_case('long regions', batch, (3, 1), (10, 13), 1, 48, 3)
    yield routed_case('one route', batch, (4, 5), (3, 3), 3, 96, 1)
    yield neighborhood_case('odd', batch, (28, 21), 2, 64)
    yield neighborhood_case('least', batch, (5, 9), 1, 24, kernel=5)
    yield deformable_case('odd', batch, (9, 13), (5, 7), 6, 96, 3)
    # With one key, gradients would be zero, and errors relative to that.
    yield deformable_case('two keys', batch, (17, 3), (1, 2), 2, 48, 1)
    yield multi_scale_case('odd', batch, ((9, 13), (5, 7), (1, 2)), 101)
    yield shunted_case('odd', batch, (9, 13), 2, 48, 4)
    yield window_case('odd', batch, (15, 10), 3, 48, 5, 2)


def smallest_cases() -> Iterator[Case]:
    """Build a call of every op that Triton's interpreter can compute in a second.

    Yields:
        The cases.
    """
    yield routed_case('smoke', 1, (2, 1), (2, 2), 1, 16, 1)
    yield deformable_case('smoke', 1, (3, 4), (2, 2), 1, 16, 1)
    yield neighborhood_case('smoke', 1, (4, 3), 1, 16, kernel=3)
    yield multi_scale_case('smoke', 1, ((3, 4), (2, 1)), 3, heads=1)
    yield window_case('smoke', 1, (4, 6), 1, 16, 2, 1)
    yield shunted_case('smoke', 1, (4, 4), 2, 16, 2)
