"""Charts as inline SVG. The page's style sheet colours them, for both light and dark mode."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 280, 176
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 12, 26  # margins around the plot area
MAX_POINTS = 240
LOG_RATIO = 50.0  # a wider range of positive values is drawn on a logarithmic axis


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one curve. `role` is its CSS class: "train", or one for curves of few points, such
    as "eval"."""

    xs: Sequence[float]
    ys: Sequence[float]
    role: str = "train"


def line_chart(series: Sequence[Series], label: str, *, rate: bool = False) -> str:
    """An SVG of curves over training steps. Values that are not finite are skipped.

    A "train" curve is drawn faint with its running mean on top, others as dots on a line.
    Returns "" when no curve has a finite point.

    Args:
      rate: the values are shares of a whole, so the axis is linear from 0 to 1. Otherwise the axis
        fits the values, and is logarithmic if they span a wide range.
    """
    series = [clean for curve in series if (clean := _finite(curve)).xs]
    if not series:
        return ""
    ys = [y for curve in series for y in curve.ys]
    logarithmic = not rate and min(ys) > 0 and max(ys) / min(ys) > LOG_RATIO
    last = max(x for curve in series for x in curve.xs)
    x_axis = _Axis(0.0, max(float(last), 1.0), LEFT, WIDTH - RIGHT, False)
    held = [0.0, 1.0, *ys] if rate else ys
    y_axis = _Axis.over(held, HEIGHT - BOTTOM, TOP, logarithmic)
    body = [
        *_grid(x_axis, y_axis),
        *(part for curve in series for part in _curve(curve, x_axis, y_axis)),
    ]
    return _svg(body, f"{label}{' (logarithmic)' if logarithmic else ''}")


def bar_chart(values: Sequence[float], label: str, reference: float | None = None) -> str:
    """An SVG of one thin bar per value, from zero, with a dashed line at `reference`."""
    values = [value if math.isfinite(value) else 0.0 for value in values]
    if not values:
        return ""
    ends = [0.0, *values, *([] if reference is None else [reference])]
    y_axis = _Axis.over(ends, HEIGHT - BOTTOM, TOP, False)
    x_axis = _Axis(0.0, float(len(values)), LEFT, WIDTH - RIGHT, False)
    pitch = (x_axis.end - x_axis.start) / len(values)
    thickness = max(pitch * 0.72, 0.6)
    body = _grid(x_axis, y_axis)
    for index, value in enumerate(values):
        x = x_axis.start + (index + 0.5) * pitch - thickness / 2
        y0, y1 = sorted((y_axis(0.0), y_axis(value)))
        title = f"<title>channel {index}: {value:.4g}</title>"
        body.append(
            f'<rect class="bar" x="{x:.1f}" y="{y0:.1f}" width="{thickness:.1f}" '
            f'height="{max(y1 - y0, 0.5):.1f}">{title}</rect>'
        )
    if reference is not None:
        y = y_axis(reference)
        body.append(
            f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    return _svg(body, label)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Maps values in [low, high] to pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, logarithmic: bool) -> _Axis:
        """An axis that includes all values; a linear one ends at ticks, or at 0 if that is near."""
        low, high = float(min(values)), float(max(values))
        if logarithmic:
            return cls(low, high, start, end, True)
        if low == high:
            margin = abs(low) * 0.5 or 1.0
            low, high = low - margin, high + margin
        low = 0.0 if 0 < low < 0.4 * high else low
        step = _tick_step(high - low, 4)
        # Values may exceed the axis by 1% of a step, which avoids adding a whole empty step.
        low, high = math.floor(low / step + 0.01) * step, math.ceil(high / step - 0.01) * step
        return cls(low, high, start, end, False)

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            decades = [10.0**k for k in range(first, last + 1)]
            if len(decades) >= 2:
                return decades[:: math.ceil(len(decades) / count)]
            return [self.low, math.sqrt(self.low * self.high), self.high]
        step = _tick_step(self.high - self.low, count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def _tick_step(span: float, count: int) -> float:
    """The round step (1, 2, 2.5 or 5 times 10^k) that cuts a span into at most `count` parts."""
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))


SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def short_number(value: float) -> str:
    """A number in at most five characters: 12k, 3.4M, 0.02, 2e-5; NaN or ∞ if not finite."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(float(f"{value:.3g}"))  # as shown: 999,999 is 1M
    for scale, suffix in SCALES:
        if scale <= size < 1000 * scale:
            return f"{value / scale:.3g}{suffix}"
    if size == 0 or 0.001 <= size < 1000:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _grid(x_axis: _Axis, y_axis: _Axis) -> list[str]:
    parts = []
    for tick in y_axis.ticks(4):
        y = y_axis(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{short_number(tick)}</text>'
        )
    for tick in x_axis.ticks(4):
        x = x_axis(tick)
        anchor = "end" if x > WIDTH - RIGHT - 8 else "middle"
        parts.append(
            f'<text class="tick {anchor}" x="{x:.1f}" y="{HEIGHT - 7}">{short_number(tick)}</text>'
        )
    return parts


def _curve(curve: Series, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    if curve.role != "train":
        points = _thin(curve.xs, curve.ys)
        dots = [
            f'<circle class="{curve.role}" cx="{x_axis(x):.1f}" cy="{y_axis(y):.1f}" r="2.2"/>'
            for x, y in points
        ]
        return [_path(points, x_axis, y_axis, curve.role), *(dots if len(dots) <= 60 else [])]
    raw = _thin(curve.xs, curve.ys)
    smooth = _thin(curve.xs, _running_mean(curve.ys))
    return [_path(raw, x_axis, y_axis, "raw"), _path(smooth, x_axis, y_axis, "train")]


def _path(points: Sequence[tuple[float, float]], x_axis: _Axis, y_axis: _Axis, role: str) -> str:
    commands = " ".join(
        f"{'L' if index else 'M'}{x_axis(x):.1f} {y_axis(y):.1f}"
        for index, (x, y) in enumerate(points)
    )
    return f'<path class="{role}" d="{commands}"/>'


def _finite(curve: Series) -> Series:
    points = [(x, y) for x, y in zip(curve.xs, curve.ys, strict=True) if math.isfinite(y)]
    return Series([x for x, _ in points], [y for _, y in points], curve.role)


def _running_mean(ys: Sequence[float]) -> list[float]:
    """Mean over a centred window of about 1/30 of the curve, which is shorter at the ends."""
    half = len(ys) // 60
    sums = [0.0]
    for y in ys:
        sums.append(sums[-1] + y)
    spans = [(max(0, i - half), min(len(ys), i + half + 1)) for i in range(len(ys))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in spans]


def _thin(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """At most about MAX_POINTS points, evenly chosen, always including the last one."""
    stride = math.ceil(len(xs) / MAX_POINTS)
    chosen = list(range(0, len(xs), stride))
    if chosen[-1] != len(xs) - 1:
        chosen.append(len(xs) - 1)
    return [(xs[i], ys[i]) for i in chosen]


def _svg(body: Sequence[str], label: str) -> str:
    opening = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    return f'{opening} aria-label="{html.escape(label)}">{"".join(body)}</svg>'
