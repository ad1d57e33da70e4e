"""The time of a GPU run, without PyTorch: deadlines, a clock that pauses stop, and the count of those pauses.

Every process reads `RUN/started` and `RUN/paused`, so all of them see the same seconds. While `RUN/PAUSE` exists, `Pauses` counts
into `RUN/paused`, and processes rest between two steps.
"""

import math
import os
import time
from pathlib import Path

# When each stage begins or ends, in seconds from the start.
DEADLINES = {
    "vae": 205.0, "decoder": 240.0, "joint": 455.0, "high": 480.0, "low": 508.0, "end": 545.0,
    "judge_from": 242.0, "judge": 312.0, "tiny_from": 312.0, "tiny": 362.0, "render": 430.0,
}  # fmt: skip


def deadline(name):
    return float(os.environ.get(f"MINI_{name.upper()}", DEADLINES[name]))


def scale():
    return float(os.environ.get("MINI_SCALE", 1))


class Clock:
    """Seconds since the start of the run, pauses not counted; `MINI_SCALE` makes them longer or shorter."""

    def __init__(self, run):
        self.run, self.scale = Path(run), scale()
        self.start = float((self.run / "started").read_text())
        self.paused, self.checked = 0.0, 0.0

    def now(self):
        if time.time() - self.checked > 0.3:
            self.checked = time.time()
            try:
                self.paused = float((self.run / "paused").read_text())
            except (OSError, ValueError):
                pass
        return (time.time() - self.start - self.paused) / self.scale

    def rest(self):
        """Sleeps while there is a pause."""
        if not (self.run / "PAUSE").exists():
            return
        while (self.run / "PAUSE").exists():
            time.sleep(0.1)
        # By then the last moments of the pause have been counted.
        time.sleep(0.5)
        self.checked = 0.0

    def began(self, name):
        """When this stage began; a process that was started again goes on with the schedule of the first."""
        path = self.run / f"{name}.began"
        if not path.exists():
            path.write_text(f"{self.now():.3f}")
        return float(path.read_text())

    def share(self, name, end):
        """The share of the stage's time that is over."""
        began = self.began(name)
        return min(1.0, max(0.0, (self.now() - began) / max(end - began, 1e-6)))


class Pauses:
    """Counts the seconds of pauses, up to a limit, at which the pause file is removed."""

    def __init__(self, run):
        self.run, self.total, self.last = run, 0.0, time.time()
        self.limit = float(os.environ.get("MINI_PAUSE_LIMIT", 150))
        self.write()

    def write(self):
        partial = self.run / "paused.partial"
        partial.write_text(f"{self.total:.3f}")
        os.replace(partial, self.run / "paused")

    def tick(self):
        now = time.time()
        if (self.run / "PAUSE").exists():
            self.total += now - self.last
            self.write()
            if self.total > self.limit:
                (self.run / "PAUSE").unlink(missing_ok=True)
        self.last = now


def falling(share, hold):
    """The rate as a share of its peak: constant until `hold`, then half a cosine to zero."""
    fall = min(1.0, max(0.0, (share - hold) / (1 - hold)))
    return 0.5 * (1 + math.cos(math.pi * fall))


def say(clock, name, text):
    print(f"[{clock.now():6.1f}] {name}: {text}", flush=True)
