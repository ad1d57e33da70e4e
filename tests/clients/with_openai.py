"""The videos API through the package `openai`, unchanged: create, poll, list, download, delete, remix."""

import os
import warnings

import openai

warnings.simplefilter("ignore", DeprecationWarning)
ADDRESS, TOKEN = os.environ["RUSHES_ADDRESS"], os.environ["RUSHES_TOKEN"]
SHORT = {"num_inference_steps": 4, "seed": 7}

client = openai.OpenAI(base_url=ADDRESS + "/v1", api_key=TOKEN)
created = client.videos.create(
    prompt="a red ball", model="sora-2", seconds="1", size="48x32", extra_body=SHORT
)
assert created.object == "video" and created.status in ("queued", "in_progress"), created
assert created.seconds == "1" and created.size == "48x32" and created.progress == 0, created
video = client.videos.poll(created.id)
assert video.status == "completed" and video.progress == 100, video
listed = [found.id for found in client.videos.list(limit=1)]
assert created.id in listed, listed
whole = client.videos.download_content(created.id).read()
assert whole[4:8] == b"ftyp", whole[:16]
assert client.videos.download_content(created.id, variant="thumbnail").read()[8:12] == b"WEBP"
assert client.videos.download_content(created.id, variant="spritesheet").read()[:2] == b"\xff\xd8"
remix = client.videos.remix(created.id, prompt="a blue ball")
assert remix.remixed_from_video_id == created.id, remix
assert client.videos.poll(remix.id).status == "completed"
whole = client.videos.create_and_poll(prompt="a boat", seconds="1", size="48x32", extra_body=SHORT)
assert whole.status == "completed", whole
for made in (created, remix, whole):
    assert client.videos.delete(made.id).deleted
try:
    client.videos.retrieve(created.id)
    raise SystemExit("a deleted video was found")
except openai.NotFoundError:
    pass
try:
    client.videos.create(prompt="a boat", model="unknown", extra_body=SHORT)
    raise SystemExit("an unknown model was accepted")
except openai.BadRequestError as error:
    assert "unknown" in str(error) and error.code == "model_not_found", error
try:
    client.videos.create(prompt="a boat", input_reference=b"picture")
    raise SystemExit("a picture was accepted")
except openai.BadRequestError as error:
    assert error.param == "input_reference", error
print("openai", openai.__version__)
