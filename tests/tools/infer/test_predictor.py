"""Images of any format as the model sees them, and the names of the classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from infer.predictor import Predictor, _as_rgb
from mmpretrain.structures import DataSample
from PIL import Image

from mmsparse.apis import build_model, read_config
from mmsparse.datasets.errors import SampleError
from mmsparse.errors import UsageError

CONFIG = str(
    Path(__file__).parents[3] / 'configs/biformer/biformer-nano_1xb32-9e_digits.py'
)
RGB = np.zeros((20, 32, 3), np.uint8)
RGB[:10], RGB[:, 16:] = (250, 10, 10), (40, 90, 200)
GRAY = np.asarray(Image.fromarray(RGB).convert('L'))


def save(checkpoint, **meta):
    torch.manual_seed(0)
    state = build_model(read_config(CONFIG)).state_dict()
    torch.save(dict(state_dict=state, meta=meta), checkpoint)
    return str(checkpoint)


@pytest.fixture(scope='module')
def predictor(tmp_path_factory):
    checkpoint = save(tmp_path_factory.mktemp('weights') / 'a.pth')
    return Predictor(read_config(CONFIG), checkpoint, 'cpu')


@pytest.mark.parametrize(
    'name', ['RGBA.png', 'P.png', 'CMYK.tif', 'CMYK.jpg', 'exif.jpg']
)
def test_colors_and_rotation_of_any_format_are_right(name, predictor, tmp_path):
    image, options = Image.fromarray(RGB), {}
    if name == 'exif.jpg':  # rotated to the left; EXIF says rotate it to the right
        options = dict(exif=Image.Exif())
        options['exif'][0x0112] = 6
        image = image.rotate(90, expand=True)
    else:
        image = image.convert(name.partition('.')[0], palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / name, **options)

    seen, result = predictor(str(tmp_path / name))

    assert seen.shape == RGB.shape
    assert np.abs(seen.astype(int) - RGB)[2:8, 2:14].max() < 30
    assert len(result.pred_score) == 10


@pytest.mark.parametrize('depth', [8, 16])
def test_gray_is_seen_as_three_channels(depth, predictor, tmp_path):
    pixels = GRAY if depth == 8 else GRAY.astype(np.uint16) * 257
    Image.fromarray(pixels).save(tmp_path / 'a.png')

    seen, _ = predictor(str(tmp_path / 'a.png'))

    assert np.array_equal(seen, GRAY[..., None].repeat(3, -1))


def test_an_image_too_small_for_the_model_is_named(predictor, tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / 'a.png')
    kept = [x for x in predictor.transforms if type(x).__name__ != 'Resize']
    monkeypatch.setattr(predictor, 'transforms', kept)

    with pytest.raises(SampleError, match=r'a\.png: x must be images .* at least 32'):
        predictor(str(tmp_path / 'a.png'))


def test_a_frame_is_predicted_as_its_file(predictor, tmp_path):
    Image.fromarray(RGB).save(tmp_path / 'a.png')

    expected = predictor(str(tmp_path / 'a.png'))
    found = predictor('a.mp4', np.ascontiguousarray(RGB[..., ::-1]))

    assert np.array_equal(found[0], expected[0])
    assert torch.equal(found[1].pred_score, expected[1].pred_score)


def test_an_error_of_the_pipeline_names_the_file(predictor, tmp_path):
    (tmp_path / 'a.png').write_text('text')

    with pytest.raises(SampleError, match=str(tmp_path / 'a.png')):
        predictor(str(tmp_path / 'a.png'))


def test_names_are_those_of_the_training_and_else_of_the_config(tmp_path):
    cfg = read_config(CONFIG)
    cfg.test_dataloader.dataset.metainfo = dict(
        classes=list('abcdefghij'), palette=[[i] * 3 for i in range(10)]
    )
    trained = save(tmp_path / 'a.pth', dataset_meta=dict(classes=list('0123456789')))
    bare = save(tmp_path / 'b.pth')

    first, second = (Predictor(cfg, path, 'cpu') for path in (trained, bare))

    assert ''.join(first.classes) == '0123456789'
    assert ''.join(second.classes) == 'abcdefghij'
    assert first.palette == second.palette == [[i] * 3 for i in range(10)]


def test_colors_that_do_not_fit_the_classes_are_not_used(predictor, tmp_path):
    cfg = read_config(CONFIG)
    cfg.test_dataloader.dataset.metainfo = dict(
        classes=list('abcdefghij'), palette=[[1, 2, 3]]
    )

    assert Predictor(cfg, save(tmp_path / 'a.pth'), 'cpu').palette == []
    assert predictor.classes == []  # those of a CustomDataset are in its folders


def test_a_model_that_predicts_something_else_is_an_error(predictor, monkeypatch):
    sample = DataSample(pred_caption='a dog')
    monkeypatch.setattr(predictor.model, 'test_step', lambda batch: [sample])

    with pytest.raises(
        UsageError, match=r'model\.type: .*; ImageClassifier predicts pred_caption'
    ):
        predictor('a.mp4', RGB)


@pytest.mark.parametrize('channels', [0, 1, 2, 5])
def test_an_image_of_other_channels_is_drawn_in_three(channels):
    pixels = np.full((4, 6, channels) if channels else (4, 6), 257, np.uint16)

    assert _as_rgb(pixels).tolist() == [[[1] * 3] * 6] * 4
