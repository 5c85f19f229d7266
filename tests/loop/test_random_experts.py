import torch

from fastdistill.data.random_images import random_data
from fastdistill.loop.plan import make_plan
from fastdistill.loop.random_experts import RandomExperts
from fastdistill.loop.setup import initial_state, make_method
from fastdistill.options import parse_run

CPU = torch.device("cpu")


def test_random_experts_are_followed_to_finite_gradients():
    config = parse_run(["mtt/digits-1-cpu", "--student.width=4", "--student.depth=1", "--method.inner_steps=2"])
    train = random_data("digits").train
    experts = RandomExperts.of(config, train.shape, train.num_classes)
    assert experts.epochs == config.method.max_start_epoch - 1 + config.method.expert_epochs
    both = experts.at(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 2]), dtype=torch.float64, device=CPU)
    assert both.shape == (2, len(experts.weights)) and both.dtype == torch.float64
    assert not torch.equal(both[0], both[1])
    plan = make_plan(config, train.shape, train.num_classes)
    method = make_method(config, plan, train, experts=experts)
    found = method.gradient(initial_state(config, plan, train).learned, method.fresh(0), 0)
    assert found.finite.all()


def test_random_experts_come_to_the_students_device():
    experts = RandomExperts(weights=torch.ones(3), epochs=2)
    numbers, meta = torch.zeros(2, dtype=torch.int64, device="meta"), torch.device("meta")
    found = experts.at(numbers, numbers, dtype=torch.float64, device=meta)
    assert (found.shape, found.dtype, found.device) == ((2, 3), torch.float64, meta)
