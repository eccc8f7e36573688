"""What a public data set has to define, and what all of them share."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from _progress import Progress
from PIL import Image

from mmsparse.errors import UsageError

META = 'meta.json'
FORMAT = 'mmsparse public data'
SAMPLES = 16  # of a sheet
COLUMNS = 4
TILE = (320, 240)  # width and height of a sample in the sheet


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Args:
        summary: One line for the help.
        layout: What is read and written, for the help.
        markers: Files or folders relative to the root, one of which every download has.
        counts: Number of files, or of entries, of the whole data set.
        count: Returns the same numbers of a folder.
        draw: Returns up to as many samples with their labels as it is given.
        write: Writes the data set from its root into an empty folder; returns lines to
            print.
    """

    summary: str
    layout: str
    markers: tuple[str, ...]
    counts: Mapping[str, int]
    count: Callable[[Path], dict[str, int]]
    draw: Callable[[Path, int], list[Image.Image]]
    write: Callable[[Path, Path], Iterable[str]]

    def check(self, root: Path, partial: bool) -> dict[str, int]:
        """Return the numbers of files; raise UsageError if some are missing.

        ``partial`` accepts fewer files, but no part without any.
        """
        found = self.count(root)
        for name, expected in self.counts.items():
            if found[name] == expected or (partial and found[name]):
                continue
            raise UsageError(
                f'{root} has {found[name]} of {expected} {name}: the download is '
                'incomplete or changed; repeat it, or pass --partial to use what is '
                'there'
            )
        return found


@contextmanager
def unpacked(source: Path, markers: Sequence[str]) -> Iterator[Path]:
    """Yield the folder with one of ``markers``, in a folder or in an unpacked zip."""
    if source.is_dir():
        yield find_root(source, markers)
        return
    if not source.is_file():
        raise UsageError(
            f'no such file or folder: {source}; give the downloaded zip, or the folder '
            'that it was unpacked into'
        )
    with TemporaryDirectory(prefix='mmsparse-') as folder:
        try:
            with zipfile.ZipFile(source) as archive:
                extract(archive, Path(folder))
        except (zipfile.BadZipFile, EOFError) as error:
            raise UsageError(
                f'{source} is no whole zip ({error}): repeat the download'
            ) from error
        yield find_root(Path(folder), markers, shown=source)


def extract(archive: zipfile.ZipFile, folder: Path) -> None:
    """Unpack an archive; zipfile compares the checksum of each file."""
    names = archive.namelist()
    with Progress('unpack', len(names), 'files') as progress:
        for name in names:
            archive.extract(name, folder)
            progress.update()


def find_root(folder: Path, markers: Sequence[str], shown: Path | None = None) -> Path:
    """Return the folder itself, or the one in it, that has a marker."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    for root in (folder, *inside):
        if any((root / marker).exists() for marker in markers):
            return root
    raise UsageError(
        f'{shown or folder} has no {" or ".join(markers)}: is it another data set, or '
        'incomplete?'
    )


@contextmanager
def whole_folder(out: Path, force: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes ``out`` at the end, if all went well."""
    if out.exists() and not out.is_dir():
        raise UsageError(f'{out} is not a folder')
    if out.is_dir() and any(out.iterdir()):
        if not is_prepared(out):
            raise UsageError(f'{out} has other files: choose another --out')
        if not force:
            raise UsageError(f'{out} exists; --force replaces it')
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f'.{out.name}-', dir=out.parent) as temporary:
        built = Path(temporary, 'built')
        built.mkdir()
        yield built
        if out.exists():
            out.rename(built.with_name('replaced'))
        built.rename(out)


def is_prepared(out: Path) -> bool:
    """Return whether a folder was written by this command."""
    try:
        meta = json.loads((out / META).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(meta, dict) and meta.get('format') == FORMAT


def write_meta(out: Path, name: str, counts: Mapping[str, int]) -> None:
    meta = dict(format=FORMAT, name=name, counts=dict(counts))
    (out / META).write_text(json.dumps(meta, indent=2) + '\n')


def copy_files(label: str, pairs: Iterable[tuple[Path, Path]]) -> None:
    """Copy files, with their progress; folders are created."""
    pairs = list(pairs)
    with Progress(label, len(pairs), 'files') as progress:
        for source, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            progress.update()


def find_images(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted."""
    return sorted(x for x in folder.glob('*') if x.suffix in ('.jpg', '.png'))


def write_sheet(path: Path, tiles: list[Image.Image]) -> None:
    """Write images in rows of four."""
    width, height = TILE
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new('RGB', (COLUMNS * width, rows * height), (255, 255, 255))
    for number, tile in enumerate(tiles):
        tile = tile.convert('RGB')
        scale = min(width / tile.width, height / tile.height)
        size = round(scale * tile.width), round(scale * tile.height)
        place = number % COLUMNS * width, number // COLUMNS * height
        sheet.paste(tile.resize(size), place)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
