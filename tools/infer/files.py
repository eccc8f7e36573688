"""Write drawings and predictions to files."""

import json
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np

from infer.inputs import Source
from mmsparse.errors import UsageError
from mmsparse.visualization.image_transform import Pixels

JPEG = ('.jpg', '.jpeg')


def write_drawing(out: Path, source: Source, drawing: Pixels) -> Path:
    """Write a drawing, RGB, to ``vis``: that of a JPEG file as JPEG, others as PNG."""
    suffix = Path(source.path).suffix
    suffix = suffix if suffix.lower() in JPEG else '.png'
    path = out / 'vis' / f'{source.name}{suffix}'
    mmcv.imwrite(np.ascontiguousarray(drawing[..., ::-1]), str(path))
    return path


def write_prediction(
    out: Path, name: str, content: dict[str, Any], label_map: np.ndarray | None
) -> None:
    """Write a prediction to ``preds``: a JSON file and, if given, a label map as PNG.

    Args:
        out: The output folder.
        name: Path in ``preds`` without suffix.
        content: Plain data.
        label_map: Class of every pixel, (H, W).
    """
    path = out / 'preds' / f'{name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    if label_map is not None:
        target = path.with_name(f'{path.name.removesuffix(".json")}.png')
        mmcv.imwrite(label_map, str(target))
        content = dict(content, label_map=target.name)
    text = json.dumps(content, ensure_ascii=False)
    path.write_text(f'{text}\n', encoding='utf-8')


class VideoFile:
    """A video in ``vis`` that drawings are appended to.

    Args:
        out: The output folder.
        source: The video of the frames.
        fps: Frames per second.
    """

    def __init__(self, out: Path, source: Source, fps: float) -> None:
        self.path = out / 'vis' / f'{source.name}.mp4'
        self.fps = fps
        self.writer: cv2.VideoWriter | None = None

    def append(self, drawing: Pixels) -> None:
        """Append a drawing, RGB, of the size of the first one."""
        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = drawing.shape[1::-1]
            codec = cv2.VideoWriter.fourcc(*'mp4v')
            self.writer = cv2.VideoWriter(str(self.path), codec, self.fps, size)
            if not self.writer.isOpened():
                raise UsageError(f'OpenCV cannot write {self.path}')
        self.writer.write(np.ascontiguousarray(drawing[..., ::-1]))

    def close(self) -> None:
        """Complete the file."""
        if self.writer is not None:
            self.writer.release()
