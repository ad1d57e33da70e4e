"""A process that fails or hangs is started again with fewer optimisations, and others run on."""

import tempfile
import time
import unittest
from pathlib import Path

import gpu_processes


class Processes(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.run_folder, self.seconds, self.said = Path(folder.name), 0.0, []

    def started(self, **commands):
        commands = {name: ["sh", "-c", command] for name, command in commands.items()}
        processes = gpu_processes.Processes(self.run_folder, commands, lambda: self.seconds, self.said.append)
        self.addCleanup(processes.end)
        for name in commands:
            processes.start(name)
        return processes

    def watch_until(self, processes, condition):
        limit = time.monotonic() + 60
        while not condition():
            self.assertLess(time.monotonic(), limit)
            processes.watch()
            time.sleep(0.01)

    def levels(self, name):
        return (self.run_folder / name).read_text().split()

    def failing(self, name):
        return f"echo $MINI_LEVEL >> {self.run_folder / name}; exit 3"

    def test_levels_fall_back_to_plain_pytorch(self):
        processes = self.started(vae=self.failing("vae"), judge=self.failing("judge"), tiny="exit 0")
        self.watch_until(processes, lambda: not processes.running)
        self.assertEqual(self.levels("vae"), ["0", "1", "2", "2", "2"])
        self.assertEqual(self.levels("judge"), ["0", "1", "2"])
        self.assertEqual(processes.done, {"tiny"})
        self.assertIn("vae ended with 3, and is not started again", self.said)

    def test_a_process_that_is_not_ready_in_time_is_replaced(self):
        processes = self.started(vae="exec sleep 100", judge="exec sleep 100")
        first = processes.running["vae"]
        self.seconds = gpu_processes.READY["vae"] - 1
        processes.watch()
        self.assertIs(processes.running["vae"], first)
        self.seconds += 2
        processes.watch()
        self.assertIsNot(processes.running["vae"], first)
        self.assertEqual(processes.level("vae"), 1)
        self.assertEqual(processes.level("judge"), 0)

    def test_a_process_that_is_ready_may_take_its_time(self):
        processes = self.started(vae="exec sleep 100")
        (self.run_folder / "vae.ready").touch()
        self.seconds = 1000.0
        processes.watch()
        self.assertEqual(processes.level("vae"), 0)


if __name__ == "__main__":
    unittest.main()
