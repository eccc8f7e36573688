"""Draw what a sparse model looks at: the tokens that a Focus-DETR keeps."""

import argparse
import importlib
import sys
from pathlib import Path

from mmcv import imread

from mmsparse.evaluation import KeptTokens, watch_kept_tokens
from mmsparse.hosts import UsageError, read_config
from mmsparse.visualization import draw_kept_tokens


def main() -> None:
    args = parse_args()
    try:
        drawn = draw(args)
    except (UsageError, ValueError) as error:
        sys.exit(f'error: {error}')
    print('\n'.join(str(path) for path in drawn))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='One row for each level of maps, one column for each layer of the '
        'encoder; what a layer does not keep is dark.',
    )
    parser.add_argument('config', help='configuration file of a Focus-DETR')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='picture files')
    parser.add_argument(
        '--out', default='work_dirs/visualize', help='folder for the drawings'
    )
    parser.add_argument('--device', default='cpu', help='cpu by default, cuda:0, ...')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='least score of a drawn box, 0.3 by default',
    )
    return parser.parse_args()


def draw(args: argparse.Namespace) -> list[Path]:
    for path in (*args.images, args.checkpoint):
        if not Path(path).is_file():
            raise UsageError(f'no such file: {path}')
    pictures = {path: imread(path, channel_order='rgb') for path in args.images}
    for path, picture in pictures.items():
        if picture is None:
            raise UsageError(f'not a readable picture: {path}')
    cfg = read_config(args.config)
    if cfg.get('default_scope') != 'mmdet':
        raise UsageError(f'{args.config} must be of a detector of mmdet')
    apis = importlib.import_module('mmdet.apis')
    detector = apis.init_detector(cfg, args.checkpoint, device=args.device)
    seen: list[KeptTokens] = []
    watch_kept_tokens(detector, seen.append)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    drawn = []
    for path, picture in pictures.items():
        found = apis.inference_detector(detector, path).pred_instances.cpu()
        boxes = found.bboxes[found.scores >= args.score_thr]
        drawn.append(Path(args.out, f'{Path(path).stem}.png'))
        draw_kept_tokens(picture, seen.pop(), boxes).savefig(drawn[-1], dpi=130)
    return drawn


if __name__ == '__main__':
    main()
