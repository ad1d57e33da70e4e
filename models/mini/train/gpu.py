"""Mini in ten minutes on one GPU beside a dozen cores: every stage ends at its deadline, and something usable is written by then.

  python gpu.py RUN OUT CHECKPOINT [--start VAE] [--renderers 12]

RUN is a new folder, OUT receives the results (at most eight files), CHECKPOINT gives the tokenizer and the text encoder, and the
VAE begins with the weights of `--start`: the `vae.safetensors` of an earlier run, or a state as `.pt`.

Clips are rendered from the first second on. VAE, denoiser, judge and tiny decoder are processes of their own, so that one that
fails takes nothing with it: it is started again with fewer optimisations. Deadlines in seconds are those of `gpu_clock.DEADLINES`;
`MINI_SCALE` stretches all of them, and `MINI_VAE=190` sets one. While `RUN/PAUSE` exists the clock and the GPU stand still, for at
most `MINI_PAUSE_LIMIT` seconds in all; clips are rendered on.
"""

import argparse
import os
import shutil
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path

# No PyTorch here: the renderers begin before it is imported.
import gpu_clock
import gpu_processes
import gpu_scenes

HERE = Path(__file__).parent
RESULTS = {"vae", "denoiser", "judge", "tiny"}


def commands(run, out, checkpoint, start):
    parts = {
        "vae": ("gpu_vae.py", run, out, start),
        "denoiser": ("gpu_denoiser.py", run, out, checkpoint),
        "judge": ("gpu_judge.py", run),
        "tiny": ("gpu_tiny.py", run),
        "captions0": ("gpu_captions.py", run, checkpoint, 0, 2),
        "captions1": ("gpu_captions.py", run, checkpoint, 1, 2),
    }
    return {name: [sys.executable, "-u", str(HERE / script), *map(str, rest)] for name, (script, *rest) in parts.items()}


def render_all(run, workers, end, say):
    """Renders until `end`, a time of the clock on the wall, in processes that give way to all others."""
    done, failed = 0, 0
    with get_context("spawn").Pool(workers, initializer=os.nice, initargs=(5,)) as pool:
        jobs = [(str(run), kind, first, end) for kind, first in gpu_scenes.jobs()]
        for result in pool.imap_unordered(gpu_scenes.render, jobs, chunksize=1):
            if isinstance(result, str):
                failed += 1
                if failed < 5:
                    say(f"not rendered: {result}")
            else:
                done += result
    say(f"rendered {done} scenes")


def join(run, out):
    """Puts the small models into one file, and copies log and curves."""
    small = out / "small.safetensors"
    parts = {name: run / f"{name}.safetensors" for name in ("judge", "tiny")}
    newest = max((path.stat().st_mtime for path in parts.values() if path.exists()), default=0)
    if newest > (small.stat().st_mtime if small.exists() else 0):
        from safetensors.numpy import load_file, save_file

        found = {name: load_file(path) for name, path in parts.items() if path.exists()}
        tensors = {f"{name}.{key}": value for name, part in found.items() for key, value in part.items()}
        save_file(tensors, f"{small}.partial")
        os.replace(f"{small}.partial", small)
    for name in ("losses.csv", "log.txt"):
        if (run / name).exists():
            shutil.copy(run / name, out / f"{name}.partial")
            os.replace(out / f"{name}.partial", out / name)


def report(run):
    """How far the renderers are, and what memory and disk are left."""
    names = os.listdir(run / "render")
    files = " ".join(f"{kind} {sum(name.startswith(kind) for name in names)}" for kind in gpu_scenes.BASE)
    lines = Path("/proc/meminfo").read_text().splitlines()
    memory = " ".join(" ".join(line.split()) for line in lines if line.startswith(("MemTotal", "MemAvailable")))
    return f"files: {files}; {memory}; disk free {shutil.disk_usage(run).free >> 30} GiB"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--start", default="", help="weights that the VAE begins with")
    parser.add_argument("--renderers", type=int, default=max(1, (os.cpu_count() or 4) - 4))
    args = parser.parse_args()
    run, out = args.run, args.out
    for folder in (run / "render", run / "captions", out):
        folder.mkdir(parents=True, exist_ok=True)
    (run / "started").write_text(f"{time.time():.3f}")
    (run / "losses.csv").write_text("stage,step,minutes,quantity,value\n")
    log = os.open(run / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    pauses, clock = gpu_clock.Pauses(run), gpu_clock.Clock(run)

    def say(text):
        gpu_clock.say(clock, "gpu", text)

    def now_and_then(work):
        """What may fail without harm to the run."""
        try:
            work()
        except Exception as error:
            say(f"failed: {error!r}")

    render_end = clock.start + gpu_clock.deadline("render") * clock.scale
    threading.Thread(target=render_all, args=(run, args.renderers, render_end, say), daemon=True).start()
    processes = gpu_processes.Processes(
        run, commands(run, out, args.checkpoint, args.start), lambda: clock.now() * clock.scale, say, max(1.0, clock.scale)
    )
    for name in processes.commands:
        processes.start(name)
    say(f"started with {args.renderers} renderers on {os.cpu_count()} cores")
    end, joined, reported = gpu_clock.deadline("end"), 0.0, 0.0
    while clock.now() < end and not RESULTS <= processes.done:
        time.sleep(0.2)
        pauses.tick()
        processes.watch()
        if time.time() - joined > 10:
            joined = time.time()
            now_and_then(lambda: join(run, out))
        if time.time() - reported > 30:
            reported = time.time()
            now_and_then(lambda: say(report(run)))
    say("the end")
    processes.end()
    now_and_then(lambda: join(run, out))
    (run / "done").touch()
    # Renderers may be busy still.
    os._exit(0)


if __name__ == "__main__":
    main()
