"""The report of training runs that have written little, or all."""

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image
from quickstart import report
from quickstart.report.boxes import match, overlap
from quickstart.report.charts import draw_curve, nice
from small_jobs import CLASSES, finish, make_jobs
from training.curve import Curve, read_curve

VOID = {'meta', 'img', 'br'}
EMBEDDED = re.compile(r'data:image/(?:jpeg|png|webp);base64,([\w+/=]+)')


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps text and addresses."""

    def __init__(self, path):
        super().__init__()
        self.open, self.addresses, self.images, self.text = [], [], [], ''
        self.source = path.read_text()
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.addresses += [named[x] for x in ('src', 'href') if x in named]
        if tag == 'img':
            self.images.append(named['alt'])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert tag == self.open.pop()

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp('out')
    jobs = make_jobs(out)
    for job in jobs.values():
        finish(job)
    return report.write(out, 'BiFormer-pico', jobs)


@pytest.fixture(scope='module')
def page(written):
    return Page(written[0])


def test_the_page_has_all_its_images_in_it(page):
    external = [x for x in page.addresses if not x.startswith(('data:image/', '#'))]

    assert external == []
    images = EMBEDDED.findall(page.source)
    assert len(images) > 20
    for image in images:
        Image.open(BytesIO(base64.b64decode(image))).load()
    assert 'http' not in page.source


def test_images_and_drawings_have_a_text(page):
    assert all(page.images)
    assert page.source.count('<svg') == page.source.count('<title>') - 1


def test_the_page_names_models_classes_and_figures(page):
    assert 'BiFormer-pico on handwritten digits' in page.text
    assert 'trained in 2 min 47 s' in page.text  # one, then two side by side
    for text in ('97.2', '1.5 M parameters', 'IoU of each class', 'AP50', 'background'):
        assert text in page.text
    for name in CLASSES:
        assert re.search(rf'<th scope="row">{name}</th>', page.source)


def test_wrong_predictions_are_marked(page):
    assert 'Mistakes, 1 of 7' in page.text
    assert '88%, is 3' in page.text  # a classifier's
    assert 'prediction, 1 wrong, 1 missed' in page.text
    assert 'prediction, all right' in page.text
    assert 'wrong pixels: 9.8 %' in page.text  # 40x40 of 128x128


def test_the_commands_have_config_and_checkpoint(page):
    assert re.search(
        r'infer\.py data/0\.jpg configs/x\.py \S+/detection/iter_100\.pth', page.text
    )
    assert page.text.count('tools/visualize.py configs/x.py') == 3


def test_the_image_has_a_row_for_each_task(written):
    sheet = Image.open(written[1])

    assert sheet.width > 1200
    assert sheet.height == pytest.approx(sheet.width, rel=0.2)


def test_the_summary_is_a_record_of_measurements(written):
    record = json.loads(written[2].read_text())

    text = ('title', 'what', 'machine', 'versions', 'command', 'commit', 'date')
    assert all(isinstance(record[name], str) for name in text)
    row = dict(metric='accuracy', result='97.2', training='1:23 min')
    assert row.items() <= record['figures']['detection'].items()
    assert record['configs']['detection'] == 'configs/x.py'
    assert record['results'][0]['parameters'] == 1_530_000


def test_there_is_a_report_before_any_training_has_ended(tmp_path):
    jobs = make_jobs(tmp_path)
    finish(jobs['classification'])
    (tmp_path / 'classification/result.json').unlink()

    first, sheet = report.write(tmp_path, 'DAT-nano', jobs)

    page = Page(first)
    assert '0 of 3 models are finished' in page.text
    assert 'Predictions after 100 iterations' in page.text
    assert 'Training has not begun' in page.text
    assert Image.open(sheet).height < 700


def test_boxes_match_by_class_and_overlap():
    truth = [[0, 0, 10, 10, 1], [20, 20, 30, 30, 2]]

    assert overlap(truth[0], [5, 0, 15, 10]) == pytest.approx(1 / 3)
    assert match(truth, truth) == (set(), set())
    assert match(truth, []) == (set(), {0, 1})
    assert match(truth, [[1, 0, 10, 10, 1], [0, 0, 10, 10, 1]]) == ({1}, {1})
    assert match(truth, [[0, 0, 10, 10, 2], [20, 20, 26, 30, 2]]) == ({0}, {0})


def test_a_curve_resumes_at_the_iteration_of_the_checkpoint(tmp_path):
    curve = Curve(tmp_path)
    curve.start(0, iterations=4)
    for iteration in (1, 2, 3):
        curve.add_loss(iteration, iteration / 10)
    with curve.path.open('a') as file:
        file.write('{"iteration": 4, "lo')  # killed while it wrote

    resumed = Curve(tmp_path)
    resumed.start(2, iterations=4)
    resumed.add_value(2, 45.0)

    points = read_curve(curve.path)
    assert [point['iteration'] for point in points] == [1, 2, 2]
    assert [point.get('loss') for point in points] == [0.1, 0.2, None]
    assert points[-1]['seconds'] >= points[1]['seconds']


def test_a_point_of_a_curve_is_the_mean_of_many_losses(tmp_path):
    curve = Curve(tmp_path)
    curve.start(0, iterations=1500)
    for iteration in range(1, 11):
        curve.add_loss(iteration, iteration)

    assert [point['loss'] for point in read_curve(curve.path)] == [5.5]


@pytest.mark.parametrize(('value', 'top'), [(2.4, 3), (0.13, 0.2), (10, 10), (61, 80)])
def test_axes_end_at_round_values(value, top):
    assert nice(value) == pytest.approx(top)


def test_a_chart_has_a_text_for_each_validation():
    points = [dict(iteration=5, loss=2.0), dict(iteration=10, value=71.26)]

    chart = draw_curve(points, 10, 'mIoU')

    assert '<title>Loss and mIoU over 10 iterations</title>' in chart
    assert '>71.3</text>' in chart
