"""The folder of a training."""

from pathlib import Path

from mmengine.config import Config

from mmsparse.errors import UsageError


def check_folder(out: Path) -> None:
    """Raise UsageError if the output folder is a file or below one."""
    for path in (out, *out.parents):
        if path.is_file():
            raise UsageError(f'--out must be a folder; {path} is a file')


def keep_settings(cfg: Config, work_dir: Path) -> None:
    """Write the config of a training; raise UsageError if its folder has another."""
    work_dir.mkdir(parents=True, exist_ok=True)
    settings = work_dir / 'config.py'
    if settings.is_file() and settings.read_text() != cfg.pretty_text:
        raise UsageError(
            f'{work_dir} has a training with other settings; remove it, or choose '
            'another --out'
        )
    settings.write_text(cfg.pretty_text)
