"""Draw where each method sits in a transformer: `python docs/draw_methods.py` writes docs/images/*.svg.

Every drawing is the same block of a model, with what the method trains in the accent colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "images"
WIDTH, HEIGHT = 960, 250
STYLE = """
text { font: 13px ui-sans-serif, system-ui, sans-serif; fill: #1f2933 }
text { text-anchor: middle; dominant-baseline: central }
.small { font-size: 11px }
.box { fill: #eef1f5; stroke: #8794a5 }
.frame { fill: none; stroke: #b6c0cc; stroke-dasharray: 4 4 }
.line { fill: none; stroke: #8794a5; stroke-width: 1.3 }
.own { fill: #ffe3c2; stroke: #d9730d; stroke-width: 1.6 }
.ownline { fill: none; stroke: #d9730d; stroke-width: 1.6 }
.owntext { fill: #7a3b00 }
@media (prefers-color-scheme: dark) {
  text { fill: #dde3ea }
  .box { fill: #252c35; stroke: #77859a }
  .frame { stroke: #4a5563 }
  .line { stroke: #77859a }
  .own { fill: #5a3510; stroke: #ffa94d }
  .ownline { stroke: #ffa94d }
  .owntext { fill: #ffd8a8 }
}
""".strip()

MIDDLE = 120
BOXES = {
    "embedding": (96, MIDDLE - 45, 34, 90, "E"),
    "query": (196, 66, 34, 28, "Q"),
    "key": (196, 106, 34, 28, "K"),
    "value": (196, 146, 34, 28, "V"),
    "attention": (282, 84, 72, 72, "attention"),
    "output": (372, 104, 34, 32, "O"),
    "norm1": (500, 92, 30, 56, "LN"),
    "ffn_in": (566, 104, 36, 32, "up"),
    "ffn_out": (684, 104, 46, 32, "down"),
    "norm2": (820, 92, 30, 56, "LN"),
    "head": (888, MIDDLE - 34, 52, 68, "head"),
}
PLUSES = {"plus1": (478, MIDDLE), "plus2": (798, MIDDLE)}
ACTIVATION = (640, MIDDLE)


def box(x: float, y: float, width: float, height: float, label: str, own: bool = False) -> str:
    """A rectangle with its label; `own`: the method trains it."""
    kind, text = ("own", "owntext") if own else ("box", "")
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>'
        f'<text class="{text}" x="{x + width / 2}" y="{y + height / 2}">{label}</text>'
    )


def circle(x: float, y: float, label: str, own: bool = False, radius: float = 10) -> str:
    """A small operation: a sum, a product, an activation."""
    kind, text = ("own", "owntext") if own else ("box", "")
    shape = f'<circle class="{kind}" cx="{x}" cy="{y}" r="{radius}"/>'
    return f'{shape}<text class="{text}" x="{x}" y="{y}">{label}</text>'


def line(points: Iterable[tuple[float, float]], own: bool = False) -> str:
    """A line from the first point to the last."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline class="{"ownline" if own else "line"}" points="{path}"/>'


def note(x: float, y: float, label: str, own: bool = True) -> str:
    """A small remark."""
    return f'<text class="small {"owntext" if own else ""}" x="{x}" y="{y}">{label}</text>'


def bottleneck(x: float, y: float, tall: float = 24) -> str:
    """Down and up again, 40 wide and twice `tall` high, its left edge in the middle at (x, y)."""
    low = tall * 0.4
    left = f"{x},{y - tall} {x + 19},{y - low} {x + 19},{y + low} {x},{y + tall}"
    right = f"{x + 40},{y - tall} {x + 21},{y - low} {x + 21},{y + low} {x + 40},{y + tall}"
    return f'<polygon class="own" points="{left}"/><polygon class="own" points="{right}"/>'


def base(own: Iterable[str] = ()) -> list[str]:
    """The model that all methods share; the head is trained by every one of them."""
    trained = {"head", *own}
    wires = [
        [(70, MIDDLE), (888, MIDDLE)],
        [(172, MIDDLE), (172, 80), (196, 80)],
        [(172, MIDDLE), (172, 160), (196, 160)],
        [(230, 80), (262, 80), (262, 100), (282, 100)],
        [(230, 160), (262, 160), (262, 140), (282, 140)],
        [(158, MIDDLE), (158, 24), (478, 24), (478, MIDDLE)],
        [(542, MIDDLE), (542, 24), (798, 24), (798, MIDDLE)],
    ]
    frame = '<rect class="frame" x="146" y="10" width="718" height="200" rx="10"/>'
    parts = [frame, note(834, 222, "× layers", own=False), *map(line, wires)]
    parts += [box(20, MIDDLE - 14, 56, 28, "tokens")]
    parts += [box(*where, own=name in trained) for name, where in BOXES.items()]
    parts += [circle(*where, "+") for where in PLUSES.values()]
    parts += [circle(*ACTIVATION, "f")]
    return parts


def lora() -> list[str]:
    extra = []
    for y, beside in ((80, 50), (160, 191)):
        extra += [line([(182, y), (182, beside), (193, beside)], own=True), bottleneck(193, beside, tall=11)]
        extra += [line([(233, beside), (246, beside), (246, y)], own=True)]
    return [*base(), *extra, note(213, 226, "B A, beside each target")]


def series() -> list[str]:
    return [
        *base(),
        bottleneck(420, MIDDLE),
        bottleneck(742, MIDDLE),
        note(602, 226, "in line, before each sum"),
    ]


def parallel() -> list[str]:
    wire = line([(554, MIDDLE), (554, 182), (634, 182)], own=True)
    back = line([(674, 182), (772, 182), (772, MIDDLE)], own=True)
    return [*base(), wire, bottleneck(634, 182), back, note(654, 226, "beside the sublayer")]


def prefix() -> list[str]:
    boxes = [box(230, 216, 44, 24, "P<tspan dy='3' font-size='9'>K</tspan>", own=True)]
    boxes += [box(284, 216, 44, 24, "P<tspan dy='3' font-size='9'>V</tspan>", own=True)]
    wires = [line([(252, 216), (252, 150), (282, 150)], own=True), line([(306, 216), (306, 156)], own=True)]
    return [*base(), *wires, *boxes, note(420, 228, "keys and values of its own")]


def prompt() -> list[str]:
    tokens = [box(20, y, 56, 20, "p", own=True) for y in (28, 52, 76)]
    wire = line([(76, 62), (86, 62), (86, MIDDLE - 20), (96, MIDDLE - 20)], own=True)
    return [*base(), *tokens, wire, note(58, 16, "before the text")]


def p_tuning() -> list[str]:
    wire = line([(14, 209), (8, 209), (8, 62), (20, 62)], own=True)
    return [*prompt(), wire, box(14, 196, 68, 26, "encoder", own=True), note(54, 234, "makes the prompt")]


def ia3() -> list[str]:
    spots = [(246, MIDDLE), (246, 160), (664, MIDDLE)]
    return [
        *base(),
        *(circle(x, y, "l", own=True, radius=9) for x, y in spots),
        note(246, 226, "learned scales"),
    ]


def bitfit() -> list[str]:
    marks = [
        f'<rect class="own" x="{x + width - 8}" y="{y - 6}" width="14" height="14" rx="2"/>'
        f'<text class="small owntext" x="{x + width - 1}" y="{y + 1}">b</text>'
        for name, (x, y, width, _, _) in BOXES.items()
        if name not in ("embedding", "attention", "head")
    ]
    return [*base(), *marks, note(500, 226, "every bias")]


def layernorm() -> list[str]:
    return [*base({"norm1", "norm2"}), note(515, 226, "the norms")]


def full() -> list[str]:
    return base(name for name in BOXES if name != "attention")


DRAWINGS: dict[str, Callable[[], list[str]]] = {
    "lora": lora,
    "series": series,
    "parallel": parallel,
    "prefix": prefix,
    "prompt": prompt,
    "p-tuning": p_tuning,
    "ia3": ia3,
    "bitfit": bitfit,
    "layernorm": layernorm,
    "full": full,
}


def svg(name: str) -> str:
    """The whole drawing of a method."""
    body = "\n".join(DRAWINGS[name]())
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    title = f"<title>Where {name} sits in a transformer</title>"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{title}\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for method in DRAWINGS:
        (FOLDER / f"{method}.svg").write_text(svg(method), encoding="utf-8")
