"""Assembles a checkpoint in the diffusers layout, f16, from the results of a run.

  python export.py RUN FOLDER           the trained weights: RUN/vae, RUN/text_encoder, RUN/high, RUN/low
  python export.py --random FOLDER      seeded random weights of the same shapes, for tests that need no meaning
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import UMT5EncoderModel

import architecture
import tokenizer
import vae
import world

BOUNDARY = 0.875
SHIFT = 5.0
RECOMMENDED = {
    "size": f"{world.WIDTH}x{world.HEIGHT}",
    "frames": world.FRAMES,
    "fps": world.FPS,
    "steps": 20,
    "guidance": [4.0, 4.0],
    "shift": SHIFT,
    "sampler": "unipc",
    "negative": tokenizer.NEGATIVE,
}
INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.42.1",
    "boundary_ratio": BOUNDARY,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def scheduler():
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=SHIFT
    )


def random_parts(vocabulary):
    torch.manual_seed(0)
    return {
        "transformer": architecture.denoiser(),
        "transformer_2": architecture.denoiser(),
        "text_encoder": architecture.text_encoder(vocabulary),
        "vae": vae.AutoencoderKLWan(**vae.CONFIG),
    }


def trained_parts(run):
    return {
        "transformer": WanTransformer3DModel.from_pretrained(run / "high"),
        "transformer_2": WanTransformer3DModel.from_pretrained(run / "low"),
        "text_encoder": UMT5EncoderModel.from_pretrained(run / "text_encoder"),
        "vae": AutoencoderKLWan.from_pretrained(run / "vae"),
    }


def assemble(folder, parts):
    """Writes the folder; `parts` are the four modules by their folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in parts.items():
        module.half().save_pretrained(folder / name)
        # Where the weights once lay is no property of the model.
        path = folder / name / "config.json"
        config = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
        path.write_text(json.dumps(config, indent=2) + "\n")
    scheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    (folder / "rushes.json").write_text(json.dumps(RECOMMENDED, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--random", action="store_true")
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.random:
        tokenizer.save(args.folder / "tokenizer")
        assemble(args.folder, random_parts(tokenizer.load(args.folder / "tokenizer").get_vocab_size()))
    else:
        (args.folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        for path in (args.run / "tokenizer").iterdir():
            (args.folder / "tokenizer" / path.name).write_bytes(path.read_bytes())
        assemble(args.folder, trained_parts(args.run))


if __name__ == "__main__":
    main()
