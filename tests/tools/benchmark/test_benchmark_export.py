import json
from pathlib import Path

import pytest
import torch
from benchmark import measure
from benchmark.export import EAGER, TIME, export_candidates
from benchmark.report import as_json, table

from mmsparse.apis import read_config
from mmsparse.deploy.runtimes import installed_runtimes

pytest.importorskip('onnxruntime')

CONFIGS = Path(__file__).parents[3] / 'configs'
CPU = torch.device('cpu')
MICRO = dict(
    embed_dims=(16,), depths=(1,), num_heads=(2,), mlp_ratios=(2,), sr_ratios=(4,)
)


def test_every_runtime_is_timed(tmp_path):
    name = 'shunted_transformer/shunted-nano_1xb32-14e_digits.py'
    cfg = read_config(str(CONFIGS / name))
    cfg.model.backbone.update(arch=MICRO, out_indices=(0,))
    cfg.model.head.in_channels = 16

    candidates = export_candidates(cfg, (64, 64), 2, ['grid_sample'], tmp_path)
    found = measure(candidates, 2, CPU)

    names = [f'{runtime}, grid_sample' for runtime in installed_runtimes()]
    assert [x.name for x in found] == [EAGER, *names]
    assert all(0 < min(x.seconds[TIME]) <= x.median_seconds(TIME) for x in found)
    # Torch does not see the memory of others.
    assert [x.peak_bytes is None for x in found] == [False, *(True for _ in names)]
    assert all(
        line.split()[-2:] == ['-', 'nan'] for line in table(found).split('\n')[2:]
    )
    assert json.loads(json.dumps(as_json(found)))[1]['peak_bytes'] is None
