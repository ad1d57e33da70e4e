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


if __name__ == "__main__":
    unittest.main()
