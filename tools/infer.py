"""Run a trained model on pictures and save the drawn results.

A picture that cannot be drawn is told, the others are drawn, and the command ends with
an error.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from mmengine.config import Config

from mmsparse.apis.model import load_weights, read_config
from mmsparse.checkpoint.mmengine import register_safe_loader
from mmsparse.datasets.checks import build_dataset
from mmsparse.datasets.errors import (
    SampleError,
    blame_files,
    check_files,
    check_names,
    check_picture,
)
from mmsparse.errors import UsageError, config_errors

Draw = Callable[[str], Path]


def main() -> None:
    args = parse_args()
    try:
        check_files(*args.images, args.checkpoint)
        check_names(args.images)
        cfg = read_config(args.config)
        if cfg.get('default_scope') not in BUILD:
            raise UsageError(
                f'{args.config} has default_scope={cfg.get("default_scope")!r}; '
                f'pictures can be run with {sorted(BUILD)}'
            )
        register_safe_loader()
        with config_errors():
            draw = BUILD[cfg.default_scope](cfg, args)
    except UsageError as error:
        sys.exit(f'error: {error}')
    Path(args.out).mkdir(parents=True, exist_ok=True)
    drawn = []
    for path in args.images:
        try:
            check_picture(path)
            with blame_files(path):
                drawn.append(draw(path))
        except SampleError as error:
            print(f'error: {error}', file=sys.stderr)
    print('\n'.join(str(path) for path in drawn))
    sys.exit(len(drawn) < len(args.images))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='picture files')
    parser.add_argument('config', help='configuration file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', default='work_dirs/infer', help='folder for results')
    parser.add_argument('--device', help='cpu, cuda:0, ...; a GPU if there is one')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='least score of a drawn box, 0 to 1',
    )
    return parser.parse_args()


def classify(cfg: Config, args: argparse.Namespace) -> Draw:
    inferencer = _apis('mmpretrain').ImageClassificationInferencer(
        cfg, pretrained=args.checkpoint, device=args.device or 'cpu'
    )
    load_weights(inferencer.model, args.checkpoint)

    def draw(path: str) -> Path:
        (result,) = inferencer([path], show_dir=args.out)
        # A checkpoint of weights alone does not know the names of the classes.
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
    # Else those of Cityscapes stand in, where the checkpoint has no classes.
    metainfo = build_dataset(cfg.test_dataloader.dataset).metainfo
    inferencer.model.dataset_meta = {
        name: metainfo[name] for name in ('classes', 'palette')
    }

    def draw(path: str) -> Path:
        inferencer([path], out_dir=args.out)
        return Path(args.out, 'vis', Path(path).name)

    return draw


BUILD = {'mmpretrain': classify, 'mmdet': detect, 'mmseg': segment}


def _apis(host: str) -> ModuleType:
    return importlib.import_module(f'{host}.apis')


if __name__ == '__main__':
    main()
