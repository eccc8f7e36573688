"""Train every config for two iterations and evaluate it once, on a few small images.

Run it in a folder with data/digits, bccd, camvid, cifar10 and coco128, as
prepare_digits.py and prepare_data.py write them. Configs for COCO and ADE20K read
COCO128, and those for ImageNet CIFAR-10, with smaller images and fewer regions. Each
config prints a line, and its log is in work_dirs/train_configs; a second run continues
with those that have not succeeded. The exit status is 1 if one fails.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmsparse.apis import build_runner, find_host, read_config, register_host
from mmsparse.checks import check_config
from mmsparse.errors import format_error
from mmsparse.zoo import HOSTS, read_index

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tests'))
# Formatting a config takes longer than its two iterations.
import_module('fast_mmengine')

OUT = Path('work_dirs', 'train_configs')
RESULTS = OUT / 'results.json'
STEPS = 2
BATCHES = dict(mmdet=1, mmseg=2, mmpretrain=2)  # BatchNorm of pooled images needs two
SIDE = 64  # pixels, the longest of images of COCO, ADE20K and ImageNet
REGIONS = 16  # of a second stage, instead of 300 to 2000
IN_PIXELS = ('scale', 'scales', 'crop_size', 'size', 'stride')
IMAGENET = 'data/imagenet'
ROOTS = {
    'data/coco/': 'data/coco128/',
    'data/ade/ADEChallengeData2016': 'data/coco128/ade',
    IMAGENET: 'data/cifar10',
}


def main() -> int:
    """Run the configs; return the exit status."""
    args = parse_args()
    warnings.simplefilter('ignore')
    names = [x for x in read_index() if any(fnmatch(x, p) for p in args.patterns)]
    for host in sorted(set(HOSTS.values())):
        register_host(host)  # imported once, for all forks
    OUT.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    failed = 0
    for number, name in enumerate(names, start=1):
        if args.again or 'error' in results.get(name, dict(error='')):
            results[name] = run(name)
            RESULTS.write_text(json.dumps(results, indent=1))
            print(f'{number}/{len(names)} {describe(name, results[name])}', flush=True)
        failed += 'error' in results[name]
    print(f'{len(names) - failed} of {len(names)} configs train and are evaluated')
    return 1 if failed else 0


def parse_args() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'patterns', nargs='*', default=['*'], help="names of configs, such as '*dat-*'"
    )
    parser.add_argument(
        '--again', action='store_true', help='also those that have succeeded'
    )
    return parser.parse_args()


def run(name: str) -> dict[str, Any]:
    """Train a config in a fork; return its seconds and metrics, or its error."""
    start, result = time.monotonic(), OUT / 'result.json'
    result.unlink(missing_ok=True)
    process = multiprocessing.get_context('fork').Process(
        target=write_result, args=(name, result)
    )
    process.start()
    process.join()
    seconds = round(time.monotonic() - start, 1)
    if not result.is_file():
        return dict(error=f'ended with exit code {process.exitcode}', seconds=seconds)
    return dict(json.loads(result.read_text()), seconds=seconds)


def describe(name: str, result: dict[str, Any]) -> str:
    """Return the line of a result."""
    found = [f'{key} {value:g}' for key, value in result.get('metrics', {}).items()]
    return f'{name}: {result["seconds"]} s, {result.get("error") or ", ".join(found)}'


def write_result(name: str, path: Path) -> None:
    """Train a config, with its output in a log; write metrics or error."""
    log = os.open(OUT / f'{name}.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        result: dict[str, Any] = dict(metrics=train(name))
    except Exception as error:  # noqa: BLE001 - what a training raises is its result
        result = dict(error=format_error(error))
        traceback.print_exc()
    path.write_text(json.dumps(result))


def train(name: str) -> dict[str, float]:
    """Train a config; return the first metric of its evaluation."""
    cfg = read_config(name)
    without_weights(cfg)
    check_config(cfg, find_host(cfg))
    if cfg.train_dataloader.dataset.data_root in ROOTS:
        use_small_data(cfg)
    shorten(cfg)
    cfg.work_dir = str(OUT / 'run')
    runner = build_runner(cfg)
    runner.train()
    shutil.rmtree(cfg.work_dir)
    if runner.iter != STEPS:
        raise RuntimeError(f'expected {STEPS} iterations, got {runner.iter}')
    scalars = runner.message_hub.log_scalars
    names = [x for x in scalars if x.startswith('val/') and not x.endswith('time')]
    if not names:
        raise RuntimeError('the evaluation has no metrics')
    return {names[0].removeprefix('val/'): float(scalars[names[0]].current())}


def without_weights(cfg: Config) -> None:
    """Start from random weights."""
    cfg.load_from = None
    for settings in dicts(cfg.model):
        if settings.get('type') == 'Pretrained':
            settings.clear()
        if 'pretrained' in settings:
            settings['pretrained'] = None
    for settings in dicts(cfg.model):
        if settings.get('init_cfg') == {}:
            settings['init_cfg'] = None


def use_small_data(cfg: Config) -> None:
    """Read COCO128 and CIFAR-10 instead of COCO, ADE20K and ImageNet, reduced."""
    loaders = {'train': cfg.train_dataloader, 'test': cfg.val_dataloader}
    for split, loader in loaders.items():
        if loader.dataset.type == 'ImageNet':
            loader.dataset.update(type='CustomDataset', data_prefix=split)
            loader.dataset.pop('split', None)
    for settings in dicts([*loaders.values(), cfg.val_evaluator]):
        for key, value in settings.items():
            if isinstance(value, str):
                settings[key] = small_root(value)
    for settings in dicts([cfg.model, cfg.get('data_preprocessor')]):
        if settings.get('num_classes') == 1000:
            settings['num_classes'] = 10
        if settings.get('type') == 'RandomSampler':
            settings['num'] = REGIONS
        if 'nms_pre' in settings and 'max_per_img' in settings:
            settings['max_per_img'] = REGIONS
        if settings.get('as_two_stage'):
            settings['num_queries'] = REGIONS
    parts = [cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor')]
    for settings in dicts([*loaders.values(), *parts, cfg.model.get('test_cfg')]):
        for key in settings.keys() & set(IN_PIXELS):
            settings[key] = reduced(settings[key])


def shorten(cfg: Config) -> None:
    """Train two iterations and evaluate two images, without checkpoints."""
    batch = BATCHES[cfg.default_scope]
    for loader, size, images in (
        (cfg.train_dataloader, batch, batch * STEPS),
        (cfg.val_dataloader, 1, 2),
    ):
        loader.update(batch_size=size, num_workers=0, persistent_workers=False)
        loader.dataset.indices = images
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=STEPS, val_interval=STEPS)
        cfg.train_cfg.pop('dynamic_intervals', None)
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    for settings in dicts(cfg.model.get('test_cfg')):
        if 'score_thr' in settings:
            settings['score_thr'] = 0.0  # without detections there are no metrics
    # The others would end before they begin.
    cfg.param_scheduler = [x for x in cfg.param_scheduler if not x.get('begin')]
    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.logger.interval = 1


def dicts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all dicts in settings, from the outside to the inside."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from dicts(item)


def small_root(text: str) -> str:
    """Return a path with the folder of the small data set."""
    for old, new in ROOTS.items():
        if text.startswith(old):
            return new + text.removeprefix(old)
    return text


def reduced(size: Any) -> Any:
    """Return a size, or all sizes in a list, of at most ``SIDE``."""
    if isinstance(size, (list, tuple)):
        return type(size)(reduced(x) for x in size)
    return min(size, SIDE) if isinstance(size, int) else size


if __name__ == '__main__':
    sys.exit(main())
