import pytest
import torch
from benchmark.operators import Pattern


@pytest.mark.parametrize(
    ('device', 'expected'),
    [('cpu', ['reference', 'auto']), ('cuda', ['reference', 'auto', 'triton'])],
)
def test_gpu_backends_are_compared_on_gpus_only(device, expected):
    pattern = Pattern(lambda backend: None, (), 1, gpu_backends=('triton',))

    assert list(pattern.backends(torch.device(device)).values()) == expected
