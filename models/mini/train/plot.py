"""The log of losses as a small SVG: one panel for each quantity that tells how far a stage is.

  python plot.py losses.csv losses.svg
"""

import csv
import sys
from collections import defaultdict

PANELS = [
    ("vae", "psnr"), ("vae", "subject_psnr"), ("tiny", "psnr"), ("judge", "right"), ("denoiser", "still_velocity"),
    ("denoiser", "clip_velocity"), ("denoiser", "velocity@0.85"), ("denoiser", "subject@0.85"), ("denoiser", "subject@0.5"),
    ("high", "subject@0.93"), ("low", "subject@0.5"),
]  # fmt: skip
WIDTH, HEIGHT, MARGIN = 240, 160, 34


def read(path):
    """Points (minutes, value) by stage and quantity."""
    series = defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            series[row["stage"], row["quantity"]].append((float(row["minutes"]), float(row["value"])))
    return series


def panel(left, title, points):
    """One panel: a frame, the line, and the extremes of both axes as text."""
    xs, ys = zip(*points)
    low, high = min(ys), max(ys)
    across, up = (WIDTH - MARGIN - 8) / max(max(xs), 1e-9), (HEIGHT - 2 * MARGIN) / max(high - low, 1e-9)
    line = " ".join(f"{left + MARGIN + x * across:.1f},{HEIGHT - MARGIN - (y - low) * up:.1f}" for x, y in points)
    base = HEIGHT - MARGIN
    return "\n".join(
        [
            f'<text x="{left + MARGIN}" y="20" font-weight="bold">{title}</text>',
            f'<path d="M{left + MARGIN} {MARGIN}V{base}H{left + WIDTH - 8}" fill="none" stroke="#999"/>',
            f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="1.5"/>',
            f'<text x="{left + MARGIN - 3}" y="{MARGIN + 8}" text-anchor="end">{high:.3g}</text>',
            f'<text x="{left + MARGIN - 3}" y="{base}" text-anchor="end">{low:.3g}</text>',
            f'<text x="{left + WIDTH - 8}" y="{base + 14}" text-anchor="end">{max(xs):.0f} min</text>',
        ]
    )


def main():
    source, target = sys.argv[1:]
    series = read(source)
    panels = [(f"{stage}: {name}", series[stage, name]) for stage, name in PANELS if series.get((stage, name))]
    body = "\n".join(panel(i * WIDTH, title, points) for i, (title, points) in enumerate(panels))
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}"'
    style = '<rect width="100%" height="100%" fill="#fff"/>'
    with open(target, "w") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10">\n{style}\n{body}\n</svg>\n')


if __name__ == "__main__":
    main()
