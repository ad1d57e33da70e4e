"""Makes the golden cases of this folder: tiny random checkpoints and what diffusers computes from them."""
