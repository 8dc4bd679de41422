"""Our optimisers are torch's, step for step, without torch's compiler."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedstill.cloud_server.distillation.optimisation import SGD, AdamW, make_optimiser, make_schedule
from fedstill.cloud_server.distillation.settings import OptimiserSettings


def trained(optimiser: Any, **options: Any) -> torch.Tensor:
    """All weights after a few steps, with a break in the middle."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    groups = [{"params": net[0].parameters(), "lr": 1e-3}, {"params": net[1:].parameters()}]
    solver = optimiser(groups, 1e-2, foreach=True, weight_decay=0.01, **options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(solver, [1e-3, 1e-2], 12)
    for step in range(10):
        if step == 5:
            solver.load_state_dict(solver.state_dict())
        solver.zero_grad()
        F.cross_entropy(net(torch.randn(8, 4, generator=generator)), torch.arange(8) % 4).backward()
        solver.step()
        schedule.step()
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [(SGD, torch.optim.SGD, {"momentum": 0.9}), (AdamW, torch.optim.AdamW, {})],
)
def test_the_weights_are_equal_to_the_last_bit(ours: Any, theirs: Any, options: dict[str, Any]) -> None:
    assert torch.equal(trained(ours, **options), trained(theirs, **options))


def test_a_process_that_trains_does_not_import_the_compiler() -> None:
    program = (
        "import sys, torch\n"
        "from fedstill.cloud_server.distillation.optimisation import *\n"
        "from fedstill.cloud_server.distillation.settings import OptimiserSettings\n"
        "net = torch.nn.Linear(2, 2)\n"
        "solver = make_optimiser(net.parameters(), OptimiserSettings())\n"
        "schedule = make_schedule(solver, OptimiserSettings(), 2, 4)\n"
        "solver.zero_grad(); net(torch.ones(1, 2)).sum().backward(); solver.step(); schedule.step()\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_each_kind_of_the_settings_lowers_a_loss(kind: Any) -> None:
    settings = OptimiserSettings(kind=kind)
    weight = nn.Parameter(torch.tensor([3.0]))
    solver = make_optimiser([weight], settings)
    schedule = make_schedule(solver, settings, 3, 10)
    for _ in range(30):
        solver.zero_grad()
        (weight**2).sum().backward()
        solver.step()
        schedule.step()
    assert 0 <= float(weight.detach()) < 3
