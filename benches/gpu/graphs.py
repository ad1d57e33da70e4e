"""Runs exported graphs in ONNX Runtime, and the same work in PyTorch."""

import collections
import json
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from diffusers import AutoencoderKLWan

RUNS = 5
ROPE_THETA = 10_000.0


@dataclass(frozen=True)
class Place:
    """The device, number format and execution provider of all measurements."""

    device: str
    dtype: torch.dtype
    provider: str

    @classmethod
    def gpu(cls):
        return cls("cuda", torch.bfloat16, "CUDAExecutionProvider")

    @classmethod
    def cpu(cls):
        return cls("cpu", torch.float32, "CPUExecutionProvider")

    @property
    def is_cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def providers(self) -> list[str]:
        """Operators that the provider lacks run on the CPU, and are reported there."""
        return [self.provider] if self.is_cpu else [self.provider, "CPUExecutionProvider"]

    def free_memory(self) -> int | None:
        return None if self.is_cpu else torch.cuda.mem_get_info()[0]

    def wait(self) -> None:
        if not self.is_cpu:
            torch.cuda.synchronize()


def machine(place: Place) -> dict:
    described = {"onnxruntime": onnxruntime.__version__, "provider": place.provider}
    if place.is_cpu:
        described["device"] = "CPU, dry run"
    else:
        properties = torch.cuda.get_device_properties(0)
        described["device"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
        described["cuda"] = torch.version.cuda
        described["cudnn"] = torch.backends.cudnn.version()
    for package in ("torch", "diffusers", "onnxruntime-gpu"):
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            continue
    return described


def export(rushes: Path, where: Path, place: Place) -> None:
    command = [rushes, "export", where / "checkpoint", "--out", where / "bundle", "--target", "cuda", "--copy"]
    if place.is_cpu:
        command += ["--weights", "f32"]
    subprocess.run(command, check=True)


def find(where: Path, component: str, what: str, place: Place) -> Path:
    """The graph of a component; `what` is the part, if it has several."""
    precision = "f32" if place.is_cpu else "bf16"
    part = f"{what}." if component == "decoder" else ""
    found = sorted((where / "bundle" / component).rglob(f"{part}cuda-{precision}.*.onnx"))
    if len(found) != 1:
        raise SystemExit(f"{len(found)} graphs of {component} {what} in {where}")
    return found[0]


def open_session(graph: Path, place: Place):
    """A session on the provider of `place`, and the number of operators of each kind per provider."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=place.providers)
    if place.provider not in session.get_providers():
        raise SystemExit(f"{place.provider} cannot be loaded: {session.get_providers()}")
    placement: dict[str, collections.Counter] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        counted = placement.setdefault(subgraph.ep_name, collections.Counter())
        counted.update(node.op_type for node in subgraph.get_nodes())
    return session, {name: dict(kinds) for name, kinds in placement.items()}


def describe(placement: dict) -> str:
    """The number of operators per provider, with the names of those that do not run on the first one."""
    parts = []
    for name, kinds in sorted(placement.items(), key=lambda item: -sum(item[1].values())):
        short = name.removesuffix("ExecutionProvider")
        listed = "" if not parts else " (" + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) + ")"
        parts.append(f"{short} {sum(kinds.values())}{listed}")
    return ", ".join(parts)


def step_inputs(sizes, latent: tuple[int, int, int, int], place: Place) -> dict[str, torch.Tensor]:
    from checkpoint import text_width

    generator = torch.Generator().manual_seed(1)
    _, frames, height, width = latent
    grid = (frames, height // 2, width // 2)
    cos, sin = rope(sizes.head_dim, grid)
    given = {
        "latent": torch.randn(1, *latent, generator=generator),
        "timestep": torch.tensor([500.0]),
        "rows": torch.zeros(1, dtype=torch.int64),
        "text": torch.randn(1, 512, text_width(), generator=generator),
        "cos": cos,
        "sin": sin,
    }
    # Both sides receive the same values, which the narrower number format represents exactly.
    return {name: value.to(place.dtype).float() if name in ("latent", "text") else value for name, value in given.items()}


def rope(head: int, grid: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `[L,head/2]`: the head is split into time, height and width."""
    space = 2 * (head // 6)
    angles = []
    for axis, (width, length) in enumerate(zip((head - 2 * space, space, space), grid)):
        frequencies = ROPE_THETA ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        of_axis = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        shape = [1, 1, 1, width // 2]
        shape[axis] = length
        angles.append(of_axis.reshape(shape).expand(*grid, width // 2))
    angles = torch.cat(angles, dim=-1).reshape(-1, head // 2)
    return angles.cos().float(), angles.sin().float()


@torch.no_grad()
def torch_step(model, given: dict[str, torch.Tensor], place: Place) -> dict:
    latent, text = (given[name].to(place.device, place.dtype) for name in ("latent", "text"))
    timestep = given["timestep"].to(place.device)
    output, seconds = timed(lambda: model(latent, timestep, text, return_dict=False)[0], place)
    own_error = None
    if not place.is_cpu and sum(p.numel() for p in model.parameters()) < 3e9:
        # The error of bf16 itself: the same weights and inputs in f32.
        bf16_data = {name: parameter.data for name, parameter in model.named_parameters()}
        exact = model.float()(latent.float(), timestep, text.float(), return_dict=False)[0].cpu()
        own_error = relative_error(output, exact)
        for name, parameter in model.named_parameters():
            parameter.data = bf16_data[name]
    return {"output": output.float().cpu(), "seconds": seconds, "own error": own_error}


def timed(work, place: Place):
    """The result, and the shortest time of a few runs after one warm-up run."""
    result, best = work(), float("inf")
    place.wait()
    for _ in range(RUNS):
        began = time.perf_counter()
        result = work()
        place.wait()
        best = min(best, time.perf_counter() - began)
    return result, best


def run(session, given: dict, output: str, place: Place):
    """Runs with inputs and outputs on the device. Returns the output as f32 on the host, and the shortest time."""
    binding = session.io_binding()
    for name, value in given.items():
        array = value if isinstance(value, onnxruntime.OrtValue) else to_device(value, place)
        binding.bind_ortvalue_input(name, array)
    for value in session.get_outputs():
        binding.bind_output(value.name, place.device)

    def once():
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    _, seconds = timed(once, place)
    named = dict(zip([value.name for value in session.get_outputs()], binding.get_outputs()))
    caches = {name: value for name, value in named.items() if name != output}
    result = torch.from_numpy(named[output].numpy().astype(np.float32))
    return (result, seconds) if not caches else ((result, caches), seconds)


def to_device(value: torch.Tensor, place: Place):
    return onnxruntime.OrtValue.ortvalue_from_numpy(value.contiguous().numpy(), place.device, 0)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.float().cpu(), expected.float().cpu()
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def decoder(where: Path, place: Place) -> dict:
    """Three latent frames through both graphs, compared with PyTorch in f32."""
    height, width = (4, 6) if place.is_cpu else (30, 52)
    vae = AutoencoderKLWan.from_pretrained(where / "checkpoint/vae").to(place.device).eval()
    latent = torch.randn(1, vae.config.z_dim, 3, height, width, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    scaled = (latent * std + mean).to(place.device)
    expected, torch_seconds = timed(lambda: vae.float().decode(scaled, return_dict=False)[0], place)
    first, placement = open_session(find(where, "decoder", "first", place), place)
    following, placement_next = open_session(find(where, "decoder", "next", place), place)
    (frames, caches), seconds = run(first, {"latent": latent[:, :, :1]}, "frames", place)
    chunks = [frames]
    for index in range(1, 3):
        given = {name.removeprefix("next_"): value for name, value in caches.items()}
        (frames, caches), took = run(following, {"latent": latent[:, :, index : index + 1], **given}, "frames", place)
        chunks.append(frames)
        seconds += took
    frames = torch.cat(chunks).permute(1, 0, 2, 3).unsqueeze(0)
    for name, kinds in placement_next.items():
        merged = collections.Counter(placement.get(name, {})) + collections.Counter(kinds)
        placement[name] = dict(merged)
    return {
        "graph": f"decoder, 3 latent frames of {height}x{width}, PyTorch in f32",
        "seconds": seconds,
        "torch seconds": torch_seconds,
        "relative error": relative_error(frames, expected),
        "placement": placement,
    }


def text_encoder(where: Path, place: Place) -> dict:
    session, placement = open_session(find(where, "text_encoder", "", place), place)
    vocabulary = json.loads((where / "checkpoint/text_encoder/config.json").read_text())["vocab_size"]
    ids = torch.arange(100).reshape(1, -1) % vocabulary
    _, seconds = run(session, {"ids": ids}, "states", place)
    return {"graph": "text encoder of mini, 100 tokens", "seconds": seconds, "placement": placement}
