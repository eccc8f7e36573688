"""Wheel, sdist and editable install, built by the hooks that pip calls."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from importlib.metadata import PathDistribution
from pathlib import Path

import nbformat
import pytest
from forked import Forked
from mmengine.config import Config

ROOT = Path(__file__).parents[1]
SOURCES = (
    *('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.md'),
    *('CHANGELOG.md', 'CITATION.cff', 'model-index.yml', 'mmsparse', 'configs'),
    *(
        'tools',
        'weights',
        'constraints.txt',
        'constraints-onedl.txt',
        'constraints-oldest.txt',
    ),
)
FOR_CLONES = ('install', 'matrix', 'quickstart', 'zoo_tables', 'weights_manifest')
CACHES = shutil.ignore_patterns('__pycache__', '.mim')
DIGITS = 'biformer-nano_1xb32-9e_digits'


def run(*command, cwd, **variables):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, 'PYTHONWARNINGS': 'ignore', **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def call_hooks(source, code):
    return run('-c', f'from setuptools.build_meta import *\n{code}', cwd=source)


def files_below(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and not {'__pycache__', '.mim'} & {*path.parts}
    }


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """A copy of the files that the wheel is built from."""
    folder = tmp_path_factory.mktemp('clone')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=CACHES)
        else:
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope='module')
def sdist(clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp('sdist')
    call_hooks(clone, f'build_sdist({str(folder)!r})')
    (archive,) = folder.glob('mmsparse-*.tar.gz')
    return archive


@pytest.fixture(scope='module')
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the sdist as package indexes and `build` do."""
    folder = tmp_path_factory.mktemp('wheel')
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter='data')
    (source,) = folder.iterdir()
    call_hooks(source, f'build_wheel({str(folder)!r})')
    (wheel,) = folder.glob('mmsparse-*.whl')
    return wheel


@pytest.fixture(scope='module')
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith('/')}


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """A folder with the installed wheel, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp('installed')
    options = ('--no-deps', '--no-index', '--target', folder)
    run('-m', 'pip', 'install', *options, wheel, cwd=folder)
    return folder


def test_the_sdist_has_no_tests(sdist):
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if '/tests' in name]


def test_the_wheel_has_exactly_the_files_of_the_package(names):
    package = {name for name in names if name.startswith('mmsparse/')}
    below = {name for name in package if not name.startswith('mmsparse/.mim/')}

    assert below == {f'mmsparse/{name}' for name in files_below(ROOT / 'mmsparse')}
    assert {'mmsparse/py.typed', 'mmsparse/visualization/page.html'} <= below
    assert {name.split('/')[0] for name in names - package} == {
        name.split('/')[0] for name in names if name.endswith('.dist-info/METADATA')
    }


def test_the_wheel_has_configs_tools_and_index_for_mim(names):
    mim = {name[len('mmsparse/.mim/') :] for name in names if '/.mim/' in name}
    configs = {f'configs/{name}' for name in files_below(ROOT / 'configs')}
    tools = {
        f'tools/{name}'
        for name in files_below(ROOT / 'tools')
        if not name.startswith(FOR_CLONES)
    }

    weights = {f'weights/{path.name}' for path in (ROOT / 'weights').glob('*.pth')}

    assert mim == configs | tools | weights | {'model-index.yml'}
    folders = {name.split('/')[1] for name in tools if name.count('/') > 1}
    assert folders == {
        'ablation',
        'annotations',
        'benchmark',
        'comparison',
        'completion',
        'demo',
        'digits',
        'infer',
        'parity',
        'public_data',
        'training',
        'visualize',
    }


def printed(path):
    """Return the output of the cells of a notebook, and the number of its drawings."""
    outputs = [
        output
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get('outputs', ())
    ]
    drawings = sum('image/jpeg' in output.get('data', ()) for output in outputs)
    return ''.join(output.get('text', '') for output in outputs), drawings


def test_the_tour_runs_with_the_wheel_in_an_empty_folder(installed, tmp_path):
    found = tmp_path / 'tour.ipynb'

    run(
        *(ROOT / 'docs/figures/tour.py', '--out', found),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
        OMP_NUM_THREADS='1',
    )

    (text, drawings), (expected, _) = printed(found), printed(ROOT / 'docs/tour.ipynb')
    assert drawings == 4
    shapes = expected.partition('accuracy')[0]
    assert 'stride 32: (1, 512, 14, 20)' in shapes
    assert text.startswith(shapes)
    assert int(re.search(r'accuracy on .*: (\d+)%', text)[1]) > 85
    assert '514 weights\n' in text
    assert '] equal\nMaskRCNN with BiFormer\n' in text  # ONNX file and model


def test_helpers_of_tools_do_not_have_the_name_of_a_command():
    """`mim run` finds commands by file name in all folders."""
    commands = {path.name for path in (ROOT / 'tools').glob('*.py')}
    helpers = {path.name for path in (ROOT / 'tools').glob('*/**/*.py')}

    assert not commands & helpers


def run_program(code, folder, *paths):
    """Run a program with these folders in PYTHONPATH; return what it prints."""
    program = folder / 'program.py'
    program.write_text(code)
    variable = os.pathsep.join(map(str, paths))
    done = Forked(program, cwd=folder, PYTHONPATH=variable).finish()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_every_command_of_the_wheel_finds_its_helpers(installed, tmp_path):
    code = (
        'import runpy, sys\n'
        'from pathlib import Path\n'
        'for path in Path(sys.path[1]).glob("*.py"):\n'
        '    runpy.run_path(str(path))\n'
        '    print(path.stem)\n'
    )
    tools = installed / 'mmsparse' / '.mim' / 'tools'
    printed = run_program(code, tmp_path, tools, installed)

    assert {'ablate', 'benchmark', 'check_parity'} <= set(printed.split())


@pytest.mark.parametrize(
    ('arguments', 'printed'),
    [
        (['--version'], 'mmsparse 0.1.0\n'),
        (['completion', 'bash'], 'complete -o bashdefault -F _shtab_mmsparse mmsparse'),
        (['zoo-tables'], 'error: mmsparse has no command'),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else '',
)
def test_the_wheel_installs_the_command(arguments, printed, installed, tmp_path):
    done = subprocess.run(
        [sys.executable, installed / 'bin' / 'mmsparse', *arguments],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(installed)},
        capture_output=True,
        text=True,
    )

    assert printed in done.stdout + done.stderr


def test_mim_runs_a_command_of_the_wheel(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'mim', 'run', 'mmsparse', 'prepare_digits', '--seed=-1'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(installed)},
        capture_output=True,
        text=True,
    )

    assert 'error: --seed must be 0 to 2**32 - 1, got -1' in done.stderr


def test_the_metadata_have_the_extras_and_the_license(installed):
    (folder,) = installed.glob('*.dist-info')
    distribution = PathDistribution(folder)

    extras = set(distribution.metadata.get_all('Provides-Extra'))
    assert {'openmmlab', 'onedl'} <= extras
    assert distribution.metadata['License'] == 'Apache-2.0'
    assert (folder / 'licenses' / 'LICENSE').read_text() == (
        ROOT / 'LICENSE'
    ).read_text()
    assert distribution.read_text('top_level.txt') == 'mmsparse\n'


def test_the_installed_package_registers_and_its_configs_build(installed, tmp_path):
    config = f'.mim/configs/biformer/{DIGITS}.py'
    code = (
        'from pathlib import Path\n'
        'from mmengine.utils import get_installed_path\n'
        'from mmsparse.apis import build_model, read_config\n'
        f"path = Path(get_installed_path('mmsparse'), '{config}')\n"
        'model = build_model(read_config(str(path)))\n'
        'module = __import__(type(model.backbone).__module__)\n'
        "print(path, module.__file__, sep='\\n')"
    )
    printed = run_program(code, tmp_path, installed)

    folder = installed / 'mmsparse'
    assert printed.splitlines()[-2:] == [
        str(folder / config),
        str(folder / '__init__.py'),
    ]


def test_mim_finds_its_files_in_an_editable_install(clone, tmp_path):
    editable, packages = tmp_path / 'editable', tmp_path / 'packages'
    editable.mkdir()
    call_hooks(
        clone,
        f'folder = {str(editable)!r}\n'
        "info = folder + '/' + prepare_metadata_for_build_editable(folder)\n"
        'build_editable(folder, metadata_directory=info)',
    )
    (wheel,) = editable.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    code = (
        'import mim.utils, mmengine.utils\n'
        "print(*(x.utils.get_installed_path('mmsparse') for x in (mim, mmengine)))"
    )
    printed = run('-c', code, cwd=tmp_path, PYTHONPATH=str(packages))

    assert set(printed.split()) == {str(clone / 'mmsparse')}
    mim = clone / 'mmsparse' / '.mim'
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (mim / name).samefile(clone / name)
    assert Config.fromfile(mim / 'configs' / 'biformer' / f'{DIGITS}.py').model


@pytest.mark.slow
def test_mim_searches_downloads_trains_and_tests(installed, small_digits, tmp_path):
    mim = functools.partial(run, '-m', 'mim', PYTHONPATH=str(installed))
    settings = (
        *('--cfg-options', 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=4'),
        *('train_dataloader.dataset.indices=8', 'randomness.seed=0'),
    )

    listed = mim('search', 'mmsparse', '--model', 'biformer', cwd=tmp_path)
    assert 'config id: biformer-small_8xb128-300e_in1k' in listed

    mim('train', 'mmsparse', f'{DIGITS}.py', *settings, cwd=small_digits)
    (checkpoint,) = (small_digits / 'work_dirs' / DIGITS).glob('epoch_1.pth')

    index = installed / 'mmsparse' / '.mim' / 'configs' / 'biformer' / 'metafile.yml'
    with served(checkpoint.parent) as address:
        add_weights(index, f'{address}/{checkpoint.name}')
        wanted = ('--config', 'biformer-tiny_8xb128-300e_in1k', '--dest', tmp_path)
        mim('download', 'mmsparse', *wanted, cwd=tmp_path)
    copy = tmp_path / checkpoint.name
    assert copy.read_bytes() == checkpoint.read_bytes()
    config = Config.fromfile(tmp_path / 'biformer-tiny_8xb128-300e_in1k.py')
    assert config.model.backbone.arch == 'tiny'

    command = ('test', 'mmsparse', f'{DIGITS}.py', '--checkpoint', copy)
    assert 'accuracy/top1' in mim(*command, cwd=small_digits)


@contextmanager
def served(folder):
    """Serve the files of a folder by HTTP, the only protocol that mim reads."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def add_weights(metafile, address):
    """Add weights to the first model of a metafile."""
    before, models, after = metafile.read_text().partition('Models:\n  - ')
    metafile.write_text(f'{before}{models}Weights: {address}\n    {after}')
