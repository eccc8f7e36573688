import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark.growth import Held, follow_memory, growth
from check_memory import has_grown

CPU = torch.device('cpu')
CONFIGS = Path(__file__).parents[3] / 'configs'
MEGABYTE = 2**20


# In a process of their own, where no other test leaves anything to be freed.
FOLLOW = """
import torch
from benchmark.growth import follow_memory, growth

kept, cpu = [], torch.device('cpu')
held = list(follow_memory(lambda: {step}, 20, 5, cpu))
assert [x.iteration for x in held] == [5, 10, 15, 20]
print(*growth(held, 10))
"""


def followed(step):
    """Growth of the memory of a process that takes so many steps."""
    command = [sys.executable, '-c', FOLLOW.format(step=step)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Held(*map(int, done.stdout.split()))


def test_what_is_kept_is_seen():
    grown = followed('kept.append(torch.ones(2**18))')  # of four bytes

    assert grown.tensors == 10 * MEGABYTE
    assert grown.process > 9 * MEGABYTE


def test_what_is_let_go_is_not():
    grown = followed('torch.ones(10 * 2**20)')

    assert grown.tensors == 0
    assert grown.process < 5 * MEGABYTE


def test_shared_memory_counts_once():
    grown = followed('kept.extend((x := torch.ones(1000), x[:10], x.view(10, 100)))')

    assert grown.tensors == 10 * 4000


def test_growth_is_of_the_most():
    held = [Held(1, 5, 3), Held(2, 9, 4), Held(3, 8, 6), Held(4, 7, 5)]

    assert growth(held, 2) == Held(2, -1, 2)


@pytest.mark.parametrize(('tolerance', 'expected'), [(1, True), (3, False)])
def test_growth_beyond_the_tolerance_is_told(tolerance, expected, capsys):
    held = [Held(1, 0, 0), Held(2, MEGABYTE, 2 * MEGABYTE)]
    args = SimpleNamespace(warm_up=1, tolerance=tolerance)

    assert has_grown('training', held, args) is expected
    assert 'process +1.0 MiB, tensors +2.0 MiB' in capsys.readouterr().out


@pytest.mark.parametrize('every', [0, 3])
def test_an_interval_that_does_not_divide_is_refused(every):
    with pytest.raises(ValueError, match=f'divide iterations=10; got {every}'):
        next(follow_memory(lambda: None, 10, every, CPU))


@pytest.mark.slow
@pytest.mark.parametrize(
    'config',
    [
        'biformer/biformer-nano_1xb32-9e_digits.py',
        'dat/fpn_dat-nano_1xb8-1600i_digits.py',
        'focus_detr/focus-detr_shunted-nano_1xb4-4e_digits.py',
    ],
)
def test_models_keep_nothing(config, run_tool, tmp_path):
    done = run_tool(
        *('check_memory.py', CONFIGS / config, '--out', tmp_path / 'held.json'),
        *('--iterations', '40', '--warm-up', '20', '--tolerance', '64'),
        *('--sides', '64', '96'),
        cwd=tmp_path,
    )

    assert (tmp_path / 'held.json').is_file()
    assert done.stdout.count('tensors +0.0 MiB') == 2


def test_wrong_numbers_are_refused(run_tool, tmp_path):
    done = run_tool(
        *('check_memory.py', 'any.py', '--iterations', '50'), cwd=tmp_path, check=False
    )

    assert done.returncode == 1
    assert 'error: --iterations must be a multiple of 20' in done.stderr
