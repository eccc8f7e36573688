"""Regional compilation: blocks of the same structure are compiled once."""

import pytest
import torch

from mmsparse import create_backbone


@pytest.mark.parametrize(
    ('name', 'stage', 'training', 'structures'),
    [('biformer-nano', 1, False, 2), ('shunted-nano', 1, True, 2)],
)
def test_blocks_of_the_same_structure_share_a_graph(name, stage, training, structures):
    backbone = create_backbone(name, out_indices=(stage,)).train(training)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    x = torch.rand(2, 3, 64, 64)
    expected = backbone(x)
    backbone.compile_blocks(backend=count)

    torch.testing.assert_close(backbone(x), expected)
    assert len(graphs) == structures < sum(len(stage) for stage in backbone.stages)
