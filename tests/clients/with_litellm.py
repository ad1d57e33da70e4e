"""Videos through the package `litellm`, unchanged: create, poll, list, download. It cannot delete."""

import importlib.metadata
import os
import time

# Its list of prices is on the network; the package has a copy.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402, the setting is read at import

ADDRESS, TOKEN = os.environ["RUSHES_ADDRESS"], os.environ["RUSHES_TOKEN"]
SERVER = {"api_base": ADDRESS + "/v1", "api_key": TOKEN, "custom_llm_provider": "openai"}

created = litellm.video_generation(prompt="a red ball", model="openai/sora-2", seconds="1", size="48x32", **SERVER)
began = time.monotonic()
while True:
    video = litellm.video_status(video_id=created.id, **SERVER)
    if video.status in ("completed", "failed"):
        break
    assert time.monotonic() - began < 120, video
    time.sleep(0.2)
assert video.status == "completed", video
assert litellm.video_content(video_id=created.id, **SERVER)[4:8] == b"ftyp"
listed = litellm.video_list(**SERVER)
assert listed["data"], listed
print("litellm", importlib.metadata.version("litellm"))
