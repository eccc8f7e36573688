"""The node of NVIDIA's TensorRT plugin for multi-scale deformable attention.

TensorRT finds a plugin by the name of the node and its attributes ``plugin_version``
and ``plugin_namespace``. Names, order, shapes and dtypes of the inputs are those of
https://github.com/NVIDIA/TensorRT/tree/main/plugin/multiscaleDeformableAttnPlugin.

No other runtime has the plugin. To compare such a graph with PyTorch,
:func:`inline_plugin` replaces the nodes by their function in ONNX's operators.
"""

from typing import Any

import onnx
import onnx.inliner
import torch
from onnx import defs
from onnxscript import FLOAT, INT32, opset18, script, values

from mmsparse.ops.sampling import PLUGIN_OPERATOR

NAME = 'MultiscaleDeformableAttnPlugin_TRT'
DOMAIN = 'trt.plugins'
# Version 2 is in TensorRT 10.11 and later; TensorRT 11 dropped the interface of 1.
ATTRIBUTES = dict(plugin_version='2', plugin_namespace='')

_DOMAIN = values.Opset(DOMAIN, 1)
op = opset18


def _schema() -> defs.OpSchema:
    inputs = (
        ('value', 'T'),  # (B, N, heads, D)
        ('spatial_shapes', 'tensor(int32)'),  # (levels, 2)
        ('level_start_index', 'tensor(int32)'),  # (levels,)
        ('sampling_locations', 'T'),  # (B, Q, heads, levels, points, 2)
        ('attention_weights', 'T'),  # (B, Q, heads, levels, points)
    )
    text = defs.OpSchema.AttrType.STRING
    return defs.OpSchema(
        NAME,
        DOMAIN,
        since_version=1,
        inputs=[defs.OpSchema.FormalParameter(*item) for item in inputs],
        outputs=[defs.OpSchema.FormalParameter('output', 'T')],  # (B, Q, heads, D)
        type_constraints=[('T', ['tensor(float)'], 'float32')],
        attributes=[defs.OpSchema.Attribute(name, text, '') for name in ATTRIBUTES],
    )


def translations() -> dict:
    """Return the ``custom_translation_table`` of ``torch.onnx.export``."""
    node = values.Op(_DOMAIN, NAME, _schema())

    def translate(*inputs: Any) -> Any:
        return node(*inputs, **ATTRIBUTES)

    namespace, name = PLUGIN_OPERATOR.split('::')
    return {getattr(getattr(torch.ops, namespace), name).default: translate}


def inline_plugin(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the nodes of the plugin by their function in ONNX's operators."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    function = _attend.to_function_proto()
    function.name = NAME
    function.attribute.extend(ATTRIBUTES)
    whole.functions.append(function)
    return onnx.inliner.inline_local_functions(whole)


@script(_DOMAIN, default_opset=op)
def _attend(
    value: FLOAT,
    spatial_shapes: INT32,
    level_start_index: INT32,
    sampling_locations: FLOAT,
    attention_weights: FLOAT,
) -> FLOAT:
    # 1. The four cells around every location, as (x, y): (B, Q, heads, levels, points,
    #    4, 2).
    sizes = op.Unsqueeze(op.Gather(spatial_shapes, [1, 0], axis=1), [1, 2])
    limits = op.CastLike(sizes, value)  # (levels, 1, 1, 2)
    pixels = op.Unsqueeze(sampling_locations, [5]) * limits - 0.5
    steps = op.Reshape(op.Constant(value_floats=[0.0, 0, 0, 1, 1, 0, 1, 1]), [4, 2])
    cells = op.Floor(pixels) + steps
    # 2. Their weights; zero beyond the feature map.
    near = op.ReduceProd(1.0 - op.Abs(cells - pixels), [-1], keepdims=0)
    inside = op.ReduceMin(
        op.CastLike(op.And(cells >= 0.0, cells < limits), value), [-1], keepdims=0
    )
    weights = near * inside * op.Unsqueeze(attention_weights, [5])
    # 3. Their rows in the values of all images and heads.
    cells = op.Cast(op.Max(op.Min(cells, limits - 1.0), 0.0), to=7)
    x = op.Gather(cells, 0, axis=-1)
    y = op.Gather(cells, 1, axis=-1)
    width = op.Cast(op.Gather(sizes, 0, axis=-1), to=7)  # (levels, 1, 1)
    starts = op.Cast(op.Unsqueeze(level_start_index, [1, 2]), to=7)
    batch = op.Shape(value, start=0, end=1)
    tokens = op.Shape(value, start=1, end=2)
    heads = op.Shape(value, start=2, end=3)
    channels = op.Shape(value, start=3, end=4)
    image = op.Unsqueeze(op.Range(0, op.Squeeze(batch), 1), [1, 2, 3, 4, 5])
    head = op.Unsqueeze(op.Range(0, op.Squeeze(heads), 1), [1, 2, 3])
    rows = (image * tokens + starts + y * width + x) * heads + head
    # 4. The weighted sum over levels, points and cells.
    flat = op.Reshape(value, op.Concat([-1], channels, axis=0))
    shape = op.Concat(op.Shape(rows, start=0, end=3), [-1], axis=0)
    gathered = op.Gather(flat, op.Reshape(rows, shape))  # (B, Q, heads, cells, D)
    weights = op.Unsqueeze(op.Reshape(weights, shape), [3])
    return op.Squeeze(weights @ gathered, [3])
