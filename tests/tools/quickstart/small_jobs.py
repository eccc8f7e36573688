"""Folders of training runs that are finished."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from quickstart.tasks import PREDICTIONS, TASKS, Job, Result, write_json, write_result
from training.curve import Curve

CLASSES = tuple('0123456789')


def make_jobs(out):
    """Return a job for each task, without reading configs."""
    return {
        task: Job(
            task=task,
            config=Path(f'configs/x/{task}.py'),
            folder=out / task,
            root=out,
            seed=0,
            options={},
            iterations=100,
            fingerprint=f'{task}-1',
        )
        for task in TASKS
    }


def finish(job):
    """Write what a finished training leaves."""
    job.prepare_folder()
    checkpoint = job.folder / 'iter_100.pth'
    checkpoint.write_text('weights')
    result = Result(
        'accuracy', 97.25, 83.4, 1_530_000, str(checkpoint), job.task, 'configs/x.py'
    )
    write_result(job, result, tables(job.task))
    curve = Curve(job.folder)
    curve.start(0, 100)
    for iteration in range(1, 101):
        curve.add_loss(iteration, 3 / iteration)
    curve.add_value(100, 97.25)
    samples = [sample(job.task, i) for i in range(4)]
    palette = [[20 * i, 99, 9] for i in range(11)]
    content = dict(samples=samples, mistakes=samples[:1], count_mistakes=7)
    meta = dict(iteration=100, classes=names(job.task), palette=palette)
    write_json(job.folder / PREDICTIONS, meta | content)
    Image.new('RGB', (40, 20)).save(job.folder / 'attention_attention.webp')


def names(task):
    return ['background', *CLASSES] if task == 'segmentation' else list(CLASSES)


def tables(task):
    metrics = {'coco/bbox_mAP': 0.7, 'coco/bbox_mAP_50': 0.9}
    metrics |= {f'coco/{name}_precision': 0.5 for name in CLASSES}
    confusion = 9 * np.eye(len(names(task)), dtype=int)
    confusion[1, 2] = 3
    return dict(classes=names(task), metrics=metrics, confusion=confusion.tolist())


def sample(task, i):
    """Return a prediction; of sample 0, something is wrong."""
    wrong = int(i == 0)
    shared = dict(path=f'data/{i}.jpg', size=(128, 128), image=encode('JPEG'))
    if task == 'classification':
        return dict(shared, truth=3, guess=3 + wrong, score=0.876)
    if task == 'segmentation':
        return dict(shared, truth=encode('PNG', 3), guess=encode('PNG', 3 + wrong))
    boxes = [[10, 20, 50, 60, 3], [70, 70, 99, 120, 8]]
    return dict(shared, truth=boxes, guess=[[11, 20, 50, 60, 3 + wrong], boxes[1]])


def encode(kind, label=0):
    file = BytesIO()
    pixels = np.zeros((128, 128), np.uint8)
    pixels[20:60, 20:60] = label
    Image.fromarray(pixels).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()
