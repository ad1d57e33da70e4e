"""How much status requests slow the steps of a clip: the same clip with and without 100 requests a second.

    python3 benches/compare/serve_polling.py --rushes target/release/rushes [--rate 100] [--rounds 5] [--steps 200]

Starts a server of its own, alternates between quiet and polled clips, and prints the median of each and their ratio.
The client that asks is niced, as one on another machine would cost nothing here.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
from urllib.parse import urlparse


def call(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def poll(url, rate, stop, count):
    """Asks for the state of a clip `rate` times a second over one connection, until it is stopped."""
    os.nice(19)
    address = urlparse(url)
    connection = http.client.HTTPConnection(address.netloc)
    due = time.monotonic()
    while not stop.is_set():
        connection.request("GET", address.path)
        connection.getresponse().read()
        count.value += 1
        due += 1 / rate
        time.sleep(max(0, due - time.monotonic()))


def clip(address, steps, rate):
    """Seconds from the start of a clip to its end, and the requests that were made meanwhile."""
    body = {"prompt": "a red ball", "size": "256x128", "num_frames": 9, "num_inference_steps": steps, "seed": 1}
    made = call(address + "/v1/videos", body)
    url = f"{address}/v1/videos/{made['id']}"
    stop, count = multiprocessing.Event(), multiprocessing.Value("i", 0)
    asks = multiprocessing.Process(target=poll, args=(url, rate, stop, count)) if rate else None
    if asks:
        asks.start()
    while call(url)["status"] not in ("completed", "failed"):
        time.sleep(0.5)
    stop.set()
    if asks:
        asks.join()
    tasks = call(address + "/api/v1/tasks?page_size=1")["data"]
    assert tasks[0]["task_id"] == made["id"] and tasks[0]["status"] == "SUCCEEDED", tasks
    return (tasks[0]["end_time"] - tasks[0]["start_time"]) / 1000, count.value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rushes", required=True)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        command = [args.rushes, "serve", "--json", "--listen", "127.0.0.1:0", "--data-dir", data]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            address = json.loads(server.stdout.readline())["url"]
            clip(address, 10, 0)
            quiet, polled = [], []
            for number in range(args.rounds):
                quiet.append(clip(address, args.steps, 0)[0])
                seconds, count = clip(address, args.steps, args.rate)
                polled.append(seconds)
                rate = count / seconds
                print(f"round {number + 1}: {quiet[-1]:.2f} s quiet, {seconds:.2f} s with {rate:.0f} requests/s")
            alone, asked = statistics.median(quiet), statistics.median(polled)
            print(f"median {alone:.2f} s quiet, {asked:.2f} s polled: {asked / alone:.3f}")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
