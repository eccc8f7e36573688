import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from benchmark import shapes, tuning

from mmsparse.ops import _tuning, routed
from mmsparse.ops._tuning import device_name, fastest_backend, measurements, tuning_file

TOOL = Path(__file__).parents[3] / 'tools' / 'benchmark.py'
CPU = torch.device('cpu')
CASES = {case.op: case for case in shapes.smallest_cases() if case.sizes}


@pytest.fixture
def tuned(tmp_path, monkeypatch, capsys):
    """Run ``ops --tune`` with times of our choice; return the file that it prints."""
    monkeypatch.setenv(_tuning.FOLDER_VARIABLE, str(tmp_path / 'user'))
    monkeypatch.setattr(_tuning, 'FOLDER', tmp_path)
    measurements.cache_clear()

    def run(**fastest):
        """Make a backend the fastest for one pass or both, ``training='masked'``."""

        def time_passes(candidates, device, seconds):
            return {
                name: {
                    'forward, ms': 1.0 + (name != fastest.get('forward')),
                    'forward + backward, ms': 1.0 + (name != fastest.get('training')),
                }
                for name in candidates
            }

        monkeypatch.setattr(shapes, 'model_cases', lambda *_: shapes.smallest_cases())
        monkeypatch.setattr(tuning, 'time_passes', time_passes)
        arguments = ['ops', '--tune', '--device', 'cpu']
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(TOOL), run_name='__main__')
        assert exit.value.code in (0, None)
        measurements.cache_clear()
        return Path(capsys.readouterr().out.splitlines()[-1])

    yield run
    measurements.cache_clear()


def test_the_file_says_what_was_measured(tuned, tmp_path):
    path = tuned(forward='masked')

    assert path == tmp_path / 'user' / tuning_file(device_name(CPU))
    content = json.loads(path.read_text())
    assert content['device'] == device_name(CPU)
    assert content['command'].endswith('benchmark.py ops --tune --device cpu')
    assert content['versions']['torch'] == torch.__version__.partition('+')[0]
    assert len(content['date']) == 10
    assert content['ops'].keys() == CASES.keys()
    forward, training = content['ops']['routed_attention']
    assert forward == dict(
        sizes=CASES['routed_attention'].sizes,
        dtype='float32',
        training=False,
        milliseconds=dict(reference=2.0, gathered=2.0, masked=1.0),
    )
    assert training['milliseconds'] == dict(reference=2.0, gathered=2.0, masked=2.0)


def test_ops_read_which_backend_was_the_fastest(tuned):
    tuned(forward='masked', training='gathered')
    known = routed.BACKENDS[1:]
    sizes = CASES['routed_attention'].sizes

    for training, expected in ((False, 'masked'), (True, 'gathered')):
        x = torch.zeros(1, requires_grad=training)
        assert fastest_backend('routed_attention', x, known, **sizes) == expected


@pytest.mark.skipif(
    not hasattr(routed, 'fastest_backend'), reason='routed attention asks no file yet'
)
@pytest.mark.parametrize('backend', ['masked', 'gathered'])
def test_auto_takes_what_was_measured(tuned, monkeypatch, backend):
    tuned(training=backend)
    calls = []
    for name in ('masked', 'gathered'):
        function = getattr(routed, f'_{name}')

        def spy(*args, name=name, function=function):
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(routed, f'_{name}', spy)

    CASES['routed_attention'].call(CPU, torch.float32).run('auto')

    assert calls == [backend]


@pytest.mark.parametrize('op', CASES)
def test_cases_are_calls_of_their_sizes(op):
    case = CASES[op]
    call = case.call(CPU, torch.bfloat16)

    assert case.backends[0] == 'reference'
    assert 'auto' not in case.backends
    q = call.leaves[0]
    out, *gradients = call.train('reference', call.cotangent())
    assert out.dtype == q.dtype == torch.bfloat16
    assert [x.shape for x in gradients] == [x.shape for x in call.leaves]
    assert all(x.abs().sum() > 0 for x in gradients)


def test_cases_of_the_models_have_the_sizes_of_the_models():
    cases = [case for case in shapes.model_cases(2, 1) if case.sizes]

    routes = [x.sizes for x in cases if x.op == 'routed_attention']
    # BiFormer-S at 224x224: stages of 56, 28 and 14 cells a side, 7 regions a side.
    assert {x['regions'] * x['tokens'] for x in routes} >= {56**2, 28**2, 14**2}
    assert {x['head_dim'] for x in routes} == {32}
    assert all(x['keys'] % x['tokens'] == 0 for x in routes)
    deformable = [x.sizes for x in cases if x.op == 'deformable_attention']
    assert {x['keys'] for x in deformable} == {49, 196, 1050}
    large = [x for x in cases if '800x1344 stage 1' in x.shape]
    assert all('masked' not in x.backends for x in large)


def test_a_reference_that_needs_too_much_memory_is_not_run():
    large = [x for x in shapes.model_cases(2, 1) if '800x1344 stage 1' in x.shape]
    fits = {x.op: shapes.reference_fits(x, CPU) for x in large}

    assert not fits['routed_attention']
    assert fits['deformable_attention']
    assert all(shapes.reference_fits(x, CPU, 8) for x in shapes.odd_cases())
