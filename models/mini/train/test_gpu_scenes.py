"""Rendered files: every scene once, those that score first, and read in the order that readers ask for."""

import tempfile
import unittest
from pathlib import Path

import numpy as np

import gpu_scenes
import gpu_shared
import world


class Files(unittest.TestCase):
    def test_every_scene_is_rendered_once(self):
        jobs = gpu_scenes.jobs()
        for kind, count in gpu_scenes.COUNT.items():
            firsts = [first for other, first in jobs if other == kind]
            self.assertEqual(firsts, list(range(0, count, gpu_scenes.CHUNK[kind])))

    def test_scenes_that_measure_come_before_stills(self):
        kinds = [kind for kind, _ in gpu_scenes.jobs()]
        self.assertEqual(set(kinds[: kinds.index("still")]), {"first", "clip", "held", "score"})

    def test_scenes_that_measure_are_held_out(self):
        for index in range(4):
            self.assertTrue(world.held_out(gpu_scenes.scene("held", index)))
            self.assertFalse(world.held_out(gpu_scenes.scene("clip", index)))
            self.assertEqual(world.held_out(gpu_scenes.scene("score", index)), index % 2 == 1)

    def test_files_are_read_once_in_order(self):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder)
            (run / "render").mkdir()
            for name in ("clip-000025", "clip-000000", "still-000000", "held-000000"):
                gpu_scenes.write(run / "render" / f"{name}.npz", {"clips": np.zeros(1, np.uint8)})
            rendered = gpu_shared.Rendered(run, "held", "clip")
            self.assertEqual([(kind, first) for kind, first, _ in rendered.new(2)], [("held", 0), ("clip", 0)])
            self.assertEqual([(kind, first) for kind, first, _ in rendered.new()], [("clip", 25)])
            self.assertEqual(list(rendered.new()), [])


if __name__ == "__main__":
    unittest.main()
