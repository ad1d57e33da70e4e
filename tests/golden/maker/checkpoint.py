"""Random checkpoints in the diffusers layout: every parameter drawn, none left at a default of one or zero."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from . import official, reference, schedules, tokenizer
from .cases import Case

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

# Standard deviation of a weight is gain / sqrt(fan-in), by the end of its name; everything else has gain 1.
# Layers behind an activation get more, text attention of the umT5 less (it has no 1/sqrt(d)).
GAINS = [
    ("linear_2.weight", 1.6),
    ("time_proj.weight", 1.6),
    ("ffn.net.2.weight", 1.6),
    ("SelfAttention.q.weight", 0.4),
    ("DenseReluDense.wo.weight", 1.6),
    ("conv1.weight", 1.5),
    ("conv2.weight", 1.5),
    ("to_qkv.weight", 1.5),
]
# The real prompt fills few of the 512 rows: sharper cross attention lets it matter.
SHARP_NORMS = ("attn2.norm_q.weight", "attn2.norm_k.weight")
PIXEL_DEVIATION = 0.4


def build(case: Case, raw_tokenizer, folder: Path) -> WanPipeline:
    """The case's pipeline in f32; only its tokenizer is in `folder` already."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save(raw_tokenizer, folder / "tokenizer")
    generator = torch.Generator().manual_seed(case.seed % 1000 + 1000)
    text_config = UMT5Config(
        vocab_size=tokenizer.VOCABULARY_SIZE,
        d_model=case.text.d_model,
        d_kv=case.text.d_kv,
        d_ff=case.text.d_ff,
        num_layers=case.text.layers,
        num_heads=case.text.heads,
        dropout_rate=0.0,
    )
    text_encoder = UMT5EncoderModel(text_config)
    experts = [denoiser(case) for _ in range(case.experts)]
    vae = autoencoder(case, generator)
    for module in [text_encoder, *experts, vae]:
        randomise(module.eval(), generator)
    if case.smooth:
        smooth(vae.decoder)
    return WanPipeline(
        tokenizer=tokenizer.load(folder / "tokenizer"),
        text_encoder=text_encoder,
        vae=vae,
        scheduler=schedules.scheduler(case.sampler, "diffusers", case.shift),
        transformer=experts[0],
        transformer_2=experts[1] if case.experts == 2 else None,
        boundary_ratio=case.boundary,
    )


def denoiser(case: Case) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=case.denoiser.heads,
        attention_head_dim=case.denoiser.head_dim,
        in_channels=case.vae.z_dim,
        out_channels=case.vae.z_dim,
        text_dim=case.text.d_model,
        freq_dim=case.denoiser.freq_dim,
        ffn_dim=case.denoiser.ffn_dim,
        num_layers=case.denoiser.layers,
    )


def autoencoder(case: Case, generator: torch.Generator) -> AutoencoderKLWan:
    z = case.vae.z_dim
    mean = torch.empty(z).normal_(0, 0.5, generator=generator)
    deviation = torch.empty(z).uniform_(0.7, 2.5, generator=generator)
    return AutoencoderKLWan(
        base_dim=case.vae.base_dim,
        z_dim=z,
        dim_mult=list(case.vae.dim_mult),
        num_res_blocks=case.vae.res_blocks,
        latents_mean=[round(v, 4) for v in mean.tolist()],
        latents_std=[round(v, 4) for v in deviation.tolist()],
    )


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Draws every parameter: gains 0.6..1.4, tables and biases normal, weights by fan-in."""
    for name, parameter in module.named_parameters():
        if "norm" in name and name.endswith((".weight", ".gamma")):
            low, high = (1.4, 2.6) if name.endswith(SHARP_NORMS) else (0.6, 1.4)
            parameter.uniform_(low, high, generator=generator)
        elif name.endswith("scale_shift_table"):
            parameter.normal_(0, 0.4, generator=generator)
        elif name.endswith(".bias"):
            parameter.normal_(0, 0.15, generator=generator)
        elif name.endswith(("shared.weight", "relative_attention_bias.weight")):
            parameter.normal_(0, 1, generator=generator)
        else:
            gain = next((gain for suffix, gain in GAINS if name.endswith(suffix)), 1.0)
            parameter.normal_(0, gain / parameter[0].numel() ** 0.5, generator=generator)


@torch.no_grad()
def smooth(decoder: nn.Module) -> None:
    """Makes the decoder paint soft shapes in related colours: mostly low-pass kernels, mostly grey output."""
    blur = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16
    for name, parameter in decoder.named_parameters():
        if parameter.shape[-2:] == (3, 3):
            strength = parameter.sum(dim=(-2, -1), keepdim=True)
            parameter.copy_(0.06 * parameter + 0.8 * strength * blur)
        if name == "conv_out.weight":
            parameter.copy_(parameter.mean(dim=0, keepdim=True) + 0.3 * parameter)


@torch.no_grad()
def fit_output(pipeline: WanPipeline, latents: torch.Tensor, generator: torch.Generator) -> None:
    """Scales the decoder's last layer: pixels of these latents (model scale, `[1,C,T,h,w]`) get mean near 0."""
    pixels = []
    vae = pipeline.vae
    hook = vae.decoder.register_forward_hook(lambda _module, _inputs, output: pixels.append(output))
    vae.decode(reference.vae_scale(vae, latents))
    hook.remove()
    raw = torch.cat(pixels, dim=2)
    last = vae.decoder.conv_out
    scale = PIXEL_DEVIATION / raw.std()
    offset = torch.empty(last.bias.shape).normal_(0, 0.05, generator=generator)
    last.weight.mul_(scale)
    last.bias.copy_((last.bias - raw.mean(dim=(0, 2, 3, 4))) * scale + offset)


def save(case: Case, pipeline: WanPipeline, raw_tokenizer, folder: Path) -> None:
    """Writes the pipeline in the case's dtype, sharded if asked, under diffusers names."""
    pipeline.scheduler = schedules.scheduler(case.sampler, "diffusers", case.shift)
    pipeline.to(DTYPES[case.dtype])
    pipeline.save_pretrained(folder)
    if case.shard_size:
        for component in expert_folders(case):
            shutil.rmtree(folder / component)
            getattr(pipeline, component).save_pretrained(folder / component, max_shard_size=case.shard_size)
            assert len(list((folder / component).glob("*.safetensors"))) > 1, f"{case.name}: {component} has one shard"
    tokenizer.save(raw_tokenizer, folder / "tokenizer")
    names = load_file(folder / "text_encoder" / "model.safetensors").keys()
    assert "shared.weight" in names and "encoder.embed_tokens.weight" not in names, "the embedding is stored once"


def rename_to_official(case: Case, folder: Path) -> None:
    """Rewrites the experts' and the VAE's files under official names."""
    for component in [*expert_folders(case), "vae"]:
        path = folder / component / "diffusion_pytorch_model.safetensors"
        save_file(official.to_official(component, load_file(path)), path, metadata={"format": "pt"})


def expert_folders(case: Case) -> list[str]:
    return ["transformer", "transformer_2"][: case.experts]


def load(folder: Path) -> WanPipeline:
    """A diffusers-layout folder as an f32 pipeline on the CPU; official tensor names are converted."""
    index = json.loads((folder / "model_index.json").read_text())
    experts = [f for f in ("transformer", "transformer_2") if (folder / f).is_dir()]
    loaded = {name: component(folder / name, WanTransformer3DModel) for name in experts}
    pipeline = WanPipeline(
        tokenizer=tokenizer.load(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        vae=component(folder / "vae", AutoencoderKLWan),
        scheduler=schedules.scheduler("unipc", "diffusers", 1.0),
        transformer=loaded.get("transformer"),
        transformer_2=loaded.get("transformer_2"),
        boundary_ratio=index.get("boundary_ratio"),
        expand_timesteps=index.get("expand_timesteps", False),
    )
    text = pipeline.text_encoder
    assert torch.equal(text.encoder.embed_tokens.weight, text.shared.weight), "the text embedding was not loaded"
    return pipeline


def component(folder: Path, kind):
    """One diffusers model in f32, whichever names its files use."""
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    if not official.is_official(tensors):
        return kind.from_pretrained(folder, dtype=torch.float32).eval()
    model = kind.from_config(kind.load_config(folder))
    model.load_state_dict(official.from_official(folder.name, tensors), strict=True)
    return model.float().eval()
