"""The world that mini is trained on: clips drawn exactly, with the mask of their subject and captions in two languages.

A scene is one subject in one colour, one action, a setting, a time of day, weather and a camera move. Run as a script, this
prints captions and draws a sheet of frames.

  python world.py sheet.png
"""

import math
import random
import sys

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, FRAMES, FPS = 112, 64, 17, 8
SUPERSAMPLING = 2
ASPECT = WIDTH / HEIGHT
# World units: the frame is 1 high and ASPECT wide, y points down.
SUBJECT_SIZE = 0.24

COLORS = {
    "red": ((214, 48, 49), "红色"),
    "orange": ((240, 140, 30), "橙色"),
    "yellow": ((245, 215, 60), "黄色"),
    "green": ((46, 170, 80), "绿色"),
    "blue": ((50, 110, 230), "蓝色"),
    "purple": ((140, 70, 190), "紫色"),
    "white": ((240, 240, 240), "白色"),
    "pink": ((245, 130, 180), "粉色"),
}
# English names (the first is the usual one), Chinese names, Chinese measure word.
SUBJECTS = {
    "car": (["car", "car", "automobile"], ["汽车", "汽车", "小汽车"], "一辆"),
    "ball": (["ball"], ["皮球", "皮球", "球"], "一个"),
    "bird": (["bird"], ["小鸟", "小鸟", "鸟"], "一只"),
    "boat": (["boat", "boat", "sailboat"], ["帆船", "帆船", "船"], "一艘"),
    "cat": (["cat", "cat", "kitten"], ["猫", "猫", "小猫"], "一只"),
    "balloon": (["balloon"], ["气球"], "一个"),
    "robot": (["robot"], ["机器人"], "一个"),
    "dancer": (["dancer"], ["舞者"], "一位"),
}
ACTIONS = {
    "right": (
        ["moves from left to right", "crosses from left to right", "glides to the right", "moves to the right"],
        ["从左向右移动", "从左边移到右边", "向右滑行", "向右移动"],
    ),
    "left": (
        ["moves from right to left", "crosses from right to left", "glides to the left", "moves to the left"],
        ["从右向左移动", "从右边移到左边", "向左滑行", "向左移动"],
    ),
    "up": (["rises", "moves upward", "floats up"], ["缓缓上升", "向上移动", "升起"]),
    "down": (["descends", "moves downward", "comes down"], ["缓缓下降", "向下移动", "落下"]),
    "bounce": (["bounces up and down", "jumps up and down", "bounces"], ["上下跳动", "上下跳跃", "跳动"]),
    "spin": (["spins around", "turns around and around", "spins"], ["原地旋转", "不停旋转", "转圈"]),
    "still": (["stays still", "stands still"], ["静止不动", "停在原地"]),
}
SETTINGS = {
    "city": (["in the city", "on a city street"], ["在城市里", "在城市街道上"]),
    "beach": (["on the beach", "at the seaside"], ["在海滩上", "在海边"]),
    "forest": (["in the forest", "among the trees"], ["在森林里", "在树林中"]),
    "mountains": (["in front of the mountains", "in the mountains"], ["在群山前", "在山间"]),
}
TIMES = {
    "day": (["in daylight", "on a sunny day"], ["白天", "阳光明媚"]),
    "dusk": (["at dusk", "at sunset"], ["黄昏", "日落时分"]),
    "night": (["at night"], ["夜晚", "夜里"]),
}
WEATHERS = {
    "clear": ([""], [""]),
    "rain": (["in the rain", "rain is falling"], ["下着雨", "细雨绵绵"]),
    "snow": (["in the snow", "snow is falling"], ["下着雪", "雪花飘落"]),
}
CAMERAS = {
    "static": (["static camera", ""], ["固定镜头", ""]),
    "push": (["the camera slowly pushes in", "slow push-in"], ["镜头缓慢推进", "镜头推近"]),
    "pull": (["the camera slowly pulls out", "slow pull-out"], ["镜头缓慢拉远", "镜头拉远"]),
    "pan_left": (["the camera pans left"], ["镜头向左平移", "镜头左摇"]),
    "pan_right": (["the camera pans right"], ["镜头向右平移", "镜头右摇"]),
    "tilt_up": (["the camera tilts up"], ["镜头上摇", "镜头向上移动"]),
    "tilt_down": (["the camera tilts down"], ["镜头下摇", "镜头向下移动"]),
    "roll": (["the camera rotates"], ["镜头旋转"]),
}
ATTRIBUTES = {
    "subject": list(SUBJECTS),
    "color": list(COLORS),
    "action": list(ACTIONS),
    "setting": list(SETTINGS),
    "time": list(TIMES),
    "weather": list(WEATHERS),
    "camera": list(CAMERAS),
}

SKY = {
    "day": ((110, 180, 240), (200, 230, 250)),
    "dusk": ((90, 60, 120), (250, 150, 80)),
    "night": ((10, 14, 40), (30, 40, 80)),
}
LIGHT = {"day": 1.0, "dusk": 0.72, "night": 0.42}
HORIZON = 0.72
BLACK, SKIN = (25, 25, 30), (245, 205, 175)


def held_out(scene):
    """One in sixteen combinations of subject, colour, action and setting is never trained on; prompts are scored on these."""
    index = {name: ATTRIBUTES[name].index(scene[name]) for name in ("subject", "color", "action", "setting")}
    return (5 * index["subject"] + 3 * index["color"] + 7 * index["action"] + 11 * index["setting"]) % 16 == 0


def sample(rng, from_held_out=False):
    """A random scene: one value per attribute, and the seed of everything that no caption mentions."""
    while True:
        scene = {name: rng.choice(values) for name, values in ATTRIBUTES.items()}
        # Clear weather and a static camera are twice as likely: they are what a short prompt means.
        scene["weather"] = rng.choice(["clear", "clear", "rain", "snow"])
        scene["camera"] = rng.choice(["static", "static"] + list(CAMERAS))
        scene["seed"] = rng.randrange(1 << 30)
        if held_out(scene) == from_held_out:
            return scene


def caption(scene, rng, language=None, omit=()):
    """A caption in English (`en`) or Chinese (`zh`) that does not mention the attributes in `omit` (action, setting, time)."""
    language = language or rng.choice(["en", "zh"])
    column = 0 if language == "en" else 1

    def phrase(table, name):
        return "" if name in omit else rng.choice(table[scene[name]][column])

    action, setting = phrase(ACTIONS, "action"), phrase(SETTINGS, "setting")
    time = phrase(TIMES, "time")
    weather, camera = phrase(WEATHERS, "weather"), phrase(CAMERAS, "camera")
    subject = rng.choice(SUBJECTS[scene["subject"]][column])
    if language == "en":
        article = "an" if scene["color"][0] in "aeiou" else "a"
        head = " ".join(word for word in (article, scene["color"], subject, action, setting) if word)
        text = ", ".join(part for part in (head, time, weather, camera) if part)
        return text[0].upper() + text[1:] + "." if rng.random() < 0.5 else text
    color, measure = COLORS[scene["color"]][1], SUBJECTS[scene["subject"]][2]
    if rng.random() < 0.6 or not setting:
        head = f"{measure}{color}的{subject}{setting}{action}"
    else:
        head = f"{setting}，{measure}{color}{subject}{action}"
    text = "，".join(part for part in (head, time, weather, camera) if part)
    return text + "。" if rng.random() < 0.5 else text


def scaled(color, factor):
    """The colour made darker or lighter."""
    return tuple(int(max(0, min(255, channel * factor))) for channel in color)


class Pen:
    """Draws in world units through a camera. A stencil pen draws every shape in white on black: the mask of what it drew."""

    def __init__(self, center_x, center_y, zoom, roll, stencil=False):
        self.stencil = stencil
        self.image = Image.new("L" if stencil else "RGB", (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING))
        self.draw = ImageDraw.Draw(self.image)
        self.center_x, self.center_y, self.zoom = center_x, center_y, zoom
        self.cos, self.sin = math.cos(roll), math.sin(roll)

    def ink(self, color):
        return 255 if self.stencil else color

    def pixel(self, x, y):
        x, y = (x - self.center_x) * self.zoom, (y - self.center_y) * self.zoom
        x, y = x * self.cos - y * self.sin, x * self.sin + y * self.cos
        return ((x + ASPECT / 2) * HEIGHT * SUPERSAMPLING, (y + 0.5) * HEIGHT * SUPERSAMPLING)

    def polygon(self, points, color):
        self.draw.polygon([self.pixel(*point) for point in points], fill=self.ink(color))

    def rectangle(self, x0, y0, x1, y1, color):
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)

    def disc(self, x, y, radius_x, radius_y, color, sides=20):
        angles = [2 * math.pi * k / sides for k in range(sides)]
        self.polygon([(x + radius_x * math.cos(a), y + radius_y * math.sin(a)) for a in angles], color)

    def line(self, start, end, color, width):
        width = max(1, int(width * HEIGHT * SUPERSAMPLING * self.zoom))
        self.draw.line([self.pixel(*start), self.pixel(*end)], fill=self.ink(color), width=width)

    def pixels(self):
        """The picture at its final size, u8, `[H,W,3]` (a stencil: `[H,W]`)."""
        return np.asarray(self.image.resize((WIDTH, HEIGHT), Image.BOX))


def draw_sky(pen, scene, rng):
    top, bottom = SKY[scene["time"]]
    bands = 10
    for j in range(bands):
        f = j / (bands - 1)
        color = tuple(int(a + (b - a) * f) for a, b in zip(top, bottom))
        pen.rectangle(-2, -1.2 + 0.19 * j if j else -3, 4, -1.2 + 0.19 * (j + 1) + 0.01, color)
    x, y = rng.uniform(0.2, 1.5), rng.uniform(0.08, 0.22)
    if scene["time"] == "night":
        for _ in range(5):
            pen.disc(rng.uniform(-0.6, 2.3), rng.uniform(-0.5, 0.45), 0.016, 0.016, (170, 170, 210), 6)
        pen.disc(x, y, 0.08, 0.08, (235, 235, 215))
        pen.disc(x + 0.035, y - 0.02, 0.068, 0.068, top)
    elif scene["time"] == "dusk":
        pen.disc(x, y + 0.25, 0.09, 0.09, (255, 180, 90))
    else:
        pen.disc(x, y, 0.09, 0.09, (255, 235, 130))


def draw_city(pen, scene, rng, light):
    lit = (250, 220, 120) if scene["time"] != "day" else (190, 215, 235)
    x = -1.2
    while x < 3:
        width, height = rng.uniform(0.18, 0.32), rng.uniform(0.22, 0.5)
        wall = scaled(rng.choice([(120, 125, 140), (150, 130, 120), (100, 110, 130)]), light)
        pen.rectangle(x, HORIZON - height, x + width, HORIZON, wall)
        row = HORIZON - height + 0.05
        while row < HORIZON - 0.08:
            column = x + 0.035
            while column < x + width - 0.05:
                pen.rectangle(column, row, column + 0.04, row + 0.05, lit)
                column += 0.08
            row += 0.11
        x += width + rng.uniform(0.0, 0.05)
    pen.rectangle(-2, HORIZON, 4, 3, scaled((90, 92, 98), light))
    for j in range(-6, 16):
        pen.rectangle(j * 0.25, 0.87, j * 0.25 + 0.12, 0.895, scaled((230, 230, 210), light))


def draw_beach(pen, rng, light):
    pen.rectangle(-2, 0.55, 4, 0.75, scaled((40, 130, 190), light))
    for j in range(-6, 16):
        pen.disc(j * 0.25 + rng.uniform(0, 0.1), 0.75, 0.14, 0.02, scaled((220, 240, 245), light), 10)
    pen.rectangle(-2, 0.755, 4, 3, scaled((235, 210, 150), light))


def draw_forest(pen, rng, light):
    pen.rectangle(-2, 0.68, 4, 3, scaled((80, 150, 70), light))
    x = -1.2
    while x < 3:
        height = rng.uniform(0.3, 0.5)
        pen.rectangle(x - 0.025, 0.6, x + 0.025, 0.74, scaled((110, 75, 45), light))
        for q in range(3):
            half, base = 0.14 - 0.03 * q, 0.64 - height * 0.28 * q
            leaves = scaled((30, 110 + 12 * q, 55), light)
            pen.polygon([(x - half, base), (x + half, base), (x, base - height * 0.5)], leaves)
        x += rng.uniform(0.2, 0.34)


def draw_mountains(pen, rng, light):
    x = -1.4
    while x < 3:
        w, h = rng.uniform(0.4, 0.65), rng.uniform(0.35, 0.6)
        peak = (x + w / 2, HORIZON - h)
        pen.polygon([(x, HORIZON), (x + w, HORIZON), peak], scaled((110, 115, 135), light))
        snow_line = HORIZON - h * 0.74
        snow = scaled((240, 245, 250), max(light, 0.6))
        pen.polygon([peak, (x + w * 0.37, snow_line), (x + w * 0.63, snow_line)], snow)
        x += w * rng.uniform(0.55, 0.9)
    pen.rectangle(-2, 0.7, 4, 3, scaled((130, 170, 100), light))


def draw_background(pen, scene, rng):
    """Sky and setting."""
    light = LIGHT[scene["time"]]
    draw_sky(pen, scene, rng)
    if scene["setting"] == "city":
        draw_city(pen, scene, rng, light)
    elif scene["setting"] == "beach":
        draw_beach(pen, rng, light)
    elif scene["setting"] == "forest":
        draw_forest(pen, rng, light)
    else:
        draw_mountains(pen, rng, light)


class Body:
    """Shapes in the subject's own coordinates, about -1..1, placed in the world by position, rotation and mirroring."""

    def __init__(self, pen, x, y, rotation, mirror):
        self.pen, self.x, self.y, self.mirror = pen, x, y, mirror
        self.cos, self.sin = math.cos(rotation), math.sin(rotation)

    def place(self, u, v):
        u *= self.mirror
        x = self.x + (u * self.cos - v * self.sin) * SUBJECT_SIZE
        return (x, self.y + (u * self.sin + v * self.cos) * SUBJECT_SIZE)

    def polygon(self, points, color):
        self.pen.polygon([self.place(*point) for point in points], color)

    def box(self, u0, v0, u1, v1, color):
        self.polygon([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], color)

    def disc(self, u, v, radius_u, radius_v, color, sides=18):
        angles = [2 * math.pi * k / sides for k in range(sides)]
        self.polygon([(u + radius_u * math.cos(a), v + radius_v * math.sin(a)) for a in angles], color)


def draw_car(body, color, dark, _time):
    glass = (200, 230, 250)
    body.box(-1.2, 0.1, 1.2, 0.6, color)
    body.polygon([(-0.7, 0.1), (-0.4, -0.4), (0.45, -0.4), (0.8, 0.1)], dark)
    body.polygon([(-0.5, 0.05), (-0.3, -0.3), (0, -0.3), (0, 0.05)], glass)
    body.polygon([(0.08, 0.05), (0.08, -0.3), (0.38, -0.3), (0.62, 0.05)], glass)
    for u in (-0.65, 0.65):
        body.disc(u, 0.62, 0.26, 0.26, BLACK)
        body.disc(u, 0.62, 0.11, 0.11, (170, 170, 175))
    body.disc(1.12, 0.28, 0.09, 0.09, (255, 240, 160))


def draw_ball(body, color, dark, _time):
    body.disc(0, 0, 0.8, 0.8, color, 24)
    body.box(-0.78, -0.14, 0.78, 0.14, (250, 250, 250))
    body.disc(0, 0, 0.22, 0.22, dark)


def draw_bird(body, color, dark, time):
    body.disc(0, 0, 0.7, 0.4, color)
    body.disc(0.65, -0.25, 0.3, 0.28, color)
    body.polygon([(0.9, -0.3), (1.25, -0.2), (0.9, -0.1)], (240, 170, 40))
    body.disc(0.72, -0.3, 0.07, 0.07, BLACK, 8)
    wing = 0.9 * math.sin(time * 7)
    body.polygon([(-0.3, -0.1), (0.3, -0.1), (-0.15, -0.1 - wing)], dark)
    body.polygon([(-0.6, 0), (-1.15, -0.25), (-1.1, 0.2)], dark)


def draw_boat(body, color, dark, _time):
    body.polygon([(-1.1, 0.25), (1.1, 0.25), (0.7, 0.75), (-0.7, 0.75)], (130, 85, 50))
    body.box(-0.04, -1.0, 0.06, 0.25, (90, 60, 40))
    body.polygon([(0.1, -0.95), (0.95, 0.12), (0.1, 0.12)], color)
    body.polygon([(-0.1, -0.85), (-0.8, 0.12), (-0.1, 0.12)], color)


def draw_cat(body, color, dark, _time):
    body.disc(0, 0.25, 0.75, 0.42, color)
    body.disc(0.7, -0.2, 0.4, 0.36, color)
    body.polygon([(0.4, -0.4), (0.48, -0.85), (0.7, -0.5)], color)
    body.polygon([(0.75, -0.5), (0.98, -0.85), (1.02, -0.35)], color)
    for u in (0.6, 0.86):
        body.disc(u, -0.22, 0.07, 0.09, BLACK, 8)
    body.polygon([(-0.65, 0.2), (-1.2, -0.45), (-1.05, -0.5), (-0.5, 0.05)], dark)
    for u in (-0.5, -0.2, 0.25, 0.5):
        body.box(u - 0.09, 0.5, u + 0.09, 0.9, dark)


def draw_balloon(body, color, dark, _time):
    body.pen.line(body.place(0, 0.5), body.place(0.1, 1.3), (235, 235, 235), 0.012)
    body.disc(0, -0.2, 0.65, 0.8, color, 24)
    body.polygon([(-0.12, 0.72), (0.12, 0.72), (0, 0.55)], dark)
    body.disc(-0.22, -0.5, 0.14, 0.2, scaled(color, 1.35), 10)


def draw_robot(body, color, dark, time):
    body.box(-0.5, -0.15, 0.5, 0.65, color)
    body.box(-0.38, -0.85, 0.38, -0.25, dark)
    for u in (-0.17, 0.17):
        body.disc(u, -0.58, 0.1, 0.1, (160, 250, 250), 10)
    swing = 0.2 * math.sin(time * 7)
    body.box(-0.72, -0.1 + swing, -0.54, 0.45 + swing, dark)
    body.box(0.54, -0.1 - swing, 0.72, 0.45 - swing, dark)
    for u in (-0.25, 0.25):
        body.box(u - 0.13, 0.65, u + 0.13, 1.0, dark)
    body.disc(0, -0.98, 0.08, 0.08, (250, 80, 80), 8)


def draw_dancer(body, color, _dark, time):
    swing = 0.35 * math.sin(time * 6)
    hem = swing * 0.3
    body.polygon([(-0.15, -0.35), (0.15, -0.35), (0.7 + hem, 0.85), (-0.7 + hem, 0.85)], color)
    body.disc(0, -0.68, 0.26, 0.28, SKIN)
    body.disc(0, -0.85, 0.27, 0.17, (40, 25, 20))
    body.polygon([(-0.12, -0.3), (-0.85, -0.6 - swing), (-0.85, -0.45 - swing), (-0.15, -0.1)], SKIN)
    body.polygon([(0.12, -0.3), (0.85, -0.6 + swing), (0.85, -0.45 + swing), (0.15, -0.1)], SKIN)
    for u in (-0.2, 0.2):
        body.box(u - 0.07, 0.85, u + 0.07, 1.05, SKIN)


DRAW = {
    "car": draw_car,
    "ball": draw_ball,
    "bird": draw_bird,
    "boat": draw_boat,
    "cat": draw_cat,
    "balloon": draw_balloon,
    "robot": draw_robot,
    "dancer": draw_dancer,
}


def draw_subject(pen, scene, pose, time):
    # The subject is lit more than the background, or its colour could not be told at night.
    color = scaled(COLORS[scene["color"]][0], max(LIGHT[scene["time"]], 0.78))
    DRAW[scene["subject"]](Body(pen, *pose), color, scaled(color, 0.6), time)


def camera(name, f):
    """Centre x, centre y, zoom and roll (radians) at the fraction `f` of the clip."""
    x, y, zoom, roll = ASPECT / 2, 0.5, 1.0, 0.0
    if name == "push":
        zoom = 1 + 0.55 * f
    elif name == "pull":
        zoom = 1.4 - 0.55 * f
    elif name == "pan_left":
        x += 0.2 - 0.42 * f
    elif name == "pan_right":
        x += -0.2 + 0.42 * f
    elif name == "tilt_up":
        y += 0.12 - 0.36 * f
    elif name == "tilt_down":
        y += -0.18 + 0.36 * f
    elif name == "roll":
        roll = 0.6 * f
    return x, y, zoom, roll


def pose(action, f, time, start, gain, phase):
    """Position, rotation and mirroring of the subject at the fraction `f` of the clip."""
    (x, y), rotation, mirror = start, 0.0, 1
    if action == "right":
        x = ASPECT / 2 + (-0.56 + 1.12 * f) * gain
    elif action == "left":
        x, mirror = ASPECT / 2 + (0.56 - 1.12 * f) * gain, -1
    elif action == "up":
        y = 0.76 - 0.54 * f * gain
    elif action == "down":
        y = 0.22 + 0.52 * f * gain
    elif action == "bounce":
        y = 0.7 - 0.32 * abs(math.sin(time * 4.2 + phase))
    elif action == "spin":
        rotation = 3.1 * time + phase
    return x, y, rotation, mirror


def draw_weather(pen, weather, drops, time):
    """Rain or snow, which stay in front of the camera whatever it does."""
    unit = HEIGHT * SUPERSAMPLING
    for j, (u, v) in enumerate(drops):
        if weather == "rain":
            y = (v + 1.9 * time) % 1.2 - 0.1
            x = u - 0.06 * y
            pen.draw.line([(x * unit, y * unit), ((x - 0.025) * unit, (y + 0.11) * unit)], fill=(170, 190, 220), width=3)
        elif weather == "snow":
            y, r = ((v + 0.45 * time) % 1.2 - 0.1) * unit, 0.026 * unit
            x = (u + 0.03 * math.sin(3 * time + j)) * unit
            pen.draw.ellipse([x - r, y - r, x + r, y + r], fill=(250, 250, 255))


def render(scene, frames=FRAMES):
    """The clip, u8 `[F,H,W,3]`, and the share of each pixel that the subject covers, u8 `[F,H,W]`."""
    rng = random.Random(scene["seed"])
    background_seed = rng.randrange(1 << 30)
    start = (ASPECT / 2 + rng.uniform(-0.12, 0.12), rng.uniform(0.5, 0.64))
    gain, phase = rng.uniform(0.9, 1.1), rng.uniform(0, 2 * math.pi)
    drops = [(rng.uniform(-0.2, ASPECT + 0.2), rng.uniform(-0.1, 1.1)) for _ in range(13)]
    clip = np.empty((frames, HEIGHT, WIDTH, 3), np.uint8)
    mask = np.empty((frames, HEIGHT, WIDTH), np.uint8)
    for i in range(frames):
        f, time = i / (frames - 1), i / FPS
        view = camera(scene["camera"], f)
        where = pose(scene["action"], f, time, start, gain, phase)
        pen, stencil = Pen(*view), Pen(*view, stencil=True)
        draw_background(pen, scene, random.Random(background_seed))
        for target in (pen, stencil):
            draw_subject(target, scene, where, time + phase)
        draw_weather(pen, scene["weather"], drops, time)
        clip[i], mask[i] = pen.pixels(), stencil.pixels()
    return clip, mask


def numbered(index, from_held_out=False):
    """The scene with this number: the same on every machine and in every run."""
    return sample(random.Random(1000003 * index + 7), from_held_out)


def main():
    rng, rows = random.Random(1), []
    for i in range(12):
        scene = numbered(i)
        clip, mask = render(scene)
        print(caption(scene, rng), "| subject covers %.1f %%" % (mask.mean() / 2.55))
        rows.append(np.concatenate([clip[0], clip[5], clip[10], clip[16]], 1))
    sheet = Image.fromarray(np.concatenate(rows, 0))
    sheet.resize((sheet.width * 2, sheet.height * 2)).save(sys.argv[1])


if __name__ == "__main__":
    main()
