"""AutoencoderKLWan over a whole clip at once: the same function as diffusers', which walks through a clip in chunks.

Frames lie in the batch, `[B*T,C,H,W]` with channels innermost in memory, so that every convolution is a 2-D one: a causal 3-D
convolution sees its frame and the two before it as three times the channels. Where `FLAT` applies, at full and at half resolution,
the taps on earlier frames are zero and stay zero, and the convolution sees its frame alone, at a third of the price; motion is the
business of the two lower resolutions. `flatten` sets those taps to zero. `test_vae_forward.py` compares with diffusers.
"""

import math

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample
from torch import nn

import kernels

CHANNELS_LAST = torch.channels_last
# Stages without taps on earlier frames: the first two of the encoder and the last two of the decoder.
FLAT_STAGES = 2


def frames_of(video):
    """`[B,C,T,H,W]` to `[B*T,C,H,W]`, channels innermost."""
    return video.transpose(1, 2).flatten(0, 1).contiguous(memory_format=CHANNELS_LAST)


def video_of(frames, batch):
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def apart(frames, batch):
    """`[B*T,C,H,W]` to `[B,T,H,W,C]`, a view."""
    return frames.permute(0, 2, 3, 1).unflatten(0, (batch, -1))


def together(x):
    """The reverse of `apart`."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def with_past(x):
    """Every frame of `[B,T,H,W,C]` with the two before it, as channels, the oldest first; zeros before the first."""
    past = F.pad(x, (0, 0, 0, 0, 0, 0, 2, 0))
    return torch.cat([past[:, :-2], past[:, 1:-1], x], -1)


def in_eights(frames, weight, bias):
    """The same convolution with zeros as further channels, up to multiples of eight."""
    outer, inner = weight.shape[:2]
    frames = F.pad(frames, (0, 0, 0, 0, 0, -inner % 8))
    weight = F.pad(weight, (0, 0, 0, 0, 0, -inner % 8, 0, -outer % 8))
    return frames, weight, F.pad(bias, (0, -outer % 8))


def convolution(frames, weight, bias):
    """A 3x3 convolution. The matrix units of GPUs need channels in eights."""
    outer, inner = weight.shape[:2]
    if frames.is_cuda and (outer % 8 or inner % 8):
        frames, weight, bias = in_eights(frames, weight, bias)
    return F.conv2d(frames, weight.contiguous(memory_format=CHANNELS_LAST), bias, padding=1)[:, :outer]


def causal(conv, frames, batch, flat):
    """A causal 3-D convolution."""
    if conv.kernel_size == (1, 1, 1):
        return F.conv2d(frames, conv.weight[:, :, 0], conv.bias)
    if flat or len(frames) == batch:
        # Of a single frame's past there is nothing to see.
        return convolution(frames, conv.weight[:, :, -1], conv.bias)
    weight = conv.weight.permute(0, 2, 1, 3, 4).flatten(1, 2)
    return convolution(together(with_past(apart(frames, batch))), weight, conv.bias)


def residual(block, frames, batch, flat):
    shortcut = frames
    if not isinstance(block.conv_shortcut, nn.Identity):
        shortcut = causal(block.conv_shortcut, frames, batch, flat)
    y = causal(block.conv1, kernels.norm_silu(frames, block.norm1.gamma.flatten()), batch, flat)
    return causal(block.conv2, kernels.norm_silu(y, block.norm2.gamma.flatten()), batch, flat) + shortcut


def attention(block, frames):
    """Attention within each frame, one head."""
    count, channels, height, width = frames.shape
    y = kernels.rms_normal(frames, block.norm.gamma.view(1, -1, 1, 1), 1e-12, 1).to(frames.dtype)
    qkv = F.conv2d(y, block.to_qkv.weight, block.to_qkv.bias)
    query, key, value = qkv.permute(0, 2, 3, 1).flatten(1, 2).chunk(3, -1)
    scores = (query @ key.transpose(1, 2)).float() / math.sqrt(channels)
    y = torch.softmax(scores, -1).to(value.dtype) @ value
    y = y.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return F.conv2d(y, block.proj.weight, block.proj.bias) + frames


def middle(block, frames, batch):
    frames = residual(block.resnets[0], frames, batch, False)
    frames = attention(block.attentions[0], frames)
    return residual(block.resnets[1], frames, batch, False)


def temporal_weight(conv):
    """A convolution over three frames as a linear map from their channels."""
    return conv.weight[..., 0, 0].permute(0, 2, 1).flatten(1)


def down(block, frames, batch):
    """Half the resolution, and half the frame rate where the block says so; the first frame stays by itself."""
    conv = block.resample[1]
    frames = F.conv2d(F.pad(frames, (0, 1, 0, 1)), conv.weight, conv.bias, 2)
    if block.mode != "downsample3d" or len(frames) == batch:
        return frames
    x = apart(frames, batch)
    triples = torch.cat([x[:, 0:-2:2], x[:, 1:-1:2], x[:, 2::2]], -1)
    later = F.linear(triples, temporal_weight(block.time_conv), block.time_conv.bias)
    return together(torch.cat([x[:, :1], later], 1))


def up(block, frames, batch):
    """Twice the resolution, and twice the frame rate where the block says so, save for the first frame."""
    if block.mode == "upsample3d" and len(frames) > batch:
        x = apart(frames, batch)
        # The past of the second frame is nothing, not the first frame: so diffusers' first chunk leaves it.
        pairs = F.linear(with_past(x[:, 1:]), temporal_weight(block.time_conv), block.time_conv.bias)
        later = torch.stack(pairs.chunk(2, -1), 2).flatten(1, 2)
        frames = together(torch.cat([x[:, :1], later], 1))
    conv = block.resample[1]
    return F.conv2d(F.interpolate(frames, scale_factor=2.0, mode="nearest"), conv.weight, conv.bias, padding=1)


def encode(vae, video, flat=True):
    """The mean of the latents, `[B,16,1+(F-1)/4,H/8,W/8]`, of a video `[B,3,F,H,W]` in -1..1."""
    encoder, batch, stage = vae.encoder, len(video), 0
    x = causal(encoder.conv_in, frames_of(video), batch, flat)
    for block in encoder.down_blocks:
        if isinstance(block, WanResample):
            x = down(block, x, batch)
            stage += 1
        else:
            x = residual(block, x, batch, flat and stage < FLAT_STAGES)
    x = middle(encoder.mid_block, x, batch)
    x = causal(encoder.conv_out, kernels.norm_silu(x, encoder.norm_out.gamma.flatten()), batch, False)
    channels = vae.config.z_dim
    return video_of(F.conv2d(x, vae.quant_conv.weight[:channels, :, 0], vae.quant_conv.bias[:channels]), batch)


def decode(vae, latents, flat=True):
    """A video `[B,3,F,H,W]`, not clamped, of latents `[B,16,T,h,w]`."""
    decoder, batch = vae.decoder, len(latents)
    x = causal(vae.post_quant_conv, frames_of(latents), batch, False)
    x = middle(decoder.mid_block, causal(decoder.conv_in, x, batch, False), batch)
    for stage, block in enumerate(decoder.up_blocks):
        for piece in block.resnets:
            x = residual(piece, x, batch, flat and stage >= len(decoder.up_blocks) - FLAT_STAGES)
        if block.upsamplers is not None:
            x = up(block.upsamplers[0], x, batch)
    x = causal(decoder.conv_out, kernels.norm_silu(x, decoder.norm_out.gamma.flatten()), batch, flat)
    return video_of(x, batch)


def flat_convolutions(vae):
    """The convolutions that `encode` and `decode` give no past."""
    stage, found = 0, [vae.encoder.conv_in, vae.decoder.conv_out]
    for block in vae.encoder.down_blocks:
        if isinstance(block, WanResample):
            stage += 1
        elif stage < FLAT_STAGES:
            found += [block.conv1, block.conv2]
    for block in vae.decoder.up_blocks[-FLAT_STAGES:]:
        found += [conv for piece in block.resnets for conv in (piece.conv1, piece.conv2)]
    return found


@torch.no_grad()
def flatten(vae):
    """Makes the stages that see no past do so: their last tap takes the sum of all three, the others become zero."""
    for conv in flat_convolutions(vae):
        conv.weight[:, :, -1] = conv.weight.sum(2)
        conv.weight[:, :, :-1] = 0
    return vae
