import json

import pytest
import torch
from benchmark import Measurement
from benchmark.operators import plot_scaling
from benchmark.report import as_json, environment, figures, plot, record, table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

MEASURED = [
    Measurement('DINO', {'encoder': [2.0, 4.0, 3.0], 'whole': [4.0, 8.0, 6.0]}, 2**30),
    Measurement('Focus', {'encoder': [0.5, 1.0, 0.9], 'whole': [2.0, 4.0, 3.3]}, 2**29),
]


def test_the_table_has_medians_and_ratios_to_the_first_row():
    header, *rows = table(MEASURED).splitlines()

    assert header.split() == ['encoder', 'whole', 'peak', 'memory']
    assert rows[0].split() == [
        'DINO',
        '3.00',
        's',
        '1.00',
        '6.00',
        's',
        '1.00',
        '1,024',
        'MiB',
        '1.00',
    ]
    assert rows[1].split() == [
        'Focus',
        '900',
        'ms',
        '0.25',
        '3.30',
        's',
        '0.50',
        '512',
        'MiB',
        '0.50',
    ]
    assert len({len(line) for line in rows}) == 1


def test_json_has_all_rounds():
    first, second = json.loads(json.dumps(as_json(MEASURED)))

    assert first['ratio'] == {'encoder': 1, 'whole': 1}
    assert second == dict(
        name='Focus',
        seconds=MEASURED[1].seconds,
        median_seconds={'encoder': 0.9, 'whole': 3.3},
        least_seconds={'encoder': 0.5, 'whole': 2.0},
        ratio={'encoder': 0.25, 'whole': 0.5},
        peak_bytes=2**29,
        peak_ratio=0.5,
        macs=None,
    )


def test_a_baseline_without_allocations_has_no_memory_ratio():
    nothing = Measurement('none', {'whole': [1.0]}, 0)

    assert table([nothing]).splitlines()[1].split()[-1] == 'nan'


@pytest.mark.parametrize('rows', [1, 2])
def test_the_plot_has_a_row_for_each_result(rows, tmp_path):
    path = tmp_path / 'plot.png'

    plot({f'size {i}': MEASURED for i in range(rows)}, path, 'machine')

    width, height = Image.open(path).size
    assert width > 800
    assert height > 200 * rows
    assert len(Image.open(path).convert('RGB').getcolors(2**24)) > 2


def test_no_title_is_cut_or_covers_another(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Figure, 'savefig', lambda self, *args, **more: saved.append(self)
    )
    saved, long = (
        [],
        'focus-detr_swin-l-384-in22k_8xb2-36e_coco, prediction of 1x800x1333',
    )

    plot({long: MEASURED, f'{long} again': MEASURED[:1]}, tmp_path / 'a.png', long * 3)
    plot_scaling({64: MEASURED, 128: MEASURED}, tmp_path / 'b.png', long * 4)

    for figure in saved:
        FigureCanvasAgg(figure).draw()
        titles = [axis.title for axis in figure.axes]
        titles += [x._suptitle for x in (figure, *figure.subfigs)]
        boxes = [title.get_window_extent() for title in titles]
        for i, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_the_environment_has_machine_and_versions():
    found = environment(torch.device('cpu'))

    assert found['device']
    assert found['threads'] == torch.get_num_threads()
    assert found['versions']['torch'] == torch.__version__.partition('+')[0]


def test_a_record_has_the_fields_of_docs_measurements():
    fields = record(torch.device('cpu'))

    assert list(fields) == ['machine', 'versions', 'command', 'commit', 'date']
    assert all(isinstance(value, str) and value for value in fields.values())


def test_figures_are_text_with_ratios_to_the_first_row():
    assert figures({'64x64': MEASURED})['Focus'] == {
        'encoder': '900 ms',
        'encoder-ratio': '0.25',
        'whole': '3.30 s',
        'whole-ratio': '0.50',
        'peak memory': '512 MiB',
        'peak memory-ratio': '0.50',
    }
    two = figures({'64x64': MEASURED, '32x32': MEASURED})
    assert [*two][::3] == ['64x64: DINO', '32x32: Focus']
