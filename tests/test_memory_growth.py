"""Memory of long runs: train and predict at changing sizes; nothing may be kept.

As a command it prints the growth: python tests/test_memory_growth.py CONFIG 2000
"""

import ctypes
import gc
import json
import os
import random
import sys
from pathlib import Path

import pytest
import torch
from forked import Forked
from mmdet.structures import DetDataSample
from mmengine.optim import OptimWrapper
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from mmsparse.apis import build_model, read_config
from mmsparse.ops._cache import clear_caches

CONFIGS = Path(__file__).parents[1] / 'configs'
SIDES = (64, 96)
MIB = 2**20


def labeled(model, size):
    label = torch.randint(model.head.num_classes, (1,))
    return DataSample(metainfo=shapes(size)).set_gt_label(label)


def with_boxes(model, size):
    count = random.randint(0, 5)
    corner, sides = torch.rand(2, count, 2).mul_(0.5)
    boxes = torch.cat([corner, corner + sides], dim=1)
    sample = DetDataSample(metainfo=shapes(size))
    sample.gt_instances = InstanceData(
        bboxes=boxes * torch.tensor(size[::-1]).repeat(2),
        labels=torch.randint(model.bbox_head.num_classes, (count,)),
    )
    return sample


def with_label_map(model, size):
    labels = torch.randint(model.decode_head.num_classes, (1, *size))
    sample = SegDataSample(metainfo=shapes(size))
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


def shapes(size):
    return dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))


SAMPLES = dict(mmpretrain=labeled, mmdet=with_boxes, mmseg=with_label_map)


def random_batch(cfg):
    """Two images of noise of a random size, with samples for training."""
    size = (random.randint(*SIDES), random.randint(*SIDES))
    images = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
    make = SAMPLES[cfg.default_scope]
    return dict(
        inputs=list(images), data_samples=[make(cfg.model, size) for _ in images]
    )


def process_bytes():
    """Memory of this process, without what its allocator could release."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # only glibc has it
    if trim is not None:
        trim(0)
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


def tensor_bytes():
    """Memory of all tensors that Python can reach, shared storages counted once."""
    storages = {
        x.untyped_storage()._cdata: x.untyped_storage().nbytes()
        for x in gc.get_objects()
        if issubclass(type(x), torch.Tensor)
    }
    return sum(storages.values())


def growth(step, iterations):
    """Growth of process and tensors in the second half of the iterations, in bytes.

    Compared are the peaks of both halves over ten measurements in each.
    """
    peaks = []
    for _ in range(2):
        held = []
        for _ in range(10):
            for _ in range(iterations // 20):
                step()
            clear_caches()  # of sizes, which are random here; they are bounded
            gc.collect()
            held.append((process_bytes(), tensor_bytes()))
        peaks.append([max(x) for x in zip(*held, strict=True)])
    return [after - before for before, after in zip(*peaks, strict=True)]


def main(config, iterations):
    torch.manual_seed(0)
    random.seed(0)
    cfg = read_config(config)
    model = build_model(cfg).train()
    model.init_weights()  # mmdet's level_embed is uninitialized memory before
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-5))
    found = dict(
        training=growth(
            lambda: model.train_step(random_batch(cfg), wrapper), iterations
        )
    )
    model.eval()
    predict = torch.no_grad()(lambda: model.test_step(random_batch(cfg)))
    sys.stdout.write(json.dumps(dict(found, inference=growth(predict, iterations))))


def run(*command):
    """Run in a process where no other test leaves memory to be released."""
    paths = os.pathsep.join(map(str, Path(__file__).parents[:2]))
    done = Forked(*command, cwd=CONFIGS, PYTHONPATH=paths).finish()
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    'config',
    [
        'biformer/biformer-nano_1xb32-9e_digits.py',
        'dat/fpn_dat-nano_1xb8-1600i_digits.py',
        'focus_detr/focus-detr_shunted-nano_1xb4-4e_digits.py',
    ],
)
def test_training_and_inference_keep_no_tensor(config):
    for process, tensors in run(__file__, CONFIGS / config, 20).values():
        assert tensors == 0
        assert process < 64 * MIB


def test_growth_of_kept_tensors_is_found(tmp_path):
    step = 'kept.append(torch.ones(2**18))'  # 1 MiB
    program = tmp_path / 'keep.py'
    program.write_text(
        'import torch, test_memory_growth as m\n'
        f'kept = []\nprint(m.growth(lambda: {step}, 20))'
    )
    process, tensors = run(program)

    assert tensors == 10 * MIB
    assert process > 9 * MIB


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
