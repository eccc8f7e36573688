import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from forked import Forked

import mmsparse

HOSTS = ('mmdet', 'mmseg', 'mmpretrain')
PACKAGE = Path(mmsparse.__file__).parent


def run(program):
    """Run a program in a new process; return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', f'import sys\n{program}'],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_only_the_detectors_import_mmdet_and_the_ops_need_torch_only():
    statements = (
        'import mmsparse, mmsparse.ops',
        'import mmsparse.models',
        'from mmsparse.models import FocusDETR, FocusDETRHead, SparseDETR',
    )

    printed = run(''.join(f'{x}\nprint(*sys.modules)\n' for x in statements))

    ops, models, detectors = (set(line.split()) for line in printed)  # no other lines
    assert 'torch' in ops
    assert ops.isdisjoint({*HOSTS, 'mmengine', 'mmcv'})
    assert models.isdisjoint(HOSTS)
    assert 'mmdet' in detectors
    assert 'mmseg' not in detectors


@pytest.fixture
def imported_after_hosts(tmp_path):
    """Modules after a statement in a process that has mmdet, mmseg and mmpretrain."""

    def import_after_hosts(statement):
        path = tmp_path / 'program.py'
        path.write_text(f'import sys\n{statement}\nprint(*sys.modules)')
        done = Forked(path, cwd=tmp_path).finish()
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return import_after_hosts


@pytest.mark.parametrize('scope', HOSTS)
def test_the_registry_resolves_in_any_scope_without_custom_imports(
    scope, imported_after_hosts
):
    modules = imported_after_hosts(
        f'from {scope}.registry import MODELS\n'
        "MODELS.build(dict(type='mmsparse.BiFormer', arch='nano'))"
    )

    assert 'mmsparse.models' in modules


def test_a_detector_is_found_by_its_name_after_a_backbone(imported_after_hosts):
    modules = imported_after_hosts(
        'from mmdet.registry import MODELS\n'
        "MODELS.build(dict(type='mmsparse.BiFormer', arch='nano'))\n"
        "assert 'mmsparse.models.detectors' not in sys.modules\n"
        "assert MODELS.get('mmsparse.FocusDETR').__name__ == 'FocusDETR'"
    )

    assert 'mmsparse.models.detectors' in modules


def test_without_mmdet_everything_but_the_detectors_works():
    printed = run(
        "sys.modules['mmdet'] = None\n"
        'import mmsparse.checkpoint, mmsparse.conversion, mmsparse.factory\n'
        'import mmsparse.models\n'
        'from mmengine.registry import MODELS\n'
        "MODELS.build(dict(type='mmsparse.BiFormer', arch='nano'))\n"
        "for wanted in (lambda: MODELS.get('mmsparse.FocusDETR'),\n"
        '               lambda: mmsparse.models.FocusDETR):\n'
        '    try: wanted()\n'
        "    except ModuleNotFoundError as error: print(error.name.split('.')[0])"
    )

    assert printed == ['mmdet', 'mmdet']


@pytest.mark.parametrize('package', ['mmsparse', 'mmsparse.models'])
def test_a_lazy_package_has_no_other_names(package):
    module = sys.modules.get(package) or __import__(package, fromlist=['_'])

    with pytest.raises(AttributeError, match=f"{package}' has no attribute 'YOLO'"):
        _ = module.YOLO
    for name in set(module.__all__) - {'BACKBONES'}:
        assert getattr(module, name).__name__ == name


def test_no_import_is_circular():
    """Imports inside of functions count, and those for type checking."""
    graph = grimp.build_graph('mmsparse', cache_dir=None)
    imports = {
        module: graph.find_modules_directly_imported_by(module)
        for module in graph.modules
    }
    assert sum(map(len, imports.values())) > 200

    assert strongly_connected(imports) == []


def test_a_cycle_would_be_found():
    imports = dict(a={'b'}, b={'c'}, c={'b', 'd'}, d=set(), e={'e', 'a'})

    assert strongly_connected(imports) == [{'b', 'c'}, {'e'}]


def strongly_connected(imports):
    """Groups of modules that import each other, or themselves."""

    def reachable(start):
        found, pending = set(), [start]
        while pending:
            new = imports[pending.pop()] - found
            found |= new
            pending += new
        return found

    reached = {module: reachable(module) for module in imports}
    groups = {
        frozenset(x for x in reached[module] if module in reached[x])
        for module in imports
        if module in reached[module]
    }
    return sorted(map(set, groups), key=sorted)


def test_modules_of_the_package_are_imported_by_their_name():
    """By a string only the lazy names of `__init__.py` and `registry.py` are."""
    allowed = {PACKAGE / '__init__.py', PACKAGE / 'registry.py'}
    paths = set(PACKAGE.rglob('*.py'))
    assert allowed < paths

    found = {path for path in paths if imports_by_string(path.read_text())}

    assert found <= allowed


def imports_by_string(source):
    """Whether a program imports a module of the package by a string."""
    functions = ('import_module', '__import__', 'find_spec', 'resolve_name')
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = getattr(node.func, 'attr', getattr(node.func, 'id', None))
        text = node.args[0]
        if isinstance(text, ast.JoinedStr):
            text = text.values[0]
        text = str(getattr(text, 'value', ''))
        if name in functions and text.startswith(('mmsparse', '.')):
            return True
    return False


@pytest.mark.parametrize(
    ('source', 'found'),
    [
        ("import_module('mmsparse.ops')", True),
        ("importlib.import_module(f'mmsparse.{x}')", True),
        ("import_module('.ops', __package__)", True),
        ("import_module('mmdet.models')", False),
        ("import_module(f'{scope}.registry')", False),
        ('from mmsparse.ops import windows', False),
    ],
)
def test_imports_by_string_are_found(source, found):
    assert imports_by_string(source) is found
