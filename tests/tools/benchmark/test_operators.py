import pytest
import torch
from benchmark.operators import Pattern


@pytest.mark.parametrize(
    ('device', 'expected'),
    [('cpu', ['reference', 'auto']), ('cuda', ['reference', 'auto', 'triton'])],
)
def test_kernels_for_gpus_are_compared_there_alone(device, expected):
    pattern = Pattern(lambda backend: None, (), 1, for_gpus=('triton',))

    assert list(pattern.backends(torch.device(device)).values()) == expected
