import ast
import doctest
import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, DefaultScope
from torch import nn

from mmsparse import create_backbone, create_model
from mmsparse.apis import build_model, read_config
from mmsparse.checkpoint import write_checkpoint
from mmsparse.conversion import biformer, dat, shunted

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / f'{name}.md' for name in ('README', 'CONTRIBUTING', 'SECURITY')),
    *sorted((ROOT / 'docs').glob('*.md')),
]
FILES = (
    r'(?:\bprojects/\w+/)?(?<!tests/)\b(?:tools|configs)/[\w/.-]+\.py\b'
    r'|\bweights/[\w.-]+\.pth\b'
)
BACKBONES = ('dat', 'biformer', 'shunted_transformer')


def examples(page):
    path = ROOT / ('README.md' if page == 'README' else f'docs/{page}.md')
    return re.findall(r'```python\n(.*?)```', path.read_text(), re.DOTALL)


def read_example(example, folder):
    path = folder / 'mine.py'
    path.write_text(example.replace("'configs/", f"'{ROOT}/configs/"))
    return read_config(str(path))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)#]+)', page.read_text()):
        assert '://' in link or (page.parent / link).exists(), link


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_commands_and_configs_exist(page):
    for name in re.findall(FILES, page.read_text()):
        assert (ROOT / name).is_file(), name


def test_extras_in_texts_exist():
    setup = ast.parse((ROOT / 'setup.py').read_text())
    (extras,) = (
        [key.value for key in node.value.keys]
        for node in setup.body
        if isinstance(node, ast.Assign) and node.targets[0].id == 'EXTRAS'
    )
    sources = [
        *PAGES,
        *(ROOT / 'mmsparse').rglob('*.py'),
        *(ROOT / 'tools').glob('*.py'),
    ]

    named = {
        extra
        for path in sources
        for group in re.findall(r'mmsparse\[([a-z,]+)\]', path.read_text())
        for extra in group.split(',')
    }

    assert {'backbones', 'export'} <= named <= {*extras}


class MyBackbone(nn.Module):
    def __init__(self, out_indices):
        super().__init__()


def test_the_example_with_your_own_backbone_builds(tmp_path):
    (example,) = (code for code in examples('focus_detr') if code.startswith('_base_'))
    MODELS.register_module(module=MyBackbone, force=True)

    detector = build_model(read_example(example, tmp_path))

    assert type(detector).__name__ == 'FocusDETR'
    assert [conv.conv.in_channels for conv in detector.neck.convs] == [96, 192, 384]


def test_every_option_of_focus_detr_has_a_row():
    text = (ROOT / 'docs' / 'focus_detr.md').read_text()
    rows = re.findall(r'^\| `(\w+)` \|.*\(\.\./(configs/\S+\.py)\)', text, re.MULTILINE)

    changed = {}
    for name, config in rows:
        model = read_config(str(ROOT / config)).model
        head = model.bbox_head
        changed[name] = {**head.get('loss_foreground', {}), **head, **model}[name]
    assert len(changed) == 12
    assert changed['cascade'] == (0.6,) * 6
    assert changed['norm'] == 'batch'
    assert changed['loss_dam'] == {}


def test_the_backbones_page_shows_what_its_program_prints(
    tmp_path, monkeypatch, capsys
):
    text = (ROOT / 'docs' / 'backbones.md').read_text()
    example, in_timm, loading, gray, _ = examples('backbones')
    (printed,) = re.findall(r'```\n(\[.*?)```', text, re.DOTALL)
    monkeypatch.chdir(tmp_path)

    names = {}
    exec(example, names)

    assert capsys.readouterr().out == printed
    pytest.importorskip('timm')
    exec(in_timm, names)
    assert names['model'](torch.rand(1, 1, 64, 64)).shape == (1, 10)
    model = create_model('dat-pp-tiny', num_classes=3)
    write_checkpoint('dat-pp-tiny.safetensors', model.state_dict(), meta={})
    exec(loading, names)
    for key, tensor in names['model'].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])
    exec(gray, names)
    assert names['gray'](torch.rand(1, 1, 64, 64))[-1].shape == (1, 512, 2, 2)


def test_the_page_of_the_skeleton_builds_its_models():
    first, attention = examples('staged_transformer')
    names = {}

    exec(first, names)
    exec(attention, names)
    with torch.device('meta'):
        model = create_model('staged-tiny', attention=names['attention'])

    assert [x.shape[2] for x in names['feature_maps']] == [56, 28, 14, 7]
    types = [type(stage[0].attn).__name__ for stage in model.backbone.stages]
    assert types[2:] == ['DeformableAttention2d', 'FullAttention2d']


def test_the_backbones_page_decays_learning_rates_by_layer(tmp_path):
    *_, example = examples('backbones')
    cfg = read_example(example, tmp_path)
    with torch.device('meta'):
        model = build_model(cfg)

    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups

    rates = sorted({group['lr'] for group in groups}, reverse=True)
    expected = [1e-4 * 0.8**i for i in range(sum(model.backbone.arch.depths) + 2)]
    assert rates == pytest.approx(expected)


def programs():
    """The programs of docs/examples.md by their headings."""
    text = (ROOT / 'docs' / 'examples.md').read_text()
    found = re.findall(r'\n## (\d+\. .*?)\n.*?```python\n(.*?)```', text, re.DOTALL)
    return [pytest.param(program, id=title) for title, program in found]


@pytest.mark.parametrize('program', programs())
def test_short_programs_run(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    exec(program.replace("'configs/", f"'{ROOT}/configs/"), {'__name__': 'program'})

    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ('config', 'depthwise'),
    [('dat/dat-nano', True), ('baselines/resnet18-nano', False)],
)
def test_time_is_split_by_types_of_operations(config, depthwise, monkeypatch):
    script = runpy.run_path(str(ROOT / 'docs' / 'figures' / 'operations.py'))
    monkeypatch.setitem(script['shares'].__globals__, 'IMAGES', (1, 3, 64, 64))
    config = ROOT / 'configs' / f'{config}_1xb64-3e_cifar10.py'

    shares = {
        name: int(share.rstrip('%'))
        for name, share in script['shares'](str(config)).items()
    }

    assert sum(shares.values()) == pytest.approx(100, abs=1)
    assert (shares['depthwise'] > 0) == depthwise


def method_pages():
    pages = sorted((ROOT / 'configs').glob('*/README.md'))
    return [page for page in pages if page.parent.name != 'baselines']  # of the hosts


@pytest.mark.parametrize('page', method_pages(), ids=lambda page: page.parent.name)
def test_the_program_of_a_method_runs(page, capsys):
    blocks = re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL)
    (program,) = (code for code in blocks if code.startswith('import'))
    small = "{'test_dataloader.dataset.pipeline.1.scale': (320, 240)}"
    program = program.replace("device='cpu'", f"device='cpu', cfg_options={small}")

    exec(program.replace("'configs/", f"'{ROOT}/configs/"), {})

    assert capsys.readouterr().out


@pytest.mark.parametrize('page', method_pages(), ids=lambda page: page.parent.name)
def test_configs_of_a_method_page_build(page, tmp_path):
    blocks = re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL)

    for config in (code for code in blocks if code.startswith('_base_')):
        with torch.device('meta'):
            build_model(read_example(config, tmp_path))


@pytest.mark.parametrize('page', method_pages(), ids=lambda page: page.parent.name)
def test_every_paper_has_a_citation(page):
    text = page.read_text()

    assert text.count('> [') == text.count('@inproceedings{') + text.count('@article{')


def test_there_are_ten_short_programs():
    assert len(programs()) == 10


def test_the_first_lines_of_the_readme_print_what_they_say():
    lines = (ROOT / 'README.md').read_text().splitlines()[:10]
    block = re.search('```pycon\n(.*?)```', '\n'.join(lines), re.DOTALL)[1]
    test = doctest.DocTestParser().get_doctest(block, {}, 'README', None, None)

    assert doctest.DocTestRunner().run(test) == (0, 3)


@pytest.mark.parametrize('page', ['README', 'get_started'])
def test_configs_to_copy_train_well(page, tmp_path):
    (config,) = (code for code in examples(page) if code.startswith('_base_'))

    cfg = read_example(config, tmp_path)

    assert cfg.model.backbone.init_cfg.prefix == 'backbone.'
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=0.05)
    assert cfg.optim_wrapper.clip_grad.max_norm == 1


WEIGHTS = str(next((ROOT / 'weights').glob('biformer-nano*.pth')))
DIGITS = {
    'train_dataloader.dataset.ann_file': 'annotations/train.json',
    'train_dataloader.dataset.data_prefix.img': 'train',
    'train_dataloader.dataset.metainfo': dict(classes=tuple('0123456789')),
    'train_dataloader.dataset.pipeline.2.scale': (128, 128),
}
# Settings that make the config of a page small, and those of the digits.
SMALL = {
    'README': DIGITS
    | {
        'model.backbone.init_cfg.checkpoint': WEIGHTS,
        'model.neck.in_channels': [32, 64, 128, 256],
        'model.roi_head.bbox_head.num_classes': 10,
        'model.roi_head.mask_head.num_classes': 10,
        # Fewer regions, to be fast.
        'model.train_cfg.rpn_proposal': dict(nms_pre=50, max_per_img=50),
        'model.train_cfg.rcnn.sampler.num': 16,
    },
    'get_started': DIGITS
    | {
        'model.backbone.init_cfg': None,
        'model.neck.in_channels': [64, 128, 256],
        'model.bbox_head.num_classes': 10,
    },
    'segmentation': {
        'model.backbone.init_cfg.checkpoint': WEIGHTS,
        'model.neck.in_channels': [32, 64, 128, 256],
        'model.data_preprocessor.size': (128, 128),
        'train_dataloader.dataset.pipeline.3.scale': (256, 128),
        'train_dataloader.dataset.pipeline.4.crop_size': (128, 128),
    },
}


@pytest.mark.parametrize('page', SMALL)
def test_configs_to_copy_learn_when_they_are_small(page, tmp_path, small_digits):
    (config,) = (code for code in examples(page) if code.startswith('_base_'))
    task = 'segmentation' if page == 'segmentation' else 'detection'
    data = {'train_dataloader.dataset.data_root': f'{small_digits}/data/digits/{task}'}
    cfg = read_example(config, tmp_path)
    cfg.merge_from_dict({'model.backbone.arch': 'nano', **SMALL[page], **data})

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    model = build_model(cfg).train()
    model.init_weights()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = pseudo_collate([dataset[0], dataset[1]])
    losses = [float(model.train_step(batch, optim_wrapper)['loss']) for _ in range(6)]

    assert losses[-1] < 0.95 * losses[0], losses


def test_safeguards_can_be_appended_to_other_hooks(tmp_path):
    (config,) = examples('reliability')

    hooks = read_example(config, tmp_path).custom_hooks

    base = read_config(str(ROOT / 'configs/_base_/mmsparse.py')).custom_hooks
    assert hooks[0].type == 'EMAHook'
    assert hooks[-len(base) :] == base


def test_official_keys_on_the_migration_page_are_those_that_conversion_renames():
    text = (ROOT / 'docs' / 'migration.md').read_text().split('## Find a parameter')[1]
    rename = dict(DAT=dat, BiFormer=biformer, Shunted=shunted)
    family = ''
    for line in text.split('\n## ')[0].splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if len(cells) < 3 or not cells[1].startswith('`'):
            continue
        family = cells[0] or family
        if family not in rename:
            continue
        official, own = (re.findall(r'`(.*?)`', cell) for cell in cells[1:])
        own = own * len(official) if len(own) == 1 else own
        for key, expected in zip(official, own, strict=True):
            key, expected = (x.replace('*', 'weight') for x in (key, expected))
            if not expected.startswith('head.'):  # of classifiers
                assert rename[family].rename_key(key) == expected


@pytest.mark.parametrize(
    'page', ['README', 'get_started', 'classification', 'detection', 'segmentation']
)
def test_configs_on_the_page_build_their_models(page, tmp_path):
    configs = [code for code in examples(page) if code.startswith('_base_')]

    assert configs
    for config in configs:
        with torch.device('meta'):
            model = build_model(read_example(config, tmp_path))
        assert any(type(m).__module__.startswith('mmsparse.') for m in model.modules())


@pytest.mark.parametrize('page', [*BACKBONES, 'deformable_detr'])
def test_the_layer_alone_keeps_the_shape(page):
    (example,) = (code for code in examples(page) if code.startswith('import torch'))
    names = {}

    exec(example, names)

    assert names['y'].shape == names['x'].shape


@pytest.mark.parametrize('page', BACKBONES)
def test_variants_have_the_numbers_of_the_metafile(page):
    metafile = yaml.safe_load((ROOT / 'configs' / page / 'metafile.yml').read_text())
    models = {model['Name'].split('_')[0]: model for model in metafile['Models']}
    text = (ROOT / 'docs' / f'{page}.md').read_text()
    row = r'^\| `([\w-]+)` \|.*\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$'
    variants = re.findall(row, text, re.MULTILINE)

    assert len(variants) >= 3
    for arch, parameters, macs, accuracy in variants:
        model = models[f'{page.split("_")[0]}-{arch}']
        metadata, (result,) = model['Metadata'], model['Results']
        rounded = pytest.approx((float(parameters), float(macs)), abs=0.00501)
        assert (metadata['Parameters'] / 1e6, metadata['FLOPs'] / 1e9) == rounded
        assert float(accuracy) == result['Metrics']['Top 1 Accuracy']


def test_the_backbone_of_the_page_trains_and_is_in_the_factory(
    tmp_path, monkeypatch, clean_registries
):
    *code, config = examples('add_a_backbone')
    (tmp_path / 'pooled_former.py').write_text('\n\n'.join(code))
    monkeypatch.syspath_prepend(tmp_path)

    backbone = build_model(read_example(config, tmp_path)).backbone

    outs = backbone(torch.rand(1, 3, 65, 93))
    sum(x.square().mean() for x in outs).backward()
    assert [tuple(x.shape[1:]) for x in outs] == [(64, 8, 11), (128, 4, 5), (256, 2, 2)]
    assert all(weight.grad is not None for weight in backbone.parameters())
    assert type(create_backbone('pooled-nano')) is type(backbone)
    with pytest.raises(
        ValueError, match=r'stages\[0\]: .*in_channels=32 and num_heads=3'
    ):
        type(backbone)(dict(base='nano', num_heads=3))


def test_results_of_focus_detr_are_those_of_the_metafile():
    metafile = yaml.safe_load((ROOT / 'configs/focus_detr/metafile.yml').read_text())
    expected = [
        result['Metrics']['box AP']
        for model in metafile['Models']
        if re.fullmatch(r'focus-detr_r50_8xb2-\d+e_coco', model['Name'])
        for result in model['Results']
    ]
    text = (ROOT / 'docs' / 'focus_detr.md').read_text()

    stated = re.search(r'README states ([\d.]+), ([\d.]+) and ([\d.]+)', text)

    assert [float(x) for x in stated.groups()] == expected
