"""Writes the PyTorch files of the tests: `python make.py` with torch 2.15, in this folder."""

from collections import OrderedDict

import torch

values = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 8
weights = OrderedDict()
weights["a.weight"] = values
weights["b.bias"] = torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16)
weights["tied.weight"] = values
weights["scalar"] = torch.tensor(7, dtype=torch.int64)
weights["none"] = torch.empty(0, 4)
torch.save(weights, "tensors.pth")
torch.save(weights, "protocol-4.pth", pickle_protocol=4)
torch.save(torch.nn.Linear(3, 2).half().state_dict(), "module.pth")
# A slice of a larger storage, which is stored whole.
rows = torch.arange(8, dtype=torch.float32).reshape(4, 2)
torch.save({"upper": rows[:1], "lower": rows[2:]}, "slices.pth")
# Other orders than row by row, without gaps.
kernel = torch.arange(48, dtype=torch.float32).reshape(2, 2, 2, 2, 3) / 8
permuted = {"straight": values, "turned": values.T, "channels_last": kernel.to(memory_format=torch.channels_last_3d)}
torch.save(permuted, "permuted.pth")
torch.save({"every_second": torch.arange(6, dtype=torch.float32)[::2]}, "refused-strides.pth")
torch.save({"upper": rows[:3], "lower": rows[2:]}, "refused-overlap.pth")
torch.save({"weights": weights}, "refused-nested.pth")
torch.save({"weights": [values]}, "refused-list.pth")
torch.save({"a.weight": torch.nn.Parameter(values)}, "refused-parameter.pth")
torch.save({"wide": values.double()}, "refused-format.pth")
torch.save(torch.nn.Linear(3, 2), "refused-module.pth")
torch.save({"a.weight": values, "step": 3}, "refused-number.pth")
torch.save(weights, "refused-legacy.pth", _use_new_zipfile_serialization=False)
