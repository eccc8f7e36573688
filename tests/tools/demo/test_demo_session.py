"""What the page computes, without the page."""

import numpy as np
import pytest
from demo.models import Choice, list_choices, load
from demo.session import DPI, Session

from mmsparse import create_model, list_models
from mmsparse.checkpoint import write_checkpoint
from mmsparse.visualization import panels

CHOICES = {x: Choice(x) for x in ('biformer-pico', 'dat-nano')}
CROSS = (0, 229, 255)


@pytest.fixture
def session():
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    return Session(CHOICES, image)


def change(before, after):
    return np.abs(before.astype(int) - after).max()


def test_a_click_moves_query_and_drawing(session):
    session.click(0, 0)
    before = session.draw()
    assert change(before, session.draw()) == 0

    session.click(400, 300)

    assert session.point == (80.1, 60.1)  # every pixel is drawn as 5 x 5
    assert session.legend.startswith('Query at x 80, y 60 of 96 x 64 pixels. What the')
    assert change(before, session.draw()) > 50


def test_the_marked_image_has_a_cross_at_the_query(session):
    session.click(400, 300)

    marked = session.marked_image()

    assert marked.shape == (5 * 64, 5 * 96, 3)
    rows, columns = np.nonzero((marked == CROSS).all(-1))
    assert (np.median(rows), np.median(columns)) == (300, 400)
    unmarked = session.image.repeat(5, axis=0).repeat(5, axis=1)
    assert np.array_equal(marked[:280], unmarked[:280])


def test_clicks_at_the_border_are_inside_of_the_image(session):
    for x, y in ((0, 0), (480, 320), (-3, 999)):
        session.click(x, y)
        session.draw()
        assert (session.marked_image() == CROSS).all(-1).any()


def test_another_model_has_other_drawings_and_the_same_query(session):
    assert session.drawings == ['Attention', 'Routed regions', 'Receptive field']
    session.click(100, 100)
    point, session.drawing = session.point, 'Routed regions'

    session.choose('dat-nano')

    assert session.drawings == ['Attention', 'Sampled keys', 'Receptive field']
    assert (session.drawing, session.point) == ('Attention', point)
    session.drawing = 'Sampled keys'
    assert change(session.draw(), np.full((1, 1, 3), 255)) > 50


def test_another_image_has_another_query(session):
    session.click(0, 0)

    session.open(np.full((100, 70, 3), 128, np.uint8))

    assert 0 <= session.point[0] < 70 and 0 <= session.point[1] < 100
    assert session.point != (0.1, 0.1)
    assert session.draw().shape[1] == round(
        (panels.SHEET_WIDTH + panels.BAR_WIDTH) * DPI
    )


def test_random_weights_are_announced(session):
    assert session.notice.startswith('**biformer-pico has random weights**')
    assert '--model biformer-pico --checkpoint FILE' in session.notice


def test_trained_models_are_first_and_large_ones_are_missing():
    choices = list(list_choices().values())

    assert choices[0].title == 'biformer-nano, trained on digits'
    assert choices[0].weights.is_file()
    names = [x.name for x in choices if x.weights is None]
    assert {'dat-tiny', 'shunted-nano'} < set(names) < set(list_models())
    assert 'dat-base' not in names


def test_a_model_that_is_named_is_first():
    assert next(iter(list_choices('dat-base'))) == 'dat-base, random weights'
    trained = 'biformer-nano, trained on digits'
    assert next(iter(list_choices('biformer-nano'))) == trained


def test_a_checkpoint_is_loaded_and_has_no_notice(tmp_path):
    weights = create_model('dat-nano', num_classes=3).state_dict()
    write_checkpoint(tmp_path / 'mine.pth', weights, meta={})

    choices = list_choices('dat-nano', str(tmp_path / 'mine.pth'))
    session = Session(choices, np.zeros((64, 64, 3), np.uint8))

    assert session.title == 'dat-nano, mine.pth'
    assert session.notice == ''
    loaded = load(choices[session.title]).state_dict()
    assert all((loaded[key] == x).all() for key, x in weights.items())
