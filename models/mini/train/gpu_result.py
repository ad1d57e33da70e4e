"""The results of a GPU run as a run folder, for the scripts that come after training.

  python gpu_result.py OUT RUN [CHECKPOINT]

OUT is what `gpu.py` wrote, CHECKPOINT the one that it took tokenizer and text encoder from. RUN, a new folder, is then what
`run.sh` leaves behind, as far as `export.py RUN FOLDER`, `judge.py export RUN FOLDER` and `plot.py RUN/losses.csv` read it. A run
that ended early may lack the judge, the tiny decoder, or an expert, for which the joint denoiser stands.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import architecture
import judge
import vae

HERE = Path(__file__).parent


def floats(tensors):
    return {name: value.float() for name, value in tensors.items()}


def part(tensors, name):
    """The tensors of one model of several, by their own names."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def normalisation(metadata):
    """The VAE's config of means and scales, which a run writes when the encoder has been trained."""
    if not metadata or "latents_mean" not in metadata:
        raise SystemExit("the VAE was not finished: no denoiser belongs to it")
    mean, scale = json.loads(metadata["latents_mean"]), json.loads(metadata["latents_scale"])
    rounded = [round(value, 4) for value in mean]
    return {"latents_mean": rounded, "latents_std": [round(scale, 4)] * len(rounded)}


def accuracy(path):
    """What the judge reads back of rendered clips, by attribute, from the log of losses; None if it was not scored."""
    with open(path, newline="") as file:
        values = {row["quantity"]: float(row["value"]) for row in csv.DictReader(file) if row["stage"] == "judge"}
    return {name: round(values[name], 4) for name in judge.NAMES} if set(judge.NAMES) <= set(values) else None


def convert_vae(out, run):
    with safe_open(out / "vae.safetensors", "pt") as file:
        config = normalisation(file.metadata())
    model = vae.AutoencoderKLWan(**vae.CONFIG, **config)
    model.load_state_dict(floats(load_file(out / "vae.safetensors")))
    model.save_pretrained(run / "vae")


def convert_experts(out, run):
    for name in ("high", "low"):
        path = out / f"{name}.safetensors"
        model = architecture.denoiser()
        model.load_state_dict(floats(load_file(path if path.exists() else out / "joint.safetensors")))
        model.save_pretrained(run / name)


def convert_small(out, run):
    """Judge and tiny decoder."""
    tensors = load_file(out / "small.safetensors")
    if reader := part(tensors, "judge"):
        torch.save({"state": {"average": reader}}, run / "judge.pt")
    if decoder := part(tensors, "tiny"):
        (run / "tiny_decoder").mkdir()
        save_file(decoder, run / "tiny_decoder" / "taew2_1.safetensors")


def convert(out, run, checkpoint):
    run.mkdir(parents=True)
    convert_vae(out, run)
    convert_experts(out, run)
    if (out / "small.safetensors").exists():
        convert_small(out, run)
    for name in ("tokenizer", "text_encoder"):
        shutil.copytree(checkpoint / name, run / name)
    shutil.copy(out / "losses.csv", run)
    if shares := accuracy(run / "losses.csv"):
        (run / "judge-score.json").write_text(json.dumps({"accuracy": shares}) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=HERE.parent / "checkpoint")
    args = parser.parse_args()
    convert(args.out, args.run, args.checkpoint)


if __name__ == "__main__":
    main()
