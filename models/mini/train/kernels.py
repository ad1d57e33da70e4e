"""Operators that training on CPUs spends its time in, each in one pass over memory, with gradients.

Every operator is a plain PyTorch function here, which serves GPUs, f32 and machines without a C++ compiler, and a kernel of
`kernels.cpp` for bf16 tensors on a CPU. `AVAILABLE` says whether the kernels could be compiled, which happens at the first import.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
from pathlib import Path

import torch
import torch.nn.functional as F

SOURCE = Path(__file__).with_name("kernels.cpp")
LONGEST_ROW = 1024


def compiled():
    """The library, kept under `__pycache__` by the hash of source, flags and machine; None with a GPU, or without a compiler."""
    if torch.cuda.is_available():
        return None
    flags = ["-O3", "-march=native", "-ffast-math", "-fno-trapping-math", "-shared", "-fPIC"]
    if platform.machine() == "x86_64":
        flags.append("-mprefer-vector-width=512")
    parts = [SOURCE.read_bytes(), " ".join(flags).encode(), platform.node().encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = SOURCE.parent / "__pycache__" / f"kernels-{key}.so"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            subprocess.run(["g++", *flags, "-o", partial, SOURCE], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"kernels.cpp is not used ({error}): training is several times slower", flush=True)
            return None
        os.replace(partial, path)
    return ctypes.CDLL(str(path))


LIBRARY = compiled()
AVAILABLE = LIBRARY is not None


def pointer(tensor):
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def call(name, *arguments):
    """Calls a kernel: tensors as pointers, sizes as long, real numbers as float."""

    def converted(value):
        if value is None or torch.is_tensor(value):
            return pointer(value)
        return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_long(value)

    return getattr(LIBRARY, name)(*map(converted, arguments))


def fused(x):
    """Whether the kernels serve this tensor."""
    return AVAILABLE and x.device.type == "cpu" and x.dtype == torch.bfloat16


def rms_normal(x, gamma, eps, dim=-1):
    """x over its root mean square along `dim`, times gamma, in f32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + eps) * gamma


class NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma):
        x, gamma = x.contiguous(memory_format=torch.channels_last), gamma.float().contiguous()
        y, channels = torch.empty_like(x), x.shape[1]
        if call("norm_silu_forward", x, gamma, y, x.numel() // channels, channels):
            raise ValueError(f"norm_silu: no kernel for {channels} channels")
        ctx.save_for_backward(x, gamma)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, gamma = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx, dgamma, channels = torch.empty_like(x), torch.empty_like(gamma), x.shape[1]
        call("norm_silu_gradient", x, gamma, dy, dx, dgamma, x.numel() // channels, channels)
        return dx, dgamma


def norm_silu(x, gamma):
    """silu of the RMS norm over the channels of `[N,C,H,W]`, the memory being channels-last; gamma `[C]`."""
    if fused(x):
        return NormSilu.apply(x, gamma)
    return F.silu(rms_normal(x, gamma.view(1, -1, 1, 1), 1e-12, 1)).to(x.dtype)


class LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift):
        x, scale, shift = x.contiguous(), scale.float().contiguous(), shift.float().contiguous()
        y, (batch, rows, channels) = torch.empty_like(x), x.shape
        ctx.stride = channels if len(scale) == batch else 0
        moments = torch.empty(batch * rows * 2)
        call("layer_norm_forward", x, scale, shift, ctx.stride, y, batch, rows, channels, moments)
        ctx.save_for_backward(x, scale, moments)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, scale, moments = ctx.saved_tensors
        dx, (batch, rows, channels) = torch.empty_like(x), x.shape
        dscale, dshift = torch.zeros(batch, channels), torch.zeros(batch, channels)
        call(
            "layer_norm_gradient", x, scale, ctx.stride, dy.contiguous(), dx, dscale, dshift, batch, rows, channels, moments
        )  # fmt: skip
        if len(scale) != batch:
            dscale, dshift = dscale.sum(0, keepdim=True), dshift.sum(0, keepdim=True)
        return dx, dscale, dshift


def layer_norm(x, scale, shift):
    """Layer norm of `[B,L,C]` without weights of its own, times scale, plus shift, both f32 `[B,C]` or `[1,C]`."""
    if fused(x):
        return LayerNorm.apply(x, scale, shift)
    return (F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * scale[:, None] + shift[:, None]).to(x.dtype)


class RmsRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma, cosine, sine, factor):
        x, gamma, y = x.contiguous(), gamma.float().contiguous(), torch.empty(x.shape, dtype=x.dtype)
        call("rms_rotate_forward", x, gamma, cosine, sine, factor, y, *x.shape)
        ctx.save_for_backward(x, gamma)
        ctx.rotation = cosine, sine, factor
        return y

    @staticmethod
    def backward(ctx, dy):
        x, gamma = ctx.saved_tensors
        dx, dgamma = torch.empty_like(x), torch.zeros_like(gamma)
        call("rms_rotate_gradient", x, gamma, *ctx.rotation, dy.contiguous(), dx, dgamma, *x.shape)
        return dx, dgamma, None, None, None


def rms_rotate(x, gamma, rotation, factor):
    """RMS norm of `[B,L,C]`, the rotation of neighbouring channels as pairs, and a factor.

    `rotation` is the cosine and the sine, f32 `[L,C/2]`, or None."""
    cosine, sine = (None, None) if rotation is None else rotation
    if fused(x) and x.shape[-1] <= LONGEST_ROW:
        return RmsRotate.apply(x, gamma, cosine, sine, float(factor))
    y = rms_normal(x, gamma, 1e-6) * factor
    if rotation is not None:
        even, odd = y.unflatten(-1, (-1, 2)).unbind(-1)
        y = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2)
    return y.to(x.dtype)


class Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        y = torch.empty_like(x)
        call("gelu_forward", x, y, x.numel())
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        call("gelu_gradient", x, dy.contiguous(), dx, x.numel())
        return dx


def gelu(x):
    """GELU by its tanh approximation."""
    return Gelu.apply(x) if fused(x) else F.gelu(x, approximate="tanh")


class Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, residual, x, gate):
        residual, x, gate = residual.contiguous(), x.contiguous(), gate.float().contiguous()
        y = torch.empty_like(x)
        call("gated_forward", residual, x, gate, y, *x.shape)
        ctx.save_for_backward(x, gate)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, gate = ctx.saved_tensors
        dy, dx, dgate = dy.contiguous(), torch.empty_like(x), torch.zeros_like(gate)
        call("gated_gradient", x, gate, dy, dx, dgate, *x.shape)
        return dy, dx, dgate


def gated(residual, x, gate):
    """residual + x * gate for `[B,L,C]` and a gate f32 `[B,C]`."""
    if fused(x):
        return Gated.apply(residual, x, gate)
    return (residual.float() + x.float() * gate[:, None]).to(x.dtype)


class Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, bias):
        batch, heads, queries, keys = scores.shape
        call("softmax_forward", scores, bias, batch, heads * queries, keys)
        ctx.mark_dirty(scores)
        ctx.save_for_backward(scores)
        return scores

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        dscores = dy.contiguous().clone()
        call("softmax_gradient", y, dscores, y[..., 0].numel(), y.shape[-1])
        return dscores, None


def softmax(scores, bias=None):
    """Softmax over the last dimension of `[B,heads,Q,K]`, which may overwrite its input; `bias` f32 `[B,K]` has no gradient."""
    if fused(scores) and scores.shape[-1] <= LONGEST_ROW and scores.is_contiguous():
        return Softmax.apply(scores, bias)
    raised = scores.float() if bias is None else scores.float() + bias[:, None, None]
    return torch.softmax(raised, -1).to(scores.dtype)
