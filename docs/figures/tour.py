"""Execute docs/tour.ipynb in an empty folder, and write its outputs into it."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / 'tour.ipynb'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default=TOUR, metavar='FILE', help='another file')
    out = Path(parser.parse_args().out)
    notebook = nbformat.read(TOUR, as_version=4)
    metadata = notebook.metadata.copy()
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=300, record_timing=False, kernel_name='python3'
        )
        client.resources['metadata'] = {'path': folder}
        client.execute()
    notebook.metadata = metadata  # without the versions of this machine
    nbformat.write(notebook, out)


if __name__ == '__main__':
    main()
