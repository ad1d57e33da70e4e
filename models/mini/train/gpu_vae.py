"""The VAE of `gpu.py`: whole clips from the device's memory, every step one CUDA graph; then the decoder alone on noisy latents.

Writes `RUN/vae.final` when encoder and decoder are trained, `RUN/decoder.final` after the decoder's second part, and the newest
averaged weights into `OUT/vae.safetensors`.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import gpu_shared as shared
import vae
import vae_forward
import world
from gpu_clock import Clock, deadline, falling, say
from gpu_scenes import smaller
from gpu_shared import DEVICE, log
from muon import Muon

BATCH, CAPACITY, ENOUGH = smaller(32), smaller(14_000), smaller(600)
HOLD, LONGEST = 0.35, 400


class Data:
    """The clips so far, whole, on the device, and those for scoring."""

    def __init__(self, run):
        self.rendered = shared.Rendered(run, "first", "clip")
        self.clips = torch.zeros(CAPACITY, world.FRAMES, world.HEIGHT, world.WIDTH, 3, dtype=torch.uint8, device=DEVICE)
        self.masks = torch.zeros(CAPACITY, world.FRAMES, world.HEIGHT // 2, world.WIDTH // 2, dtype=torch.uint8, device=DEVICE)
        self.scoring, self.filled, self.count = [], 0, torch.zeros((), device=DEVICE)

    def refresh(self, limit=8):
        for kind, _, arrays in self.rendered.new(limit):
            if kind == "first":
                self.scoring.append((arrays["clips"].to(DEVICE), arrays["masks"].to(DEVICE)))
                continue
            room = min(len(arrays["clips"]), CAPACITY - self.filled)
            if room <= 0:
                return
            self.clips[self.filled : self.filled + room] = arrays["clips"][:room].to(DEVICE)
            self.masks[self.filled : self.filled + room] = arrays["masks"][:room].to(DEVICE)
            self.filled += room
            self.count.fill_(self.filled)

    def held(self):
        """Clips and masks that are never trained on."""
        return [torch.cat(parts) for parts in zip(*self.scoring)]

    def draw(self, count):
        index = (torch.rand(count, device=DEVICE) * self.count).long()
        return shared.video(self.clips[index]), enlarged(self.masks[index])


def enlarged(masks):
    """Masks u8 at half size to f32 `[N,1,F,H,W]` in 0..1."""
    return F.interpolate(masks.float() / 255, scale_factor=2.0, mode="nearest").unsqueeze(1)


def optimizers(model):
    """As `vae.optimizers`; both read their rates from tensors, through which captured steps can be told."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if p.ndim >= 4 and min(p.shape[0], p[0].numel()) >= 16]
    chosen = {id(p) for p in matrices}
    rest = [p for p in trained if id(p) not in chosen]
    rates = [torch.zeros((), device=DEVICE) for _ in range(2)]
    adamw, muon = shared.steady_adamw(rest, rates[0], (0.9, 0.99)), Muon(matrices, lr=rates[1])
    return adamw, muon, trained, rates


class Trainer:
    """One stage: all weights, or the decoder's alone on noisy latents."""

    def __init__(self, model, data, scale=None):
        self.model, self.data, self.scale = model, data, scale
        for part in (model.encoder, model.quant_conv):
            part.requires_grad_(scale is None)
        self.adamw, self.muon, self.trained, self.rates = optimizers(model)
        self.shadow = shared.Shadow(model, LONGEST)
        self.means = shared.Means(("loss", "squared", "subject"))
        shared.start_gradients(self.trained)
        before = [parameter.detach().clone() for parameter in self.shadow.parameters]
        self.step = shared.Step(self.run)
        # The rates were zero, but the optimisers remember.
        self.back(before)
        self.means.read()

    def run(self):
        for parameter in self.trained:
            parameter.grad.zero_()
        x, mask = self.data.draw(BATCH)
        with shared.mixed():
            with torch.set_grad_enabled(self.scale is None):
                z = vae_forward.encode(self.model, x).float()
            if self.scale is not None:
                z = z + vae.NOISE * self.scale * torch.rand(len(z), 1, 1, 1, 1, device=DEVICE) * torch.randn_like(z)
            y = vae_forward.decode(self.model, z).float()
        loss = vae.reconstruction_loss(y, x, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.adamw.step()
        self.muon.step()
        self.shadow.update()
        with torch.no_grad():
            squared = (y.clamp(-1, 1) - x) ** 2
            self.means.add(loss, squared.mean(), (squared * mask).sum() / (3 * mask.sum() + 1))

    def back(self, values):
        shared.reset(self.shadow.parameters, values, self.adamw, self.muon)
        self.shadow.store(values)

    def train(self, clock, name, end, peaks, hold, every, save):
        start, steps, told, saved, factor = clock.now(), 0, time.time(), time.time(), 1.0
        good = [value.clone() for value in self.shadow.values]
        while clock.now() < end:
            clock.rest()
            warm = min(1.0, (steps + 1) / 100)
            for rate, peak in zip(self.rates, peaks):
                rate.fill_(factor * peak * warm * max(0.003, falling(clock.share(name, end), hold)))
            self.shadow.count()
            self.step()
            steps += 1
            if steps % 20 == 0:
                self.data.refresh(6)
            if time.time() - told > every:
                told = time.time()
                values = self.means.read()
                if not np.isfinite(values["loss"]):
                    say(clock, name, "loss is not finite: back to the last good average, at half the rate")
                    factor /= 2
                    self.back(good)
                    continue
                good = [value.clone() for value in self.shadow.values]
                log(clock, name, steps, {
                    "loss": values["loss"], "psnr": vae.psnr(values["squared"]), "subject_psnr": vae.psnr(values["subject"]),
                    "clips": self.data.filled, "steps_per_second": steps / max(clock.now() - start, 1e-6) / clock.scale,
                })  # fmt: skip
            if time.time() - saved > 20:
                saved = time.time()
                save(self.shadow.state())
        self.back([value.clone() for value in self.shadow.values] if self.shadow.finite() else good)
        return self.shadow.state()


@torch.no_grad()
def measure(model, data, noise):
    """Mean qualities of the held-out clips and their reconstructions u8 `[N,F,H,W,3]`."""
    clips, masks = data.held()
    x, cover = shared.video(clips), enlarged(masks)
    with shared.mixed():
        z = vae_forward.encode(model, x).float()
        z = z + noise * torch.randn(z.shape, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(3))
        y = vae_forward.decode(model, z).float()
    firsts = ((y.clamp(-1, 1) - x)[:, :, 0] ** 2).mean((1, 2, 3)).tolist()
    whole = [vae.qualities(*parts) for parts in zip(y, x, cover)]
    results = [(*values, vae.psnr(first)) for values, first in zip(whole, firsts)]
    return np.mean(results, 0), [vae.as_pictures(clip) for clip in y.cpu()]


@torch.no_grad()
def statistics(model, data):
    """Mean of every channel, the common scale, and the shares of the principal directions."""
    parts = shared.video(data.clips[: min(60, data.filled)]).split(20)
    latents = torch.cat([vae_forward.encode(model, part).float().transpose(0, 1).flatten(1) for part in parts], 1).cpu()
    mean, scale = latents.mean(1).tolist(), latents.var(1).mean().sqrt().item()
    return [round(value, 4) for value in mean], round(scale, 4), vae.principal_shares(latents)


def sheet(data, pictures, path):
    rows = []
    for clip, picture in zip(data.held()[0].cpu().numpy(), pictures):
        rows.append(np.concatenate([pair[t] for t in (0, 8, 16) for pair in (clip, picture)], 1))
    half = (len(rows) + 1) // 2
    rows += [np.zeros_like(rows[0])] * (2 * half - len(rows))
    image = Image.fromarray(np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], 1))
    shared.write_atomically(path, lambda partial: image.save(partial, "PNG"))


def score(clock, name, model, data, scale, path):
    """Logs the qualities without and with noise, and draws originals beside reconstructions."""
    values, kept = {}, None
    for noise in (0.0, vae.NOISE):
        means, pictures = measure(model, data, noise * scale)
        values.update({f"{key}@{noise}": value for key, value in zip(("psnr", "subject", "first_frame"), means)})
        kept = kept or pictures
    log(clock, name, 0, values)
    sheet(data, kept, path)


def load_start(path):
    """Weights f32 from `.safetensors` or from a state that PyTorch saved; None if there is no path."""
    if not path:
        return None
    state = load_file(path) if path.endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.float() for name, value in state.items()}


def main(run, out, start):
    shared.set_up()
    clock = Clock(run)
    if shared.LEVEL < 1 and shared.ON_GPU:
        import gpu_kernels

        gpu_kernels.use()
    model = vae.AutoencoderKLWan(**vae.CONFIG)
    state = shared.load(run / "vae.newest") or load_start(start)
    if state:
        model.load_state_dict(state)
    vae.channels_last(vae_forward.flatten(model).to(DEVICE)).train()
    data = Data(run)
    while data.filled < ENOUGH or not data.scoring:
        data.refresh()
        time.sleep(0.2)
    clock.rest()
    say(clock, "vae", f"begins, level {shared.LEVEL}, {data.filled} clips")
    final = shared.load(run / "vae.final") or all_weights(clock, run, out, model, data)
    if not (run / "decoder.final").exists():
        decoder_alone(clock, run, out, model, data, final)
    say(clock, "vae", "done")


def all_weights(clock, run, out, model, data):
    """The first stage; gives its weights and what the latents are normalised with."""

    def keep(state):
        shared.save(run / "vae.newest", state)
        shared.save_halves(out / "vae.safetensors", state)

    trainer = Trainer(model, data)
    (run / "vae.ready").touch()
    say(clock, "vae", "captured")
    weights = trainer.train(clock, "vae", deadline("vae"), (vae.PEAK, vae.MUON_PEAK), HOLD, 10, keep)
    mean, scale, shares = statistics(model, data)
    final = {"weights": weights, "mean": torch.tensor(mean), "scale": torch.tensor(scale)}
    shared.save(run / "vae.final", final)
    say(clock, "vae", f"directions over 1 %: {sum(share > 0.01 for share in shares)}: " + " ".join(f"{s:.4f}" for s in shares))
    return final


def decoder_alone(clock, run, out, model, data, final):
    """The second stage, on noisy latents."""
    scale = float(final["scale"])
    metadata = {"latents_mean": json.dumps(final["mean"].tolist()), "latents_scale": json.dumps(scale)}

    def keep(state):
        shared.save(run / "decoder.newest", state)
        shared.save_halves(out / "vae.safetensors", state, metadata)

    def scored(name):
        try:
            score(clock, name, model, data, scale, out / "vae.png")
        except Exception as error:  # A picture is not worth the run.
            say(clock, name, f"not scored: {error!r}")

    weights = shared.load(run / "decoder.newest") or final["weights"]
    model.load_state_dict(weights)
    keep(weights)
    scored("vae")
    trainer = Trainer(model, data, scale)
    (run / "vae.ready").touch()
    peaks = (vae.DECODER_PEAK, vae.MUON_PEAK * vae.DECODER_PEAK / vae.PEAK)
    weights = trainer.train(clock, "decoder", deadline("decoder"), peaks, 0.0, 5, keep)
    keep(weights)
    shared.save(run / "decoder.final", {**final, "weights": weights})
    scored("decoder")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
