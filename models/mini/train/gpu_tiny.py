"""The tiny decoder of `gpu.py`, trained as `tiny.py` trains it, on whole clips; writes `RUN/tiny.safetensors`."""

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import gpu_shared as shared
import tiny
import vae
import vae_forward
from gpu_clock import Clock, deadline, falling, say
from gpu_scenes import smaller
from gpu_shared import DEVICE, log
from gpu_vae import Data

BATCH, CLIPS, ENOUGH = smaller(16), smaller(5000), smaller(200)
PEAK = 3e-3


def worn(latents):
    """As `tiny.worn`, with a draw for every clip."""

    def draw():
        return torch.rand(len(latents), 1, 1, 1, 1, device=DEVICE)

    soft = F.avg_pool3d(latents, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    some = (draw() < 0.5).float()
    latents = torch.lerp(latents, soft, (0.2 + 0.6 * draw()) * some * (draw() < 0.5))
    return latents + 0.3 * draw() * some * torch.randn_like(latents)


class Trainer:
    def __init__(self, clips, latents):
        self.clips, self.latents = clips, latents
        torch.manual_seed(4)
        self.model = tiny.TinyDecoder().to(DEVICE, memory_format=torch.channels_last).train()
        self.parameters = list(self.model.parameters())
        shared.start_gradients(self.parameters)
        self.rate = torch.zeros((), device=DEVICE)
        self.adamw = shared.steady_adamw(self.parameters, self.rate, (0.9, 0.99))
        self.shadow, self.means = shared.Shadow(self.model, 300), shared.Means(("loss", "squared"))
        self.step = shared.Step(self.run)
        # The rate was zero, but AdamW remembers.
        shared.reset((), (), self.adamw)
        self.means.read()

    def run(self):
        for parameter in self.parameters:
            parameter.grad.zero_()
        index = (torch.rand(BATCH, device=DEVICE) * len(self.latents)).long()
        wanted = self.clips[index].permute(0, 1, 4, 2, 3).float() / 255
        with shared.mixed():
            made = self.model(worn(self.latents[index])).float()
        loss = tiny.difference(made, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adamw.step()
        self.shadow.update()
        self.means.add(loss, (made.detach().clamp(0, 1) - wanted) ** 2)


def main(run):
    shared.set_up()
    clock, end = Clock(run), deadline("tiny")
    while not (run / "vae.final").exists():
        time.sleep(0.5)
    final = shared.load(run / "vae.final")
    model = vae.AutoencoderKLWan(**vae.CONFIG)
    model.load_state_dict(final["weights"])
    vae.channels_last(model.to(DEVICE)).eval()
    while clock.now() < deadline("tiny_from"):
        time.sleep(0.5)
    clock.rest()
    data = Data(run)
    while data.filled < ENOUGH:
        data.refresh(200)
        time.sleep(0.1)
    mean, scale = final["mean"].to(DEVICE).view(1, -1, 1, 1, 1), final["scale"].to(DEVICE)
    latents = []
    with torch.no_grad(), shared.mixed():
        for part in data.clips[: min(CLIPS, data.filled)].split(32):
            latents.append((vae_forward.encode(model, shared.video(part)).float() - mean) / scale)
    del model
    trainer = Trainer(data.clips, torch.cat(latents))
    steps, told = 0, time.time()
    say(clock, "tiny", f"begins with {len(trainer.latents)} clips")
    while clock.now() < end:
        clock.rest()
        trainer.rate.fill_(PEAK * min(1.0, (steps + 1) / 100) * max(0.01, falling(clock.share("tiny", end), 0.1)))
        trainer.shadow.count()
        trainer.step()
        steps += 1
        if time.time() - told > 10:
            told = time.time()
            values = trainer.means.read()
            log(clock, "tiny", steps, {"loss": values["loss"], "psnr": vae.psnr(4 * values["squared"])})
    # One that is started again too late has learned nothing.
    if steps:
        shared.save_halves(run / "tiny.safetensors", trainer.shadow.state())
    say(clock, "tiny", "done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
