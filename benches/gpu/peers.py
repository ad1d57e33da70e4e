#!/usr/bin/env python3
"""Times one module of diffusers or transformers in PyTorch, in bf16, and prints a line of JSON.

    peers.py step|decode|text --size N,... [--shape a14b] [--layers 2] [--mode sdpa|compile] [--runs 5] [--device cuda]

Attention is `scaled_dot_product_attention`, which chooses FlashAttention where it can. `compile` is torch.compile with
its default options; the runs before the timed ones compile.
"""

import argparse
import json
import statistics
import time

# Heads, channels of the latent, width of the feed-forward layer.
SHAPES = {"1.3b": (12, 16, 8960), "5b": (24, 48, 14336), "a14b": (40, 16, 13824)}
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "decode", "text"])
    parser.add_argument("--size", type=lambda text: [int(word) for word in text.split(",")], required=True)
    parser.add_argument("--shape", choices=SHAPES, default="a14b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--mode", choices=["sdpa", "compile"], default="sdpa")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    try:
        import torch
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"PyTorch is not compared: {error.name} is not installed for this Python") from None
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no GPU")
    print(json.dumps(timed(torch, arguments)), flush=True)


def timed(torch, arguments: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    with torch.inference_mode(), torch.device(arguments.device):
        module, call = {"step": step, "decode": decode, "text": text}[arguments.what](torch, arguments)
        if arguments.mode == "compile":
            module.forward = torch.compile(module.forward)
        times = []
        for index in range(WARM_UP + arguments.runs):
            began = time.perf_counter()
            call()
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            if index >= WARM_UP:
                times.append(1e3 * (time.perf_counter() - began))
    memory = torch.cuda.max_memory_allocated() if arguments.device == "cuda" else None
    return {
        "ms": min(times),
        "median_ms": statistics.median(times),
        "measured_memory": memory,
        "torch": torch.__version__,
    }


def step(torch, arguments: argparse.Namespace):
    from diffusers import WanTransformer3DModel

    heads, channels, hidden = SHAPES[arguments.shape]
    model = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=128,
        in_channels=channels,
        out_channels=channels,
        text_dim=4096,
        ffn_dim=hidden,
        num_layers=arguments.layers,
    )
    kept = tuple(WanTransformer3DModel._keep_in_fp32_modules)
    for name, parameter in model.named_parameters():
        if not any(part in kept for part in name.split(".")):
            parameter.data = parameter.data.to(torch.bfloat16)
    frames, rows, columns = arguments.size
    latent = torch.randn(1, channels, frames, 2 * rows, 2 * columns, dtype=torch.bfloat16)
    text_states = torch.randn(1, 512, 4096, dtype=torch.bfloat16)
    timestep = torch.tensor([500])
    return model.eval(), lambda: model(latent, timestep, text_states, return_dict=False)


def decode(torch, arguments: argparse.Namespace):
    from diffusers import AutoencoderKLWan

    model = AutoencoderKLWan().to(torch.bfloat16).eval()
    latent = torch.randn(1, 16, *arguments.size, dtype=torch.bfloat16)
    return model.decoder, lambda: model.decode(latent, return_dict=False)


def text(torch, arguments: argparse.Namespace):
    from transformers import UMT5Config, UMT5EncoderModel

    # The embedding is one lookup per token: a small vocabulary saves 4 GB and changes no time.
    config = UMT5Config(
        vocab_size=1024, d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=arguments.layers, dropout_rate=0.0
    )
    model = UMT5EncoderModel(config).to(torch.bfloat16).eval()
    ids = torch.randint(4, 1024, (1, arguments.size[0]))
    mask = torch.ones_like(ids)
    return model, lambda: model(ids, mask)


if __name__ == "__main__":
    main()
