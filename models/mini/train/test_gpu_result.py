"""The results of a GPU run become a run folder that `export.py` and `judge.py` read."""

import json
import tempfile
import unittest
from pathlib import Path

import torch
from safetensors.torch import save_file

import architecture
import export
import gpu_result
import judge
import tiny
import vae

HERE = Path(__file__).parent


def halves(module):
    return {name: value.detach().half().contiguous() for name, value in module.state_dict().items()}


class Results(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.out, self.run_folder = self.folder / "out", self.folder / "run"
        self.out.mkdir()
        torch.manual_seed(0)
        metadata = {"latents_mean": json.dumps([0.25] * 16), "latents_scale": "1.5"}
        save_file(halves(vae.AutoencoderKLWan(**vae.CONFIG)), self.out / "vae.safetensors", metadata)
        for name in ("high", "joint"):
            save_file(halves(architecture.denoiser()), self.out / f"{name}.safetensors")
        self.judge = judge.Judge()
        small = {f"judge.{name}": value.contiguous() for name, value in self.judge.state_dict().items()}
        small.update({f"tiny.{name}": value for name, value in halves(tiny.TinyDecoder()).items()})
        save_file(small, self.out / "small.safetensors")
        rows = [f"judge,0,5,{name},0.9{i}" for i, name in enumerate(judge.NAMES)]
        (self.out / "losses.csv").write_text("\n".join(["stage,step,minutes,quantity,value", *rows]) + "\n")

    def test_export_reads_them(self):
        gpu_result.convert(self.out, self.run_folder, HERE.parent / "checkpoint")
        parts = export.trained_parts(self.run_folder)
        self.assertEqual(parts["vae"].config.latents_mean, [0.25] * 16)
        self.assertEqual(parts["vae"].config.latents_std, [1.5] * 16)
        wanted = {name: gpu_result.load_file(self.out / f"{name}.safetensors") for name in ("high", "joint")}
        # There is no expert for low noise: the joint denoiser stands for it.
        for part, name in (("transformer", "high"), ("transformer_2", "joint")):
            for key, value in parts[part].state_dict().items():
                self.assertTrue(torch.equal(value, wanted[name][key].float()))
        self.assertTrue((self.run_folder / "tiny_decoder" / "taew2_1.safetensors").exists())

    def test_the_judge_is_the_same(self):
        gpu_result.convert(self.out, self.run_folder, HERE.parent / "checkpoint")
        found = judge.trained(self.run_folder).state_dict()
        for name, value in self.judge.state_dict().items():
            self.assertTrue(torch.equal(found[name], value))
        score = json.loads((self.run_folder / "judge-score.json").read_text())
        self.assertEqual(score["accuracy"]["subject"], 0.9)
        self.assertEqual(score["accuracy"]["camera"], 0.95)

    def test_a_judge_without_scores(self):
        (self.out / "losses.csv").write_text("stage,step,minutes,quantity,value\njudge,10,1,loss,0.5\n")
        self.assertIsNone(gpu_result.accuracy(self.out / "losses.csv"))

    def test_an_unfinished_vae_is_refused(self):
        for metadata in (None, {"format": "pt"}):
            with self.assertRaises(SystemExit):
                gpu_result.normalisation(metadata)


if __name__ == "__main__":
    unittest.main()
