"""The subjects of `world.py`, drawn from polygons and discs in coordinates of their own, about -1..1, y down.

Every feature is thick: at 112x64 a subject is some forty pixels wide, and what is two pixels wide is lost in the VAE. Functions get
the subject's colour, the same colour darker, and the time in seconds, by which limbs and wings move.
"""

import math

# In world units, of which the frame is one high.
SUBJECT_SIZE = 0.4
BLACK, SKIN, HAIR = (25, 25, 30), (245, 205, 175), (40, 25, 20)


def scaled(color, factor):
    """The colour made darker or lighter."""
    return tuple(int(max(0, min(255, channel * factor))) for channel in color)


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
    glass = (205, 232, 250)
    body.polygon([(-0.8, 0.12), (-0.5, -0.5), (0.5, -0.5), (0.9, 0.12)], dark)
    body.polygon([(-0.58, 0.08), (-0.38, -0.36), (-0.04, -0.36), (-0.04, 0.08)], glass)
    body.polygon([(0.1, 0.08), (0.1, -0.36), (0.42, -0.36), (0.68, 0.08)], glass)
    body.box(-1.2, 0.06, 1.2, 0.6, color)
    for u in (-0.66, 0.66):
        body.disc(u, 0.6, 0.32, 0.32, BLACK)
        body.disc(u, 0.6, 0.15, 0.15, (190, 190, 195))
    body.disc(1.1, 0.26, 0.13, 0.13, (255, 240, 160))


def draw_ball(body, color, dark, _time):
    """A beach ball: three light segments between bent seams that meet up and to the left of the middle."""
    radius, (pole_u, pole_v) = 0.88, (-0.22, -0.3)
    light = dark if min(color) > 170 else (250, 250, 250)

    def seam(angle):
        end_u, end_v = radius * math.cos(angle), radius * math.sin(angle)
        for step in range(9):
            t = step / 8
            u, v = pole_u + (end_u - pole_u) * t, pole_v + (end_v - pole_v) * t
            bend = 0.22 * math.sin(math.pi * t)
            yield u - bend * math.sin(angle), v + bend * math.cos(angle)

    body.disc(0, 0, radius, radius, color, 28)
    for start in (-0.5, 1.6, 3.6):
        rim = [(radius * math.cos(start + 0.08 * k), radius * math.sin(start + 0.08 * k)) for k in range(1, 10)]
        body.polygon([*seam(start), *rim, *reversed(list(seam(start + 0.8)))], light)
    body.disc(pole_u, pole_v, 0.17, 0.17, dark, 12)


def draw_bird(body, color, dark, time):
    """On two legs, with wings that are always above the back: what has neither is read as a fish."""
    orange = (240, 150, 30)
    for u in (-0.12, 0.26):
        body.box(u - 0.07, 0.45, u + 0.07, 1.0, orange)
        body.box(u - 0.07, 0.88, u + 0.27, 1.0, orange)
    body.polygon([(-0.45, -0.1), (-1.3, -0.12), (-1.3, 0.2), (-0.4, 0.35)], dark)
    body.disc(0.02, 0.14, 0.66, 0.44, color)
    body.disc(0.6, -0.3, 0.38, 0.36, color)
    body.polygon([(0.9, -0.48), (1.4, -0.22), (0.9, -0.04)], orange)
    body.disc(0.68, -0.36, 0.14, 0.14, (250, 250, 250), 12)
    body.disc(0.71, -0.36, 0.09, 0.09, BLACK, 8)
    tip = -0.65 + 0.35 * math.sin(time * 4)
    body.polygon([(-0.5, 0.1), (0.3, 0.1), (-0.05, tip - 0.1), (-0.75, tip)], dark)


def draw_boat(body, color, dark, _time):
    body.polygon([(-1.1, 0.3), (1.1, 0.3), (0.7, 0.85), (-0.7, 0.85)], (130, 85, 50))
    body.box(-0.06, -1.05, 0.06, 0.3, (90, 60, 40))
    body.polygon([(0.12, -1.0), (1.0, 0.18), (0.12, 0.18)], color)
    body.polygon([(-0.12, -0.85), (-0.85, 0.18), (-0.12, 0.18)], color)


def draw_cat(body, color, dark, _time):
    body.polygon([(-0.6, 0.35), (-1.25, -0.55), (-1.0, -0.65), (-0.4, 0.15)], dark)
    for u in (-0.55, -0.18, 0.2, 0.55):
        body.box(u - 0.12, 0.5, u + 0.12, 1.0, dark)
    body.disc(-0.05, 0.35, 0.78, 0.42, color)
    body.polygon([(0.22, -0.3), (0.28, -1.0), (0.68, -0.55)], color)
    body.polygon([(0.62, -0.55), (1.02, -1.0), (1.08, -0.3)], color)
    body.disc(0.65, -0.2, 0.5, 0.45, color)
    for u in (0.46, 0.84):
        body.disc(u, -0.26, 0.13, 0.15, (250, 250, 250), 12)
        body.disc(u, -0.26, 0.08, 0.11, BLACK, 8)
    body.disc(0.65, -0.02, 0.09, 0.07, (250, 150, 160), 8)


def draw_balloon(body, color, dark, _time):
    body.pen.line(body.place(0, 0.6), body.place(0.1, 1.3), (235, 235, 235), 0.022)
    body.polygon([(-0.18, 0.82), (0.18, 0.82), (0, 0.5)], dark)
    body.disc(0, -0.2, 0.7, 0.85, color, 28)
    body.disc(-0.25, -0.5, 0.18, 0.26, tuple((channel + 510) // 3 for channel in color), 12)


def draw_robot(body, color, dark, time):
    swing = 0.22 * math.sin(time * 4)
    for u in (-0.28, 0.28):
        body.box(u - 0.17, 0.6, u + 0.17, 1.05, dark)
    body.box(-0.86, -0.1 + swing, -0.62, 0.5 + swing, dark)
    body.box(0.62, -0.1 - swing, 0.86, 0.5 - swing, dark)
    body.box(-0.56, -0.12, 0.56, 0.68, color)
    body.box(-0.3, 0.08, 0.3, 0.4, (235, 235, 235))
    body.box(-0.05, -1.05, 0.05, -0.8, (90, 90, 95))
    body.disc(0, -1.08, 0.13, 0.13, (250, 80, 80), 10)
    body.box(-0.48, -0.85, 0.48, -0.2, color)
    body.box(-0.36, -0.7, 0.36, -0.36, (20, 40, 60))
    for u in (-0.18, 0.18):
        body.disc(u, -0.53, 0.13, 0.13, (150, 250, 250), 12)


def draw_dancer(body, color, _dark, time):
    """A ballerina: arms above the head, a wide skirt, one foot at the other knee."""
    swing = 0.3 * math.sin(time * 4)
    body.box(-0.13, 0.3, 0.11, 1.02, SKIN)
    body.polygon([(0.0, 0.3), (0.32, 0.3), (0.68, 0.5), (0.66, 0.66), (0.08, 0.84), (0.08, 0.66), (0.36, 0.54)], SKIN)
    for side in (-1, 1):
        inner, outer = (side * 0.62, -0.5 - side * swing * 0.4), (side * 0.8, -0.44 - side * swing * 0.4)
        hand = side * 0.36 + swing
        body.polygon([(side * 0.1, -0.38), (side * 0.18, -0.14), outer, inner], SKIN)
        body.polygon([inner, outer, (hand + side * 0.17, -1.02), (hand - side * 0.03, -1.06)], SKIN)
    body.polygon([(-0.26, -0.36), (0.26, -0.36), (0.18, 0.1), (-0.18, 0.1)], color)
    tilt = 0.3 * swing
    skirt = [(-0.18, -0.02), (0.18, -0.02), (0.95, 0.26 + tilt), (0.78, 0.48), (-0.78, 0.48), (-0.95, 0.26 - tilt)]
    body.polygon(skirt, color)
    body.disc(0, -0.96, 0.14, 0.13, HAIR, 12)
    body.disc(0, -0.7, 0.31, 0.29, HAIR)
    body.disc(0, -0.6, 0.26, 0.27, SKIN)
    for u in (-0.11, 0.11):
        body.disc(u, -0.6, 0.06, 0.07, BLACK, 8)


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
