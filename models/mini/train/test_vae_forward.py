"""The VAE over a whole clip is diffusers' VAE."""

import unittest

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan

import vae_forward
from vae import CONFIG


class OnePass(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        self.vae = AutoencoderKLWan(**CONFIG).eval()
        with torch.no_grad():
            for parameter in self.vae.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

    def check(self, frames, flat):
        video = torch.rand(2, 3, frames, 16, 24) * 2 - 1
        with torch.no_grad():
            latents = self.vae.encode(video).latent_dist.mean
            found = vae_forward.encode(self.vae, video, flat)
            self.assertLess((found - latents).abs().max() / latents.abs().max(), 1e-4)
            wanted = self.vae.decode(latents).sample
            found = vae_forward.decode(self.vae, latents, flat).clamp(-1, 1)
        self.assertLess((found - wanted).abs().max(), 1e-3)
        # All values at the limits would be equal whatever the decoder does.
        self.assertGreater((wanted.abs() < 1).float().mean(), 0.2)

    def test_with_all_taps(self):
        for frames in (1, 9, 17):
            self.check(frames, flat=False)

    def test_flat_stages(self):
        vae_forward.flatten(self.vae)
        for frames in (1, 9):
            self.check(frames, flat=True)

    def test_flat_taps_get_no_gradient(self):
        vae_forward.flatten(self.vae)
        video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
        vae_forward.decode(self.vae, vae_forward.encode(self.vae, video)).square().mean().backward()
        for conv in vae_forward.flat_convolutions(self.vae):
            self.assertEqual(conv.weight.grad[:, :, :-1].abs().max().item(), 0)
            self.assertGreater(conv.weight.grad[:, :, -1].abs().max().item(), 0)

    def test_channels_in_eights(self):
        frames, weight, bias = torch.randn(2, 3, 5, 6), torch.randn(10, 3, 3, 3), torch.randn(10)
        filled = vae_forward.in_eights(frames, weight, bias)
        self.assertEqual([tensor.shape[:2] for tensor in filled[:2]], [(2, 8), (16, 8)])
        found = F.conv2d(*filled, padding=1)[:, :10]
        self.assertLess((found - F.conv2d(frames, weight, bias, padding=1)).abs().max(), 1e-5)


if __name__ == "__main__":
    unittest.main()
