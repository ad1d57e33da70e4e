"""Runs `WanPipeline` for one request and keeps every tensor on the way."""

import platform
import unicodedata
from dataclasses import asdict, dataclass
from importlib.metadata import version

import ftfy
import torch
from diffusers import WanPipeline
from diffusers.pipelines.wan import pipeline_wan

from . import schedules

FTFY_VERSION = "6.3.1"
TEXT_ROWS = 512
PACKAGES = ["torch", "diffusers", "transformers", "tokenizers", "ftfy", "safetensors", "numpy", "regex", "accelerate"]


@dataclass(frozen=True)
class Request:
    """What a clip is made from; names and meanings are those of our command line."""

    prompt: str
    negative: str
    width: int
    height: int
    frames: int
    steps: int
    guidance: tuple[float, float]
    shift: float
    sampler: str
    schedule: str
    timesteps: tuple[float, ...] | None = None
    start: str = "noise"


def settings(request: Request) -> dict:
    """The settings of a request that has no list of timesteps, or of one that has."""
    made = asdict(request)
    return made if request.timesteps else {k: v for k, v in made.items() if k not in ("timesteps", "start")}


@dataclass
class Run:
    """`tensors` as stored in `reference.safetensors`; `experts` is the expert's folder for every step."""

    tensors: dict[str, torch.Tensor]
    experts: list[str]


def require_ftfy() -> None:
    """diffusers skips a cleaning step in silence when ftfy is missing."""
    assert pipeline_wan.is_ftfy_available(), "diffusers does not see ftfy"
    assert ftfy.__version__ == FTFY_VERSION, f"ftfy {ftfy.__version__}, expected {FTFY_VERSION}"
    assert pipeline_wan.prompt_clean("ｆｕｌｌ，“width”") == 'full,"width"'


def noise(pipeline: WanPipeline, request: Request, seed: int) -> torch.Tensor:
    """`[1,C,T,h,w]` standard normal from torch's CPU generator, as the pipeline itself would draw it."""
    config = pipeline.vae.config
    shape = (
        1,
        pipeline.transformer.config.in_channels,
        (request.frames - 1) // config.scale_factor_temporal + 1,
        request.height // config.scale_factor_spatial,
        request.width // config.scale_factor_spatial,
    )
    drawn = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
    generator = torch.Generator("cpu").manual_seed(seed)
    size = (request.height, request.width, request.frames)
    own = pipeline.prepare_latents(1, shape[1], *size, torch.float32, torch.device("cpu"), generator)
    assert torch.equal(drawn, own), "prepare_latents draws other noise"
    return drawn


def vae_scale(vae, latents: torch.Tensor) -> torch.Tensor:
    """Latents in the model's scale to the VAE's: `z·std + mean` per channel."""
    mean, deviation = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return latents * deviation + mean


@torch.no_grad()
def run(pipeline: WanPipeline, request: Request, start: torch.Tensor, seed: int | None = None) -> Run:
    """The whole pipeline in f32 from the noise `start` `[1,C,T,h,w]`.

    `seed` is that of the noise, for samplers that draw more of it. diffusers draws that from torch's own generator.
    """
    require_ftfy()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = schedules.scheduler(request.sampler, request.schedule, request.shift, request.timesteps)
    factor = 1.0
    if request.start == "noise*sigma0":
        factor = schedules.list_sigmas(request.timesteps)[0].item()
    # The pipeline leaves the negative prompt out when nothing is guided; it is kept here for comparison.
    text, negative = pipeline.encode_prompt(request.prompt, request.negative, True, max_sequence_length=TEXT_ROWS)
    tensors = {"noise": start[0], "prompt_embeds": text[0], "negative_prompt_embeds": negative[0]}
    calls: list[str] = []
    hooks = [
        getattr(pipeline, name).register_forward_hook(lambda *_, name=name: calls.append(name))
        for name in ("transformer", "transformer_2")
        if getattr(pipeline, name) is not None
    ]

    def keep(_pipeline, step, _timestep, values):
        tensors[f"latents.{step:03}"] = values["latents"][0].clone()
        if values["prompt_embeds"] is not None:
            assert torch.equal(values["prompt_embeds"][0], text[0])
        return {}

    two = pipeline.config.boundary_ratio is not None
    if request.sampler == "renoise":
        assert torch.equal(torch.randn(start.shape, generator=torch.manual_seed(seed)), start), "not the noise of the seed"
    output = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative,
        height=request.height,
        width=request.width,
        num_frames=request.frames,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance[0],
        guidance_scale_2=request.guidance[1] if two else None,
        latents=start * factor,
        output_type="np",
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        max_sequence_length=TEXT_ROWS,
    )
    for hook in hooks:
        hook.remove()
    tensors["frames"] = torch.from_numpy(output.frames[0]).float()
    tensors["timesteps"] = pipeline.scheduler.timesteps.float()
    tensors["sigmas"] = pipeline.scheduler.sigmas.float()
    experts = one_per_step(calls, request)
    assert len(experts) == request.steps
    return Run({name: tensor.contiguous() for name, tensor in tensors.items()}, experts)


def one_per_step(calls: list[str], request: Request) -> list[str]:
    """Expert calls to one name per step: with guidance each step calls its expert twice."""
    per_step = 2 if request.guidance[0] > 1 else 1
    steps = [set(calls[first : first + per_step]) for first in range(0, len(calls), per_step)]
    assert all(len(step) == 1 for step in steps), "a step used two experts"
    return [step.pop() for step in steps]


def versions() -> dict[str, str]:
    """Everything that can change the numbers."""
    python = {"python": platform.python_version(), "unicode": unicodedata.unidata_version}
    return python | {package: version(package) for package in PACKAGES}
