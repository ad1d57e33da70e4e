"""What the trainings of `gpu.py` share: captured steps, moving averages, states to resume from, rendered files, the log."""

import gc
import os
from pathlib import Path

import numpy as np
import torch

from gpu_clock import say

DEVICE = torch.device(os.environ.get("MINI_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))
ON_GPU = DEVICE.type == "cuda"
# 0: compiled or written kernels, and captured steps; 1: captured steps alone; 2: plain PyTorch. See `gpu_processes.py`.
LEVEL = int(os.environ.get("MINI_LEVEL", 0))


def log(clock, name, step, values):
    """Adds rows to `RUN/losses.csv`, in the form of `loop.Stage.log`, and prints them."""
    rows = "".join(f"{name},{step},{clock.now() / 60:.3f},{key},{value:.5f}\n" for key, value in values.items())
    with open(clock.run / "losses.csv", "a") as file:
        file.write(rows)
    say(clock, name, f"step {step} " + " ".join(f"{key} {value:.4f}" for key, value in values.items()))


def write_atomically(path, write):
    temporary = Path(f"{path}.partial{os.getpid()}")
    write(temporary)
    os.replace(temporary, path)


def save(path, value):
    write_atomically(path, lambda partial: torch.save(value, partial))


def save_halves(path, tensors, metadata=None):
    """Weights as f16 safetensors."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().half().cpu().contiguous() for name, value in tensors.items()}
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata))


def load(path):
    """What `save` wrote, or None."""
    return torch.load(path, map_location=DEVICE, weights_only=True) if path.exists() else None


def set_up():
    torch.manual_seed(1)
    torch.set_num_threads(2 if ON_GPU else 1)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.enable_cudnn_sdp(False)


def mixed():
    """bf16 on a GPU. Casts are not kept between operators, so that a captured step makes its own."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU, cache_enabled=False)


class Step:
    """A training step without arguments, replayed from a CUDA graph. At most two replays are under way."""

    def __init__(self, step, warm_up=3):
        self.step, self.graph, self.events = step, None, []
        if not ON_GPU:
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm_up):
                step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        if LEVEL < 2:
            # An older graph must not be collected, and its memory freed, in the middle of this capture.
            gc.collect()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                step()

    def __call__(self):
        if self.graph is None:
            self.step()
        else:
            self.graph.replay()
        if ON_GPU:
            event = torch.cuda.Event()
            event.record()
            self.events.append(event)
            if len(self.events) > 2:
                self.events.pop(0).synchronize()


def start_gradients(parameters):
    """Gradients that stay where they are: a captured step sets them to zero and adds to them."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)


def steady_adamw(parameters, rate, betas, weight_decay=0.0):
    """AdamW as a captured step needs it; `rate` is a tensor on the device."""
    options = {"fused": True, "capturable": True} if ON_GPU else {}
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, betas=betas, **options)


@torch.no_grad()
def reset(parameters, values, *optimizers):
    """Parameters back to these values, and optimizers that remember nothing."""
    for parameter, value in zip(parameters, values):
        parameter.copy_(value)
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()


class Means:
    """Sums on the device that a step adds to, read now and then."""

    def __init__(self, names):
        self.names, self.sums = names, torch.zeros(len(names) + 1, device=DEVICE)

    def add(self, *values):
        self.sums += torch.stack([value.detach().float().mean() for value in (*values, torch.ones((), device=DEVICE))])

    def read(self):
        """The means since the last call; nothing if there was no step."""
        *values, count = self.sums.tolist()
        self.sums.zero_()
        return {name: value / count for name, value in zip(self.names, values)} if count else {}


class Shadow:
    """A moving average of parameters, updated within a step. Its memory grows with the steps up to `longest`."""

    def __init__(self, module, longest):
        self.longest, self.steps = longest, 0
        self.names = [name for name, _ in module.named_parameters()]
        self.parameters = [parameter for _, parameter in module.named_parameters()]
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self.share = torch.ones((), device=DEVICE)

    def update(self):
        change = torch._foreach_sub([parameter.detach() for parameter in self.parameters], self.values)
        torch._foreach_mul_(change, self.share)
        torch._foreach_add_(self.values, change)

    def count(self):
        """Called on the host before every step."""
        self.steps += 1
        self.share.fill_(1 / min(self.longest, max(2, self.steps / 10)))

    def restart(self):
        self.steps = 0
        self.store(self.parameters)

    @torch.no_grad()
    def store(self, values):
        for own, value in zip(self.values, values):
            own.copy_(value)

    def finite(self):
        return all(bool(value.isfinite().all()) for value in self.values)

    def state(self):
        return dict(zip(self.names, self.values))


class Rendered:
    """New files of rendered clips (or captions) as they appear, those of the first kind first."""

    def __init__(self, run, *kinds, folder="render"):
        self.folder, self.kinds, self.seen = Path(run) / folder, kinds, set()

    def new(self, limit=None):
        """`(kind, first, arrays)` of files not returned before."""
        names = [name[:-4].split("-") for name in set(os.listdir(self.folder)) - self.seen if name.endswith(".npz")]
        fresh = sorted((self.kinds.index(kind), first) for kind, first in names if kind in self.kinds)
        for order, first in fresh[:limit]:
            kind, name = self.kinds[order], f"{self.kinds[order]}-{first}.npz"
            self.seen.add(name)
            with np.load(self.folder / name) as arrays:
                yield kind, int(first), {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def video(clips):
    """u8 `[N,F,H,W,3]` to f32 `[N,3,F,H,W]` in -1..1."""
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
