"""Writes the rows of run.py as Markdown tables."""

SECTIONS = ["step", "decode", "text", "preview", "fp8", "routes"]
TITLES = {
    "step": "One denoising step",
    "decode": "The decoder",
    "text": "The text encoder",
    "preview": "A clip of mini, from opening the graphs on",
    "fp8": "FP8",
    "routes": "FP8 routes of ONNX Runtime without TensorRT, one product",
}


def markdown(rows: list[dict]) -> str:
    lines = machine([row for row in rows if row["section"] == "machine"])
    for section in SECTIONS:
        found = [row for row in rows if row["section"] == section]
        if found:
            lines += ["", f"### {TITLES[section]}", ""] + WRITERS[section](found)
    return "\n".join(lines) + "\n"


def machine(rows: list[dict]) -> list[str]:
    lines = []
    for row in rows:
        doctor = row["doctor"]
        library = (doctor.get("onnx_runtime") or {}).get("version", "none")
        cpu = doctor.get("cpu") or {}
        name = cpu.get("name", "unknown") if isinstance(cpu, dict) else cpu
        lines.append(f"{row['gpu'] or 'no NVIDIA GPU'}; {name}; ONNX Runtime {library}.")
        if row["dry_run"]:
            lines.append("A dry run at tiny sizes: it shows that everything runs, and no speed.")
    return lines


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in cells]


def escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def number(value, digits: int = 1, factor: float = 1.0) -> str:
    return "" if value is None else f"{value * factor:.{digits}f}"


def gigabytes(value) -> str:
    return number(value, 2, 1e-9)


def nodes(row: dict) -> str:
    parts = [f"{count} {name.removesuffix('ExecutionProvider')}" for name, count in (row.get("nodes") or {}).items()]
    on_cpu = ", ".join(f"{count} {kind}" for kind, count in (row.get("on_cpu") or {}).items())
    return ", ".join(parts) + (f" ({on_cpu})" if on_cpu else "")


def timed(rows: list[dict]) -> list[str]:
    """Steps, decodes and text encodings. The ratio is to PyTorch with SDPA on the same work."""
    head = ["size", "runner", "ms", "median", "TFLOP/s", "PyTorch SDPA / this", "open, s", "nodes"]
    head += ["predicted GB", "measured GB", "process GB"]
    torch = {row["name"]: row["ms"] for row in rows if row["runner"].endswith("SDPA") and "ms" in row}
    lines = []
    for row in sorted(rows, key=lambda row: order(rows, row["name"])):
        runner = f"{row['runner']} {row['precision']}" if row.get("precision") else row["runner"]
        if "error" in row:
            lines.append([row["name"], runner, row["error"], *[""] * (len(head) - 3)])
            continue
        ratio = torch[row["name"]] / row["ms"] if row["name"] in torch else None
        lines.append([
            row["name"], runner, number(row["ms"]), number(row["median_ms"]), number(row.get("gflops"), 1, 1e-3),
            number(ratio, 2), number(row.get("opened_s")), nodes(row), gigabytes(row.get("predicted_memory")),
            gigabytes(row.get("measured_memory")), gigabytes(row.get("process_memory")),
        ])
    return table(head, lines)


def order(rows: list[dict], name: str) -> int:
    return [row["name"] for row in rows].index(name)


def previews(rows: list[dict]) -> list[str]:
    head = ["clip", "runner", "first preview, s", "first frame, s", "whole, s", "a step, s", "opening, s", "nodes"]
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([row["name"], row["runner"], row["error"], *[""] * (len(head) - 3)])
            continue
        seconds = row["seconds"]
        keys = ("first_preview", "first_frame", "whole", "step", "loading")
        lines.append([row["name"], row["runner"], *(number(seconds[key], 3) for key in keys), nodes(row)])
    return table(head, lines)


def fp8(rows: list[dict]) -> list[str]:
    head = ["model", "weights bf16, MB", "fp8, MB", "step bf16, ms", "fp8, ms", "bf16, GB", "fp8, GB", "PSNR of fp8, dB"]
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([row["name"], row["error"], *[""] * (len(head) - 2)])
            continue
        times = [row[key].get("error") or number(row[key]["ms"], 2) for key in ("bf16", "fp8")]
        memory = [gigabytes(row[key].get("process_memory") or row[key].get("measured_memory")) for key in ("bf16", "fp8")]
        sizes = [number(row["bytes"][key], 2, 1e-6) for key in ("bf16", "fp8")]
        lines.append([row["name"], *sizes, *times, *memory, number(row["psnr"])])
    return table(head, lines)


def routes(rows: list[dict]) -> list[str]:
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([row["error"], "", "", ""])
        for route in row.get("routes", []):
            if "fails" in route:
                lines.append([route["route"], f"fails: {route['fails']}", "", ""])
            else:
                cells = [number(route["seconds"], 2, 1e3), number(route["times bf16"], 2)]
                lines.append([route["route"], *cells, number(route["relative error"], 2, 100) + " %"])
    return table(["route", "ms", "times bf16", "relative error"], lines)


WRITERS = {"step": timed, "decode": timed, "text": timed, "preview": previews, "fp8": fp8, "routes": routes}
