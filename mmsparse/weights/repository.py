"""The files of a repository of the Hugging Face hub: weights, config and model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmsparse.checkpoint import write_checkpoint
from mmsparse.checkpoint.files import sha256
from mmsparse.checkpoint.publish import as_strings
from mmsparse.checkpoint.state_dict import tensors_sha256
from mmsparse.weights.hub import WEIGHTS, library

LINEAR = 'head.fc.weight'  # (classes, C), of a classifier
PIPELINES = {
    LINEAR: 'image-classification',
    'bbox_head.': 'object-detection',
    'decode_head.': 'image-segmentation',
}
METRICS = {'Top 1 Accuracy': 'accuracy', 'mIoU': 'mean_iou', 'box AP': 'mAP'}
RECORD = {  # of the metadata: what mmsparse's commands write
    'source': 'official file',
    'source_sha256': 'SHA-256 of the official file',
    'family': 'converted as family',
    'arch': 'converted as arch',
    'epoch': 'epoch',
    'iter': 'iteration',
    'mmsparse_version': 'mmsparse',
}
TITLES = ('data', 'metric', 'value', 'source')  # of results
CARD = """\
# {name}

`{model}` of mmsparse{trained}.

```python
import mmsparse

model = mmsparse.{call}
```

{results}## Where the weights are from

{record}
## Files

| file | SHA-256 |
|---|---|
| {file} | `{sha256}` |
| its tensors | `{tensors_sha256}` |

`python tools/weights.py verify {file}` of mmsparse computes both.
"""


@dataclass(frozen=True)
class Result:
    """A result of a model.

    Args:
        data: Name of the data.
        metric: Name of the metric.
        value: Its value.
        source: Who measured it.
    """

    data: str
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class Card:
    """What a model card has that the file of weights has not.

    Args:
        name: Name of the config, or another title.
        model: Name of the model for ``create_model``.
        license: Identifier of the license.
        data: Training data; '' if they are not known.
        results: Results of the weights.
        page: Page of the release that the weights are from.
    """

    name: str
    model: str
    license: str
    data: str = ''
    results: Sequence[Result] = ()
    page: str | None = None


def write_repository(
    folder: Path,
    repository: str,
    weights: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    card: Card,
) -> list[Path]:
    """Write weights, config and model card.

    Args:
        folder: An existing folder.
        repository: ``owner/name``, for the code in the card.
        weights: The state dict.
        meta: Metadata as :func:`~mmsparse.checkpoint.publish.published_meta` returns.
        card: Facts for the card.

    Returns:
        The files: ``model.safetensors``, ``config.json``, ``README.md``, and
        ``config.py`` if the metadata have the text of an OpenMMLab config.
    """
    path = folder / WEIGHTS
    write_checkpoint(path, dict(weights), as_strings(meta))
    hashes = {'sha256': sha256(path), 'tensors_sha256': tensors_sha256(weights)}
    config = _config(weights, meta, card)
    texts = {
        'config.json': json.dumps({**config, **hashes}, indent=2) + '\n',
        'README.md': _card(repository, config, hashes, meta, card),
    }
    if 'cfg' in meta:
        texts['config.py'] = meta['cfg']
    for name, text in texts.items():
        (folder / name).write_text(text, encoding='utf-8')
    return [path, *(folder / name for name in texts)]


def _config(
    weights: Mapping[str, Tensor], meta: Mapping[str, Any], card: Card
) -> dict[str, Any]:
    config: dict[str, Any] = {
        'architecture': f'mmsparse_{card.model.replace("-", "_")}',  # its name in timm
        'model': card.model,
        'library_name': 'mmsparse',
        'pipeline_tag': _pipeline(weights),
    }
    if LINEAR in weights:
        config['num_classes'] = len(weights[LINEAR])
        config['pretrained_cfg'] = {'num_classes': len(weights[LINEAR])}
    classes = (meta.get('dataset_meta') or {}).get('classes')
    return {**config, 'label_names': list(classes)} if classes else config


def _pipeline(weights: Mapping[str, Tensor]) -> str:
    for start, pipeline in PIPELINES.items():
        if any(key.startswith(start) for key in weights):
            return pipeline
    return 'image-feature-extraction'


def _card(
    repository: str,
    config: Mapping[str, Any],
    hashes: Mapping[str, str],
    meta: Mapping[str, Any],
    card: Card,
) -> str:
    record = [('license', card.license), ('page', card.page)]
    record += [(title, meta.get(key)) for key, title in RECORD.items()]
    results = [(x.data, x.metric, x.value, x.source) for x in card.results]
    text = CARD.format(
        name=card.name,
        model=card.model,
        trained=f', trained on {card.data}' if card.data else '',
        call=_call(f'hf-hub:{repository}', config),
        results=f'## Results\n\n{_table(TITLES, results)}\n' if results else '',
        record=_table(('', ''), [row for row in record if row[1] not in (None, '')]),
        file=WEIGHTS,
        **hashes,
    )
    return f'---\n{_front_matter(config, card)}\n---\n\n{text}'


def _call(source: str, config: Mapping[str, Any]) -> str:
    model = config['model']
    if 'num_classes' not in config:
        return f'create_backbone({model!r}, pretrained={source!r})'
    classes = config['num_classes']
    return f'create_model({model!r}, pretrained={source!r}, num_classes={classes})'


def _front_matter(config: Mapping[str, Any], card: Card) -> str:
    """Return the metadata of the card, which the hub reads."""
    hub, task = library(), config['pipeline_tag']
    results = [
        hub.EvalResult(
            task_type=task,
            dataset_type=result.data.lower().replace(' ', '-'),
            dataset_name=result.data,
            metric_type=METRICS.get(result.metric, result.metric),
            metric_name=result.metric,
            metric_value=result.value,
        )
        for result in card.results
    ]
    named = {'model_name': card.name, 'eval_results': results} if results else {}
    data = hub.ModelCardData(
        license=card.license.lower(),
        library_name='mmsparse',
        pipeline_tag=task,
        tags=['mmsparse', card.model.partition('-')[0]],
        **named,
    )
    return data.to_yaml()


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [titles, ['---'] * len(titles), *rows]
    return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in lines)
