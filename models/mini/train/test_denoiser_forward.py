"""The training forward, with merged zero rows, gives the velocity and the gradients of diffusers with 512 rows."""

import unittest

import torch

import architecture
import denoiser_forward


class Forward(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        self.denoiser = architecture.denoiser()
        self.latents, self.times = torch.randn(3, 16, 5, 8, 14), torch.tensor([900.0, 500.0, 20.0])
        lengths = torch.tensor([1, 7, 12])
        states = torch.randn(3, 12, architecture.TEXT_WIDTH) * (torch.arange(12) < lengths[:, None])[..., None]
        whole = torch.zeros(3, architecture.TEXT_ROWS, architecture.TEXT_WIDTH)
        whole[:, :12] = states
        self.text = denoiser_forward.merged(states, lengths)
        self.weights = torch.randn(self.latents.shape)
        expected = self.denoiser(self.latents, self.times, whole, return_dict=False)[0]
        (expected * self.weights).sum().backward()
        self.expected, self.gradients = expected.detach(), self.taken()

    def taken(self):
        gradients = {name: parameter.grad.clone() for name, parameter in self.denoiser.named_parameters()}
        self.denoiser.zero_grad()
        return gradients

    def check(self, dtype, tolerance, gradient_tolerance):
        found = denoiser_forward.Forward(self.denoiser, dtype)(self.latents, self.times, *self.text)
        (found * self.weights).sum().backward()
        self.assertLess((found.detach() - self.expected).norm() / self.expected.norm(), tolerance)
        for name, gradient in self.taken().items():
            wanted = self.gradients[name]
            # The key of a softmax has a bias without any influence; its gradient is rounding alone.
            if wanted.norm() > 1e-4:
                self.assertLess((gradient - wanted).norm() / wanted.norm(), gradient_tolerance, name)

    def test_f32(self):
        self.check(torch.float32, 1e-5, 1e-3)

    def test_bf16(self):
        self.check(torch.bfloat16, 0.02, 0.1)

    def test_fused_attention(self):
        query, key, value = torch.randn(2, 2, 5, 8), *torch.randn(2, 2, 2, 6, 8)
        bias = torch.tensor([[0.0, 0, 0, -torch.inf, -torch.inf, 2], [0, 0, 0, 0, 0, 1]])
        for added in (None, bias):
            plain = denoiser_forward.plain_attention(query, key, value, added)
            fused = denoiser_forward.fused_attention(query, key, value, added)
            self.assertLess((plain - fused).abs().max(), 1e-5)


if __name__ == "__main__":
    unittest.main()
