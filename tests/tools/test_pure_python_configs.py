"""Every command with configs in pure Python: classes as types, no default_scope."""

import json

import pytest
from pure_python import write_pure_python
from test_end_to_end import CONFIGS, HOSTS, METRICS, SHORT

from mmsparse.apis import load_model, read_config
from mmsparse.deploy.export import build_graph


@pytest.fixture(scope='module', params=SHORT, ids=HOSTS.values())
def trained(request, tmp_path_factory, small_digits, run_tool):
    """Train for two iterations; return name, folder, config and checkpoint."""
    pairs = (option.split('=') for option in SHORT[request.param])
    options = {key: int(x) if x.isdigit() else x for key, x in pairs}
    cfg = read_config(str(CONFIGS / f'{request.param}.py'), options)
    folder = tmp_path_factory.mktemp('pure')
    (folder / 'data').symlink_to(small_digits / 'data')
    config = write_pure_python(cfg, folder)
    done = run_tool('train.py', config, cwd=folder)
    return request.param, folder, config, done.stdout.splitlines()[-1]


def test_a_checkpoint_is_evaluated(trained, run_tool):
    name, folder, config, checkpoint = trained

    run_tool('test.py', config, checkpoint, '--out', 'metrics.json', cwd=folder)

    metrics = json.loads((folder / 'metrics.json').read_text())
    assert 0 <= metrics[METRICS[name]] <= 100


def test_an_image_is_predicted_and_visualized(trained, run_tool):
    _, folder, config, checkpoint = trained
    image = sorted((folder / 'data/digits/detection/val').glob('*.jpg'))[0]

    run_tool('infer.py', image, config, checkpoint, cwd=folder)
    run_tool('visualize.py', config, checkpoint, image, cwd=folder)

    assert (folder / 'work_dirs/infer/vis' / image.name).is_file()
    assert (folder / f'work_dirs/visualize/{image.stem}_attention.png').is_file()


def test_macs_are_counted(trained, run_tool):
    name, folder, config, _ = trained
    size = ['--shape', '64', '64']

    found, expected = (
        run_tool('get_flops.py', path, *size, cwd=folder).stdout.splitlines()[1:]
        for path in (config, CONFIGS / f'{name}.py')
    )

    assert found == expected


def test_a_model_is_published_and_can_be_exported(trained, run_tool):
    _, folder, config, checkpoint = trained

    done = run_tool(
        'publish_model.py', checkpoint, '--config', config, '--out', 'p', cwd=folder
    )

    assert 'Name: mine' in done.stdout
    (published,) = (folder / 'p').glob('mine-*.pth')
    # tools/export_onnx.py also traces it, which takes long.
    assert build_graph(load_model(read_config(str(config)), published), (64, 64))
