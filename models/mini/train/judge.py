"""The judge: reads subject, colour, action, setting, time and camera back from a clip. Trained on rendered clips only.

  python judge.py train   RUN --minutes 30
  python judge.py score   RUN                    accuracy on rendered clips that nothing was trained on, and on their blobs
  python judge.py export  RUN FOLDER             judge.onnx, judge.json and prompts.json, as `rushes bench quality` reads them

One trunk of 3-D convolutions sees the clip, one linear head per attribute reads it. Clips are softened, dimmed, speckled and
shifted at random, since what a model draws is softer than what the renderer draws.

A blob of the right colour is no robot, though a classifier that must name something names it rightly more often than chance. So
the subject has one value more, `unclear`: a share of the clips has its subject blurred until nobody could name it, and there
`unclear` is right. No prompt asks for it, so it never counts.
"""

import argparse
import json
import random
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import loop
import world
from clips import Clips

NAMES = ("subject", "color", "action", "setting", "time", "camera")
UNCLEAR = "unclear"
VALUES = {name: [*world.ATTRIBUTES[name], UNCLEAR] if name == "subject" else world.ATTRIBUTES[name] for name in NAMES}
BATCH = 32
PROMPTS = 64
# The number of the first scene that scores it: far from all others.
SCORED_FROM, SCORED = 900_000, 600
# In a mirror these change places. A mirrored roll is still a roll.
MIRRORED = {"right": "left", "left": "right", "pan_left": "pan_right", "pan_right": "pan_left"}
# The blur of a subject, as the side in pixels of the cells that it is averaged over: two cells of the latents are 16 pixels.
BLURRED, BLOB, UNNAMEABLE = 0.35, 16, (11.0, 24.0)
# How crisp the outlines of blobs are, see `with_blob`.
EDGES = (1.0, 4.0)


class Judge(nn.Module):
    """Clips f32 `[B,17,64,112,3]` in 0..1 to one row of scores per attribute, `[B,values]`, in the order of `NAMES`."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 24, 40, 56)
        shapes = [((1, 5, 5), (1, 2, 2)), ((3, 3, 3), (2, 1, 1)), ((3, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2))]
        layers = []
        for inner, outer, (kernel, stride) in zip(widths, widths[1:], shapes):
            padding = tuple(side // 2 for side in kernel)
            layers += [nn.Conv3d(inner, outer, kernel, stride, padding, bias=False), nn.BatchNorm3d(outer), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.narrow = nn.Conv3d(widths[-1], 8, 1)
        self.layout = nn.Linear(8 * 5 * 4 * 7, 64)
        self.drop = nn.Dropout(0.1)
        self.heads = nn.ModuleList(nn.Linear(64 + 2 * widths[-1], len(VALUES[name])) for name in NAMES)

    @staticmethod
    def seen_small(clip):
        """The clip at half its size, `[B,3,17,32,56]`: enough to tell things apart."""
        return F.avg_pool3d(clip.permute(0, 4, 1, 2, 3), (1, 2, 2))

    def forward(self, clip):
        return self.read(self.seen_small(clip))

    def read(self, small):
        seen = self.trunk(small * 2 - 1)
        where = F.relu(self.layout(self.narrow(seen).flatten(1)))
        what = torch.cat([where, seen.mean((2, 3, 4)), seen.amax((2, 3, 4))], 1)
        what = self.drop(what)
        return tuple(head(what) for head in self.heads)


def targets(scenes):
    """The index of every attribute's value, one row per scene, in the order of `NAMES`."""
    return torch.tensor([[VALUES[name].index(scene[name]) for name in NAMES] for scene in scenes])


def mirror(scene):
    return {name: MIRRORED.get(value, value) if name in ("action", "camera") else value for name, value in scene.items()}


def halved(pixels):
    """Pixels u8 `[17,64,112]` or `[17,64,112,3]` at half the size, each the mean of four."""
    quads = pixels.reshape(len(pixels), world.HEIGHT // 2, 2, world.WIDTH // 2, 2, -1)
    return ((quads.sum((2, 4), dtype=np.uint16) + 2) // 4).astype(np.uint8)


def blurred(frames, side):
    """Frames f32 `[N,C,h,w]` of which no detail is finer than cells of `side` pixels: averages over cells, joined smoothly."""
    height, width = frames.shape[-2:]
    cells = (max(1, round(height / side)), max(1, round(width / side)))
    return F.interpolate(F.adaptive_avg_pool2d(frames, cells), (height, width), mode="bilinear", align_corners=False)


def with_blob(clips, masks, side, edge):
    """Clips f32 `[B,3,F,h,w]` whose subject has no detail finer than cells of `side` of their pixels; masks `[B,1,F,h,w]` in 0..1.

    `edge` is how crisp the blob's outline is: 1 is the blur's own, and from 4 on it looks cut out. Where the subject was and the
    blob is not, the background is filled in from around."""
    count = len(clips)
    frames, covers = (x.transpose(1, 2).flatten(0, 1) for x in (clips, masks))
    near = F.max_pool2d(covers, 3, 1, 1)
    share, rest = blurred(covers, side), blurred(1 - near, side)
    subject = blurred(frames * covers, side) / share.clamp(min=1e-3)
    around = blurred(frames * (1 - near), side) / rest.clamp(min=1e-3)
    backdrop = torch.lerp(frames, around, near)
    mixed = torch.lerp(backdrop, subject, (edge * (share - 0.5) + 0.5).clamp(0, 1))
    return mixed.unflatten(0, (count, -1)).transpose(1, 2)


def worn(small, rng):
    """Clips at half size `[B,3,17,32,56]` as a model might have drawn them: shifted, softer, darker or lighter, speckled."""
    dy, dx = rng.randint(-2, 2), rng.randint(-2, 2)
    frames = F.pad(small.flatten(0, 1), (2, 2, 2, 2, 0, 0), mode="replicate")
    frames = frames[..., 2 + dy : 2 + dy + world.HEIGHT // 2, 2 + dx : 2 + dx + world.WIDTH // 2]
    if rng.random() < 0.4:
        soft = F.avg_pool2d(frames, 3, 1, 1, count_include_pad=False)
        frames = torch.lerp(frames, soft, rng.uniform(0.3, 1.0))
    frames = frames * rng.uniform(0.92, 1.06) + rng.uniform(-0.03, 0.03)
    frames = frames + rng.uniform(0, 0.05) * torch.randn_like(frames)
    return frames.clamp(0, 1).unflatten(0, small.shape[:2])


def batch(clips, rng, where):
    """Worn clips at half size, some with a blob as their subject, and what is right for each."""
    pictures, covers, scenes = [], [], []
    for _ in range(loop.batch_size(BATCH)):
        index = clips.draw(rng)
        clip, mask = (halved(pixels) for pixels in clips[index])
        scene = world.numbered(index)
        if rng.random() < 0.5:
            clip, mask, scene = clip[:, :, ::-1], mask[:, :, ::-1], mirror(scene)
        pictures.append(clip.transpose(3, 0, 1, 2))
        covers.append(mask.transpose(3, 0, 1, 2))
        scenes.append(scene)
    small, masks = (torch.from_numpy(np.stack(part)).to(where).float() / 255 for part in (pictures, covers))
    told, blobs = targets(scenes), round(len(scenes) * BLURRED)
    for i in range(blobs):
        # Pixels are twice as large at half size.
        small[i : i + 1] = with_blob(small[i : i + 1], masks[i : i + 1], rng.uniform(*UNNAMEABLE) / 2, rng.uniform(*EDGES))
    told[:blobs, NAMES.index("subject")] = VALUES["subject"].index(UNCLEAR)
    return worn(small, rng), told.to(where)


def train(run, minutes):
    torch.manual_seed(3)
    where = loop.device()
    clips = Clips(run)
    judge = Judge().to(where, memory_format=torch.channels_last_3d).train()
    stage = loop.Stage(run, "judge", minutes)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.02)
    average = loop.Average(judge, 300)
    if state := stage.resume():
        judge.load_state_dict(state["judge"])
        optimizer.load_state_dict(state["optimizer"])
        average.values = {name: value.to(where) for name, value in state["average"].items()}

    def snapshot():
        return {"judge": judge.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values}

    rng = random.Random(stage.step)
    while stage.share() < 1:
        for group in optimizer.param_groups:
            group["lr"] = loop.rate(stage, 3e-3)
        if stage.step % 200 == 0:
            clips.refresh()
        x, told = batch(clips, rng, where)
        with torch.autocast(where.type, torch.bfloat16):
            scores = judge.read(x.contiguous(memory_format=torch.channels_last_3d))
        loss = sum(F.cross_entropy(row.float(), told[:, i], label_smoothing=0.05) for i, row in enumerate(scores))
        right = torch.stack([(row.argmax(1) == told[:, i]).float().mean() for i, row in enumerate(scores)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 5.0)
        optimizer.step()
        average.update(judge, stage.step)
        stage.tick({"loss": loss, "right": right.mean(), "right_subject": right[NAMES.index("subject")]}, snapshot)
    stage.save(snapshot())


def trained(run):
    state = torch.load(run / "judge.pt", map_location="cpu", weights_only=True)["state"]
    judge = Judge()
    judge.load_state_dict(state["average"])
    return judge.eval()


def scored_clip(index):
    """A scene, its clip and its mask; every other is of a combination that nothing is trained on."""
    scene = world.numbered(index, from_held_out=index % 2 == 1)
    return scene, *world.render(scene)


@torch.no_grad()
def score(run, workers):
    """The share that the judge reads back, per attribute, and what it says of subjects blurred to two cells."""
    judge, right, rng = trained(run), np.zeros(len(NAMES)), random.Random(0)
    blobs = np.zeros((len(world.ATTRIBUTES["subject"]), len(VALUES["subject"])), int)
    with get_context("spawn").Pool(workers) as pool:
        for scene, clip, mask in pool.imap_unordered(scored_clip, range(SCORED_FROM, SCORED_FROM + SCORED), chunksize=16):
            told = targets([scene])[0].tolist()
            pixels = torch.from_numpy(clip).float().unsqueeze(0) / 255
            right += [int(row.argmax()) == value for row, value in zip(judge(pixels), told)]
            video, cover = pixels.permute(0, 4, 1, 2, 3), torch.from_numpy(mask).float()[None, None] / 255
            seen = judge(with_blob(video, cover, BLOB, rng.uniform(*EDGES)).permute(0, 2, 3, 4, 1))[0]
            blobs[told[0], int(seen.argmax())] += 1
    result = {name: round(float(share), 4) for name, share in zip(NAMES, right / SCORED)}
    named = round(float(np.trace(blobs) / SCORED), 4)
    confusion = {name: dict(zip(VALUES["subject"], row)) for name, row in zip(world.ATTRIBUTES["subject"], blobs.tolist())}
    report = {"accuracy": result, "blobs_named": named, "blobs": confusion}
    (run / "judge-score.json").write_text(json.dumps(report) + "\n")
    print(json.dumps(report), flush=True)


def prompts():
    """The fixed prompts: scenes that no model was trained on, every attribute told, English and Chinese in turn.

    Subjects and colours come equally often, the rest is drawn from what comes least often so far."""
    rng, result = random.Random(64), []
    seen = {name: dict.fromkeys(world.ATTRIBUTES[name], 0) for name in NAMES}
    while len(result) < PROMPTS:
        candidates = [world.sample(rng, from_held_out=True) for _ in range(200)]
        scene = min(candidates, key=lambda scene: sum(seen[name][scene[name]] * len(seen[name]) for name in NAMES))
        for name in NAMES:
            seen[name][scene[name]] += 1
        language = ("en", "zh")[len(result) % 2]
        phrases = world.CAMERAS[scene["camera"]][language == "zh"]
        text = world.caption(scene, rng, language)
        while not any(phrase and phrase in text for phrase in phrases):
            text = world.caption(scene, rng, language)
        attributes = {name: scene[name] for name in NAMES}
        result.append({"language": language, "prompt": text, "seed": len(result), "attributes": attributes})
    return result


def export(run, folder):
    folder.mkdir(parents=True, exist_ok=True)
    judge = trained(run)
    clip = torch.zeros(1, world.FRAMES, world.HEIGHT, world.WIDTH, 3)
    torch.onnx.export(judge, (clip,), folder / "judge.onnx", input_names=["clip"], output_names=list(NAMES), opset_version=18,
                      dynamo=False)  # fmt: skip
    accuracy = json.loads((run / "judge-score.json").read_text())["accuracy"]
    attributes = {name: {"values": VALUES[name], "accuracy": accuracy[name]} for name in NAMES}
    (folder / "judge.json").write_text(json.dumps({"attributes": attributes}, indent=2) + "\n")
    lines = ",\n  ".join(json.dumps(prompt, ensure_ascii=False) for prompt in prompts())
    (folder / "prompts.json").write_text(f"[\n  {lines}\n]\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["train", "score", "export"])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, help="processes that render clips to score; one per core if not given")
    args = parser.parse_args()
    if args.what == "train":
        train(args.run, args.minutes)
    elif args.what == "score":
        score(args.run, args.workers)
    else:
        export(args.run, args.folder)


if __name__ == "__main__":
    main()
