"""Run a trained model on pictures and save the drawn results."""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from mmcv import imread
from mmengine.config import Config

from mmsparse.hosts import UsageError, read_config
from mmsparse.segmentation import build_dataset


def main() -> None:
    args = parse_args()
    try:
        check_files(args)
        cfg = read_config(args.config)
        if cfg.get('default_scope') not in RUN:
            raise UsageError(
                f'{args.config} has default_scope={cfg.get("default_scope")!r}; '
                f'pictures can be run with {sorted(RUN)}'
            )
    except UsageError as error:
        sys.exit(f'error: {error}')
    Path(args.out).mkdir(parents=True, exist_ok=True)
    drawn = RUN[cfg.default_scope](cfg, args)
    print('\n'.join(str(path) for path in drawn))


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


def check_files(args: argparse.Namespace) -> None:
    for path in (*args.images, args.checkpoint):
        if not Path(path).is_file():
            raise UsageError(f'no such file: {path}')
    names = [Path(path).stem for path in args.images]
    if len(set(names)) < len(names):
        raise UsageError('two pictures have the same name; draw them in two runs')
    for path in args.images:
        if imread(path) is None:
            raise UsageError(f'not a readable picture: {path}')


def classify(cfg: Config, args: argparse.Namespace) -> list[Path]:
    inferencer = _apis('mmpretrain').ImageClassificationInferencer(
        cfg, pretrained=args.checkpoint, device=args.device or 'cpu'
    )
    results = inferencer(args.images, show_dir=args.out)
    for path, result in zip(args.images, results, strict=True):
        print(f'{path}: {result["pred_class"]} ({result["pred_score"]:.2f})')
    return [Path(args.out, Path(path).stem + '.png') for path in args.images]


def detect(cfg: Config, args: argparse.Namespace) -> list[Path]:
    inferencer = _apis('mmdet').DetInferencer(
        cfg, weights=args.checkpoint, device=args.device
    )
    inferencer(args.images, out_dir=args.out, pred_score_thr=args.score_thr)
    return [Path(args.out, 'vis', Path(path).name) for path in args.images]


def segment(cfg: Config, args: argparse.Namespace) -> list[Path]:
    inferencer = _apis('mmseg').MMSegInferencer(
        cfg, weights=args.checkpoint, device=args.device
    )
    # Else those of Cityscapes stand in, where the checkpoint has no classes.
    metainfo = build_dataset(cfg.test_dataloader.dataset).metainfo
    inferencer.model.dataset_meta = {
        name: metainfo[name] for name in ('classes', 'palette')
    }
    inferencer(args.images, out_dir=args.out)
    return [Path(args.out, 'vis', Path(path).name) for path in args.images]


RUN = {'mmpretrain': classify, 'mmdet': detect, 'mmseg': segment}


def _apis(host: str) -> ModuleType:
    return importlib.import_module(f'{host}.apis')


if __name__ == '__main__':
    main()
