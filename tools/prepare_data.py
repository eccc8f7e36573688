"""Prepare a public data set for the hosts: CIFAR-10, CamVid, BCCD or COCO128.

Nothing is downloaded: SOURCE is the zip, or the folder that it was unpacked into. Files
are counted before anything is written.
"""

import argparse
from pathlib import Path

from _cli import run

from public_data.bccd import BCCD
from public_data.camvid import CAMVID
from public_data.cifar10 import CIFAR10
from public_data.coco128 import COCO128
from public_data.data_set import (
    SAMPLES,
    unpacked,
    whole_folder,
    write_meta,
    write_sheet,
)

from mmsparse.errors import UsageError

DATA_SETS = dict(cifar10=CIFAR10, camvid=CAMVID, bccd=BCCD, coco128=COCO128)


def main() -> None:
    args = parse_args()
    data_set = DATA_SETS[args.data_set]
    out = args.out or Path('data', args.data_set)
    try:
        with unpacked(args.source, data_set.markers) as root:
            counts = data_set.check(root, args.partial)
            for name, number in counts.items():
                print(f'{number:7} {name}')
            if args.dry_run:
                sheet = out.with_name(f'{out.name}_samples.png')
                write_sheet(sheet, data_set.draw(root, SAMPLES))
                print(sheet)
                return
            with whole_folder(out, args.force) as folder:
                for line in data_set.write(root, folder):
                    print(line)
                write_meta(folder, args.data_set, counts)
    except OSError as error:
        raise UsageError(f'cannot prepare {args.source}: {error}') from error
    print(out)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_subparsers(dest='data_set', required=True)
    common = common_arguments()
    for name, data_set in DATA_SETS.items():
        names.add_parser(
            name,
            parents=[common],
            help=data_set.summary,
            description=data_set.summary,
            epilog=data_set.layout,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    return parser.parse_args()


def common_arguments() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        'source', type=Path, metavar='SOURCE', help='downloaded zip, or its folder'
    )
    common.add_argument(
        '--out', type=Path, metavar='DIR', help='folder to write (data/NAME)'
    )
    common.add_argument(
        '--dry-run',
        action='store_true',
        help=f'only check the files, and draw {SAMPLES} samples with their labels into '
        'DIR_samples.png',
    )
    common.add_argument(
        '--partial', action='store_true', help='accept fewer files than the whole set'
    )
    common.add_argument(
        '--force', action='store_true', help='replace what this command wrote in DIR'
    )
    return common


if __name__ == '__main__':
    run(main)
