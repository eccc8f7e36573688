"""Build a small data set of handwritten digits for three tasks, without a download.

The 1,797 scans that scikit-learn ships are pasted, colored, on drawn backgrounds.
"""

import argparse
import signal
import sys
from pathlib import Path

from _cli import run

from digits.dataset import Settings, prepare

from mmsparse.errors import UsageError

LAYOUT = """\
Three layouts of the same scans in DIR:
  classification/{train,val}/<0..9>/<scan>_<n>.jpg   one digit, 64x64
  detection/{train,val}/<scene>.jpg                  two to six digits, 128x128
  detection/annotations/{train,val}.json             COCO: boxes and masks
  segmentation/images/{training,validation}/         the same scenes again
  segmentation/annotations/{training,validation}/    ADE20K: label maps, PNG,
                                                     0 background, 1..10 digits
  meta.json                                          the settings

No scan is in both training and validation. The same seed gives the same files."""


def main() -> None:
    args = parse_args()
    # A terminated build cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = Settings(
            args.seed,
            args.train_scenes,
            args.val_scenes,
            args.train_images_per_scan,
            args.val_images_per_scan,
        )
        prepare(args.out.resolve(), settings, args.force)
    except OSError as error:
        raise UsageError(f'cannot write {args.out}: {error}') from error
    except KeyboardInterrupt:
        sys.exit('interrupted: nothing was written')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=LAYOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('data/digits'),
        metavar='DIR',
        help='folder to write (%(default)s)',
    )
    for option, default, text in (
        ('--train-scenes', 2100, 'scenes for training'),
        ('--val-scenes', 200, 'scenes for validation'),
        ('--train-images-per-scan', 6, 'images of each scan to train classifiers'),
        ('--val-images-per-scan', 2, 'images of each scan to evaluate classifiers'),
        ('--seed', 0, 'random seed'),
    ):
        text = f'{text} (%(default)s)'
        parser.add_argument(option, type=int, default=default, metavar='N', help=text)
    parser.add_argument(
        '--force', action='store_true', help='replace existing digits in DIR'
    )
    return parser.parse_args()


if __name__ == '__main__':
    run(main, ValueError)
