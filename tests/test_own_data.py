"""The recipes of docs/own_data.md, with digits in place of pets."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, PARAM_SCHEDULERS, DefaultScope
from PIL import Image

from mmsparse.apis import build_model, read_config
from mmsparse.checks import check_data
from mmsparse.models import DAT, BiFormer, ShuntedTransformer

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs' / 'own_data.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
CLASSIFICATION, DETECTION, SEGMENTATION, RETINANET = (
    block for block in BLOCKS if block.startswith('_base_')
)
PETS = ('cat', 'dog', 'horse')
ORIENTATION = 0x0112  # EXIF tag


def vary(paths):
    """Make images of different sizes; gray, RGBA or CMYK, and rotated by EXIF."""
    for i, path in enumerate(sorted(paths)):
        image = Image.open(path).convert('RGB')
        if i % 4 == 0:  # larger, with a border at the right
            larger = Image.new('RGB', (image.width + 9 * i + 8, image.height))
            larger.paste(image)
            larger.save(path)
        elif i % 4 == 1:
            image.convert('L').save(path)
        elif i % 4 == 2:
            image.convert('RGBA' if path.suffix == '.png' else 'CMYK').save(path)
        else:  # on its side; EXIF says how it is shown
            exif = Image.Exif()
            exif[ORIENTATION] = 6
            image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def images_in_folders(digits, out):
    for split in ('train', 'val'):
        for digit, name in enumerate(PETS):
            source = digits / 'classification' / split / str(digit)
            shutil.copytree(source, out / split / name)
    vary(out.rglob('*.png'))


def boxes(digits, out):
    shutil.copytree(digits / 'detection', out)
    for split in ('train', 'val'):
        vary((out / split).iterdir())
        path = out / 'annotations' / f'{split}.json'
        coco = json.loads(path.read_text())
        for category in coco['categories'][: len(PETS)]:
            category['name'] = PETS[int(category['name'])]
        for image in coco['images']:
            with Image.open(out / split / image['file_name']) as file:
                image['width'], image['height'] = file.size  # rotated ones are square
        path.write_text(json.dumps(coco))


def label_maps(digits, out):
    shutil.copytree(digits / 'segmentation', out)
    vary((out / 'images').rglob('*.jpg'))
    for path in (out / 'annotations').rglob('*.png'):
        labels = np.asarray(Image.open(path)).copy()
        labels[labels > len(PETS)] = 0
        folder = out / 'images' / path.parent.name
        with Image.open(folder / f'{path.stem}.jpg') as image:
            missing = image.width - labels.shape[1]
        labels = np.pad(labels, ((0, 0), (0, missing)), constant_values=255)
        Image.fromarray(labels).save(path)


RECIPES = {
    'classification': (CLASSIFICATION, images_in_folders, PETS),
    'detection': (DETECTION, boxes, PETS),
    'segmentation': (SEGMENTATION, label_maps, ('background', *PETS)),
    'another head': (RETINANET, boxes, PETS),
}


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_model_learns_from_the_data_of_the_recipe_and_predicts(
    recipe, small_digits, tmp_path
):
    block, make, classes = RECIPES[recipe]
    make(small_digits / 'data' / 'digits', tmp_path / 'mine')
    path = tmp_path / 'mine.py'
    block = block.replace('data/mine', f'{tmp_path}/mine')
    block = block.replace("'configs/", f"'{ROOT}/configs/").replace('512', '160')
    path.write_text(block)
    cfg = read_config(str(path))
    notes = check_data(cfg, cfg.default_scope)

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        train, val = (
            DATASETS.build(loader.dataset)
            for loader in (cfg.train_dataloader, cfg.val_dataloader)
        )
    model = build_model(cfg).train()
    model.init_weights()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    warm_up = PARAM_SCHEDULERS.build(
        cfg.param_scheduler[0], default_args=dict(optimizer=optim_wrapper)
    )
    batch = pseudo_collate([train[0], train[len(train) - 1]])
    losses = []
    for _ in range(6):
        losses.append(float(model.train_step(batch, optim_wrapper)['loss']))
        warm_up.step()
    model.eval()
    size = min(cfg.val_dataloader.batch_size, len(val))
    predictions = model.val_step(pseudo_collate([val[i] for i in range(size)]))

    assert notes == []
    assert tuple(train.metainfo['classes']) == tuple(val.metainfo['classes']) == classes
    assert losses[-1] < 0.98 * losses[0], losses
    assert len(predictions) == size


def test_the_table_has_the_widths_of_every_arch():
    rows = re.findall(r'^\| ([\d, ]+) \| (.*) \|$', TEXT, re.MULTILINE)
    for family, backbone in (
        ('DAT', DAT),
        ('BiFormer', BiFormer),
        ('Shunted Transformer', ShuntedTransformer),
    ):
        for arch, settings in backbone.arch_settings.items():
            widths = ', '.join(map(str, settings.embed_dims))
            (names,) = (names for row, names in rows if row == widths)
            own = re.search(rf'{family} ([^;]*)', names)
            assert f'`{arch}`' in (own[1] if own else names), (family, arch)
