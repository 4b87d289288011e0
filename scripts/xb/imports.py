"""Which files of a crate import which: the arrows between its rooms, and those that run back up.

A room is a file at the top of a crate, together with the folder of its name. Inside of a room files may know each
other; between rooms there must be no way round."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

COMMENT = re.compile(r"//.*")
# A path that begins in the crate or above the file, up to where it ends or branches.
PATH = re.compile(r"\b((?:crate|super)(?:::super)*)\s*::\s*(\w+|\{)")


def arrows(crate: Path, code: dict[Path, str]) -> dict[str, dict[str, Path]]:
    """The rooms that each room of the crate with this root file imports, each with the first file that does. CODE has
    the texts of the crate's files."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(path for path in code if path != crate):
        inside = path.relative_to(crate.parent).with_suffix("").parts
        room = found.setdefault(inside[0], {})
        for start, names in _paths(COMMENT.sub("", code[path])):
            # `super` of a file is what its folder is for; each further one is a folder above that.
            if start == "crate" or start.count("super") == len(inside):
                for name in names:
                    if name != inside[0]:
                        room.setdefault(name, path)
    return {room: {to: file for to, file in goals.items() if to in found} for room, goals in found.items()}


def upwards(found: dict[str, dict[str, Path]]) -> list[tuple[str, str]]:
    """The arrows from which a way leads back to where they start."""
    return [(room, to) for room, goals in sorted(found.items()) for to in sorted(goals) if room in _reached(found, to)]


def _reached(found: dict[str, dict[str, Path]], room: str) -> set[str]:
    seen, left = {room}, [room]
    while left:
        for to in found[left.pop()]:
            if to not in seen:
                seen.add(to)
                left.append(to)
    return seen


def _paths(code: str) -> Iterator[tuple[str, list[str]]]:
    """What paths start with, and the names that come next: several where the path branches there."""
    for match in PATH.finditer(code):
        if match[2] != "{":
            yield match[1], [match[2]]
            continue
        names, depth, first = [], 1, True
        for token in re.finditer(r"[{},]|\w+", code[match.end() :]):
            if token[0] == "{":
                depth += 1
            elif token[0] == "}":
                depth -= 1
            elif token[0] == ",":
                first = first or depth == 1
            elif depth == 1 and first:
                names.append(token[0])
                first = False
            if not depth:
                break
        yield match[1], names
