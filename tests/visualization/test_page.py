import io
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Browser, find_browser
from PIL import Image

from mmsparse.evaluation import KeptTokens
from mmsparse.ops.pyramid import level_centers
from mmsparse.visualization import ImageTransform, write_page
from mmsparse.visualization.recorder import (
    DetectionsRecording,
    SamplingRecording,
    TokensRecording,
)

NODE = shutil.which('node')
BROWSER = find_browser()
ZOOM = 640 / 128  # screen pixels per pixel of the image
IDENTITY = ImageTransform((96, 128), (96, 128))


@pytest.fixture
def page(tmp_path):
    return tmp_path / 'page.html'


def act(page, *actions):
    """Return what the page shows at first and after every action."""
    done = subprocess.run(
        [NODE, Path(__file__).with_name('page_in_node.js'), page],
        input='\n'.join(map(json.dumps, actions)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def rectangles(panel, name='fillRect'):
    """Return rectangles as (x1, y1, x2, y2) in pixels of the image."""
    found = [call['values'] for call in panel['calls'] if call['name'] == name]
    return [
        [x / ZOOM, y / ZOOM, (x + w) / ZOOM, (y + h) / ZOOM] for x, y, w, h in found
    ]


def add_detector(sample):
    """Add tokens on two levels, and two detections of one decoder layer."""
    sizes = ((6, 8), (3, 4))
    centers = level_centers(sizes, torch.ones(1, 2, 2))
    kept = torch.zeros(1, 1, 60, dtype=torch.bool)
    kept[0, 0, [2 * 8 + 5, 48 + 4]] = True
    objects = torch.zeros_like(kept)
    objects[0, 0, 52] = True
    sample.recording.tokens = TokensRecording(
        KeptTokens(centers, kept, sizes), torch.rand(1, 60), objects
    )
    boxes = torch.tensor([[[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]]])
    sample.recording.detections = DetectionsRecording(
        torch.tensor([[0.9, 0.6]]), torch.tensor([[3, 7]]), boxes
    )
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    points = centers[:, :, None, None, None].expand(1, 2, 2, 2, 1, 2)
    sample.recording.sampling = [
        SamplingRecording(points, torch.full((1, 2, 2, 2, 1), 0.5))
    ]
    sample.boxes = boxes[0] * torch.tensor([128, 96, 128, 96])
    return sample


def test_a_page_is_self_contained(record_backbone, page):
    _, sample = record_backbone('biformer', IDENTITY)

    write_page(sample, (40, 40), page)

    text = page.read_text()
    assert not re.findall(r'https?:|<link|src="(?!data:)', text)
    assert page.stat().st_size < 2_000_000


def test_text_cannot_end_the_script(record_backbone, page):
    _, sample = record_backbone('biformer', IDENTITY)
    sample.caption = '</script>'

    write_page(sample, (40, 40), page)

    assert page.read_text().count('</script>') == 2


def test_a_point_outside_of_the_image_raises(record_backbone, page):
    _, sample = record_backbone('biformer', IDENTITY)

    with pytest.raises(ValueError, match='width 128 and height 96; got x=1, y=96'):
        write_page(sample, (1, 96), page)


needs_node = pytest.mark.skipif(NODE is None, reason='needs Node.js')


@needs_node
@pytest.mark.parametrize('name', ['biformer', 'shunted', 'dat'])
def test_the_slider_shows_every_layer(name, record_backbone, page):
    _, sample = record_backbone(name, IDENTITY)
    write_page(sample, (40, 40), page)
    count = len(sample.recording.layers)

    shown = act(page, *({'layer': i} for i in range(count)))

    assert shown[0]['views'] == ['attention of a query']
    assert [x['title'] for x in shown] == [
        f'layer {i} of {count}' for i in (count, *range(1, count + 1))
    ]
    for layer, page_shown in zip(sample.recording.layers, shown[1:], strict=True):
        captions = {x['caption'].partition(', ') for x in page_shown['panels']}
        assert all(layer.title in ''.join(x) for x in captions)
    assert (shown[0]['panels'][0]['width'], shown[0]['panels'][0]['height']) == (
        640,
        480,
    )
    assert shown[0]['heading'] == 'What the model attends to: page'
    assert '0 to the largest weight of a panel' in shown[0]['legend']


@needs_node
def test_a_click_shows_the_attention_map_of_its_query(record_backbone, page, flipped):
    _, sample = record_backbone('shunted', flipped, padded_size=(96, 128))
    write_page(sample, (1, 1), page)
    layer, zoom = sample.recording.layers[-1], 640 / 60
    point = torch.tensor([22.3, 11.8])  # of the image
    query = layer.query_at(flipped.to_input(point))
    assert query == 2 * 16 + 9
    with torch.no_grad():
        groups = layer.layer.attention_maps(layer.x, torch.tensor([query]))

    *_, shown = act(page, {'layer': 2}, {'click': [22.3 * zoom, 11.8 * zoom]})

    assert 'x 22, y 11; query in row 3 of 12, column 10 of 16' in shown['status']
    assert [x['caption'] for x in shown['panels']] == [
        f'stage 2, block 2, {group}' for group in ('coarse', 'fine')
    ]
    for panel, group in zip(shown['panels'], groups, strict=True):
        filled = [x['values'] for x in panel['calls'] if x['name'] == 'fillRect'][1:]
        x, y, width, height = filled[-1]  # the largest weight is drawn last
        weights = group.weights[0].mean(0)[0]
        assert len(filled) == len(weights)
        key = group.locations()[0, 0, weights.argmax()].flip(-1) * 8
        expected = flipped.to_image(key)
        center = [(x + width / 2) / zoom, (y + height / 2) / zoom]
        assert center == pytest.approx(expected.tolist(), abs=1e-3)


@needs_node
def test_routed_regions_are_outlined(record_backbone, page):
    _, sample = record_backbone('biformer', IDENTITY)
    write_page(sample, (1, 1), page)
    layer = sample.recording.layers[-1]  # 12x16 cells of 8 pixels, 4x4 regions
    with torch.no_grad():
        routes = layer.layer.regions(layer.x).routes[0, 2 * 4 + 3].tolist()

    *_, shown = act(page, {'layer': 3}, {'click': [100 * ZOOM, 60 * ZOOM]})

    outlined = rectangles(shown['panels'][0], 'strokeRect')
    corners = [[32 * j, 24 * i, 32 * j + 32, 24 * i + 24] for i, j in np.ndindex(4, 4)]
    assert len(outlined) == 16 + 4 + 1
    assert np.array(outlined) == pytest.approx(
        np.array(corners)[[*range(16), *routes, 11]]
    )


@needs_node
def test_tokens_and_detections_are_separate_views(record_backbone, page):
    _, sample = record_backbone('biformer', IDENTITY)
    write_page(add_detector(sample), (1, 1), page)

    _, tokens, first, second = act(
        page, {'view': 1}, {'view': 2}, {'click': [90 * ZOOM, 70 * ZOOM]}
    )

    assert tokens['views'][1:] == ['kept tokens', 'sampling locations of a detection']
    assert tokens['panels'][0]['caption'] == 'encoder layer 1: 3% kept, 6x8 cells'
    dark = rectangles(tokens['panels'][0])[1:]
    assert len(dark) == 47
    assert [80, 32, 96, 48] not in [[round(x) for x in box] for box in dark]
    (dot,) = [x for x in tokens['panels'][1]['calls'] if x['name'] == 'arc']
    assert np.array(dot['values'][:2]) / ZOOM == pytest.approx([16, 48])
    for shown, label, center in (
        (first, 'class 3 (0.90)', (32, 24)),
        (second, 'class 7 (0.60)', (0.7 * 128, 0.7 * 96)),
    ):
        assert f'detection: {label}' in shown['status']
        dots = [x for x in shown['panels'][0]['calls'] if x['name'] == 'arc']
        assert len(dots) == 4
        assert 'detection; a larger dot has a larger weight' in shown['legend']
        for dot in dots:
            assert np.array(dot['values'][:2]) / ZOOM == pytest.approx(center, abs=1e-3)


@pytest.mark.skipif(BROWSER is None, reason='needs a Chromium')
def test_a_browser_opens_the_page_from_the_file_system(record_backbone, page, tmp_path):
    _, sample = record_backbone('biformer', IDENTITY)
    write_page(sample, (1, 1), page)
    browser = Browser(BROWSER, str(tmp_path / 'profile'))
    try:
        browser.open(page.as_uri())
        status = "document.getElementById('status').textContent"
        end = time.monotonic() + 30
        while 'x 1, y 1;' not in (browser.evaluate(status) or ''):
            assert time.monotonic() < end, 'the page is empty'
            time.sleep(0.1)
        before = browser.screenshot()
        left, top, width, height = browser.evaluate(
            '(box => [box.x, box.y, box.width, box.height])('
            "document.querySelector('canvas').getBoundingClientRect())"
        )
        browser.click(left + 100.5 / 128 * width, top + 60.5 / 96 * height)
        shown = browser.evaluate(status)
        after = browser.screenshot()
    finally:
        browser.close()

    assert re.match(r'x (99|100), y (59|60); query in row [78] of 12', shown)
    images = [
        np.asarray(Image.open(io.BytesIO(x))).astype(int) for x in (before, after)
    ]
    assert np.abs(images[0] - images[1]).max() > 50
