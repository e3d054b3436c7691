"""A plan as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from unicom_jax.parallel.plan.roofline import TERMS, Roofline
from unicom_jax.planning.plan import GIB, StagePlan
from unicom_jax.planning.sampling import SamplePlan
from unicom_jax.planning.search import Setting

NOTHING = "-"


def _size(value: float) -> str:
    """123 -> 123, 45600 -> 45.6 K, up to P."""
    for unit, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}"


def _gib(value: float) -> str:
    return f"{value / GIB:.3g}" if value >= 0.0005 * GIB else "0" if value == 0 else "< .001"


def _seconds(value: float | None) -> str:
    if not value:
        return NOTHING
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f}%"


def plan_table(plans: Sequence[StagePlan]) -> Table:
    """One column per stage."""
    first = plans[0]
    devices = first.topology.devices
    table = Table(title=f"{devices} devices, {first.topology} ({first.how})", title_justify="left")
    table.add_column("", no_wrap=True)
    for plan in plans:
        table.add_column(plan.stage, justify="right")

    def row(name: str, cell: Callable[[StagePlan], str], end: bool = False) -> None:
        table.add_row(name, *map(cell, plans), end_section=end)

    row("mesh", _mesh)
    row("rows / parts of a step", lambda plan: f"{plan.rows} / {plan.parts}")
    row("tokens a step", lambda plan: _size(plan.tokens))
    row("images a step, at most", lambda plan: _size(plan.images), end=True)
    for what in first.held:
        row(f"GiB: {what}", lambda plan, what=what: _gib(plan.held[what]))
    row("GiB: peak of a step", lambda plan: NOTHING if plan.peak is None else _gib(plan.peak))
    row(
        "GiB: a device has",
        lambda plan: _gib(plan.topology.capacity) if plan.topology.capacity else NOTHING,
    )
    row("fits", lambda plan: "yes" if plan.fits else "NO", end=True)
    row("share of pairs that are visible", _visible)
    row("FLOPs of the model (all pairs)", lambda plan: _size(plan.all_pairs_flops))
    row("FLOPs of the model (visible pairs)", lambda plan: _size(plan.model_flops))
    row("computed / these", _recomputed)
    for term in TERMS:
        row(f"time: {term}", lambda plan, term=term: _term(plan, term))
        if term == "compute":
            row("  of it fp32 products", lambda plan: _wide(plan))
    row("step, if all overlaps", lambda plan: _seconds(plan.step_seconds))
    row("step, if nothing does", lambda plan: _seconds(_in_turn(plan)))
    row("binding", _binding, end=True)
    row("MFU, if all overlaps", lambda plan: _percent(plan.mfu))
    row("MFU, if nothing does", lambda plan: _percent(plan.mfu_in_turn))
    row("MFU by all pairs", _all_pairs)
    row("steps", lambda plan: _size(plan.steps))
    row("days", lambda plan: f"{plan.days:.3g}" if plan.days else NOTHING)
    row("device-hours", lambda plan: _size(plan.days * 24 * devices) if plan.days else NOTHING)
    return table


def _mesh(plan: StagePlan) -> str:
    return (
        "\n".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    )


def parameter_line(plan: StagePlan) -> str:
    """The weights of a stage by part, and those from earlier stages."""
    parts = []
    for part, (size, trained) in plan.parameters.items():
        frozen = " frozen" if not trained and "given" not in part else ""
        parts.append(f"{part} {_size(size)}{frozen}")
    total = sum(trained for _, trained in plan.parameters.values())
    return f"{plan.stage}: {_size(total)} trained: " + ", ".join(parts)


def visible_line(plan: StagePlan) -> str:
    """What the share of visible pairs was counted on; "" if there is none."""
    return f"{plan.stage}: visible pairs: {plan.visible.rows}" if plan.visible else ""


def _visible(plan: StagePlan) -> str:
    if plan.visible is None:
        return NOTHING
    return f"{_percent(plan.visible.share)} (of blocks {_percent(plan.visible.blocks)})"


def _all_pairs(plan: StagePlan) -> str:
    if plan.visible is None or plan.mfu_by_all_pairs is None:
        return NOTHING
    return " - ".join(map(_percent, plan.mfu_by_all_pairs))


def _recomputed(plan: StagePlan) -> str:
    if plan.computed_flops is None:
        return NOTHING
    return f"x {plan.computed_flops * plan.topology.devices / plan.model_flops:.2f}"


def _term(plan: StagePlan, term: str) -> str:
    return _seconds(plan.roofline.terms[term]) if plan.roofline else NOTHING


def _wide(plan: StagePlan) -> str:
    if not plan.roofline or plan.estimated:
        return NOTHING
    return _seconds(plan.roofline.wide)


def _in_turn(plan: StagePlan) -> float | None:
    return plan.roofline.in_turn if plan.roofline else None


def _binding(plan: StagePlan) -> str:
    if not plan.step_seconds:
        return NOTHING
    share = plan.roofline.bound[plan.roofline.binding] / plan.step_seconds
    return f"{plan.roofline.binding} {100 * share:.0f}%"


def module_table(plan: StagePlan) -> Table:
    """The time of each module of the model in a device's step, the longest first."""
    title = f"{plan.stage}: modules of the model, on a device in a step"
    table = Table(title=title, title_justify="left")
    table.add_column("module")
    for name in ("of the FLOPs", *TERMS, "of the sum"):
        table.add_column(name, justify="right")
    modules = plan.roofline.modules
    whole, flops = plan.roofline.in_turn, sum(one.flops for one in modules)
    for one in modules:
        table.add_row(
            one.name or "the rest", _percent(one.flops / flops), *map(_seconds, one.seconds),
            _percent(sum(one.seconds) / whole if whole else None),
        )  # fmt: skip
    return table


def exchange_table(plan: StagePlan, rows: int = 12) -> Table:
    """A device's exchanges in a step, the longest first."""
    table = Table(title=f"{plan.stage}: exchanges of a device in a step", title_justify="left")
    for name in ("kind", "along", "of"):
        table.add_column(name)
    for name in ("times", "GiB over links", "GiB over network", "at least"):
        table.add_column(name, justify="right")
    exchanges = plan.roofline.exchanges if plan.roofline else ()
    for one in exchanges[:rows]:
        table.add_row(
            one.kind, ",".join(one.axes), one.what, str(one.count), _gib(one.near), _gib(one.far),
            _seconds(one.near_seconds + one.far_seconds),
        )  # fmt: skip
    if len(exchanges) > rows:
        table.caption = f"and {len(exchanges) - rows} shorter ones"
    return table


def sample_table(plans: Sequence[SamplePlan]) -> Table:
    """One column per program. Times are given with full overlap and with none."""
    first = plans[0]
    title = f"sampling, on one device of {first.topology} ({first.how})"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for plan in plans:
        table.add_column(plan.name, justify="right")

    def row(name: str, cell: Callable[[SamplePlan], str], end: bool = False) -> None:
        table.add_row(name, *map(cell, plans), end_section=end)

    row("one request", lambda plan: plan.work.replace(", ", "\n"), end=True)
    row("GiB: weights", lambda plan: _gib(plan.weights))
    row("GiB: keys and values", lambda plan: _gib(plan.cache))
    row("GiB: peak", lambda plan: NOTHING if plan.peak is None else _gib(plan.peak))
    row(
        "GiB: a device has",
        lambda plan: _gib(plan.topology.capacity) if plan.topology.capacity else NOTHING,
    )
    row("fits", lambda plan: "yes" if plan.fits else "NO", end=True)
    for part in dict.fromkeys(name for plan in plans for name in plan.parts):
        row(f"time: {part}", lambda plan, part=part: _part_time(plan, part))
    row("time in all", lambda plan: _range(plan.parts.values()))
    row("binding", _sample_binding)
    return table


def _part_time(plan: SamplePlan, part: str) -> str:
    if part not in plan.parts:
        return NOTHING
    turns, loops = plan.turns.get(part, 1), [plan.parts[part]]
    return _range(loops) + (f"\n{turns} times {_range(loops, turns)}" if turns > 1 else "")


def _range(rooflines: Iterable[Roofline], turns: int = 1) -> str:
    rooflines = list(rooflines)
    least, most = (
        sum(getattr(one, name) for one in rooflines) / turns for name in ("overlapped", "in_turn")
    )
    return f"{_seconds(least)} - {_seconds(most)}" if least else NOTHING


def _sample_binding(plan: SamplePlan) -> str:
    bound = {term: sum(one.bound[term] for one in plan.parts.values()) for term in TERMS}
    most, total = max(bound, key=bound.__getitem__), sum(bound.values())
    return f"{most} {100 * bound[most] / total:.0f}%" if total else NOTHING


def search_table(stage: str, settings: Sequence[Setting], rows: int = 12) -> Table:
    """The best settings of a search."""
    table = Table(title=f"{stage}: settings, the best first", title_justify="left")
    for key, _ in settings[0].values:
        table.add_column(key.rpartition(".")[2])
    for name in ("how", "GiB", "fits", "step", "tokens/s", "MFU", "binding"):
        table.add_column(name, justify="right")
    for setting in settings[:rows]:
        plan = setting.plan
        rate = _size(plan.tokens / plan.step_seconds) if plan.step_seconds else NOTHING
        table.add_row(
            *(str(value) for _, value in setting.values),
            plan.how.partition(",")[0],
            NOTHING if plan.peak is None else _gib(plan.peak),
            "yes" if plan.fits else "NO", _seconds(plan.step_seconds), rate, _percent(plan.mfu),
            _binding(plan),
        )  # fmt: skip
    return table
