"""List, download, check and publish weights; docs/weights.md has more."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _cli import check_files, command, run

from torch import Tensor

from mmsparse import create_backbone, list_models
from mmsparse.checkpoint import read_checkpoint
from mmsparse.checkpoint.files import read_metadata, sha256
from mmsparse.checkpoint.publish import published_meta, published_weights
from mmsparse.checkpoint.state_dict import read_weights, tensors_sha256
from mmsparse.conversion.families import recognize
from mmsparse.errors import OfficialWeightsError, UsageError
from mmsparse.weights import Entry, cache, entries, hub, locate
from mmsparse.weights.manifest import CLASSIFICATION, find_entry, model_in
from mmsparse.weights.repository import Card, Result, write_repository
from mmsparse.weights.sources import obtain
from mmsparse.zoo import read_metafiles

TASKS = (CLASSIFICATION, 'detection', 'segmentation')
BY_COMMAND, UNVERIFIED, BY_HAND = 'get', 'get --unverified', 'by hand'
HELP = {
    'list': 'list the weights that are known',
    'get': 'download weights, unless they are cached, and print their path',
    'verify': 'compare the hashes of files with the manifest',
    'push': 'write weights to a repository of the Hugging Face hub, with a model card',
}


def main() -> int | None:
    args = parse_args()
    return COMMANDS[args.command](args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    add = {
        name: commands.add_parser(
            name, help=text, description=f'{text[0].upper()}{text[1:]}.'
        )
        for name, text in HELP.items()
    }
    add['list'].add_argument(
        'pattern', nargs='?', default='*', help="of names, for example 'dat*'"
    )
    add['list'].add_argument('--task', choices=TASKS)
    add['get'].add_argument(
        'name', help='name in the list, model (biformer-nano), URL or hf-hub:OWNER/NAME'
    )
    add['get'].add_argument(
        '--unverified', action='store_true', help='also if the hash is not known'
    )
    add['verify'].add_argument(
        'file', nargs='*', help='default: all files of the list that are cached'
    )
    push = add['push']
    push.add_argument('file', help='checkpoint of mmsparse, .pth or .safetensors')
    push.add_argument('repository', metavar='OWNER/NAME')
    push.add_argument(
        '--name',
        help='title of the card; if it is the name of a config, its results are in the '
        'card. Default: the name in the list, or of the file',
    )
    push.add_argument('--model', help='for example biformer-nano; default: by name')
    push.add_argument(
        '--license', help='for example apache-2.0; default: that in the list'
    )
    push.add_argument('--private', action='store_true', help='a new repository')
    push.add_argument(
        '--out', metavar='DIR', help='write the files there, and upload nothing'
    )
    return parser.parse_args()


def list_weights(args: argparse.Namespace) -> int:
    found, cached = entries(args.task, args.pattern), cache.cached()
    if not found:
        raise UsageError(f'no weights match {args.pattern!r}; list shows all names')
    rows = [('name', 'task', 'result', 'MB', 'status')]
    rows += [
        (
            entry.name,
            entry.task,
            ', '.join(f'{name} {value}' for name, value in entry.metrics.items()),
            f'{entry.size / 1e6:.1f}' if entry.size else '',
            'cached' if entry.name in cached else status(entry),
        )
        for entry in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print('  '.join(map(str.ljust, row, widths)).rstrip())
    return 0


def status(entry: Entry) -> str:
    """Return how to get weights that are not cached."""
    if not any('://' in url for url in entry.urls):
        return BY_HAND
    return UNVERIFIED if entry.sha256 is None else BY_COMMAND


def get(args: argparse.Namespace) -> None:
    if '://' in args.name or args.name.startswith(hub.SCHEME):
        print(locate(args.name))
        return
    entry = find_entry(args.name)
    path = obtain(entry, args.unverified)
    if entry.official:
        print(conversion(entry, path))
    print(path)


def conversion(entry: Entry, path: Path) -> str:
    """Return how to use an official file."""
    convert = f'{command("convert_checkpoint")} {path} CONVERTED.pth'
    if entry.model not in list_models():
        return f'official file; convert it: {convert}'
    convert += f' --family {entry.family} --arch {entry.arch}'
    if entry.task == CLASSIFICATION:
        text = 'official file; create_model converts it when it reads it. For a config:'
        return f'{text} {convert}'
    # mmdet 3 has other names for the rest of mmdet 2's detectors.
    backbone = ' --backbone-only' if entry.task == 'detection' else ''
    return f'official file; convert it: {convert}{backbone}'


def verify(args: argparse.Namespace) -> int:
    check_files(*args.file)
    files = args.file or [
        *dict.fromkeys(path for entry in entries() for path in cache.named(entry)),
        *cache.cached().values(),
    ]
    if not files:
        print(f'none of the list is cached in {cache.folder()}')
    verdicts = {str(path): verify_file(Path(path)) for path in files}
    for path, (verdict, _) in verdicts.items():
        print(f'{path}: {verdict}')
    wrong = [path for path, (_, right) in verdicts.items() if not right]
    if wrong and not args.file:
        print(f'{len(wrong)} of {len(verdicts)} files are not what their name says')
    return 1 if wrong else 0


def verify_file(path: Path) -> tuple[str, bool]:
    """Return what a file is by its hash, and whether that is known."""
    digest = sha256(path)  # not the remembered one
    if entry := next((x for x in entries() if x.sha256 == digest), None):
        return f'is {entry.name}, SHA-256 {digest}', True
    if entry := next((x for x in entries() if x.file == path.name), None):
        if entry.sha256 is not None:
            return f'SHA-256 {digest} instead of {entry.sha256} of {entry.name}', False
        text = f'has the name of {entry.name}, whose hash is not known'
        return f'{text}; SHA-256 {digest}', True
    tensors = tensors_sha256(read_weights(path))
    if entry := next((x for x in entries() if x.tensors_sha256 == tensors), None):
        return f'has the tensors of {entry.name}, SHA-256 {tensors}', True
    return f'is not in the list; SHA-256 {digest}, of its tensors {tensors}', False


def push(args: argparse.Namespace) -> None:
    checkpoint = read_checkpoint(args.file)
    try:
        weights = published_weights(checkpoint)
    except ValueError as error:
        raise UsageError(f'{args.file}: {error}') from error
    if official := recognize(weights):
        raise OfficialWeightsError(f'{args.file} is {official.text}', args.file)
    meta = published_meta({'meta': read_metadata(args.file, checkpoint)})
    card = describe(args, weights, meta)
    create_backbone(card.model, pretrained=args.file)  # raises unless it fits
    with TemporaryDirectory() as temporary:
        folder = Path(args.out or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = write_repository(folder, args.repository, weights, meta, card)
        if args.out:
            print('\n'.join(map(str, files)))
            return
        print(hub.upload(folder, args.repository, args.private, f'Add {card.name}'))
    print(f'use it: pretrained={hub.SCHEME + args.repository!r}')


def describe(
    args: argparse.Namespace, weights: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> Card:
    """Collect the facts of the model card."""
    tensors = tensors_sha256(weights)
    entry = next((x for x in entries() if x.tensors_sha256 == tensors), None)
    name = args.name or (entry.name if entry else Path(args.file).stem)
    model = args.model or find_model(name, meta)
    found = read_metafiles().get(name, {})
    if entry is None:  # for a converted file, the release that it is from
        released = [x for x in entries() if x.name == name or x.model == model]
        entry = next((x for x in released if x.official and 'source' in meta), None)
    return Card(
        name=name,
        model=model,
        license=args.license or find_license(entry),
        data=found['Metadata']['Training Data'] if found else '',
        results=[
            Result(result['Dataset'], metric, value, result['Source'])
            for result in found.get('Results', ())
            for metric, value in result['Metrics'].items()
        ],
        page=entry.page if entry else None,
    )


def find_model(name: str, meta: Mapping[str, Any]) -> str:
    """Return the model in the name of a config, or in the record of a conversion."""
    known = list_models()
    for text in (name, f'{meta.get("family")}-{meta.get("arch")}'):
        if model := model_in(text, known):
            return model
    raise UsageError(f'--model must name the model; it is one of {", ".join(known)}')


def find_license(entry: Entry | None) -> str:
    if entry is not None and entry.license:
        return entry.license
    if entry is None:
        raise UsageError('--license must name the license, for example apache-2.0')
    raise UsageError(
        f'{entry.page} gives no license, so that these weights may not be shared '
        f'unless its authors allow it; then give --license'
    )


COMMANDS = {'list': list_weights, 'get': get, 'verify': verify, 'push': push}

if __name__ == '__main__':
    run(main, OSError)
