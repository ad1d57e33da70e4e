"""A remapped denoiser is the old one between the two linear maps."""

import unittest

import torch

import architecture
import remap


class Remap(unittest.TestCase):
    @torch.no_grad()
    def test_a_remapped_denoiser_maps_latents_before_and_velocities_after(self):
        torch.manual_seed(0)
        old, new = architecture.denoiser().eval(), architecture.denoiser().eval()
        to_old, to_new = (torch.randn(16, 16, dtype=torch.double) / 4 for _ in range(2))
        new.load_state_dict(remap.remapped(old.state_dict(), to_old, to_new))
        latents, text = torch.randn(1, 16, 2, 4, 6), torch.randn(1, 5, architecture.TEXT_WIDTH)
        times = torch.tensor([500])

        def mapped(matrix, values):
            return torch.einsum("ij,bjthw->bithw", matrix.float(), values)

        wanted = mapped(to_new, old(mapped(to_old, latents), times, text, return_dict=False)[0])
        found = new(latents, times, text, return_dict=False)[0]
        self.assertLess((found - wanted).abs().max().item(), 1e-4 * wanted.abs().max().item())

    def test_latents_that_are_linear_in_each_other_are_explained(self):
        torch.manual_seed(1)
        source = torch.randn(16, 4000, dtype=torch.double)
        matrix = torch.randn(16, 16, dtype=torch.double)
        found = remap.least_squares(matrix @ source, source)
        self.assertGreater(remap.explained(found, matrix @ source, source), 0.99)


if __name__ == "__main__":
    unittest.main()
