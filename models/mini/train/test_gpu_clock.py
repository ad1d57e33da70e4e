"""The clock of GPU runs: pauses do not count, and a stage that is started again keeps its schedule."""

import os
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import gpu_clock


class Clocks(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.run_folder = Path(folder.name)
        self.at(0)
        (self.run_folder / "started").write_text("1000.0")

    def at(self, seconds):
        """The time on the wall, counted from the start of the run."""
        patch = mock.patch.object(time, "time", return_value=1000.0 + seconds)
        patch.start()
        self.addCleanup(patch.stop)

    def test_pauses_do_not_count(self):
        pauses, clock = gpu_clock.Pauses(self.run_folder), gpu_clock.Clock(self.run_folder)
        self.at(10)
        pauses.tick()
        (self.run_folder / "PAUSE").touch()
        self.at(25)
        pauses.tick()
        (self.run_folder / "PAUSE").unlink()
        self.at(30)
        pauses.tick()
        self.assertAlmostEqual(pauses.total, 15)
        self.assertAlmostEqual(clock.now(), 15)

    def test_a_pause_ends_at_its_limit(self):
        with mock.patch.dict(os.environ, MINI_PAUSE_LIMIT="20"):
            pauses = gpu_clock.Pauses(self.run_folder)
        (self.run_folder / "PAUSE").touch()
        self.at(19)
        pauses.tick()
        self.assertTrue((self.run_folder / "PAUSE").exists())
        self.at(21)
        pauses.tick()
        self.assertFalse((self.run_folder / "PAUSE").exists())

    def test_scale(self):
        with mock.patch.dict(os.environ, MINI_SCALE="0.5"):
            clock = gpu_clock.Clock(self.run_folder)
        self.at(10)
        self.assertAlmostEqual(clock.now(), 20)

    def test_a_stage_that_is_started_again_keeps_its_schedule(self):
        self.at(100)
        self.assertAlmostEqual(gpu_clock.Clock(self.run_folder).share("vae", 200), 0)
        self.at(175)
        self.assertAlmostEqual(gpu_clock.Clock(self.run_folder).share("vae", 200), 0.75)
        self.at(300)
        self.assertEqual(gpu_clock.Clock(self.run_folder).share("vae", 200), 1)

    def test_deadlines_can_be_set(self):
        with mock.patch.dict(os.environ, MINI_JUDGE_FROM="7"):
            self.assertEqual(gpu_clock.deadline("judge_from"), 7)
        self.assertEqual(gpu_clock.deadline("judge_from"), gpu_clock.DEADLINES["judge_from"])

    def test_deadlines_are_in_order(self):
        moments = [gpu_clock.DEADLINES[name] for name in ("vae", "decoder", "joint", "high", "low", "end")]
        self.assertEqual(moments, sorted(moments))

    def test_rates_fall(self):
        self.assertEqual([gpu_clock.falling(share, 0.5) for share in (0, 0.5, 0.75, 1)], [1, 1, 0.5, 0])


if __name__ == "__main__":
    unittest.main()
