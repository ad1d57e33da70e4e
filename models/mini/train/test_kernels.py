"""Every kernel gives what the plain function gives, and the same gradients, within the rounding of bf16."""

import unittest

import torch

import kernels


def differences(function, tensors):
    """The largest differences of output and gradients between the bf16 kernel and the plain function in f32, relative to the
    largest value of each."""
    results, weights = [], None
    for dtype in (torch.bfloat16, torch.float32):
        # Both see the same rounded values. What is f32 in use stays f32.
        leaves = [(x if keep else x.bfloat16()).to(torch.float32 if keep else dtype) for x, keep in tensors]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        y = function(*leaves)
        weights = torch.randn(y.shape).bfloat16() if weights is None else weights
        results.append([y.float(), *torch.autograd.grad((y * weights.to(y.dtype)).sum(), leaves)])
    return [((found.float() - wanted).abs().max() / wanted.abs().max()).item() for found, wanted in zip(*results)]


@unittest.skipUnless(kernels.AVAILABLE, "a GPU, or no C++ compiler")
class Kernels(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def check(self, function, *tensors):
        for difference in differences(function, tensors):
            # bf16 has 8 bits: half a unit of the largest value is 0.2 %, and gradients pass through two roundings.
            self.assertLess(difference, 0.01)

    def test_norm_silu(self):
        for channels in (16, 64):
            x = torch.randn(3, channels, 4, 5).contiguous(memory_format=torch.channels_last)
            self.check(kernels.norm_silu, (x, False), (1 + 0.3 * torch.randn(channels), True))

    def test_norm_silu_refuses_other_channels(self):
        with self.assertRaises(ValueError):
            kernels.norm_silu(torch.randn(1, 17, 2, 2).bfloat16(), torch.ones(17))

    def test_layer_norm(self):
        for samples in (1, 3):
            scale, shift = torch.randn(2, samples, 48)
            self.check(kernels.layer_norm, (3 + torch.randn(3, 7, 48), False), (scale, True), (shift, True))

    def test_rms_rotate(self):
        angles = torch.randn(7, 24)
        for rotation in (None, (angles.cos(), angles.sin())):
            self.check(
                lambda x, gamma, rotation=rotation: kernels.rms_rotate(x, gamma, rotation, 0.4),
                (torch.randn(3, 7, 48), False),
                (torch.randn(48), True),
            )

    def test_gelu(self):
        self.check(kernels.gelu, (4 * torch.randn(5, 100), False))

    def test_gated(self):
        self.check(kernels.gated, (torch.randn(3, 7, 48), False), (torch.randn(3, 7, 48), False), (torch.randn(3, 48), True))

    def test_softmax(self):
        bias = torch.randn(3, 11)
        bias[1, 5:] = -torch.inf
        for added in (None, bias):
            # The kernel works in place, and a leaf cannot be overwritten.
            self.check(lambda x, added=added: kernels.softmax(x * 1.0, added), (3 * torch.randn(3, 2, 7, 11), False))


if __name__ == "__main__":
    unittest.main()
