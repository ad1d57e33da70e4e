"""The plain form, as a function of a program that only has another address."""

import os
import time

import requests

ADDRESS, TOKEN = os.environ["RUSHES_ADDRESS"], os.environ["RUSHES_TOKEN"]


def generate(prompt, resolution="48x32", duration=1):
    answer = requests.post(
        ADDRESS + "/wan2.2/t2v/generate",
        headers={"Authorization": f"Bearer {TOKEN}"},
        json={
            "model": "wan2.2",
            "prompt": prompt,
            "resolution": resolution,
            "duration": duration,
            "output_format": "mp4",
        },
        timeout=60,
    )
    answer.raise_for_status()
    task = answer.json()
    return task["task_id"], task["status_url"], task["video_url"]


task_id, status_url, video_url = generate("a red ball")
while requests.get(status_url, timeout=60).json()["status"] not in ("completed", "failed"):
    time.sleep(0.2)
video = requests.get(video_url, timeout=60)
assert video.status_code == 200 and video.content[4:8] == b"ftyp", video.status_code
_, _, video_url = generate("a boat")
video = requests.get(video_url, headers={"Prefer": "wait=100"}, timeout=110)
assert video.status_code == 200 and video.content[4:8] == b"ftyp", video.status_code
print("requests", requests.__version__)
