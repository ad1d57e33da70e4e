"""WanTransformer3DModel's forward as training computes it: diffusers' modules and parameters, bf16 activations, fused operators.

- On a CPU, scores are a plain matrix product: PyTorch's fused attention has a slow backward pass there, and clips are 140 tokens.
- In use the text states are padded with zero rows to 512, and the denoiser attends to all of them. Equal rows give equal keys
  and values, so `n` of them weigh exactly as much as one of them whose score is raised by ln(n).

`test_denoiser_forward.py` compares with diffusers.
"""

import math

import torch
import torch.nn.functional as F

import architecture
import kernels


def merged(states, lengths):
    """Text states with one zero row appended, `[B,L+1,D]`, and the bias f32 `[B,L+1]` that makes it stand for all zero rows."""
    batch, rows, width = states.shape
    padded = torch.cat([states, states.new_zeros(batch, 1, width)], 1)
    place = torch.arange(rows + 1, device=states.device)
    bias = torch.zeros(batch, rows + 1, device=states.device).masked_fill(place >= lengths[:, None], -math.inf)
    bias[:, rows] = torch.log(architecture.TEXT_ROWS - lengths.float())
    return padded, bias


def linear(module, x):
    return F.linear(x, module.weight.to(x.dtype), None if module.bias is None else module.bias.to(x.dtype))


def plain_attention(query, key, value, bias):
    """Attention of `[B,heads,L,C]` without a factor; `bias` f32 `[B,keys]` or None."""
    return kernels.softmax(query @ key.transpose(2, 3), bias) @ value


def fused_attention(query, key, value, bias):
    """The same in one kernel, which wants its bias in the type of the scores."""
    raised = None if bias is None else bias[:, None, None].to(query.dtype).expand(*query.shape[:3], -1)
    return F.scaled_dot_product_attention(query, key, value, raised, scale=1.0)


class Forward:
    """Computes velocities with the parameters of a denoiser, whose weights stay f32. It is no module: it owns no parameters."""

    def __init__(self, denoiser, dtype=torch.bfloat16):
        self.denoiser, self.dtype, self.rotations = denoiser, dtype, {}
        self.heads = denoiser.config.num_attention_heads

    def rotation(self, x):
        """Cosine and sine f32 `[L,C/2]` of the rotary embedding; diffusers' hold every value twice, for one head."""
        key = x.shape[2:]
        if key not in self.rotations:
            tables = (table[0, :, 0, 0::2].float() for table in self.denoiser.rope(x))
            self.rotations[key] = tuple(table.repeat(1, self.heads).contiguous() for table in tables)
        return self.rotations[key]

    def attention(self, module, x, source, rotation=None, bias=None):
        """Multi-head attention of `x` `[B,L,C]` to `source`."""

        def split(y):
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

        factor = 1 / math.sqrt(x.shape[-1] // self.heads)
        query = kernels.rms_rotate(linear(module.to_q, x), module.norm_q.weight, rotation, factor)
        key = kernels.rms_rotate(linear(module.to_k, source), module.norm_k.weight, rotation, 1.0)
        mix = fused_attention if x.is_cuda else plain_attention
        mixed = mix(split(query), split(key), split(linear(module.to_v, source)), bias)
        return linear(module.to_out[0], mixed.transpose(1, 2).flatten(2))

    def block(self, module, x, condition, text, bias, rotation):
        """One layer; `condition` f32 `[B,6,C]` holds shift, scale and gate of self attention and of the feed-forward layer."""
        shift, scale, gate, late_shift, late_scale, late_gate = (module.scale_shift_table + condition).unbind(1)
        y = kernels.layer_norm(x, 1 + scale, shift)
        x = kernels.gated(x, self.attention(module.attn1, y, y, rotation), gate)
        y = kernels.layer_norm(x, module.norm2.weight[None], module.norm2.bias[None])
        x = x + self.attention(module.attn2, y, text, None, bias)
        y = kernels.layer_norm(x, 1 + late_scale, late_shift)
        y = linear(module.ffn.net[2], kernels.gelu(linear(module.ffn.net[0].proj, y)))
        return kernels.gated(x, y, late_gate)

    def __call__(self, latents, times, text, bias):
        """The velocity f32 of latents f32 `[B,16,T,h,w]` at times `[B]` in 0..1000; text and bias as of `merged`."""
        model, rotation = self.denoiser, self.rotation(latents)
        batch, channels, frames, height, width = latents.shape
        _, ph, pw = model.config.patch_size
        patches = latents.reshape(batch, channels, frames, height // ph, ph, width // pw, pw).permute(0, 2, 3, 5, 1, 4, 6)
        patches = patches.reshape(batch, -1, channels * ph * pw).to(self.dtype)
        x = F.linear(patches, model.patch_embedding.weight.flatten(1).to(self.dtype), model.patch_embedding.bias.to(self.dtype))
        embedder = model.condition_embedder
        moment = embedder.time_embedder(embedder.timesteps_proj(times))
        condition = embedder.time_proj(F.silu(moment)).unflatten(1, (6, -1))
        text = linear(embedder.text_embedder.linear_1, text.to(self.dtype))
        text = linear(embedder.text_embedder.linear_2, kernels.gelu(text))
        for block in model.blocks:
            x = self.block(block, x, condition, text, bias, rotation)
        shift, scale = (model.scale_shift_table + moment[:, None]).unbind(1)
        y = linear(model.proj_out, kernels.layer_norm(x, 1 + scale, shift)).float()
        y = y.reshape(batch, frames, height // ph, width // pw, ph, pw, channels)
        return y.permute(0, 6, 1, 2, 4, 3, 5).reshape(latents.shape)
