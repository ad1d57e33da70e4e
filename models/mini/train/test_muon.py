"""Muon's steps are orthogonal matrices of the size of AdamW's steps."""

import unittest

import torch

from muon import Muon, orthogonal


class Steps(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def test_singular_values_are_near_one(self):
        matrices = torch.randn(2, 8, 40) * torch.logspace(0, -2, 8).view(1, 8, 1)
        values = torch.linalg.svdvals(orthogonal(matrices))
        self.assertGreater(values.min(), 0.5)
        self.assertLess(values.max(), 1.4)

    def test_step_size(self):
        for shape in ((8, 4, 3, 3), (64, 2, 3)):
            parameter = torch.nn.Parameter(torch.zeros(shape))
            parameter.grad = torch.randn(shape)
            Muon([parameter], lr=0.01).step()
            # 0.2 of the rate, as the square root of the mean over the larger dimension.
            rows, columns = sorted((shape[0], parameter[0].numel()))
            self.assertLess(abs(parameter.norm() / (0.002 * columns**0.5 * rows**0.5) - 1), 0.3)

    def test_the_rate_may_be_a_tensor(self):
        rate, parameters = torch.zeros(()), [torch.nn.Parameter(torch.zeros(4, 6)) for _ in range(2)]
        for parameter in parameters:
            parameter.grad = torch.arange(24.0).view(4, 6)
        told, given = Muon(parameters[:1], lr=rate), Muon(parameters[1:], lr=0.1)
        rate.fill_(0.1)
        told.step()
        given.step()
        self.assertLess((parameters[0] - parameters[1]).abs().max(), 1e-6)


if __name__ == "__main__":
    unittest.main()
