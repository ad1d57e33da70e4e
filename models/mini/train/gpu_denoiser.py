"""The denoiser of `gpu.py`, then the two experts: all data in the device's memory, every step one CUDA graph.

It starts with the run, compiles its steps on random data, and encodes captions as they come. When `RUN/vae.final` appears it
encodes all clips, and goes on doing so with new ones while it learns. Results are `OUT/joint.safetensors`, then `high` and `low`.
"""

import math
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import UMT5EncoderModel

import architecture
import captions
import denoiser as recipe
import denoiser_forward
import experts
import gpu_captions
import gpu_scenes
import gpu_shared as shared
import judge
import text as text_stage
import tokenizer
import vae
import vae_forward
import world
from export import BOUNDARY, scheduler
from gpu_clock import Clock, deadline, falling, say
from gpu_scenes import smaller
from gpu_shared import DEVICE, log
from sheet import SHOWN, prompts

BATCH, STILLS_BATCH = smaller(384, 4), smaller(1024, 8)
PEAK, HOLD, LONGEST = 1.5e-3, 0.55, 1000
# The share of steps on stills, at the start and from the middle on.
STILLS = (0.6, 0.1)
CAPACITY = gpu_scenes.MOST
ROWS = gpu_captions.ROWS
SHAPES = {"clip": 5, "still": 1}
PROMPTS = 12
TABLE = 4096


class Texts:
    """Text states by kind: bf16 `[N,K,ROWS,192]` and lengths `[N,K]`, filled as captions come."""

    def __init__(self, run, checkpoint):
        self.pieces = tokenizer.load(checkpoint / "tokenizer")
        self.encoder = UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder").float().to(DEVICE).eval()
        self.files = shared.Rendered(run, "drop", "held", "clip", "still", folder="captions")
        self.states, self.lengths, self.filled = {}, {}, dict.fromkeys(SHAPES, 0)
        for kind in SHAPES:
            rows = CAPACITY, gpu_captions.VARIANTS[kind]
            self.states[kind] = torch.zeros(*rows, ROWS, architecture.TEXT_WIDTH, dtype=torch.bfloat16, device=DEVICE)
            self.lengths[kind] = torch.ones(*rows, device=DEVICE)
        self.pending = {}

    @torch.no_grad()
    def encode(self, ids, lengths):
        ids, lengths = ids.to(DEVICE).long(), lengths.to(DEVICE).long()
        with shared.mixed():
            return text_stage.encode(self.encoder, ids, lengths).bfloat16(), lengths.float()

    def of(self, texts):
        ids, lengths = gpu_captions.ids_of([captions.prompt_clean(text) for text in texts], self.pieces)
        return self.encode(torch.from_numpy(ids.astype(np.int32)), torch.from_numpy(lengths.astype(np.int32)))

    def refresh(self, limit=4):
        """Captions come from two processes, so files are taken in the order of their scenes."""
        for kind, first, arrays in self.files.new(limit):
            self.pending[kind, first] = arrays
        for kind in ("drop", "held"):
            if (kind, 0) in self.pending:
                arrays = self.pending.pop((kind, 0))
                ids, lengths = arrays["ids"].to(torch.int32), arrays["lengths"].to(torch.int32)
                self.states[kind], self.lengths[kind] = self.encode(ids.flatten(0, 1), lengths.flatten())
        for kind in SHAPES:
            while (kind, self.filled[kind]) in self.pending:
                first = self.filled[kind]
                arrays = self.pending.pop((kind, first))
                ids, lengths = arrays["ids"].to(torch.int32), arrays["lengths"].to(torch.int32)
                shape = ids.shape[:2]
                states, lengths = self.encode(ids.flatten(0, 1), lengths.flatten())
                self.states[kind][first : first + shape[0]] = states.unflatten(0, shape)
                self.lengths[kind][first : first + shape[0]] = lengths.unflatten(0, shape)
                self.filled[kind] += shape[0]


def with_zero_row(states, lengths):
    """As `denoiser_forward.merged`, of states that have zeros behind their real rows."""
    unused = torch.arange(states.shape[1], device=DEVICE) >= lengths[:, None]
    bias = torch.zeros(unused.shape, device=DEVICE).masked_fill(unused, -math.inf)
    return F.pad(states, (0, 0, 0, 1)), torch.cat([bias, torch.log(architecture.TEXT_ROWS - lengths)[:, None]], 1)


class Latents:
    """Pixels until the VAE is there, latents from then on; the scenes that a step may draw are the first `count` of each kind.

    Renderers finish files out of order, so a row remembers its scene's number: `scene[row]`."""

    def __init__(self, run, texts):
        self.run, self.texts = run, texts
        self.files = shared.Rendered(run, "held", "clip", "still")
        self.waiting, self.encoder, self.held = [], None, {}
        self.values, self.covers, self.scene, self.filled, self.count = {}, {}, {}, {}, {}
        for kind, frames in SHAPES.items():
            shape = frames, world.HEIGHT // 8, world.WIDTH // 8
            self.values[kind] = torch.zeros(CAPACITY, 16, *shape, dtype=torch.bfloat16, device=DEVICE)
            self.covers[kind] = torch.zeros(CAPACITY, *shape, dtype=torch.bfloat16, device=DEVICE)
            self.scene[kind] = torch.zeros(CAPACITY, dtype=torch.long, device=DEVICE)
            self.filled[kind] = 0
            self.count[kind] = torch.ones((), device=DEVICE)

    def refresh(self, limit=4):
        """New files as pixels; with a VAE, as latents. A scene whose captions are missing waits."""
        for kind, first, arrays in self.files.new(limit):
            self.waiting.append((kind, first, arrays["clips"].to(DEVICE), arrays["masks"].to(DEVICE)))
        if self.encoder is None:
            return
        ready = [job for job in self.waiting if job[0] == "held" or job[1] + len(job[2]) <= self.texts.filled[job[0]]][:limit]
        for job in ready:
            self.add(*job)
        done = {id(job) for job in ready}
        self.waiting = [job for job in self.waiting if id(job) not in done]

    @torch.no_grad()
    def add(self, kind, first, clips, masks):
        x = shared.video(clips)
        with shared.mixed():
            z = torch.cat([vae_forward.encode(self.encoder, part).float() for part in x.split(64)])
        z = (z - self.mean) / self.scale
        cells = F.avg_pool2d(masks.float() / 255, 4)
        covers = cells if cells.shape[1] == 1 else torch.cat([cells[:, :1], cells[:, 1:].unflatten(1, (-1, 4)).mean(2)], 1)
        if kind == "held":
            self.held[first] = z, covers
            return
        row = self.filled[kind]
        room = min(len(z), CAPACITY - row)
        self.values[kind][row : row + room] = z[:room].bfloat16()
        self.covers[kind][row : row + room] = covers[:room].bfloat16()
        self.scene[kind][row : row + room] = torch.arange(first, first + room, device=DEVICE)
        self.filled[kind] += room
        self.count[kind].fill_(self.filled[kind])

    def use(self, final):
        """The VAE has been trained: from now on there are latents."""
        self.encoder = vae.AutoencoderKLWan(**vae.CONFIG)
        self.encoder.load_state_dict(final["weights"])
        vae.channels_last(self.encoder.to(DEVICE)).eval()
        self.mean, self.scale = final["mean"].to(DEVICE).view(1, -1, 1, 1, 1), final["scale"].to(DEVICE)

    def held_rows(self):
        rows = sorted(self.held)
        z, covers = (torch.cat([self.held[row][i] for row in rows]) for i in (0, 1))
        which = torch.cat([torch.arange(row, row + len(self.held[row][0])) for row in rows]).to(DEVICE)
        return z, covers.unsqueeze(1), which


def quantiles(low, high):
    """Noise levels in `low..high` at `TABLE` equal steps of their share, see `denoiser.mass`."""
    grid = torch.linspace(0, 1, 20001, dtype=torch.float64)
    shares = recipe.mass(grid)
    bottom, top = (float(np.interp(edge, grid, shares)) for edge in (low, high))
    wanted = bottom + (top - bottom) * np.linspace(0, 1, TABLE)
    return torch.from_numpy(np.interp(wanted, shares.numpy(), grid.numpy())).float().to(DEVICE)


class Trainer:
    def __init__(self, clock, data, texts):
        self.clock, self.data, self.texts = clock, data, texts
        torch.manual_seed(1)
        self.model = architecture.denoiser()
        recipe.prepare(self.model)
        self.model.to(DEVICE)
        self.parameters = list(self.model.parameters())
        shared.start_gradients(self.parameters)
        self.rate = torch.zeros((), device=DEVICE)
        self.adamw = shared.steady_adamw(self.parameters, self.rate, (0.9, 0.98), 0.01)
        self.shadow = shared.Shadow(self.model, LONGEST)
        self.copy = architecture.denoiser().to(DEVICE).eval().requires_grad_(False)
        self.plain = self.forward = denoiser_forward.Forward(self.model)
        if shared.LEVEL < 1 and shared.ON_GPU:
            self.forward = denoiser_forward.Forward(self.model)
            self.forward.block = torch.compile(self.forward.block, dynamic=False)
        self.table = quantiles(0.0, 1.0)
        self.means = {kind: shared.Means((f"{kind}_velocity", f"{kind}_subject")) for kind in SHAPES}
        self.steps = 0

    def capture(self):
        """Compiles and captures the steps, on random data, and leaves the weights as they were."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        for kind in SHAPES:
            self.data.values[kind][:64].normal_()
            self.data.count[kind].fill_(64)
        if self.forward is not self.plain:
            self.compare()
            self.begin(before)
        self.graphs = {}
        for kind, batch in (("clip", BATCH), ("still", STILLS_BATCH)):
            self.graphs[kind] = shared.Step(lambda kind=kind, batch=batch: self.step(kind, batch))
            say(self.clock, "denoiser", f"captured the step for {kind}s")
        for kind in SHAPES:
            self.data.count[kind].fill_(max(1, self.data.filled[kind]))
            self.means[kind].read()
        self.begin(before)

    def compare(self):
        """The compiled forward pass must give what the plain one gives; weights are random afterwards."""
        for block in self.model.blocks:
            torch.nn.init.normal_(block.scale_shift_table, 0, 0.3)
        torch.nn.init.normal_(self.model.proj_out.weight, 0, 0.05)
        x, times = torch.randn(BATCH, 16, 5, 8, 14, device=DEVICE), torch.linspace(0, 999, BATCH, device=DEVICE)
        states = torch.randn(BATCH, ROWS, architecture.TEXT_WIDTH, device=DEVICE)
        lengths = torch.full((BATCH,), 20.0, device=DEVICE)
        states = states * (torch.arange(ROWS, device=DEVICE) < 20)[None, :, None]
        given = with_zero_row(states.bfloat16(), lengths)
        wanted, found = (forward(x, times, *given).detach() for forward in (self.plain, self.forward))
        error = float((found - wanted).norm() / wanted.norm())
        say(self.clock, "denoiser", f"compiled against plain: {error:.4f}")
        if not error < 0.05:
            raise ValueError(f"the compiled denoiser differs by {error}")

    def begin(self, values):
        """From these weights, with nothing remembered."""
        shared.reset(self.parameters, values, self.adamw)
        self.shadow.restart()

    def begin_with(self, state):
        self.begin([state[name] for name in self.shadow.names])

    def step(self, kind, batch):
        for parameter in self.parameters:
            parameter.grad.zero_()
        with torch.no_grad():
            row = (torch.rand(batch, device=DEVICE) * self.data.count[kind]).long()
            clean = self.data.values[kind][row].float()
            covers = self.data.covers[kind][row].float().unsqueeze(1)
            scene = self.data.scene[kind][row]
            variant = (torch.rand(batch, device=DEVICE) * self.texts.states[kind].shape[1]).long()
            states, lengths = self.texts.states[kind][scene, variant], self.texts.lengths[kind][scene, variant]
            none = (torch.rand(batch, device=DEVICE) * len(self.texts.states["drop"])).long()
            dropped = torch.rand(batch, device=DEVICE) < captions.DROPPED
            states = torch.where(dropped[:, None, None], self.texts.states["drop"][none], states)
            lengths = torch.where(dropped, self.texts.lengths["drop"][none], lengths)
            given = with_zero_row(states, lengths)
            u = (torch.arange(batch, device=DEVICE) + torch.rand(batch, device=DEVICE)) / batch * (TABLE - 1)
            under = u.long().clamp(max=TABLE - 2)
            sigma = torch.lerp(self.table[under], self.table[under + 1], u - under).view(-1, 1, 1, 1, 1)
            noise = torch.randn_like(clean)
        error = recipe.squared_error(self.forward, clean, noise, sigma, given)
        weight = 1 + recipe.MASK_WEIGHT * covers
        ((weight * error).mean() / weight.mean()).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adamw.step()
        self.shadow.update()
        self.means[kind].add(error, recipe.over_subject(error.detach(), covers))

    @torch.no_grad()
    def averaged(self):
        for own, value in zip(self.copy.parameters(), self.shadow.values):
            own.copy_(value)
        return self.copy

    @torch.no_grad()
    def measure(self, levels):
        """The averaged weights' error on held-out clips, by noise level."""
        if not self.data.held:
            return {}
        forward, result = denoiser_forward.Forward(self.averaged()), {}
        clean, covers, which = self.data.held_rows()
        given = with_zero_row(self.texts.states["held"][which], self.texts.lengths["held"][which])
        for level in levels:
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(int(1000 * level))).to(DEVICE)
            sigma = torch.full((len(clean), 1, 1, 1, 1), level, device=DEVICE)
            error = recipe.squared_error(forward, clean, noise, sigma, given)
            result[f"velocity@{level}"] = error.mean().item()
            result[f"subject@{level}"] = recipe.over_subject(error, covers).item()
        return result

    def train(self, name, end, peak, hold, stills, save, low=0.0, high=1.0, every=8, measure_every=30):
        """Trains until `end` on noise levels in `low..high`; gives the averaged weights, of which `save` gets earlier ones."""
        clock, rng = self.clock, random.Random(len(name))
        self.table.copy_(quantiles(low, high))
        levels = [level for level in recipe.MEASURED_AT if low <= level <= high]
        start, steps, told, saved, measured, factor = clock.now(), 0, time.time(), time.time(), time.time(), 1.0
        good = [value.clone() for value in self.shadow.values]
        visited = dict.fromkeys(SHAPES, 0)
        while clock.now() < end:
            clock.rest()
            share = clock.share(name, end)
            self.rate.fill_(factor * peak * min(1.0, (steps + 1) / 300) * max(0.002, falling(share, hold)))
            still = rng.random() < stills[0] + (stills[1] - stills[0]) * min(1.0, 2 * share)
            kind = "still" if still and self.data.filled["still"] else "clip"
            self.shadow.count()
            self.graphs[kind]()
            visited[kind] += BATCH if kind == "clip" else STILLS_BATCH
            steps += 1
            if steps % 25 == 0:
                self.texts.refresh(1)
                self.data.refresh(6)
            if time.time() - told > every:
                told = time.time()
                values = {**self.means["clip"].read(), **self.means["still"].read()}
                if not all(map(math.isfinite, values.values())):
                    say(clock, name, "loss is not finite: back to the last good average, at half the rate")
                    factor /= 2
                    shared.reset(self.parameters, good, self.adamw)
                    self.shadow.store(good)
                    continue
                good = [value.clone() for value in self.shadow.values]
                log(clock, name, steps, {
                    **values, "clips": self.data.filled["clip"], "stills": self.data.filled["still"],
                    "visited": visited["clip"], "visited_stills": visited["still"],
                    "steps_per_second": steps / max(clock.now() - start, 1e-6) / clock.scale,
                })  # fmt: skip
            if time.time() - saved > 20:
                saved = time.time()
                save(self.shadow.state())
            if time.time() - measured > measure_every:
                measured = time.time()
                log(clock, name, steps, self.measure(levels))
        if not self.shadow.finite():
            self.shadow.store(good)
        weights = {key: value.clone() for key, value in self.shadow.state().items()}
        save(weights)
        log(clock, name, steps, self.measure(levels))
        return weights


class Sampler:
    """Clips u8 `[N,F,H,W,3]` on the CPU of prompts, with both experts' forward passes and the VAE of `weights`."""

    def __init__(self, texts, weights, mean, scale, high, low):
        self.texts, self.mean, self.scale = texts, mean, scale
        self.vae = vae.AutoencoderKLWan(**vae.CONFIG)
        self.vae.load_state_dict(weights)
        vae.channels_last(self.vae.to(DEVICE)).eval()
        self.experts = []
        for state in (high, low):
            model = architecture.denoiser()
            model.load_state_dict(state)
            self.experts.append(denoiser_forward.Forward(model.to(DEVICE).eval()))

    @torch.no_grad()
    def __call__(self, given, steps=20, guidance=4.0, seed=0):
        states, lengths = self.texts.of(given)
        empty, empty_lengths = self.texts.of([tokenizer.NEGATIVE] * len(given))
        told, untold = with_zero_row(states, lengths), with_zero_row(empty, empty_lengths)
        shape = 16, SHAPES["clip"], world.HEIGHT // 8, world.WIDTH // 8
        noises = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(given))]
        x, solver = torch.stack(noises).to(DEVICE), scheduler()
        solver.set_timesteps(steps, device=DEVICE)
        for moment in solver.timesteps:
            forward = self.experts[0 if float(moment) >= 1000 * BOUNDARY else 1]
            times = torch.full((len(x),), float(moment), device=DEVICE)
            with_text, without = forward(x, times, *told), forward(x, times, *untold)
            x = solver.step(without + guidance * (with_text - without), moment, x, return_dict=False)[0]
        with shared.mixed():
            frames = torch.cat([vae_forward.decode(self.vae, part).float() for part in (x * self.scale + self.mean).split(16)])
        return np.stack([vae.as_pictures(clip) for clip in frames.cpu()])


def draw_sheet(sampler, path):
    clips = sampler(prompts(PROMPTS))
    rows = [np.concatenate([clip[t] for t in SHOWN], 1) for clip in clips]
    half = (len(rows) + 1) // 2
    image = Image.fromarray(np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], 1))
    shared.write_atomically(path, lambda partial: image.save(partial, "PNG"))


def read_back(clock, run, sampler):
    """What the judge, where there is one, reads of clips of the fixed prompts."""
    path = run / "judge.safetensors"
    if not path.exists():
        return
    reader = judge.Judge().to(DEVICE).eval()
    reader.load_state_dict(load_file(path))
    fixed, right, count = judge.prompts(), torch.zeros(len(judge.NAMES)), 0
    for start in range(0, len(fixed), 32):
        part = fixed[start : start + 32]
        clips = torch.from_numpy(sampler([prompt["prompt"] for prompt in part], seed=100 + start)).to(DEVICE).float() / 255
        told = torch.tensor([[judge.VALUES[n].index(prompt["attributes"][n]) for n in judge.NAMES] for prompt in part])
        with torch.no_grad():
            scores = reader(clips)
        right += torch.stack([(row.argmax(1).cpu() == told[:, i]).float().sum() for i, row in enumerate(scores)])
        count += len(part)
    log(clock, "read_back", 0, {name: float(value / count) for name, value in zip(judge.NAMES, right)})


def wait_for_latents(clock, data, texts):
    """Encodes until most of what was rendered is latents."""
    since = time.time()

    def enough():
        return len(data.waiting) < 40 and len(data.held) * gpu_scenes.CHUNK["held"] >= gpu_scenes.COUNT["held"]

    while not data.filled["clip"] or not (enough() or time.time() - since > 25):
        clock.rest()
        before = data.filled["clip"], len(data.waiting)
        texts.refresh()
        data.refresh(50)
        if before == (data.filled["clip"], len(data.waiting)):
            time.sleep(0.2)


def main(run, out, checkpoint):
    shared.set_up()
    clock = Clock(run)
    texts = Texts(run, checkpoint)
    while "drop" not in texts.states:
        texts.refresh()
        time.sleep(0.2)
    clock.rest()
    data = Latents(run, texts)
    trainer = Trainer(clock, data, texts)
    trainer.capture()
    (run / "denoiser.ready").touch()
    say(clock, "denoiser", f"captured, level {shared.LEVEL}")
    while not (run / "vae.final").exists():
        clock.rest()
        texts.refresh()
        data.refresh(4)
        time.sleep(0.05)
    final = shared.load(run / "vae.final")
    data.use(final)
    wait_for_latents(clock, data, texts)
    levels = data.values["clip"][: data.filled["clip"]].float()
    say(clock, "denoiser", f"begins with {data.filled['clip']} clips, {data.filled['still']} stills")
    say(clock, "denoiser", f"latents: mean {levels.mean().item():.3f}, deviation {levels.std().item():.3f}")
    del levels

    def learn(name, result, end, start, *options, **more):
        """A stage; one that an earlier process began goes on, and one that is finished is read."""
        if (weights := shared.load(run / f"{name}.final")) is not None:
            return weights
        if state := shared.load(run / f"{name}.newest") or start:
            trainer.begin_with(state)

        def keep(state):
            shared.save(run / f"{name}.newest", state)
            shared.save_halves(out / f"{result}.safetensors", state)

        weights = trainer.train(name, deadline(end), *options, keep, **more)
        shared.save(run / f"{name}.final", weights)
        return weights

    def drawn(high, low, and_then=None):
        """A sheet, and what the judge reads, if all goes well."""
        try:
            weights = (shared.load(run / "decoder.final") or final)["weights"]
            sampler = Sampler(texts, weights, data.mean, data.scale, high, low)
            draw_sheet(sampler, out / "sheet.png")
            say(clock, "denoiser", "sheet drawn")
            if and_then:
                and_then(clock, run, sampler)
        except Exception as error:  # A picture is not worth the run.
            say(clock, "denoiser", f"not drawn: {error!r}")

    joint = learn("denoiser", "joint", "joint", None, PEAK, HOLD, STILLS)
    if not (run / "high.final").exists():
        drawn(joint, joint)
    made = {}
    for name, (low, high) in experts.RANGES.items():
        made[name] = learn(name, name, name, joint, experts.PEAK, 0.0, (0.0, 0.0), low=low, high=high, measure_every=math.inf)
        if (out / "joint.safetensors").exists():
            # Until there is a better one, this is the other expert.
            os.replace(out / "joint.safetensors", out / "low.safetensors")
    drawn(made["high"], made["low"], read_back)
    say(clock, "denoiser", "done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
