"""Run the core tests with several versions of Python, torch, numpy and the stacks.

Creates the environment of each row of tools/install/rows.py as `make install` does,
keeps it for the next time, and writes the results to docs/measurements/matrix.json and
into docs/stacks.md. A row that is not run keeps its result. The Pythons have to be on
the PATH, as python3.12 for example. An environment with another Python than the row's
is kept, and the row is not run. Exits with 1 if a row has not passed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

from install.rows import ROWS
from install.stack import ROOT, Stack

RECORD = ROOT / 'docs' / 'measurements' / 'matrix.json'
# A classifier, a detector and a segmentor, trained, killed and resumed; distributed and
# repeatable training; backbones, layers, operators and converters.
CORE = (
    'tests/engine/test_safe_checkpoints.py',
    *(
        f'tests/test_determinism.py::test_a_training_repeats_every_loss[{config}]'
        for config in (
            'dat/dat-nano_1xb32-9e_digits.py',
            'shunted_transformer/fpn_shunted-nano_1xb8-1600i_digits.py',
            'focus_detr/focus-detr_dat-nano_1xb4-4e_digits.py',
        )
    ),
    'tests/test_two_processes.py',
    'tests/engine/test_repeatable_randomness.py',
    *(
        f'tests/models/backbones/test_{name}.py'
        for name in ('contract', 'biformer', 'dat', 'shunted_transformer')
    ),
    'tests/models/layers',
    'tests/ops',
    'tests/conversion',
    # Takes long.
    *(
        f'--deselect=tests/{test}'
        for test in (
            'test_two_processes.py::test_a_process_that_dies_ends_the_job',
            'test_two_processes.py::test_one_process_may_have_no_boxes',
            'models/layers/test_dat_attention.py::test_compiles_into_one_graph',
            'models/layers/test_shunted_attention.py::test_compiles_into_one_graph',
            'models/backbones/test_contract.py'
            '::test_extreme_images_give_finite_outputs_and_gradients',
        )
    ),
    '--ignore=tests/models/layers/test_compared_attention.py',
    '--ignore=tests/models/layers/test_mlp.py',
    '--ignore=tests/ops/test_neighborhood_flex.py',
    '--ignore=tests/ops/test_properties.py',
    '--ignore=tests/ops/test_scaling.py',  # and old versions cannot count costs
    '--ignore=tests/ops/triton_kernels',
    '--ignore=tests/conversion/test_convert.py',
    '--ignore=tests/conversion/test_deformable_detr.py',
    '--ignore=tests/conversion/test_detr.py',
    '--ignore=tests/conversion/test_segmentors.py',
)
OPTIONS = ('-n', 'auto', '--maxprocesses', '4', '--dist', 'loadfile')
OPTIONS += ('--no-loadscope-reorder', '-q', '-p', 'no:cacheprovider')
# Prints the versions of the packages in the table.
VERSIONS = """
from importlib.metadata import version
for name in ('torch', 'numpy', {!r}):
    print(version(name))
"""


class RowError(Exception):
    """A row cannot be run, for a reason in one line."""


def main() -> None:
    args = parse_args()
    if args.list:
        print(json.dumps(list_rows()))
        return
    passed = True
    for name in args.rows or ROWS:
        print(f'--- {name}', flush=True)
        try:
            result = run_row(name)
        except RowError as error:
            print(f'{name}: {error}', file=sys.stderr)
            passed = False
            continue
        passed &= result['failed'] == '0'
        write_result(name, result)
    subprocess.run([sys.executable, 'docs/measurements.py'], cwd=ROOT, check=True)
    sys.exit(not passed)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'rows',
        nargs='*',
        metavar='ROW',
        help=f'{", ".join(ROWS)}; all of them if none is given',
    )
    parser.add_argument(
        '--list',
        action='store_true',
        help='print the rows and their Pythons as JSON, for a workflow',
    )
    args = parser.parse_args()
    for row in args.rows:
        if row not in ROWS:
            parser.error(f'ROW must be one of {", ".join(ROWS)}; got {row!r}')
    return args


def list_rows() -> list[dict[str, str]]:
    """Return the name and the Python of each row."""
    return [{'row': name, 'python': row.python} for name, row in ROWS.items()]


def run_row(name: str) -> dict[str, str]:
    """Install an environment and run the core tests in it; return its figures."""
    stack = Stack(name)
    check_environment(stack, ROWS[name].python)
    install(name, find_python(ROWS[name].python))
    report = stack.venv / 'core.xml'
    report.unlink(missing_ok=True)
    command = [stack.python, '-m', 'pytest', *CORE, *OPTIONS, f'--junit-xml={report}']
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {'OMP_NUM_THREADS': '1'})
    seconds = round(time.monotonic() - started)
    if done.returncode not in (0, 1):  # no tests, or pytest was interrupted
        raise RowError(f'the tests did not run: exit status {done.returncode}')
    code = VERSIONS.format(stack.mmcv)
    versions = subprocess.check_output([stack.python, '-c', code], text=True).split()
    return {
        'Python': ROWS[name].python,
        **dict(zip(('torch', 'numpy', 'mmcv'), versions, strict=True)),
        **count_outcomes(report),
        'time': f'{seconds // 60} min {seconds % 60} s',
        'date': f'{date.today()}',
        'commit': commit(),
    }


def commit() -> str:
    """Return the short hash of the commit that is checked out."""
    git = ('git', 'rev-parse', '--short', 'HEAD')
    return subprocess.check_output(git, cwd=ROOT, text=True).strip()


def find_python(version: str) -> str:
    """Return the path of a Python that runs; version managers have ones that do not."""
    for command in (f'python{version}', sys.executable):
        path = shutil.which(command)
        code = "import sys; print('{}.{}'.format(*sys.version_info))"
        if path and subprocess.getoutput(f'"{path}" -c "{code}"') == version:
            return path
    raise RowError(f'python{version} is not on the PATH: install Python {version}')


def check_environment(stack: Stack, python: str) -> None:
    """Raise RowError if the environment exists with another Python: keep it."""
    config = stack.venv / 'pyvenv.cfg'
    if config.is_file():
        found = re.search(r'^version\s*=\s*(\d+\.\d+)', config.read_text(), re.M)
        if found and found[1] != python:
            raise RowError(
                f'{stack.venv.name} has Python {found[1]}, and the row {python}: '
                'remove it to have it created again'
            )


def install(name: str, python: str) -> None:
    """Create the environment, unless it is there."""
    command = [python, ROOT / 'tools' / 'install.py', '--stack', name]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.splitlines() or [f'exit status {done.returncode}']
        # Before the name is a code to clear the line, on a terminal.
        raise RowError(f'not installed: {lines[-1].rpartition("install: ")[2]}')


def count_outcomes(report: Path) -> dict[str, str]:
    """Return the numbers of tests with each outcome, from pytest's report."""
    tests = list(ElementTree.parse(report).iter('testcase'))
    failed = sum(bool({'failure', 'error'} & {x.tag for x in test}) for test in tests)
    skips = [test.find('skipped') for test in tests]
    skips = [skip.get('type') for skip in skips if skip is not None]
    expected = skips.count('pytest.xfail')
    return {
        'passed': f'{len(tests) - failed - len(skips)}',
        'failed': f'{failed}',
        'expected failures': f'{expected}',
        'skipped': f'{len(skips) - expected}',
    }


def write_result(name: str, result: dict[str, str]) -> None:
    """Replace the figures of a row in the record."""
    record = json.loads(RECORD.read_text())
    figures = record['figures'] | {name: result}
    record['figures'] = {row: figures[row] for row in ROWS if row in figures}
    record['commit'] = commit()
    record['date'] = f'{date.today()}'
    RECORD.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
    main()
