"""The files that a path names: a file, a folder, a glob pattern or a brace pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence

from data_pipelines.decoding import shown
from data_pipelines.faults import SourceError, patiently
from unicom_jax.core.paths import as_path, asking, filesystem, is_pointer, is_remote

Paths = str | os.PathLike | Sequence[str | os.PathLike]
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_files(paths: Paths, suffixes: Sequence[str], cure: str) -> list[str]:
    """Files in the order of the given paths; those of one folder or pattern are sorted.

    A name that exists is taken literally, whatever characters it has; "~" is the home directory. A
    folder gives all its files with one of the suffixes, except hidden ones. Braces are expanded as
    in a shell ("{00000..00099}", "{train,extra}").

    Args:
      cure: the fix, which ends the message if nothing is found: "check the path, or ...".

    Raises:
      SourceError: nothing is found, or a name listed by a brace pattern does not exist.
    """
    if not isinstance(paths, str | os.PathLike):
        found = [file for path in paths for file in find_files(path, suffixes, cure)]
        if not found:
            raise SourceError("no paths given: name at least one file, directory or pattern")
        return found
    given = os.path.expanduser(os.fspath(paths))
    names = [given] if _exists(given) else list(expand_braces(given))
    found = []
    for name in names:
        matches = _matches(name, suffixes)
        if not matches:
            which = f" ({len(names)} names of {shown(given)})" if len(names) > 1 else ""
            raise SourceError(
                f"{shown(name)}{which}: no {' or '.join(suffixes)} file there: {cure}"
            )
        found += matches
    return found


def described(kind: str, paths: Sequence[str]) -> str:
    """A source and its files, for messages."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{kind}({shown(paths[0])}{more})"


def fix_of(path: str, otherwise: str) -> str:
    """How to fix a file that cannot be read as the expected kind."""
    return "a pointer of Git LFS, run git lfs pull" if is_pointer(path) else otherwise


def _exists(name: str) -> bool:
    if is_remote(name):
        return patiently(as_path(name).exists, shown(name))
    return os.path.lexists(name)


def _remote_matches(name: str, suffixes: Sequence[str]) -> list[str]:
    path = as_path(name)
    if path.is_file():
        return [name]
    if path.is_dir():
        inside = (str(one) for one in path.iterdir() if not one.name.startswith("."))
        return sorted(one for one in inside if one.endswith(tuple(suffixes)))
    scheme, _, pattern = name.partition("://")
    with asking(name):
        return sorted(f"{scheme}://{found}" for found in filesystem(name).glob(pattern))


def _matches(name: str, suffixes: Sequence[str]) -> list[str]:
    if is_remote(name):
        return patiently(lambda: _remote_matches(name, suffixes), shown(name))
    if os.path.isdir(name):
        inside = (os.path.join(glob.escape(name), "*" + suffix) for suffix in suffixes)
        return sorted(file for pattern in inside for file in glob.glob(pattern))
    return [name] if os.path.lexists(name) else sorted(glob.glob(name))


def expand_braces(pattern: str) -> Iterator[str]:
    """All names of a brace pattern, in the order of bash.

    "a-{08..10}.tar" is a-08.tar, a-09.tar, a-10.tar; "{a,b}" is a, b. Other braces are unchanged.
    """
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    inner = found[1]
    if span := _RANGE.fullmatch(inner):
        first, last = int(span[1]), int(span[2])
        width = max(map(len, span.groups())) if "0" in (span[1][0], span[2][0]) else 0
        step = 1 if first <= last else -1
        choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    elif "," in inner:
        choices = inner.split(",")
    else:  # neither a range of numbers nor a list: part of the name
        for rest in expand_braces(pattern[found.end() :]):
            yield pattern[: found.end()] + rest
        return
    for choice in choices:
        yield from expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])
