"""Blobs: the subject loses its detail and its outline, the rest of the clip stays."""

import random
import unittest

import torch
import torch.nn.functional as F

import judge
import world


class Blobs(unittest.TestCase):
    def setUp(self):
        scene = world.sample(random.Random(2)) | {"subject": "robot", "action": "still", "camera": "static", "weather": "clear"}
        clip, mask = world.render(scene, 2)
        self.clips = torch.from_numpy(clip).float().permute(3, 0, 1, 2)[None] / 255
        self.masks = torch.from_numpy(mask).float()[None, None] / 255

    def detail(self, clips):
        """Mean difference of neighbouring pixels of the subject."""
        inside = self.masks[0, 0, 0, :, 1:] > 0.9
        return (clips[0, :, 0, :, 1:] - clips[0, :, 0, :, :-1]).abs().mean(0)[inside].mean().item()

    def test_the_subject_loses_its_detail(self):
        for edge in judge.EDGES:
            blob = judge.with_blob(self.clips, self.masks, judge.BLOB, edge)
            self.assertLess(self.detail(blob), 0.5 * self.detail(self.clips))
            self.assertTrue((0 <= blob).all() and (blob <= 1.001).all())

    def test_the_subject_keeps_its_colour(self):
        blob = judge.with_blob(self.clips, self.masks, judge.BLOB, 4.0)
        core = self.masks > 0.5

        def colour(clips):
            return (clips * core).sum((0, 2, 3, 4)) / core.sum()

        self.assertLess((colour(blob) - colour(self.clips)).abs().max(), 0.15)

    def test_what_is_far_stays(self):
        blob = judge.with_blob(self.clips, self.masks, judge.BLOB, 4.0)
        reach = 2 * judge.BLOB + 1
        near = F.max_pool2d(self.masks[0].transpose(0, 1), 2 * reach + 1, 1, reach)
        far = near.transpose(0, 1)[None] == 0
        self.assertGreater(far.sum(), 100)
        self.assertEqual(((blob - self.clips).abs() * far).max(), 0)

    def test_no_prompt_asks_for_what_is_unclear(self):
        prompts = judge.prompts()
        self.assertEqual(len(prompts), judge.PROMPTS)
        for prompt in prompts:
            self.assertIn(prompt["attributes"]["subject"], world.ATTRIBUTES["subject"])


if __name__ == "__main__":
    unittest.main()
