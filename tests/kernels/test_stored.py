"""A copy that a compiler cannot look into."""

import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from fastdistill_kernels.reference.stored import stored
from tests.compiling import compiles


def test_it_is_a_dense_copy():
    x = torch.arange(6.0).view(2, 3).T
    copy = stored(x)
    assert torch.equal(copy, x) and copy.is_contiguous()
    assert copy.data_ptr() != x.data_ptr()


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
    assert targets.count(torch.ops.fastdistill_inlined.keep) == 1
    assert not counters["graph_break"]


@compiles
def test_compiled_code_keeps_it_without_a_second_copy():
    torch._dynamo.reset()
    text = "".join(run_and_get_code(torch.compile(lambda x: stored(x.rsqrt()) * x), torch.full((300,), 4.0))[1])
    assert "keep" in text and text.count("empty_strided_cpu(") == 2  # what is kept, and the result
