"""The programs of docs/ultralytics.md, in a process with ultralytics."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from page_code import blocks
from ultralytics import YOLO
from ultralytics.nn import tasks

from mmsparse.models import layers

FILES = {
    'sparse_yolo.py': 'Register the layers',
    'yolo-sparse.yaml': 'Blocks in a model',
    'pyramid.yaml': 'A backbone in a model',
}
PROGRAM = 'Train, load, export'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the files of the page, and four images with a box each."""
    folder = tmp_path_factory.mktemp('yolo')
    for name, heading in FILES.items():
        ((_, text),) = blocks('ultralytics', heading)
        (folder / name).write_text(text)
    data = f'path: {folder}\ntrain: images\nval: images\nnames: [cat, dog]\n'
    (folder / 'data.yaml').write_text(data)
    random = np.random.default_rng(0)
    for name in ('images', 'labels'):
        (folder / name).mkdir()
    for i in range(4):
        image = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        for path in ('image.jpg', f'images/{i}.jpg'):
            cv2.imwrite(str(folder / path), image)
        (folder / 'labels' / f'{i}.txt').write_text('0 0.5 0.5 0.4 0.4\n')
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_a_model_with_blocks_trains_and_is_loaded_and_exported(
    folder, capsys, monkeypatch
):
    ((_, program),) = blocks('ultralytics', PROGRAM)
    fast = f"device='cpu', workers=0, plots=False, project='{folder}/runs')"
    names = {}

    exec(program.replace("device='cpu')", fast), names)

    boxes = names['result'].boxes.xyxy
    exported = YOLO(capsys.readouterr().out.splitlines()[-1], task='detect')
    found = exported.predict('image.jpg', imgsz=64, conf=0.001)[0].boxes.xyxy
    assert len(boxes)
    torch.testing.assert_close(found, boxes, atol=0.01, rtol=1e-4)

    # A checkpoint needs no registered names, unless it is trained.
    for name in ('RoutedBlock', 'DeformableBlock'):
        monkeypatch.delattr(tasks, name)
    model = YOLO(names['model'].ckpt_path)
    again = model.predict('image.jpg', imgsz=64, conf=0.001)[0].boxes.xyxy
    torch.testing.assert_close(again, boxes)
    with pytest.raises(KeyError, match='RoutedBlock'):
        model.train(data='data.yaml', epochs=1, imgsz=64, device='cpu', workers=0)


@pytest.mark.parametrize(('scale', 'channels'), [('n', 64), ('s', 128)])
def test_blocks_have_the_width_of_the_scale(scale, channels):
    import sparse_yolo

    cfg = yaml.safe_load(Path('yolo-sparse.yaml').read_text())
    model = tasks.DetectionModel(cfg | dict(scale=scale), verbose=False)

    block = model.model[4]
    assert isinstance(block, sparse_yolo.RoutedBlock)
    assert block.attn.proj.in_features == channels


def test_a_backbone_of_mmsparse_returns_the_levels_of_a_model():
    import sparse_yolo

    model = tasks.DetectionModel('pyramid.yaml', nc=2, verbose=False).train()

    assert isinstance(model.model[0], sparse_yolo.Pyramid)
    assert model.stride.tolist() == [8, 16, 32]
    outputs = model(torch.rand(1, 3, 64, 96))
    (outputs['boxes'].mean() + outputs['scores'].mean()).backward()
    for name, weight in model.model[0].named_parameters():
        assert weight.grad.isfinite().all(), name


@pytest.mark.parametrize('layer', layers.__all__)
def test_layers_take_the_channels_of_the_layer_before(layer):
    import sparse_yolo  # noqa: F401

    conv, detect = [-1, 1, 'Conv', [128, 3, 8]], [[2], 1, 'Detect', ['nc']]
    backbone = [conv, [-1, 1, layer, ['c2', 4]], [-1, 2, layer, ['c2', 4]]]
    cfg = dict(nc=2, scales=dict(n=(1, 0.25, 1024)), backbone=backbone, head=[detect])

    model = tasks.DetectionModel(cfg, verbose=False)

    assert type(model.model[1]).__name__ == layer
    assert [type(x).__name__ for x in model.model[2]] == [layer, layer]
    x = torch.rand(1, 32, 9, 12)
    assert model.model[2](x).shape == x.shape
