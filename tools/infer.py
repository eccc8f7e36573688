"""Run a trained model on images, draw the results and print the paths of the drawings.

An image that cannot be read is reported and the others are drawn; the exit status is 1.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from _cli import check_files, check_unique_names, filter_log, run

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger

from mmsparse.apis import load_weights, read_config
from mmsparse.checkpoint.mmengine import register_safe_loader
from mmsparse.checks.data import build_dataset
from mmsparse.datasets.errors import SampleError, blame_files, check_image
from mmsparse.errors import UsageError, config_errors

Draw = Callable[[str], Path]


def main() -> bool:
    args = parse_args()
    check_files(*args.images, args.checkpoint)
    check_unique_names(args.images)
    cfg = read_config(args.config)
    if cfg.get('default_scope') not in DRAW:
        raise UsageError(
            f'{args.config}: default_scope must be one of {sorted(DRAW)}; got '
            f'{cfg.get("default_scope")!r}'
        )
    filter_log(MMLogger.get_current_instance())
    register_safe_loader()
    with config_errors():
        draw = DRAW[cfg.default_scope](cfg, args)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    drawn = []
    for path in args.images:
        try:
            check_image(path)
            with blame_files(path):
                drawn.append(draw(path))
        except SampleError as error:
            print(f'error: {error}', file=sys.stderr)
    print('\n'.join(str(path) for path in drawn))
    return len(drawn) < len(args.images)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        default='work_dirs/infer',
        help='folder for the drawings (default: %(default)s)',
    )
    parser.add_argument(
        '--device', help='cpu, cuda:0, ... (default: a GPU if there is one)'
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='minimum score of a drawn box, 0 to 1 (default: %(default)s)',
    )
    return parser.parse_args()


def classify(cfg: Config, args: argparse.Namespace) -> Draw:
    inferencer = _apis('mmpretrain').ImageClassificationInferencer(
        cfg, pretrained=args.checkpoint, device=args.device or get_device()
    )
    load_weights(inferencer.model, args.checkpoint)

    def draw(path: str) -> Path:
        (result,) = inferencer([path], show_dir=args.out)
        # A checkpoint of weights alone has no names of classes.
        name = result.get('pred_class', result['pred_label'])
        print(f'{path}: {name} ({result["pred_score"]:.2f})')
        return Path(args.out, Path(path).stem + '.png')

    return draw


def detect(cfg: Config, args: argparse.Namespace) -> Draw:
    inferencer = _apis('mmdet').DetInferencer(
        cfg, weights=args.checkpoint, device=args.device, show_progress=False
    )
    load_weights(inferencer.model, args.checkpoint)

    def draw(path: str) -> Path:
        inferencer([path], out_dir=args.out, pred_score_thr=args.score_thr)
        return Path(args.out, 'vis', Path(path).name)

    return draw


def segment(cfg: Config, args: argparse.Namespace) -> Draw:
    inferencer = _apis('mmseg').MMSegInferencer(
        cfg, weights=args.checkpoint, device=args.device
    )
    inferencer.show_progress = False
    load_weights(inferencer.model, args.checkpoint)
    # mmseg draws Cityscapes classes if the checkpoint names none.
    metainfo = build_dataset(cfg.test_dataloader.dataset, 'mmseg').metainfo
    inferencer.model.dataset_meta = {
        name: metainfo[name] for name in ('classes', 'palette')
    }

    def draw(path: str) -> Path:
        inferencer([path], out_dir=args.out)
        return Path(args.out, 'vis', Path(path).name)

    return draw


DRAW = {'mmpretrain': classify, 'mmdet': detect, 'mmseg': segment}


def _apis(host: str) -> ModuleType:
    return importlib.import_module(f'{host}.apis')


if __name__ == '__main__':
    run(main)
