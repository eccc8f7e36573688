"""Checks of exported models."""

import pytest
import torch
from mmengine.utils import digit_version

from mmsparse.deploy.export import OLDEST_TORCH, compare_onnx, export_onnx
from mmsparse.deploy.runtimes import installed_runtimes

for package in ('onnx', 'onnxruntime', 'onnxscript'):
    pytest.importorskip(package)
if digit_version(torch.__version__) < digit_version(OLDEST_TORCH):
    pytest.skip(f'export needs torch {OLDEST_TORCH}', allow_module_level=True)


def assert_exports(graph, path, **options):
    """Assert that the file, in all runtimes, and its program equal the graph.

    Batches and, where they are dynamic, images have other sizes than the traced ones.
    """
    program = export_onnx(graph, path, **options)

    for runtime in installed_runtimes():
        differences = compare_onnx(graph, path, runtime)
        assert max(differences.values()) < 1e-4, (runtime, differences)
    assert_traced(graph, program)


def operators(path):
    """Return the nodes of an ONNX file by the name of their operator."""
    nodes = {}
    for node in pytest.importorskip('onnx').load(path).graph.node:
        nodes.setdefault(node.op_type, []).append(node)
    return nodes


def assert_traced(graph, program):
    """Assert that the program equals the graph, for another batch size."""
    image = make_images(graph, 3).float()
    with torch.no_grad():
        expected, found = graph(image), program.module()(image)
    assert max(graph.differences(expected, found).values()) < 1e-5
    first, second, _ = expected[0]
    assert (first - second).abs().max() > 1e-2  # outputs depend on the image


def make_images(graph, batch):
    """Return random images, RGB if they have three channels, as integers."""
    return torch.randint(256, (batch, graph.channels, *graph.size))


def predict(model, image, sample, to_bgr=True):
    """Return predictions for images as mmdet, mmseg and mmpretrain load them."""
    height, width = image.shape[-2:]
    samples = [
        sample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        for _ in image
    ]
    image = image.flip(1) if to_bgr else image
    return model.test_step(dict(inputs=list(image), data_samples=samples))
