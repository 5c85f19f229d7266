"""A copy that a compiler cannot look into."""

import torch
from torch._dynamo.utils import counters

from fastdistill_kernels.reference.stored import stored


def test_it_is_a_dense_copy():
    x = torch.arange(6.0).view(2, 3).T
    copy = stored(x)
    assert torch.equal(copy, x) and copy.is_contiguous()
    assert copy.data_ptr() != x.data_ptr()
    packet = torch.ops.fastdistill_inlined.stored
    torch.library.opcheck(packet.default, (x,), test_utils=("test_schema", "test_faketensor"))


def test_a_compiler_keeps_it_without_a_break():
    torch._dynamo.reset()
    counters.clear()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    function = torch.compile(lambda x: stored(x.rsqrt()) * x, backend=backend, fullgraph=True)
    x = torch.full((3,), 4.0)
    assert torch.equal(function(x), x / 2)
    targets = [node.target for graph in graphs for node in graph.graph.nodes]
    assert targets.count(torch.ops.fastdistill_inlined.stored) == 1
    assert not counters["graph_break"]
