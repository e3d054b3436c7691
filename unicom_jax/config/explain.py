"""The declared keys as text: `unicom config explain`, and the page docs/keys.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unicom_jax.config.key import NEUTRAL, RECORDED, STRUCTURAL, ConfigError, Group, Key, flatten
from unicom_jax.config.schema import DECLARED, ROW_STAGES, UNIFIED_STAGES, declared, group_of

ON_RESUME = {
    NEUTRAL: "may change",
    RECORDED: "may change with --allow-change",
    STRUCTURAL: "must not change",
}
PAGE_HEAD = """\
# Configuration keys

Generated from [`unicom_jax/config/keys`](../unicom_jax/config/keys) by `make docs`. `unicom config
explain KEY` shows one of them, `--config.KEY=VALUE` sets it. The last column says whether the value
may change when a run resumes:

- **may change**: it does not change what is learned.
- **with `--allow-change`**: `unicom train --allow-change` takes the new value and adds a line to
  `WORKDIR/config_history.jsonl`.
- **fixed**: the value cannot change once a stage that depends on it has started.

"""
COLUMNS = {NEUTRAL: "may change", RECORDED: "with `--allow-change`", STRUCTURAL: "fixed"}


def explain(name: str) -> str:
    """Lines about a key, or about the keys of a group; "" is the whole configuration.

    Raises:
      ConfigError: there is no such key; the nearest one is named.
    """
    from unicom_jax.config.files import hint

    if key := declared(name):
        return "\n".join(_about_key(name, key))
    group = group_of(name) if name else Group("All keys and groups of a configuration.", DECLARED)
    if group is None:
        raise ConfigError(f"{name}: unknown key; {hint(name)}")
    prefix = f"{name}." if name else ""
    width = max(len(prefix + key) for key in group.keys) + 2
    lines = [group.meaning, ""]
    for key, entry in group.keys.items():
        more = "..." if isinstance(entry, Group) else f"[{entry.default!r}]"
        lines.append(f"{prefix + key:<{width}}{entry.meaning} {more}")
    return "\n".join(lines)


def _about_key(name: str, key: Key) -> Iterator[str]:
    yield f"{name} = {key.default!r}"
    yield f"  {key.meaning}"
    yield f"  type: {key.kind.__name__}" + (f", {key.allowed()}" if key.allowed() else "")
    rule = ON_RESUME[key.resume]
    if key.switch:
        rule += ", but it cannot be switched on or off"
    if key.filled_in:
        rule = "set by the run"
    yield f"  when a run resumes: {rule}"
    if key.fields:
        yield "  each item is a dict of"
        width = max(map(len, key.fields)) + 2
        for field, about in key.fields.items():
            default = "required" if about.required else repr(about.default)
            yield f"    {field:<{width}}{about.meaning} [{default}]"
        yield f"  --config.{name}[0].FIELD=VALUE changes one item"


def reference_page() -> str:
    """docs/keys.md."""
    parts = [PAGE_HEAD, "## General\n\n", _table("", _plain(DECLARED))]
    shared = UNIFIED_STAGES[0]
    for name, entry in DECLARED.items():
        if not isinstance(entry, Group) or name in UNIFIED_STAGES[1:]:
            continue
        if name in ROW_STAGES and name != shared:
            parts.append(f"\n## {name}\n\n{_about_changes(name, entry, DECLARED[shared])}")
            continue
        title = ", ".join(UNIFIED_STAGES) if name == shared else name
        parts.append(f"\n## {title}\n\n{_about_group(name, entry, title)}")
    return "".join(parts)


def _about_changes(name: str, group: Group, shared: Group) -> str:
    """A group by its differences from another one with the same keys."""
    keys, known = flatten(group.keys), flatten(shared.keys)
    changed = {inner: key for inner, key in keys.items() if key != known[inner]}
    others = f"It has the keys of {', '.join(UNIFIED_STAGES)}, with these other defaults:"
    return f"{group.meaning} {others}\n\n{_table(name, changed)}"


def _about_group(name: str, group: Group, title: str) -> str:
    many = title != name
    meaning = "The stages of the unified model; each has these keys." if many else group.meaning
    parts = [meaning, "\n\n", _table("STAGE" if many else name, _plain(group.keys))]
    for inner, entry in group.keys.items():
        if isinstance(entry, Key) and entry.fields:
            item = f"{name}.{inner}[i]"
            meaning = f"Each item of `{name}.{inner}` is a dict of these keys."
            parts.append(f"\n### {item}\n\n{meaning}\n\n{_table(item, entry.fields)}")
        if isinstance(entry, Group):
            below = _about_group(f"{name}.{inner}", entry, f"{name}.{inner}")
            label = f"STAGE.{inner}" if many else f"{name}.{inner}"
            below = below.replace(f"`{name}.", "`STAGE.") if many else below
            parts.append(f"\n### {label}\n\n{below}")
    return "".join(parts)


def _plain(keys: Mapping[str, Key | Group]) -> dict[str, Key]:
    return {name: key for name, key in keys.items() if isinstance(key, Key)}


def _table(prefix: str, keys: Mapping[str, Key]) -> str:
    if not keys:
        return ""
    lines = ["| key | default | values | meaning | on resume |", "|---|---|---|---|---|"]
    for name, key in keys.items():
        full = f"{prefix}.{name}" if prefix else name
        rule = "set by the run" if key.filled_in else COLUMNS[key.resume]
        default = "" if key.required else f"`{key.default!r}`"
        cells = (f"`{full}`", default, _may_be(key), key.meaning, rule)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _may_be(key: Key) -> str:
    return key.allowed() or {"str": "text", "dict": ""}.get(key.kind.__name__, key.kind.__name__)


if __name__ == "__main__":
    print(reference_page(), end="")
