"""Run a trained model on images and videos; draw and write the predictions.

Written to DIR for NAME.jpg, and for every image in a folder:

  vis/NAME.jpg      drawing of the prediction, of a small image enlarged
  preds/NAME.json   prediction, with boxes of all scores; coordinates in pixels of the
                    image, after its rotation by EXIF
  preds/NAME.png    of a segmentor: class of every pixel, from 0

and for NAME.mp4 vis/NAME.mp4 and a file for every frame, preds/NAME/000000.json first.
A file that cannot be read is reported and the others are drawn; the exit status is 1.
"""

import argparse
import sys
from pathlib import Path

from _cli import check_files, check_unique_names, run

from _progress import Progress
from infer.drawing import Drawing
from infer.files import VideoFile, write_drawing, write_prediction
from infer.inputs import Source, Video, find_sources
from infer.predictor import Predictor
from infer.results import Results
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.structures import BaseDataElement

from mmsparse.apis import read_config
from mmsparse.datasets.errors import SampleError, check_image
from mmsparse.visualization.image_transform import Pixels


def main() -> bool:
    args = parse_args()
    sources = find_sources(args.images, Path(args.out))
    check_files(args.checkpoint)
    check_unique_names([x.path for x in sources], [x.name for x in sources])
    cfg = read_config(args.config)
    inference = Inference(cfg, args)
    failed = False
    for source in sources:
        try:
            if source.is_video:
                inference.run_video(source)
            else:
                inference.run_image(source)
        except SampleError as error:
            print(f'error: {error}', file=sys.stderr)
            failed = True
    return failed


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'images',
        nargs='+',
        metavar='IMAGE',
        help='image files, folders with images, and videos',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        default='work_dirs/infer',
        metavar='DIR',
        help='output folder (default: %(default)s)',
    )
    parser.add_argument(
        '--device', help='cpu, cuda:0, ... (default: a GPU if there is one)'
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='minimum score of a drawn object, 0 to 1 (default: %(default)s)',
    )
    return parser.parse_args()


class Inference:
    """A model with the drawing and writing of its predictions.

    Args:
        cfg: Config of the model.
        args: Arguments of the command.
    """

    def __init__(self, cfg: Config, args: argparse.Namespace) -> None:
        device = args.device or get_device()
        self.predict = Predictor(cfg, args.checkpoint, device)
        classes, palette = self.predict.classes, self.predict.palette
        self.draw = Drawing(cfg, classes, palette, args.score_thr)
        self.results = Results(classes, args.score_thr)
        self.out = Path(args.out)

    def run_image(self, source: Source) -> None:
        if self.predict.loads_colors:
            check_image(source.path)
        image, result = self.predict(source.path)
        self._write(source.name, dict(image=source.path), image, result)
        path = write_drawing(self.out, source, self.draw(image, result))
        print(f'{source.path}: {self.results.describe(result)}\n{path}', flush=True)

    def run_video(self, source: Source) -> None:
        video = Video(source.path)
        drawn = VideoFile(self.out, source, video.fps)
        with Progress(source.path, video.length, 'frames') as progress:
            for i, frame in enumerate(video.frames()):
                image, result = self.predict(source.path, frame)
                about = dict(video=source.path, frame=i)
                self._write(f'{source.name}/{i:06d}', about, image, result)
                drawn.append(self.draw(image, result))
                progress.update()
        drawn.close()
        print(f'{source.path}: {progress.done} frames\n{drawn.path}', flush=True)

    def _write(
        self, name: str, about: dict, image: Pixels, result: BaseDataElement
    ) -> None:
        height, width = image.shape[:2]
        about |= dict(width=width, height=height)
        content = about | self.results.as_json(result)
        write_prediction(self.out, name, content, self.results.label_map(result))


if __name__ == '__main__':
    run(main)
