"""Options of the commands that compare models."""

import argparse
from pathlib import Path

from benchmark.precision import PRECISIONS
from mmsparse.apis import add_cfg_options
from mmsparse.ops.sampling import SAMPLERS

ROOT = Path(__file__).parents[2]
FOCUS_DETR = ROOT / 'configs' / 'focus_detr' / 'focus-detr_r50_8xb2-12e_coco.py'
SIZES = ((800, 1333), (640, 640))


def add_model_commands(
    commands: argparse._SubParsersAction, common: argparse.ArgumentParser
) -> None:
    """Add the commands.

    Args:
        commands: Of the benchmark.
        common: Arguments of every comparison.
    """
    models = model_arguments(common)
    add_backbone(commands, models)
    add_precision(commands, common)
    add_detector(commands, models)
    add_segmentor(commands, models)
    add_export(commands, models)


def model_arguments(common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    models = argparse.ArgumentParser(add_help=False, parents=[common])
    models.add_argument(
        '--batch-size', type=int, default=1, help='number of images (%(default)s)'
    )
    add_cfg_options(models, 'model.backbone.depth=101')
    return models


def _add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--size',
        type=parse_size,
        default=(224, 224),
        metavar='HxW',
        help='height and width of the images (224x224)',
    )


def add_backbone(
    commands: argparse._SubParsersAction, models: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        'backbone',
        parents=[models],
        help='reference and fast paths of a backbone',
        description='Compare the fast paths of backbones with the reference, and with '
        'the Swin Transformer and the ConvNeXt of timm of about the same size, if timm '
        'is installed. Weights are random and images are noise. Measured are the time '
        'of a forward pass without gradients and of a training pass, forward and '
        'backward, and the peak memory of both.',
    )
    parser.add_argument('configs', nargs='+', help='configs with mmsparse backbones')
    _add_size(parser)
    parser.add_argument(
        '--no-reference',
        action='store_true',
        help='skip the reference, which may not fit into memory',
    )
    parser.add_argument('--no-training', action='store_true', help='forward pass only')
    parser.add_argument(
        '--no-timm', action='store_true', help="skip timm's Swin and ConvNeXt"
    )


def add_precision(
    commands: argparse._SubParsersAction, common: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        'precision',
        parents=[common],
        help='backbones in float32, bfloat16 and int8',
        description='Compare backbones in float32 with bfloat16 and with linear layers '
        'in int8 (dynamic quantization, CPU). Measured are the time of a forward pass '
        'without gradients, peak memory, and the error: root mean square of the '
        'difference from float32 as a share of that of float32.',
    )
    parser.add_argument('configs', nargs='+', help='configs with mmsparse backbones')
    parser.add_argument('--checkpoint', help='weights of the model (random ones)')
    parser.add_argument(
        '--batch-sizes',
        nargs='+',
        type=int,
        default=[1, 8],
        metavar='COUNT',
        help='numbers of images (1 8)',
    )
    add_cfg_options(parser, 'model.backbone.arch=tiny')
    parser.add_argument(
        '--precisions',
        nargs='+',
        choices=PRECISIONS,
        default=list(PRECISIONS),
        help='compared with float32 (bf16 int8)',
    )
    parser.add_argument(
        '--images',
        type=Path,
        metavar='FOLDER',
        help='PNG and JPEG files at equal steps of its sorted list (random images)',
    )
    _add_size(parser)


def add_detector(
    commands: argparse._SubParsersAction, models: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        'detector',
        parents=[models],
        help="Focus-DETR and mmdet's DINO, or any detection transformers",
        description="Compare Focus-DETR with mmdet's DINO of the same backbone, neck "
        'and depth. Weights are random and images are noise. Measured are the time of '
        'the encoder, with token selection, and of the whole model, and peak memory. '
        'Several configs are compared with each other: parameters, GMACs and time of '
        'backbone and neck, encoder and decoder, memory, and published box AP.',
    )
    parser.add_argument(
        'configs',
        nargs='*',
        default=[FOCUS_DETR],
        help='config of a Focus-DETR (R50), or several of detection transformers of '
        'mmsparse, or of mmdet as mmdet::PATH',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=parse_size,
        default=SIZES,
        metavar='HxW',
        help='heights and widths of images (800x1333 640x640)',
    )
    parser.add_argument(
        '--keep',
        nargs='+',
        type=float,
        default=[0.3],
        metavar='RATIO',
        help="keep ratios, one Focus-DETR for each (0.3, the paper's)",
    )


def add_segmentor(
    commands: argparse._SubParsersAction, models: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        'segmentor',
        parents=[models],
        help='training with and without checkpointing, and prediction',
        description='Measure time and peak memory of segmentors with random weights '
        'and images of noise: training on crops, plain and with checkpointed blocks '
        'of the backbone (with_cp), and the prediction of a whole image.',
    )
    parser.add_argument('configs', nargs='+', help='configs of segmentors')
    parser.add_argument(
        '--crop',
        type=parse_size,
        default=(512, 512),
        metavar='HxW',
        help='height and width of the crops (512x512)',
    )
    parser.add_argument(
        '--image',
        type=parse_size,
        default=(512, 2048),
        metavar='HxW',
        help='height and width of the image (512x2048)',
    )


def add_export(
    commands: argparse._SubParsersAction, models: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        'export',
        parents=[models],
        help='PyTorch, onnxruntime and OpenVINO',
        description='Compare models in PyTorch with their ONNX files in onnxruntime '
        'and OpenVINO, those that are installed, on a CPU, with as many threads as '
        'torch and in float32. Weights are random and images are noise. The memory of '
        'the runtimes is not measured.',
    )
    parser.add_argument('configs', nargs='+', help='configs of models')
    _add_size(parser)
    parser.add_argument(
        '--samplers',
        nargs='+',
        choices=SAMPLERS[:2],
        default=SAMPLERS[:1],
        metavar='SAMPLER',
        help='how feature maps are sampled, one file for each: grid_sample, gather '
        '(grid_sample)',
    )
    parser.set_defaults(device='cpu')


def parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(
            f'a size must be HEIGHTxWIDTH, for example 800x1333; got {text}'
        )
    return int(height), int(width)
