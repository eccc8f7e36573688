import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mmsparse.evaluation import KeptTokens
from mmsparse.ops import cell_centres
from mmsparse.visualization import draw_kept_tokens

SIZES = ((4, 8), (2, 4))
PICTURE = np.full((40, 60, 3), 200, np.uint8)


def tokens(ratio=1.0):
    """Layer 1 keeps a cell of the finer level, layer 2 one of the other."""
    centres = cell_centres(SIZES, torch.tensor([[[ratio, 1.0]] * 2]))
    kept = torch.zeros(1, 2, 40, dtype=torch.bool)
    kept[0, 0, 1 * 8 + 2] = kept[0, 1, 32 + 1 * 4] = True
    return KeptTokens(centres, kept, SIZES)


def panels(figure):
    """The pixels of every panel, at 10 to one of the picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., 0].astype(int)
    found = []
    for axis in figure.axes:
        box = axis.get_window_extent()
        rows = slice(round(len(image) - box.y1), round(len(image) - box.y0))
        found.append(image[rows, round(box.x0) : round(box.x1)])
    return found


def brightest(panel):
    """Centre (x, y) of the bright pixels, as parts of the panel; None without."""
    inner = panel[3:-3, 3:-3]
    rows, columns = np.nonzero(inner > 150)
    if not len(rows):
        return None
    return (columns.mean() + 3) / panel.shape[1], (rows.mean() + 3) / panel.shape[0]


@pytest.mark.parametrize('ratio', [1.0, 0.5], ids=['fitting', 'padded'])
def test_kept_cells_are_bright_where_they_lie(ratio):
    figure = draw_kept_tokens(PICTURE, tokens(ratio), torch.empty(0, 4))

    found = [brightest(panel) for panel in panels(figure)]

    # Level 1, layers 1 and 2; level 2, layers 1 and 2.
    assert found[0] == pytest.approx((2.5 / (8 * ratio), 1.5 / 4), abs=0.02)
    assert found[1] is None
    assert found[2] is None
    assert found[3] == pytest.approx((0.5 / (4 * ratio), 1.5 / 2), abs=0.02)


def test_boxes_are_drawn_in_pixels_of_the_picture():
    boxes = torch.tensor([[6.0, 4, 30, 36]])

    figure = draw_kept_tokens(PICTURE, tokens(), boxes)

    for axis in figure.axes:
        (patch,) = axis.patches
        assert patch.get_bbox().extents.tolist() == boxes[0].tolist()


def test_titles_tell_the_part_that_is_kept():
    given = tokens()
    given.kept[0, 0, :4] = True

    figure = draw_kept_tokens(PICTURE, given, torch.empty(0, 4))

    assert [x.get_title() for x in figure.axes[:2]] == [
        'layer 1: 12% kept',
        'layer 2: 3% kept',
    ]
    assert figure.axes[2].get_ylabel() == '2x4 cells'


def test_a_batch_of_two_is_refused():
    two = KeptTokens(torch.rand(2, 40, 2), torch.zeros(2, 1, 40).bool(), SIZES)

    with pytest.raises(ValueError, match='tokens must be of one picture; got 2'):
        draw_kept_tokens(PICTURE, two, torch.empty(0, 4))
