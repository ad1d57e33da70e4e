"""What clients need of a proxy in front of the server: TLS, links, cookies, ranges, uploads, and answers that arrive
while they are made. Needs only Python and, for HTTP/2, curl.

RUSHES_ADDRESS is the public address, whose name is looked up on this machine only; RUSHES_CERTIFICATE is that of the
proxy, and RUSHES_WAIT the seconds of the longest wait for an answer.
"""

import base64
import http.client
import json
import os
import socket
import ssl
import struct
import subprocess
import time
import urllib.parse
import zlib

ADDRESS, TOKEN = os.environ["RUSHES_ADDRESS"], os.environ["RUSHES_TOKEN"]
CERTIFICATE, WAIT = os.environ["RUSHES_CERTIFICATE"], int(os.environ["RUSHES_WAIT"])
NAME, PORT = urllib.parse.urlsplit(ADDRESS).hostname, urllib.parse.urlsplit(ADDRESS).port
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MOST_UPLOAD = 64 << 20
# So many events are read.
EVENTS = 8
SHORT = {"prompt": "a red ball", "size": "48x32", "seconds": "1", "num_inference_steps": 4, "seed": 7}
# It is not complete before a test has looked at it.
LONG = {"prompt": "a slow ship", "size": "192x128", "num_frames": 81, "num_inference_steps": 200, "seed": 5}
tls = ssl.create_default_context(cafile=CERTIFICATE)


def connect(timeout=120):
    """A connection to the proxy, whose certificate is checked for the public name."""
    plain = socket.create_connection(("127.0.0.1", PORT), timeout=timeout)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls.wrap_socket(plain, server_hostname=NAME)


class Answer:
    """An answer that has arrived whole."""

    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    def json(self):
        return json.loads(self.body)

    def expect(self, status):
        assert self.status == status, (self.status, self.body[:500])
        return self


def begin(method, url, headers=BEARER, body=None, kind="application/json", timeout=120):
    """Sends a request on a connection of its own; returns the response, whose body was not read."""
    assert url.startswith("/") or url.startswith(ADDRESS + "/"), url
    connection = http.client.HTTPConnection(NAME, PORT)
    connection.sock = connect(timeout)
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    headers = dict(headers) | ({} if body is None else {"Content-Type": kind})
    try:
        connection.request(method, url.removeprefix(ADDRESS), body, headers)
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        pass  # The answer has come before the end of the body.
    return connection.getresponse()


def ask(method, url, *arguments, **named):
    return Answer(begin(method, url, *arguments, **named))


def create(clip):
    return ask("POST", "/v1/videos", body=clip).expect(200).json()["id"]


def until(id, what):
    """Polls a video until something is true of it."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        video = ask("GET", f"/v1/videos/{id}").expect(200).json()
        if what(video):
            return video
        time.sleep(0.2)
    raise AssertionError(f"{id} is still {video}")


def ended(id):
    return until(id, lambda video: video["status"] in ("completed", "failed"))


def test_clips_and_ranges():
    id = create(SHORT)
    assert ended(id)["status"] == "completed"
    path = f"/v1/videos/{id}/content"
    whole = ask("GET", path).expect(200)
    size = len(whole.body)
    assert whole.body[4:8] == b"ftyp" and whole.headers["content-type"] == "video/mp4", whole.headers
    assert int(whole.headers["content-length"]) == size and whole.headers["accept-ranges"] == "bytes"
    for asked, first, last in (("0-99", 0, 99), ("100-", 100, size - 1), ("-10", size - 10, size - 1)):
        part = ask("GET", path, BEARER | {"Range": f"bytes={asked}"}).expect(206)
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}", part.headers
        assert part.body == whole.body[first : last + 1]
    ask("GET", path, BEARER | {"Range": f"bytes={size}-"}).expect(416)
    head = ask("HEAD", path).expect(200)
    assert head.body == b"" and int(head.headers["content-length"]) == size
    assert ask("GET", path + "?variant=thumbnail").expect(200).body[8:12] == b"WEBP"
    ask("DELETE", f"/v1/videos/{id}").expect(200)
    ask("GET", path).expect(404)


def test_tokens_are_needed_and_hosts_are_not_believed():
    # The server sees connections of this machine only.
    ask("GET", "/v1/videos", {}).expect(401)
    ask("GET", "/metrics", {}).expect(401)
    ask("GET", "/readyz", {}).expect(200)
    plain = {"prompt": "a red ball", "resolution": "48x32", "duration": 1}
    for other in ({"X-Forwarded-Host": "evil.example"}, {"Forwarded": "host=evil.example"}, {"Host": "evil.example"}):
        answer = ask("POST", "/wan2.2/t2v/generate", BEARER | other, plain)
        # A proxy may have nothing for other hosts.
        assert b"evil.example" not in answer.body, answer.body
        if answer.body and answer.status == 200:
            task = answer.json()
            assert all(task[name].startswith(ADDRESS + "/media/") for name in ("status_url", "video_url"))
            ask("DELETE", f"/v1/videos/{task['task_id']}").expect(200)
        else:
            assert "Host" in other, (answer.status, answer.body)


def test_links_and_waits():
    plain = {"prompt": "a boat", "resolution": "48x32", "duration": 1, "output_format": "mp4"}
    task = ask("POST", "/wan2.2/t2v/generate", body=plain).expect(200).json()
    # Links need no token.
    video = ask("GET", task["video_url"], {"Prefer": "wait=100"}).expect(200)
    assert video.body[4:8] == b"ftyp"
    state = ask("GET", task["status_url"], {}).expect(200).json()
    assert state["status"] == "completed", state
    assert ask("GET", state["video_url"], {"Range": "bytes=4-7"}).expect(206).body == b"ftyp"
    ask("GET", task["video_url"].replace("expires=", "expires=9"), {}).expect(403)
    made = ask("POST", "/v1/videos/generations", body=SHORT | {"seconds": 1}).expect(200).json()
    assert base64.b64decode(made["video_bytes"])[4:8] == b"ftyp"


def test_a_browser_signs_in():
    own, foreign = {"Origin": ADDRESS}, {"Origin": "https://evil.example"}
    ask("POST", "/v1/session", foreign, {"token": TOKEN}).expect(403)
    cookie = ask("POST", "/v1/session", own, {"token": TOKEN}).expect(200).headers["set-cookie"]
    assert all(f"; {part}" in cookie for part in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/")), cookie
    signed_in = {"Cookie": cookie.split(";")[0]}
    ask("GET", "/v1/videos", signed_in).expect(200)
    ask("POST", "/v1/videos", signed_in | foreign, SHORT).expect(403)
    id = ask("POST", "/v1/videos", signed_in | own, SHORT).expect(200).json()["id"]
    with Socket(id, signed_in | own) as followed:
        assert any(kind == 1 for kind, _ in followed.messages())
    assert Socket.refused(id, signed_in | foreign) == 403
    assert ended(id)["status"] == "completed"
    out = ask("DELETE", "/v1/session", signed_in | own).expect(204)
    assert "Max-Age=0" in out.headers["set-cookie"]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, random):
    """A picture, whose file is large if its pixels are random."""
    row = (os.urandom if random else bytes)(width * 3)
    pixels = zlib.compress((b"\0" + row) * height, 0 if random else 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def upload(content, is_chunked=False):
    head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="logo.png"\r\n\r\n'
    form = [head, content, b"\r\n--x--\r\n"]
    return ask(
        "POST", "/v1/uploads", body=iter(form) if is_chunked else b"".join(form), kind="multipart/form-data; boundary=x"
    )


def test_uploads():
    large = png(1500, 1200, True)
    assert 1 << 20 < len(large) < MOST_UPLOAD
    # What follows a picture is not looked at.
    largest = png(64, 32, False).ljust(MOST_UPLOAD, b"\0")
    for answer in (upload(large), upload(large, is_chunked=True), upload(largest)):
        ask("DELETE", f"/v1/uploads/{answer.expect(200).json()['id']}").expect(200)
    assert upload(largest + b"\0").expect(413).json()["error"]["code"] == "too_large"
    # The server refuses these before it has read them.
    statuses = [upload(largest + bytes(megabytes << 20)).status for megabytes in (4, 16)]
    statuses += [ask("POST", "/v1/videos", body=SHORT | {"prompt": "a" * (size << 20)}).status for size in (1, 8)]
    assert set(statuses) == {413}, statuses
    print(f"    bodies beyond the limits: {statuses}")
    # Such answers leave nothing behind for the next request.
    ask("GET", "/v1/videos").expect(200)


class Socket:
    """A websocket of the server. It sends no messages."""

    def __init__(self, id, headers=BEARER):
        self.stream, self.file, self.status = self.opened(id, headers)
        assert self.status == 101, self.status

    @staticmethod
    def opened(id, headers):
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET /v1/videos/{id}/ws HTTP/1.1", f"Host: {NAME}:{PORT}"]
        lines += ["Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        lines += [f"Sec-WebSocket-Key: {key}", *(f"{name}: {value}" for name, value in headers.items())]
        stream = connect()
        stream.sendall("\r\n".join([*lines, "", ""]).encode())
        file = stream.makefile("rb")
        status = int(file.readline().split()[1])
        while file.readline().strip():
            pass
        return stream, file, status

    @classmethod
    def refused(cls, id, headers):
        stream, _, status = cls.opened(id, headers)
        stream.close()
        return status

    def messages(self):
        """Kind and bytes of each message, to the one that closes."""
        while True:
            first, length = self.file.read(2)
            assert first & 0x80 and not length & 0x80, "whole and without a mask"
            if length >= 126:
                size = 2 if length == 126 else 8
                length = int.from_bytes(self.file.read(size), "big")
            kind, content = first & 0x0F, self.file.read(length)
            if kind == 8:
                return
            yield kind, content

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()


def check_events(lines, what):
    """Reads events for some seconds; they must arrive one by one."""
    arrivals, names, began = [], [], time.monotonic()
    for line in lines:
        if line.startswith(b"event:"):
            names.append(line.split(b":", 1)[1].strip())
        if line.startswith(b"data:"):
            json.loads(line.split(b":", 1)[1])
            arrivals.append(time.monotonic())
        if len(arrivals) == EVENTS:
            break
    assert set(names) == {b"progress"} and len(arrivals) == EVENTS, names
    # Events that a proxy keeps back arrive at once. Two steps may end while this waits for its turn.
    apart = sum(later - earlier > 0.002 for earlier, later in zip(arrivals, arrivals[1:]))
    assert apart >= EVENTS // 2, [round(arrival - began, 4) for arrival in arrivals]
    print(f"    {what}: {EVENTS} events in {arrivals[-1] - began:.1f} s, {apart + 1} of them apart")


def with_curl(id, version):
    command = ["curl", "--silent", "--no-buffer", version, "--cacert", CERTIFICATE]
    command += ["--resolve", f"{NAME}:{PORT}:127.0.0.1", "--header", f"Authorization: Bearer {TOKEN}"]
    command += ["--dump-header", "/dev/stderr", f"{ADDRESS}/v1/videos/{id}/events"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_what_arrives_while_a_clip_is_made():
    id = create(LONG)
    until(id, lambda video: video["progress"] > 0)
    events = begin("GET", f"/v1/videos/{id}/events")
    assert events.status == 200 and events.headers["content-type"] == "text/event-stream", events.headers
    check_events(iter(events.readline, b""), "events")
    events.close()

    curl = with_curl(id, "--http2")
    try:
        protocol = curl.stderr.readline().split()[0].decode()
        check_events(curl.stdout, f"events by {protocol}")
    finally:
        curl.kill()
        curl.communicate()

    with Socket(id) as followed:
        texts, pictures = 0, 0
        for kind, content in followed.messages():
            if kind == 1:
                assert json.loads(content)["type"] == "progress", content
                texts += 1
            if kind == 2:
                assert content[:10] == b"\0\0\0\1\0\0\0\1\xff\xd8", content[:10]
                pictures += 1
            if texts > 3 and pictures > 3:
                break
    print(f"    websocket: {texts} texts and {pictures} pictures")

    live = ask("GET", f"/v1/videos/{id}/live")
    for _ in range(3):
        if live.status == 503:  # The first segment is not there yet.
            live = ask("GET", f"/v1/videos/{id}/live")
    lines = live.expect(200).body.decode().splitlines()
    first = next(line.split('"')[1] for line in lines if line.startswith("#EXT-X-MAP:"))
    segments = [line for line in lines if not line.startswith("#")]
    assert ask("GET", first, {}).expect(200).body[4:8] == b"ftyp"
    assert segments and all(b"moof" in ask("GET", segment, {}).expect(200).body[:512] for segment in segments)
    state = ask("GET", f"/v1/videos/{id}").expect(200).json()
    assert state["status"] == "in_progress", state
    print(f"    live: {len(segments)} segments")

    # Longer than a proxy waits that was not told to, for a clip that others come before.
    others = [create(LONG) for _ in range(3)]
    plain = {"prompt": "a boat", "resolution": "48x32", "duration": 1}
    task = ask("POST", "/wan2.2/t2v/generate", body=plain).expect(200).json()
    began = time.monotonic()
    ask("GET", task["video_url"], {"Prefer": f"wait={WAIT}"}, timeout=WAIT + 60).expect(202)
    waited = time.monotonic() - began
    assert WAIT <= waited + 1 < WAIT + 20, waited
    print(f"    wait: {waited:.1f} s")
    for made in (id, *others, task["task_id"]):
        ask("DELETE", f"/v1/videos/{made}").expect(200)


def test_a_client_that_vanishes():
    known = {video["id"] for video in ask("GET", "/v1/videos").expect(200).json()["data"]}
    body = json.dumps({"prompt": "a slow ship", "size": "192x128", "num_frames": 81, "num_inference_steps": 200})
    stream = connect()
    lines = ["POST /v1/videos/generations HTTP/1.1", f"Host: {NAME}:{PORT}", f"Authorization: Bearer {TOKEN}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", body]
    stream.sendall("\r\n".join(lines).encode())
    new = set()
    while not new:
        time.sleep(0.2)
        new = {video["id"] for video in ask("GET", "/v1/videos").expect(200).json()["data"]} - known
    stream.close()
    video = ended(new.pop())
    assert video["status"] == "failed" and video["error"]["code"] == "cancelled", video


for name, test in list(globals().items()):
    if name.startswith("test_"):
        began = time.monotonic()
        test()
        print(f"    {name.removeprefix('test_').replace('_', ' ')}: {time.monotonic() - began:.1f} s")
