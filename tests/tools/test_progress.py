"""Progress in a terminal and in a file."""

import _progress
import pytest


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    times = [0.0]
    monkeypatch.setattr(_progress.time, 'monotonic', lambda: times[0])
    return times


def test_a_file_gets_a_line_now_and_then_with_the_time_left(clock, capsys):
    with _progress.Progress('digits', 100, 'images') as progress:
        for done in range(1, 101):
            clock[0] = 0.5 * done
            progress.update()

    assert capsys.readouterr().err.splitlines() == [
        'digits: 20 of 100 images, 40 s left',
        'digits: 40 of 100 images, 30 s left',
        'digits: 60 of 100 images, 20 s left',
        'digits: 80 of 100 images, 10 s left',
        'digits: 100 of 100 images, 0 s left',
    ]


def test_what_is_short_prints_nothing(clock, capsys):
    with _progress.Progress('zoo', 2, 'models') as progress:
        clock[0] = 9
        progress.update(2)

    assert capsys.readouterr().err == ''


def test_more_steps_than_expected_are_no_error(clock, capsys):
    with _progress.Progress('a.mp4', 1, 'frames') as progress:
        clock[0] = 10
        progress.update(3)

    assert capsys.readouterr().err == 'a.mp4: 3 of 1 frames, 0 s left\n'


def test_a_terminal_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(_progress.sys.stderr, 'isatty', lambda: True)

    with _progress.Progress('digits', 10, 'images') as progress:
        progress.update(10)

    assert '10/10' in capsys.readouterr().err
