"""Tasks through the package `dashscope`, unchanged: create, poll, list, download, cancel."""

import os
import struct
import tempfile
import zlib

ADDRESS, TOKEN = os.environ["RUSHES_ADDRESS"], os.environ["RUSHES_TOKEN"]
os.environ["DASHSCOPE_HTTP_BASE_URL"] = ADDRESS + "/api/v1"

import dashscope  # noqa: E402, the address must be known before
import requests  # noqa: E402
from dashscope import VideoSynthesis  # noqa: E402
from dashscope.utils.oss_utils import upload_file  # noqa: E402

dashscope.api_key = TOKEN
CLIP = {"model": "wan2.2-t2v-plus", "size": "48*32", "duration": 1, "seed": 7}

made = VideoSynthesis.call(prompt="a red ball", **CLIP)
assert made.status_code == 200 and made.output.task_status == "SUCCEEDED", made
assert made.usage.video_count == 1, made
assert requests.get(made.output.video_url, timeout=60).content[4:8] == b"ftyp"
task = VideoSynthesis.async_call(prompt="a boat", **CLIP)
assert task.status_code == 200 and task.output.task_status == "PENDING", task
assert VideoSynthesis.fetch(task).output.task_id == task.output.task_id
assert VideoSynthesis.wait(task).output.task_status == "SUCCEEDED"
slow = VideoSynthesis.async_call(prompt="a ship", **{**CLIP, "size": "320*192", "duration": 10})
cancelled = VideoSynthesis.cancel(slow)
assert cancelled.status_code == 200, cancelled
assert VideoSynthesis.wait(slow).output.task_status == "CANCELED"
listed = VideoSynthesis.list(page_no=1, page_size=10)
assert listed.status_code == 200, listed
refused = VideoSynthesis.async_call(prompt="a boat", img_url="https://example.com/a.png", **CLIP)
assert refused.status_code == 400 and refused.code == "InvalidParameter", refused


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


with tempfile.NamedTemporaryFile(suffix=".png") as picture:
    header = struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + b"\xff\0\0" * 2)
    picture.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    picture.flush()
    address = upload_file("wan2.2-t2v-plus", "file://" + picture.name, TOKEN)
    assert address.startswith("oss://uploads/upload_"), address
    # The SDK uploads the file, and then its model cannot use it.
    refused = VideoSynthesis.async_call(prompt="a boat", img_url="file://" + picture.name, **CLIP)
    assert refused.status_code == 400 and "img_url" in refused.message, refused
for task_id in (made.output.task_id, task.output.task_id, slow.output.task_id):
    deleted = requests.delete(
        f"{ADDRESS}/v1/videos/{task_id}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60
    )
    assert deleted.status_code == 200, deleted.text
print("dashscope", dashscope.version.__version__)
