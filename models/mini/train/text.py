"""The text encoder before the denoiser: a short training in which every row of its output must tell the whole scene.

Two languages then already mean the same, and the denoiser's cross attention finds the scene wherever it looks. The readout
heads stay in the loss, with a small weight, while text encoder and denoiser are trained together.

  python text.py RUN --minutes 4
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import architecture
import captions
import loop
import tokenizer
import world


class Readout(nn.Module):
    """Reads every attribute from every row of the text states."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(architecture.TEXT_WIDTH, len(v)) for name, v in world.ATTRIBUTES.items()})

    def forward(self, states, lengths, told):
        """The mean cross-entropy over attributes, and the share that the mean over rows reads back.

        `states` `[B,L,D]`, `lengths` `[B]`, `told` per attribute an index `[B]` or `captions.UNKNOWN`."""
        real = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
        losses, right = [], []
        for name, head in self.heads.items():
            scores, target = head(states), told[name]
            each = target[:, None].masked_fill(~real, captions.UNKNOWN)
            losses.append(F.cross_entropy(scores.flatten(0, 1), each.flatten(), ignore_index=captions.UNKNOWN))
            pooled = (scores * real[..., None]).sum(1).argmax(-1)
            known = target != captions.UNKNOWN
            right.append((pooled == target)[known].float().mean())
        return torch.stack(losses).mean(), torch.stack(right).mean()


def encode(encoder, ids, lengths):
    """Text states `[B,L,D]` with exact zeros behind the real rows, as the pipeline pads them."""
    real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    states = encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state
    return states * real[..., None]


def draw_batch(scenes, rng, pieces, where, dropped=captions.DROPPED):
    """Token ids, lengths and the told attributes of one caption for each scene."""
    texts, told = zip(*(captions.draw(scene, rng, dropped) for scene in scenes))
    ids, lengths = captions.batch(list(texts), pieces)
    told = {name: torch.tensor([row[name] for row in told], device=where) for name in world.ATTRIBUTES}
    return ids.to(where), lengths.to(where), told


def train(run, minutes, size=64):
    """Trains text encoder and readout; the state is `RUN/text.pt`, the tokenizer `RUN/tokenizer`."""
    torch.manual_seed(0)
    where = loop.device()
    if not (run / "tokenizer" / "tokenizer.json").exists():
        tokenizer.save(run / "tokenizer")
    pieces = tokenizer.load(run / "tokenizer")
    encoder, readout = architecture.text_encoder(pieces.get_vocab_size()).to(where), Readout().to(where)
    parameters = [*encoder.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    stage = loop.Stage(run, "text", minutes)
    if state := stage.resume():
        encoder.load_state_dict(state["encoder"])
        readout.load_state_dict(state["readout"])
        optimizer.load_state_dict(state["optimizer"])

    def snapshot():
        return {"encoder": encoder.state_dict(), "readout": readout.state_dict(), "optimizer": optimizer.state_dict()}

    rng = random.Random(stage.step)
    while stage.share() < 1:
        for group in optimizer.param_groups:
            group["lr"] = loop.rate(stage, 2e-3)
        scenes = [world.sample(rng) for _ in range(size)]
        ids, lengths, told = draw_batch(scenes, rng, pieces, where, dropped=0.02)
        with torch.autocast(where.type, torch.bfloat16):
            states = encode(encoder, ids, lengths)
        loss, right = readout(states.float(), lengths, told)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        stage.tick({"loss": loss, "right": right}, snapshot)
    stage.save(snapshot())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=4)
    args = parser.parse_args()
    train(args.run, args.minutes)


if __name__ == "__main__":
    main()
