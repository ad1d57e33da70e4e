"""Merged zero rows give the velocity that 512 rows give.  python test_attention.py"""

import torch

import architecture
import attention


def main():
    torch.manual_seed(0)
    denoiser = architecture.denoiser().eval()
    latent, time = torch.randn(3, 16, 5, 8, 14), torch.tensor([900.0, 500.0, 20.0])
    lengths = torch.tensor([1, 7, 12])
    states = torch.randn(3, 12, architecture.TEXT_WIDTH) * (torch.arange(12) < lengths[:, None])[..., None]
    whole = torch.zeros(3, architecture.TEXT_ROWS, architecture.TEXT_WIDTH)
    whole[:, :12] = states
    with torch.no_grad():
        expected = denoiser(latent, time, whole, return_dict=False)[0]
        rows, attention.install(denoiser).bias = attention.merged(states, lengths)
        found = denoiser(latent, time, rows, return_dict=False)[0]
    difference = (found - expected).abs().max().item()
    print(f"largest difference {difference:.2e}")
    assert difference < 1e-5 * max(1.0, expected.abs().max().item())


if __name__ == "__main__":
    main()
