"""The two experts: copies of the denoiser's average, each continued on its own side of the boundary.

The text encoder stays as it is, for both read the same states. Writes what `export.py` assembles: `RUN/high`, `RUN/low` and
`RUN/text_encoder`. With `--minutes 0` it only splits: two equal experts.

  python experts.py RUN --minutes 10 [--until TIME]
"""

import argparse
import random
from datetime import datetime, timezone
from pathlib import Path

import torch

import architecture
import attention
import loop
import text
import tokenizer
from denoiser import BATCH, Latents, move, velocity_loss
from export import BOUNDARY

PEAK = 3e-4
RANGES = {"high": (BOUNDARY, 1.0), "low": (0.0, BOUNDARY)}


def average_of(run):
    """The averaged denoiser and text encoder of the joint stage."""
    state = torch.load(run / "denoiser.pt", map_location="cpu", weights_only=True)["state"]
    encoder = architecture.text_encoder(tokenizer.load(run / "tokenizer").get_vocab_size())
    encoder.load_state_dict(state["encoder_average"])
    return state["denoiser_average"], encoder.eval()


def train(run, name, minutes, until):
    """Continues one expert, then writes its average."""
    low, high = RANGES[name]
    where = loop.device()
    values, encoder = average_of(run)
    encoder.to(where)
    expert = architecture.denoiser()
    expert.load_state_dict(values)
    expert.to(where).train()
    average = loop.Average(expert)
    stage = loop.Stage(run, name, minutes, until)
    optimizer = torch.optim.AdamW(expert.parameters(), lr=PEAK, weight_decay=0.01, betas=(0.9, 0.98))
    if state := stage.resume():
        expert.load_state_dict(state["expert"])
        optimizer.load_state_dict(state["optimizer"])
        average.values = move(state["average"], where)

    def snapshot():
        return {"expert": expert.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values}

    processor = attention.install(expert, compiled=True)
    pieces, data = tokenizer.load(run / "tokenizer"), Latents(run)
    rng = random.Random(2 + stage.step)
    torch.manual_seed(2 + stage.step)
    while stage.share() < 1:
        for group in optimizer.param_groups:
            group["lr"] = loop.rate(stage, PEAK)
        scenes, *batch = data.draw(rng, BATCH)
        ids, lengths, _ = text.draw_batch(scenes, rng, pieces, where)
        with torch.no_grad(), torch.autocast(where.type, torch.bfloat16):
            states = text.encode(encoder, ids, lengths)
        batch = [tensor.to(where) for tensor in batch]
        loss, plain = velocity_loss(expert, processor, batch, states.float(), lengths, low, high)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(expert.parameters(), 1.0)
        optimizer.step()
        average.update(expert, stage.step)
        stage.tick({"loss": loss, "velocity": plain}, snapshot)
    stage.save(snapshot())
    result = architecture.denoiser()
    average.load_into(result).save_pretrained(run / name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=10, help="for both together")
    parser.add_argument("--until", type=loop.moment, help="when both must be done")
    args = parser.parse_args()
    average_of(args.run)[1].save_pretrained(args.run / "text_encoder")
    for name in RANGES:
        until = args.until
        if until is not None and name == "high":
            now = datetime.now(timezone.utc)
            until = now + (until - now) / 2
        train(args.run, name, args.minutes / 2, until)


if __name__ == "__main__":
    main()
