"""Write the manifest of weights, mmsparse/weights/weights.json.

It has the files NAME-XXXXXXXX.pth or .safetensors in weights/, with their hashes, then
the releases in weights/releases.yml. NAME is a model of a metafile, which has its task,
data and results.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _cli import run

import yaml
from zoo_tables import ROOT, Model, all_models, parse_args, write

from mmsparse import list_models
from mmsparse.checkpoint.files import sha256
from mmsparse.checkpoint.state_dict import read_weights, tensors_sha256
from mmsparse.errors import UsageError
from mmsparse.weights.manifest import model_in

MANIFEST = Path('mmsparse', 'weights', 'weights.json')
RELEASES = Path('weights', 'releases.yml')
TASKS = {
    'Image Classification': 'classification',
    'Object Detection': 'detection',
    'Semantic Segmentation': 'segmentation',
}
LICENSE = 'Apache-2.0'  # of mmsparse


def main() -> None:
    args = parse_args(__doc__)
    text = json.dumps([*own(), *released()], indent=2) + '\n'
    write(
        {MANIFEST: text},
        args.check,
        'outdated {}; run python tools/weights_manifest.py',
    )


def own() -> Iterator[dict[str, Any]]:
    """Describe the files in the repository."""
    for path in sorted((ROOT / RELEASES.parent).glob('*-*.*')):
        yield {
            **describe(path.stem.rpartition('-')[0]),
            'official': False,
            'file': path.name,
            'sha256': sha256(path),
            'tensors_sha256': tensors_sha256(read_weights(path)),
            'size': path.stat().st_size,
            'license': LICENSE,
            'page': None,
            'urls': [path.relative_to(ROOT).as_posix()],
        }


def released() -> Iterator[dict[str, Any]]:
    """Describe the releases of others."""
    for release in yaml.safe_load((ROOT / RELEASES).read_text()):
        for name, known in release['models'].items():
            yield {
                **describe(name),
                'official': True,
                'file': known.get('file', f'{name}.pth'),
                'sha256': known.get('sha256'),
                'tensors_sha256': None,
                'size': known.get('size'),
                'license': release['license'],
                'page': release['page'],
                'urls': known.get('urls', []),
            }


def describe(name: str) -> dict[str, Any]:
    """Return what the metafile has of a model."""
    model = next((model for model in all_models() if model.name == name), None)
    if model is None:
        raise UsageError(f'{RELEASES.parent}: no metafile has a model {name!r}')
    results = model.entry.get('Results', ())
    metrics = {k: x for result in results for k, x in result['Metrics'].items()}
    if not metrics:
        raise UsageError(f'{name} has no results in its metafile, which weights need')
    family, arch = family_and_arch(model)
    return {
        'name': name,
        'family': family,
        'arch': arch,
        'task': TASKS[results[0]['Task']],
        'config': model.entry['Config'],
        'data': model.data,
        'metrics': metrics,
    }


def family_and_arch(model: Model) -> tuple[str, str]:
    """Return those of a backbone of mmsparse, else the method and the backbone."""
    if name := model_in(model.name, list_models()):
        family, _, arch = name.partition('-')
        return family, arch
    return Path(model.entry['Config']).parent.name, model.name.split('_')[1]


if __name__ == '__main__':
    run(main)
