"""Scenes: subjects that can be seen, combinations that stay held out, captions that tell the scene."""

import random
import unittest

import numpy as np

import world


class Scenes(unittest.TestCase):
    def test_subjects_are_large(self):
        plain = {"action": "still", "camera": "static", "weather": "clear", "time": "day", "setting": "forest", "color": "blue"}
        for subject in world.ATTRIBUTES["subject"]:
            clip, mask = world.render({**plain, "subject": subject, "seed": 5}, 1)
            self.assertGreater(mask.mean() / 255, 0.09, subject)
            # It is more than a patch of one colour.
            self.assertGreater(clip[0][mask[0] > 250].std(), 10, subject)

    def test_bounces_are_seen_in_every_fourth_frame(self):
        plain = {"camera": "static", "weather": "clear", "time": "day", "setting": "forest", "color": "blue"}
        for seed in range(4):
            _, masks = world.render({**plain, "subject": "ball", "action": "bounce", "seed": seed})
            rows = np.arange(world.HEIGHT)
            middles = [(mask.sum(1) * rows).sum() / mask.sum() for mask in masks[::4].astype(float)]
            moves = np.diff(middles)
            self.assertGreater(np.abs(moves).min(), 0.2 * world.HEIGHT, middles)
            self.assertTrue((moves[1:] * moves[:-1] < 0).all(), middles)

    def test_held_out_combinations_are_never_trained_on(self):
        rng = random.Random(0)
        for held in (False, True):
            self.assertTrue(all(world.held_out(world.sample(rng, held)) == held for _ in range(200)))

    def test_numbers_name_scenes(self):
        first, again = (world.render(world.numbered(7), 2) for _ in range(2))
        self.assertTrue(np.array_equal(first[0], again[0]))
        self.assertNotEqual(world.numbered(7), world.numbered(8))

    def test_captions_tell_what_is_not_omitted(self):
        rng = random.Random(0)
        for _ in range(100):
            scene = world.sample(rng)
            for language, column in (("en", 0), ("zh", 1)):
                text = world.caption(scene, rng, language, omit=("time",)).lower()
                for table, name in ((world.SUBJECTS, "subject"), (world.ACTIONS, "action"), (world.SETTINGS, "setting")):
                    self.assertTrue(any(word.lower() in text for word in table[scene[name]][column]), text)
                self.assertFalse(any(word.lower() in text for word in world.TIMES[scene["time"]][column]), text)


if __name__ == "__main__":
    unittest.main()
