"""LoRA files of every key family for the experts of a case, and what torch makes of the weights.

The changes are those of LyCORIS's functional API, and the files of diffusers and PEFT are written by these programs.
"""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from lycoris.functional import loha, lokr
from lycoris.functional.lokr import kron_weight
from lycoris.modules.loha import weight_decompose
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from . import checkpoint, official, reference
from .cases import CASES

CASE = "two-experts"
FOLDER = "lora"
RANK = 3
Tensors = dict[str, torch.Tensor]

# Modules of block 0 or 1 that a family changes, in diffusers' names.
ATTENTION = ["blocks.0.attn1.to_q", "blocks.0.attn1.to_out.0", "blocks.1.attn2.to_k", "blocks.1.ffn.net.0.proj"]
FEED_FORWARD = "blocks.0.ffn.net.2"
PATCHES = "patch_embedding"


class Family:
    """Draws the tensors of one file and keeps the changes that they mean."""

    def __init__(self, weights: Tensors, seed: int, dtype=torch.float32):
        self.weights = weights
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.file: Tensors = {}
        self.merged: Tensors = {}

    def draw(self, *shape: int, deviation: float = 0.3) -> torch.Tensor:
        """Values as they are stored: rounded to the number format of the file."""
        drawn = torch.randn(shape, generator=self.generator) * deviation
        return drawn.to(self.dtype)

    def shape(self, module: str) -> tuple[int, int, tuple[int, ...]]:
        out, width, *kernel = self.weights[f"{module}.weight"].shape
        return out, width, tuple(kernel)

    def put(self, key: str, value: torch.Tensor) -> torch.Tensor:
        """Stores a tensor, and returns it in f32."""
        self.file[key] = value.contiguous()
        return value.float()

    def alpha(self, key: str, value: float) -> float:
        self.file[f"{key}.alpha"] = torch.tensor(value)
        return value

    def add(self, name: str, change: torch.Tensor) -> None:
        weight = self.merged.get(name, self.weights[name])
        self.merged[name] = weight + change.reshape(weight.shape)

    def pair(self, module, key, ends=(".lora_down.weight", ".lora_up.weight"), rank=RANK, alpha=None) -> None:
        out, width, kernel = self.shape(module)
        down = self.put(key + ends[0], self.draw(rank, width, *kernel))
        up = self.put(key + ends[1], self.draw(out, rank, *[1] * len(kernel)))
        scale = 1.0 if alpha is None else self.alpha(key, alpha) / rank
        self.add(f"{module}.weight", scale * (up.reshape(out, rank) @ down.reshape(rank, -1)))

    def delta(self, name: str, key: str, shape=None) -> None:
        self.add(name, self.put(key, self.draw(*(shape or self.weights[name].shape))))


def native(module: str) -> str:
    return official.dit_name(f"{module}.").rstrip(".")


def flat(module: str) -> str:
    return native(module).replace(".", "_")


def lightning(f: Family) -> None:
    """Native keys with alphas below the rank, biases, tables, norms, and the head as a whole difference."""
    for module in [*ATTENTION, FEED_FORWARD]:
        f.pair(module, f"diffusion_model.{native(module)}", rank=4, alpha=0.5)
    f.delta("blocks.0.attn1.to_q.bias", "diffusion_model.blocks.0.self_attn.q.diff_b")
    f.delta("blocks.1.scale_shift_table", "diffusion_model.blocks.1.diff_m")
    f.delta("scale_shift_table", "diffusion_model.head.diff_m")
    f.delta("proj_out.weight", "diffusion_model.head.head.diff")
    f.delta("proj_out.bias", "diffusion_model.head.head.diff_b")
    f.delta("blocks.0.norm2.weight", "diffusion_model.blocks.0.norm3.diff")
    f.delta("blocks.0.norm2.bias", "diffusion_model.blocks.0.norm3.diff_b")
    f.delta("blocks.1.attn2.norm_k.weight", "diffusion_model.blocks.1.cross_attn.norm_k.diff")


def native_without_alpha(f: Family) -> None:
    for rank, module in enumerate([*ATTENTION, "condition_embedder.time_proj"], start=1):
        f.pair(module, f"diffusion_model.{native(module)}", (".lora_A.weight", ".lora_B.weight"), rank=rank)


def bare(f: Family) -> None:
    for module in ATTENTION:
        f.pair(module, native(module), alpha=2.0)


def kohya(f: Family) -> None:
    for module in [*ATTENTION, PATCHES]:
        f.pair(module, f"lora_unet_{flat(module)}", alpha=1.0)


def kohya_with_dots(f: Family) -> None:
    for module in ATTENTION:
        first, rest = native(module).split(".", 2)[:2], native(module).split(".", 2)[2]
        f.pair(module, f"lora_unet_{'_'.join(first)}.{rest}", alpha=3.0)


def wan_fun(f: Family) -> None:
    ends = ["proj_out", "condition_embedder.text_embedder.linear_1", "condition_embedder.time_proj"]
    for module in [*ATTENTION, *ends, "condition_embedder.time_embedder.linear_2"]:
        f.pair(module, f"lora_unet__{flat(module)}", alpha=2.0)


def suffix_pairs(f: Family) -> None:
    pairs = [
        ("_lora.down.weight", "_lora.up.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        (".lora_A", ".lora_B"),
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        (".lora_down", ".lora_up"),
    ]
    modules = [*ATTENTION, FEED_FORWARD, "blocks.1.attn1.to_v"]
    for module, ends in zip(modules, pairs, strict=True):
        f.pair(module, native(module), ends)
    # A convolution with a core between its factors.
    out, width, kernel = f.shape(PATCHES)
    down = f.put("patch_embedding.lora_down.weight", f.draw(2, width, 1, 1, 1))
    core = f.put("patch_embedding.lora_mid.weight", f.draw(3, 2, *kernel))
    up = f.put("patch_embedding.lora_up.weight", f.draw(out, 3, 1, 1, 1))
    f.add("patch_embedding.weight", torch.einsum("op,pqthw,qi->oithw", up.flatten(1), core, down.flatten(1)))


def full_deltas(f: Family) -> None:
    f.delta("blocks.0.attn1.to_v.weight", "blocks.0.self_attn.v.diff")
    f.delta("patch_embedding.weight", "patch_embedding.diff")
    f.delta("blocks.0.scale_shift_table", "blocks.0.modulation.diff")
    f.delta("blocks.1.scale_shift_table", "blocks.1.diff_m", (6, f.weights["blocks.1.scale_shift_table"].shape[-1]))
    f.delta("blocks.1.norm2.weight", "lycoris_blocks_1_norm3.w_norm")
    f.delta("blocks.1.norm2.bias", "lycoris_blocks_1_norm3.b_norm")


def loha_files(f: Family) -> None:
    for module in ATTENTION:
        out, width, _ = f.shape(module)
        key = f"lora_unet_{flat(module)}"
        up1, down1 = f.put(f"{key}.hada_w1_a", f.draw(out, RANK)), f.put(f"{key}.hada_w1_b", f.draw(RANK, width))
        up2, down2 = f.put(f"{key}.hada_w2_a", f.draw(out, RANK)), f.put(f"{key}.hada_w2_b", f.draw(RANK, width))
        scale = torch.tensor(f.alpha(key, 6.0) / RANK)
        f.add(f"{module}.weight", loha.diff_weight(down1, up1, down2, up2, None, None, gamma=scale, backend="torch"))
    out, width, kernel = f.shape(PATCHES)
    parts = {}
    for index in (1, 2):
        key = f"lycoris_patch_embedding.hada_w{index}"
        parts[index] = (
            f.put(f"{key}_b", f.draw(2, width)),
            f.put(f"{key}_a", f.draw(2, out)),
            f.put(f"lycoris_patch_embedding.hada_t{index}", f.draw(2, 2, *kernel, deviation=1.0)),
        )
    halves = [torch.einsum("pqthw,qi,po->oithw", core, down, up) for down, up, core in parts.values()]
    f.add("patch_embedding.weight", halves[0] * halves[1])


def lokr_files(f: Family) -> None:
    def side(key, index, rows, columns, rank):
        """One matrix, whole or as a product."""
        if rank is None:
            return f.put(f"{key}.lokr_w{index}", f.draw(rows, columns)), None, None
        up = f.put(f"{key}.lokr_w{index}_a", f.draw(rows, rank))
        return None, up, f.put(f"{key}.lokr_w{index}_b", f.draw(rank, columns))

    ranks = [(None, 2), (1, None), (2, 2), (None, None)]
    for module, (first, second) in zip(ATTENTION, ranks, strict=True):
        out, width, _ = f.shape(module)
        key = f"lora_unet_{flat(module)}"
        one = side(key, 1, 4, 3, first)
        other = side(key, 2, out // 4, width // 3, second)
        alpha = f.alpha(key, 4.0)
        change = lokr.diff_weight(*one, *other, None, gamma=torch.tensor(alpha), backend="torch")
        f.add(f"{module}.weight", change)
    out, width, kernel = f.shape(PATCHES)
    key = "lora_unet_patch_embedding"
    blocks = f.put(f"{key}.lokr_w1", f.draw(4, 4))
    up = f.put(f"{key}.lokr_w2_a", f.draw(2, out // 4))
    down = f.put(f"{key}.lokr_w2_b", f.draw(2, width // 4))
    core = f.put(f"{key}.lokr_t2", f.draw(2, 2, *kernel, deviation=1.0))
    small = torch.einsum("pqthw,qi,po->oithw", core, down, up)
    f.add("patch_embedding.weight", kron_weight(blocks, None, None, small, None, None, None, backend="torch"))


STRENGTH = 0.6


def dora(f: Family) -> None:
    """Magnitudes of outputs and of inputs, beside pairs, LoHa and LoKr, at a strength of 0.6."""
    for index, module in enumerate(ATTENTION):
        out, width, _ = f.shape(module)
        key = f"lora_unet_{flat(module)}"
        weight = f.weights[f"{module}.weight"]
        by_output = index % 2 == 0
        f.pair(module, key, alpha=2.0)
        whole = f.merged.pop(f"{module}.weight")
        size = (out, 1) if by_output else (1, width)
        norm = weight.norm(dim=1 if by_output else 0, keepdim=True)
        magnitudes = f.put(f"{key}.dora_scale", norm * (1 + 0.3 * torch.randn(size, generator=f.generator)))
        f.merged[f"{module}.weight"] = weight_decompose_in_torch(weight, whole, magnitudes, by_output)


def weight_decompose_in_torch(weight, whole, magnitudes, by_output):
    if by_output:
        full = weight_decompose(whole, magnitudes, 1, True, backend="torch")
        axis = 1
    else:
        full = weight_decompose(whole, magnitudes, 1, False, backend="torch")
        axis = 0
    defined = whole * (magnitudes / whole.norm(dim=axis, keepdim=True))
    assert torch.allclose(full, defined, atol=1e-5), "LyCORIS decomposes weights in another way"
    return weight + STRENGTH * (defined - weight)


def of_diffusers(folder: Path, experts: list[WanTransformer3DModel]) -> list[Tensors]:
    """The files of `save_lora_weights` for both experts in one, with the settings of PEFT in its metadata. diffusers
    loads such a file, and writes one for the first transformer only."""
    merged, tensors, settings = [], {}, {}
    for seed, (name, expert) in enumerate(zip(["transformer", "transformer_2"], experts, strict=True)):
        config = LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK + seed,
            target_modules=["to_q", "ffn.net.0.proj"],
            alpha_pattern={"attn2.to_q": 1.5},
            use_rslora=seed == 1,
        )
        expert.add_adapter(config)
        draw_adapter(expert, seed)
        layers = get_peft_model_state_dict(expert)
        metadata = json.loads(json.dumps(expert.peft_config["default"].to_dict(), default=sorted))
        with tempfile.TemporaryDirectory() as saved:
            WanPipeline.save_lora_weights(saved, layers, transformer_lora_adapter_metadata=metadata)
            with safe_open(Path(saved) / "pytorch_lora_weights.safetensors", "pt") as file:
                stored = json.loads(file.metadata()["lora_adapter_metadata"])
                settings |= {key.replace("transformer.", f"{name}.", 1): value for key, value in stored.items()}
                tensors |= {key.replace("transformer.", f"{name}.", 1): file.get_tensor(key) for key in file.keys()}
        merged.append(merged_by_peft(expert))
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
    save_file(tensors, folder / "diffusers.safetensors", metadata=metadata)
    return merged


def draw_adapter(module, seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.normal_(0, 0.3, generator=generator)
            elif "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))


def merged_by_peft(module) -> Tensors:
    """The weights that PEFT merges in f32."""
    merged = {}
    for name, layer in module.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            layer.merge(safe_merge=True)
            merged[f"{name.removeprefix('base_model.model.')}.weight"] = layer.base_layer.weight.detach().clone()
    return merged


def of_peft(folder: Path, expert: WanTransformer3DModel) -> Tensors:
    """A folder of `save_pretrained` with DoRA."""
    config = LoraConfig(r=RANK, lora_alpha=5, target_modules=["to_k", "ffn.net.2"], use_dora=True)
    model = get_peft_model(expert, config)
    draw_adapter(model, 7)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return merged_by_peft(model)


HAND_MADE = {
    "lightning": (lightning, torch.float32),
    "native-without-alpha": (native_without_alpha, torch.bfloat16),
    "bare": (bare, torch.float16),
    "kohya": (kohya, torch.float32),
    "kohya-with-dots": (kohya_with_dots, torch.float8_e4m3fn),
    "wan-fun": (wan_fun, torch.bfloat16),
    "suffix-pairs": (suffix_pairs, torch.float8_e5m2),
    "full-deltas": (full_deltas, torch.float16),
    "loha": (loha_files, torch.float32),
    "lokr": (lokr_files, torch.float32),
    "dora": (dora, torch.float32),
}

# The files of the clip, for high and for low noise.
CLIP = {"transformer": ("clip-high", 0.8), "transformer_2": ("clip-low", 1.0)}


def clip_high(f: Family) -> None:
    for block in range(2):
        for part in ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2"]:
            f.pair(f"blocks.{block}.{part}", f"diffusion_model.{native(f'blocks.{block}.{part}')}", alpha=1.0)
        for part in ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]:
            f.pair(f"blocks.{block}.{part}", f"diffusion_model.{native(f'blocks.{block}.{part}')}", alpha=1.0)
        f.delta(f"blocks.{block}.attn1.to_q.bias", f"diffusion_model.blocks.{block}.self_attn.q.diff_b")
        f.delta(f"blocks.{block}.scale_shift_table", f"diffusion_model.blocks.{block}.diff_m")
    f.delta("proj_out.weight", "diffusion_model.head.head.diff")
    f.delta("blocks.0.norm2.weight", "diffusion_model.blocks.0.norm3.diff")
    for module in ["patch_embedding", "condition_embedder.text_embedder.linear_1", "condition_embedder.time_proj"]:
        f.pair(module, f"diffusion_model.{native(module)}", alpha=1.0)


def clip_low(f: Family) -> None:
    """Forms other than pairs, which a run applies without merging too."""
    for part in ["attn1.to_q", "attn2.to_k"]:
        module, key = f"blocks.0.{part}", f"lora_unet_{flat(f'blocks.0.{part}')}"
        out, width, _ = f.shape(module)
        up1, down1 = f.put(f"{key}.hada_w1_a", f.draw(out, 2)), f.put(f"{key}.hada_w1_b", f.draw(2, width))
        up2, down2 = f.put(f"{key}.hada_w2_a", f.draw(out, 2)), f.put(f"{key}.hada_w2_b", f.draw(2, width))
        f.add(f"{module}.weight", (up1 @ down1) * (up2 @ down2))
    for part in ["ffn.net.0.proj", "attn1.to_out.0"]:
        module, key = f"blocks.1.{part}", f"lora_unet_{flat(f'blocks.1.{part}')}"
        out, width, _ = f.shape(module)
        blocks = f.put(f"{key}.lokr_w1", f.draw(4, 3))
        up, down = f.put(f"{key}.lokr_w2_a", f.draw(out // 4, 2)), f.put(f"{key}.lokr_w2_b", f.draw(2, width // 3))
        f.add(f"{module}.weight", torch.kron(blocks, up @ down))
    module, key = "blocks.1.attn1.to_v", f"lora_unet_{flat('blocks.1.attn1.to_v')}"
    weight = f.weights[f"{module}.weight"]
    f.pair(module, key, alpha=2.0)
    whole = f.merged.pop(f"{module}.weight")
    norm = weight.norm(dim=1, keepdim=True)
    magnitudes = f.put(f"{key}.dora_scale", norm * (1 + 0.3 * torch.randn(norm.shape, generator=f.generator)))
    f.merged[f"{module}.weight"] = whole * (magnitudes / whole.norm(dim=1, keepdim=True))


def experts_of(folder: Path) -> list[WanTransformer3DModel]:
    return [checkpoint.component(folder / name, WanTransformer3DModel) for name in ("transformer", "transformer_2")]


def make(golden: Path, request_of) -> None:
    """Files, `merged.safetensors` with the changed weights of each, and `clip.safetensors`."""
    saved, folder = golden / CASE / "checkpoint", golden / FOLDER
    folder.mkdir(exist_ok=True)
    weights = dict(experts_of(saved)[0].state_dict())
    merged = {}
    for seed, (name, (draw, dtype)) in enumerate(HAND_MADE.items()):
        family = Family(weights, seed, dtype)
        draw(family)
        save_file(family.file, folder / f"{name}.safetensors", metadata={"format": "pt"})
        merged |= {f"{name}/{weight}": value for weight, value in family.merged.items()}
    for is_second, changed in enumerate(of_diffusers(folder, experts_of(saved))):
        merged |= {f"diffusers{'.2' if is_second else ''}/{weight}": value for weight, value in changed.items()}
    merged |= {f"peft/{weight}": value for weight, value in of_peft(folder / "peft", experts_of(saved)[0]).items()}
    save_file({key: value.contiguous() for key, value in merged.items()}, folder / "merged.safetensors")
    make_clip(saved, folder, request_of)
    stored = load_file(folder / "diffusers.safetensors")
    assert any(key.startswith("transformer_2.") for key in stored)
    print(f"{FOLDER}: {len(list(folder.rglob('*.safetensors')))} files, {len(merged)} changed weights")


def make_clip(saved: Path, folder: Path, request_of) -> None:
    case = next(case for case in CASES if case.name == CASE)
    request = request_of(case)
    pipeline = checkpoint.load(saved)
    for seed, (component, (name, strength)) in enumerate(CLIP.items()):
        expert = getattr(pipeline, component)
        before = {key: value.clone() for key, value in expert.state_dict().items()}
        family = Family(before, 50 + seed)
        (clip_high if component == "transformer" else clip_low)(family)
        save_file(family.file, folder / f"{name}.safetensors", metadata={"format": "pt"})
        after = {key: before[key] + strength * (value - before[key]) for key, value in family.merged.items()}
        expert.load_state_dict(before | after)
    noise = reference.noise(pipeline, request, case.seed)
    run = reference.run(pipeline, request, noise)
    kept = {name: value for name, value in run.tensors.items() if name.startswith("latents.") or name == "frames"}
    plain_run = reference.run(checkpoint.load(saved), request, noise)
    off = (run.tensors["frames"] - plain_run.tensors["frames"]).abs().mean()
    assert off > 0.02, f"{FOLDER}: the clip hardly changes, {off:.4f}"
    save_file(kept, folder / "clip.safetensors")
