"""Muon, for the VAE's convolutions: momentum whose matrix is made orthogonal, so that every direction learns at the same pace."""

import torch


@torch.no_grad()
def orthogonal(matrices, steps=5):
    """The nearest orthogonal matrices, roughly: singular values between 0.7 and 1.2. A stack `[N,r,c]` with r <= c, in bf16."""
    x = matrices.bfloat16()
    x = x / (matrices.norm(dim=(1, 2), keepdim=True).bfloat16() + 1e-7)
    for _ in range(steps):
        square = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * (square @ square)) @ x
    return x.float()


class Muon(torch.optim.Optimizer):
    """For parameters of at least two dimensions, which are matrices with the first dimension as rows. `lr` may be a tensor."""

    def __init__(self, parameters, lr=1e-3, momentum=0.9):
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            # Matrices of the same shape are made orthogonal together.
            stacks = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                average = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                matrix = parameter.grad.lerp(average, group["momentum"]).flatten(1)
                tall = matrix.shape[0] > matrix.shape[1]
                matrix = matrix.T if tall else matrix
                stacks.setdefault((*matrix.shape, tall), []).append((parameter, matrix))
            for (_, columns, tall), stack in stacks.items():
                for (parameter, _), step in zip(stack, orthogonal(torch.stack([matrix for _, matrix in stack]))):
                    step = step.T if tall else step
                    # The size of AdamW's steps, whose root mean square is about 0.2.
                    parameter.sub_(step.reshape(parameter.shape) * (0.2 * columns**0.5 * group["lr"]))
