"""The processes of a GPU run: started, watched, and after a failure started again with fewer optimisations."""

import os
import subprocess

# Seconds within which a process must say that it is ready, from its start: a compiler may hang.
READY = {"vae": 110.0, "denoiser": 150.0}
# How often a process is started at most.
STARTS = {"vae": 5, "denoiser": 5, "judge": 3, "tiny": 3}
PLAIN = 2


class Processes:
    """`commands` by name; `seconds` tells the time without pauses; `patience` stretches `READY`."""

    def __init__(self, run, commands, seconds, say, patience=1.0):
        self.run, self.commands, self.seconds, self.say, self.patience = run, commands, seconds, say, patience
        self.failures = dict.fromkeys(commands, 0)
        self.running, self.since, self.done = {}, {}, set()

    def level(self, name):
        """0: all optimisations; 1: captured steps alone; 2: plain PyTorch. `MINI_LEVEL` is the first one."""
        return min(PLAIN, int(os.environ.get("MINI_LEVEL", 0)) + self.failures[name])

    def start(self, name):
        (self.run / f"{name}.ready").unlink(missing_ok=True)
        environment = {**os.environ, "MINI_LEVEL": str(self.level(name)), "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
        environment.setdefault("HF_HUB_OFFLINE", "1")
        self.running[name], self.since[name] = subprocess.Popen(self.commands[name], env=environment), self.seconds()

    def late(self, name):
        if name not in READY or (self.run / f"{name}.ready").exists():
            return False
        return self.seconds() - self.since[name] > self.patience * READY[name]

    def watch(self):
        for name, process in list(self.running.items()):
            code = process.poll()
            if code is None and not self.late(name):
                continue
            if code is None:
                process.kill()
                process.wait()
            del self.running[name]
            if code == 0:
                self.done.add(name)
                continue
            self.failures[name] += 1
            reason = "is late" if code is None else f"ended with {code}"
            if self.failures[name] < STARTS.get(name, 2):
                self.start(name)
                self.say(f"{name} {reason}: again on level {self.level(name)}")
            else:
                self.say(f"{name} {reason}, and is not started again")

    def end(self):
        for process in self.running.values():
            process.kill()
            process.wait()
