"""Muon: momentum whose update is made orthogonal, for weight matrices (Jordan et al., 2024).

`torch.optim.Muon` works in bfloat16, which is ten times slower than fp32 on a CPU without bfloat16
instructions; this one works in the parameters' own precision and handles equal shapes together.
"""

from __future__ import annotations

from collections import defaultdict

import torch


def orthogonalise(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Push the singular values of each (..., rows, columns) matrix towards 1 (Newton-Schulz)."""
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For 2-d parameters only. `lr` is the size of the update in spectral norm, for square ones."""

    def __init__(
        self, params, lr: float = 0.01, momentum: float = 0.95, weight_decay: float = 0.01
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            same = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same[p.shape].append(p)
            for shape, params in same.items():
                updates = []
                for p in params:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]))  # Nesterov
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(params, orthogonalise(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)
