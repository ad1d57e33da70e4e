"""Schedulers of diffusers on the two sigma grids, and vectors of both for unit tests.

The `diffusers` schedule is what the diffusers class computes by itself. The `official` one is the grid of the
Wan2.2 repository (of Wan2.2-Lightning for Euler) handed to the same solver.
"""

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

SAMPLERS = ["unipc", "dpmpp", "euler"]
# Those that follow a list of timesteps.
LIST_SAMPLERS = ["euler", "renoise"]
SCHEDULES = ["diffusers", "official"]
TRAIN_STEPS = 1000
# The official UniPC code takes its largest sigma from an f32 table.
OFFICIAL_SIGMA_MAX = float(np.float32(0.999))


def shifted(sigmas, shift):
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def formula(sampler: str, schedule: str, steps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Sigmas `[N+1]` f32 and timesteps `[N]`, written out without diffusers."""
    match sampler, schedule:
        case "unipc", "official":
            base = np.linspace(OFFICIAL_SIGMA_MAX, 0, steps + 1)[:-1]
        case "unipc", "diffusers":
            base = np.linspace(1, 1 / TRAIN_STEPS, steps + 1)[:-1]
        case "dpmpp", "official":
            base = np.linspace(1, 0, steps + 1)[:-1]
        case "dpmpp", "diffusers":
            base = (1.0 - np.linspace(1, 1 / TRAIN_STEPS, steps + 1))[::-1][:-1]
        case "euler", "official":
            base = np.linspace(TRAIN_STEPS, 0, steps + 1, dtype=np.float32)[:-1] / np.float32(TRAIN_STEPS)
        case "euler", "diffusers":
            table = np.arange(1, TRAIN_STEPS + 1, dtype=np.float32) / np.float32(TRAIN_STEPS)
            table = shifted(table, np.float32(shift))
            base = np.linspace(float(table[-1]) * TRAIN_STEPS, float(table[0]) * TRAIN_STEPS, steps) / TRAIN_STEPS
        case other:
            raise ValueError(f"unknown sampler and schedule {other}")
    sigmas = shifted(base, base.dtype.type(shift))
    if (sampler, schedule) == ("unipc", "diffusers") and abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6
    stored = np.append(sigmas, 0).astype(np.float32)
    if sampler == "euler":
        return stored, stored[:-1] * np.float32(TRAIN_STEPS)
    return stored, np.trunc(sigmas * TRAIN_STEPS)


class OfficialUniPC(UniPCMultistepScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(device=device, sigmas=np.linspace(OFFICIAL_SIGMA_MAX, 0, num_inference_steps + 1)[:-1])


class OfficialDPM(DPMSolverMultistepScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device=device)
        sigmas, timesteps = formula("dpmpp", "official", num_inference_steps, self.config.flow_shift)
        self.sigmas = torch.from_numpy(sigmas)
        self.timesteps = torch.from_numpy(timesteps).to(device=device, dtype=torch.int64)


class OfficialEuler(FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        base = np.linspace(TRAIN_STEPS, 0, num_inference_steps + 1, dtype=np.float32)[:-1] / np.float32(TRAIN_STEPS)
        super().set_timesteps(device=device, sigmas=base)


def list_sigmas(timesteps) -> np.ndarray:
    return np.array(timesteps, dtype=np.float32) / np.float32(TRAIN_STEPS)


class ListedEuler(FlowMatchEulerDiscreteScheduler):
    """Euler, or with `stochastic_sampling` the clean latent with fresh noise, on a list of timesteps."""

    listed: tuple[float, ...] = ()

    def set_timesteps(self, num_inference_steps=None, device=None):
        timesteps = np.array(self.listed, dtype=np.float32)
        super().set_timesteps(device=device, sigmas=list_sigmas(self.listed), timesteps=timesteps)


def scheduler(sampler: str, schedule: str, shift: float, timesteps=None):
    """The diffusers scheduler for the sampler and schedule as our command line names them."""
    if timesteps is not None:
        assert sampler in LIST_SAMPLERS, f"{sampler} follows no list"
        listed = ListedEuler(shift=1.0, stochastic_sampling=sampler == "renoise")
        listed.listed = tuple(timesteps)
        return listed
    official = schedule == "official"
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    match sampler:
        case "unipc":
            return (OfficialUniPC if official else UniPCMultistepScheduler)(**flow)
        case "dpmpp":
            dpm = OfficialDPM if official else DPMSolverMultistepScheduler
            return dpm(**flow, algorithm_type="dpmsolver++", solver_type="midpoint", solver_order=2)
        case "euler" | "renoise":
            euler = OfficialEuler if official else FlowMatchEulerDiscreteScheduler
            return euler(shift=shift, stochastic_sampling=sampler == "renoise")
        case other:
            raise ValueError(f"unknown sampler {other}")


def trajectory(sampler: str, schedule: str, steps: int, shift: float) -> dict:
    """The schedule, and the states of the solver on the field `v = x/2 + (t/1000)·[1,-2,0.25]` from a fixed start."""
    solver = scheduler(sampler, schedule, shift)
    solver.set_timesteps(steps)
    solver.set_begin_index(0)
    sigmas, timesteps = formula(sampler, schedule, steps, shift)
    name = f"{sampler} {schedule} N={steps} shift={shift}"
    np.testing.assert_array_equal(solver.timesteps.numpy().astype(np.float64), timesteps.astype(np.float64), name)
    np.testing.assert_array_equal(solver.sigmas.numpy(), sigmas, name)
    x = torch.tensor([[[1.0, -0.5, 0.25]]])
    direction = torch.tensor([[[1.0, -2.0, 0.25]]])
    states = []
    for t in solver.timesteps:
        velocity = 0.5 * x + (float(t) / TRAIN_STEPS) * direction
        x = solver.step(velocity, t, x, return_dict=False)[0]
        assert torch.isfinite(x).all(), name
        states.append(decimals(x.flatten()))
    return {
        "sampler": sampler,
        "schedule": schedule,
        "steps": steps,
        "shift": shift,
        "sigmas": decimals(sigmas),
        "timesteps": decimals(timesteps),
        "states": states if steps <= 10 else states[-1:],
    }


def listed(sampler: str, timesteps: list[float], size: int, seed: int, start: str) -> dict:
    """States of a loop in torch on a list of timesteps, and the same from diffusers.

    The field is `v = x/2 + (t/1000)·cos(i)` for the position i. Initial and fresh noise are drawn one after another from
    the generator of the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = torch.cos(torch.arange(size, dtype=torch.float32))
    sigmas = torch.from_numpy(np.append(list_sigmas(timesteps), np.float32(0)))
    factor = sigmas[0] if start == "noise*sigma0" else 1.0
    noise = torch.randn(size, generator=generator)
    x = noise * factor
    states = []
    for t, sigma, following in zip(torch.tensor(timesteps), sigmas, sigmas[1:]):
        velocity = 0.5 * x + t / TRAIN_STEPS * direction
        if sampler == "euler":
            x = x + (following - sigma) * velocity
        else:
            x = (1 - following) * (x - sigma * velocity)
            if following > 0:
                x = x + following * torch.randn(size, generator=generator)
        states.append(x)
    solver = scheduler(sampler, "official", 1.0, timesteps)
    solver.set_timesteps()
    solver.set_begin_index(0)
    torch.manual_seed(seed)
    x = torch.randn(size) * factor
    for t, state in zip(solver.timesteps, states):
        x = solver.step(0.5 * x + t / TRAIN_STEPS * direction, t, x, return_dict=False)[0]
        torch.testing.assert_close(x, state, atol=2e-6, rtol=0)
    return {
        "sampler": sampler,
        "timesteps": decimals(timesteps),
        "start": start,
        "seed": seed,
        "size": size,
        "sigmas": decimals(sigmas),
        "states": [decimals(state) for state in states],
    }


def lists() -> list[dict]:
    rcm = [np.sin(a) / (np.cos(a) + np.sin(a)) * TRAIN_STEPS for a in (np.arctan(80.0), 1.5, 1.4, 1.0)]
    recipes = [
        ([1000.0, 937.5, 833.3333, 625.0], "noise"),
        ([1000.0, 757.0, 522.0], "noise"),
        ([float(np.float32(t)) for t in rcm], "noise*sigma0"),
        ([812.5], "noise*sigma0"),
    ]
    # Small tensors, whole blocks, and an incomplete last block are drawn in three ways.
    sizes = [(3, 5), (32, 7), (37, 2**53 + 1)]
    return [listed(a, t, n, s, start) for a in LIST_SAMPLERS for t, start in recipes for n, s in sizes]


# Settings that change nothing of a flow's trajectory, in the classes that read them and in those that do not.
WITHOUT_EFFECT = [
    {"beta_start": 0.001, "beta_end": 0.03},
    {"beta_schedule": "scaled_linear"},
    {"trained_betas": [0.001] * TRAIN_STEPS},
    {"rescale_betas_zero_snr": True},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "leading", "steps_offset": 3},
    {"dynamic_thresholding_ratio": 0.5, "sample_max_value": 3.0},
    {"time_shift_type": "exponential"},
    {"sigma_min": 0.1, "sigma_max": 3.0},
    {"base_shift": 0.1, "max_shift": 3.0, "base_image_seq_len": 1, "max_image_seq_len": 2},
    {"euler_at_final": True, "lambda_min_clipped": -5.1, "variance_type": "learned"},
    {"solver_type": "logrho"},
    {"_unknown": 1},
]
# Settings that change it, or that diffusers refuses, in the classes that read them.
WITH_EFFECT = {
    "unipc": [
        {"solver_type": "bh1"},
        {"lower_order_final": False},
        {"final_sigmas_type": "sigma_min"},
        {"disable_corrector": [0]},
        {"predict_x0": False},
        {"thresholding": True},
        {"shift_terminal": 0.1},
        {"solver_order": 3},
    ],
    "dpmpp": [
        {"solver_type": "heun"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"final_sigmas_type": "sigma_min"},
        {"thresholding": True},
        {"use_lu_lambdas": True},
        {"solver_order": 3},
    ],
    "euler": [{"shift_terminal": 0.1}, {"stochastic_sampling": True}, {"invert_sigmas": True}],
}


def check_config_keys() -> None:
    """What `export/src/checkpoint/scheduler_keys.rs` says of the keys of scheduler configs holds for diffusers."""
    for sampler in SAMPLERS:
        plain = scheduler(sampler, "diffusers", 5.0)
        # Of a config in memory diffusers drops what was not said; a file has no such list.
        config = {key: value for key, value in plain.config.items() if key != "_use_default_values"}
        expected = last_state(plain)
        others = [other for name, all in WITH_EFFECT.items() if name != sampler for other in all]
        own = {key for settings in WITH_EFFECT[sampler] for key in settings}
        foreign = [other for other in others if not own & set(other)]
        if sampler == "dpmpp":
            foreign.append({"lower_order_final": False})
        for extra in WITHOUT_EFFECT + foreign:
            assert torch.equal(last_state(type(plain).from_config(config | extra)), expected), (sampler, extra)
        for extra in WITH_EFFECT[sampler]:
            try:
                assert not torch.equal(last_state(type(plain).from_config(config | extra)), expected), (sampler, extra)
            except ValueError:
                pass


def last_state(solver) -> torch.Tensor:
    torch.manual_seed(1)
    solver.set_timesteps(6)
    solver.set_begin_index(0)
    x = torch.tensor([[[1.0, -0.5, 0.25]]])
    for t in solver.timesteps:
        velocity = 0.5 * x + (float(t) / TRAIN_STEPS) * torch.tensor([[[1.0, -2.0, 0.25]]])
        x = solver.step(velocity, t, x, return_dict=False)[0]
    return x


def vectors() -> list[dict]:
    check_config_keys()
    settings = [(1, 3.0), (2, 5.0), (3, 1.0), (4, 5.0), (6, 12.0), (8, 3.0), (20, 12.0), (40, 12.0), (50, 5.0)]
    made = [trajectory(a, b, n, s) for a in SAMPLERS for b in SCHEDULES for n, s in settings]
    for sampler, schedule, steps, shift, last in KNOWN_LAST_STATES:
        [entry] = [
            e
            for e in made
            if (e["sampler"], e["schedule"], e["steps"], e["shift"]) == (sampler, schedule, steps, shift)
        ]
        np.testing.assert_allclose(entry["states"][-1], last, atol=5e-7, err_msg=f"{sampler} {schedule}")
    return made


# Last states of an independent implementation (NumPy, f64) on the same field.
KNOWN_LAST_STATES = [
    ("unipc", "official", 6, 12.0, [-0.0936129, 1.0241976, -0.0234032]),
    ("unipc", "diffusers", 6, 12.0, [-0.0956413, 1.0278918, -0.0239103]),
    ("unipc", "diffusers", 4, 5.0, [-0.0215356, 0.8954412, -0.0053839]),
    ("dpmpp", "official", 6, 12.0, [-0.0955146, 1.0275655, -0.0238786]),
    ("euler", "official", 4, 5.0, [-0.0410517, 0.9304494, -0.0102629]),
]


def decimals(values) -> list[float]:
    """Numbers with the nine digits that identify an f32."""
    return [float(f"{float(v):.9g}") for v in values]
