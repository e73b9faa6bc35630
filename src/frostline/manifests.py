"""Manifests: what tensors a model, a state dict or a frozen part holds, with a digest of each.

The format is specified in docs/formats/manifest-v1.md.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from frostline import _content, digests, selection
from frostline._names import canonical
from frostline._results import Result, elide, plural
from frostline.errors import ManifestError

FORMAT = "frostline-manifest"
VERSION = 1

_PREFIX = b"frostline/manifest/1\n"
_ROWS = 20
_DIGEST = re.compile(r"blake3:[0-9a-f]{64}")
_DTYPE = re.compile(r"[a-z][a-z0-9_]*")
_FIELDS = ("format", "version", "algorithm", "root", "entries", "switches")
_ENTRY_FIELDS = ("name", "dtype", "shape", "digest")
_SWITCH_CHOICES = {"stats": ("hold", "batch", "update"), "mode": ("eval", "follow")}
_SWITCH_FIELDS = ("select", "exclude", "params", "stats", "mode", "modules")


@runtime_checkable
class PartLike(Protocol):
    """A frozen part, as far as a manifest needs it."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Full names and tensors."""

    @property
    def switches(self) -> Mapping[str, Any]:
        """How the part was frozen; see `Manifest.switches`."""


Source: TypeAlias = "nn.Module | Mapping[str, Tensor] | PartLike"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a manifest.

    Attributes:
        dtype: as torch calls it, without `torch.`.
        shape: sizes of the logical tensor.
        digest: `blake3:` and 64 lower-case hexadecimal digits.
    """

    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Difference:
    """How one entry of a manifest differs from another manifest.

    Attributes:
        name: the name in the expected manifest, or in the other one where it was added.
        kind: `missing`, `added`, `dtype`, `shape`, `value`, or `renamed`: the same content is there
            under another name, so it may be the same tensor.
        expected: dtype, shape, digest or name that was expected; None where it was added.
        found: what there is instead; None where it is missing.
    """

    name: str
    kind: Literal["missing", "added", "dtype", "shape", "value", "renamed"]
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        head = f"{self.kind:<8} {elide(self.name, 71)}"
        if self.kind in ("missing", "added"):
            return head
        short = _start if self.kind == "value" else _end
        was, now = short(str(self.expected)), short(str(self.found))
        return f"{head}\n         expected {was}, got {now}"

    def to_dict(self) -> dict[str, str | None]:
        """Plain types only, for JSON."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Manifest(Result):
    """Names, dtypes, shapes and digests of a set of tensors; it cannot be empty.

    It proves integrity against accident, and against intent only where the manifest itself comes
    from somebody you trust.

    Attributes:
        entries: name to entry, in the order of the source.
        switches: for a frozen part how it was frozen: `select` and `exclude` as text, `params`,
            `stats`, `mode`, and the names of its `modules`; None for anything else.
        version: of the format, 1.
        algorithm: `blake3`.

    Example:
        >>> from torch import nn
        >>> net = nn.Linear(2, 2)
        >>> before = manifest(net)
        >>> _ = nn.init.zeros_(net.bias)
        >>> [(change.name, change.kind) for change in before.compare(manifest(net))]
        [('bias', 'value')]
    """

    entries: Mapping[str, Entry]
    switches: Mapping[str, Any] | None = None
    version: int = VERSION
    algorithm: str = digests.ALGORITHM

    def __post_init__(self) -> None:
        if not self.entries:
            raise ManifestError("a manifest of no tensors proves nothing; expected at least one.")

    @property
    def root(self) -> str:
        """One digest over all entries; their order and the switches do not enter."""
        state = digests.hasher()
        state.update(_PREFIX)
        for name, entry in sorted(self.entries.items()):
            line = [name, entry.dtype, list(entry.shape), entry.digest]
            state.update(_content.canonical_json(line) + b"\n")
        return digests.finish(state)

    @property
    def member_tensors(self) -> Sequence[str]:
        """The names of the tensors: a manifest is a selector too."""
        return list(self.entries)

    @property
    def member_modules(self) -> Sequence[str]:
        """The names of the modules of a frozen part; empty for anything else."""
        return list(self.switches.get("modules", ())) if self.switches else []

    def compare(self, other: Manifest) -> list[Difference]:
        """List how `other` differs from this manifest; empty when the tensors are the same.

        Renamed is a hint: a missing and an added name have the same dtype, shape and bytes.

        Example:
            >>> import torch
            >>> old, new = {"a": torch.ones(2)}, {"b": torch.ones(2)}
            >>> print(manifest(old).compare(manifest(new))[0])
            renamed  a
                     expected a, got b
        """
        added = {name: entry for name, entry in other.entries.items() if name not in self.entries}
        names_of: dict[Entry, list[str]] = {}
        for name, entry in added.items():
            names_of.setdefault(entry, []).append(name)
        found: list[Difference] = []
        for name, entry in self.entries.items():
            if name in other.entries:
                found += _differences(name, entry, other.entries[name])
            elif new := names_of.get(entry):
                found.append(Difference(name, "renamed", name, new[0]))
                del added[new.pop(0)]
            else:
                found.append(Difference(name, "missing", entry.digest, None))
        return found + [Difference(n, "added", None, entry.digest) for n, entry in added.items()]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: fits into JSON, and into a checkpoint read with weights_only=True."""
        result: dict[str, Any] = {
            "format": FORMAT,
            "version": self.version,
            "algorithm": self.algorithm,
            "root": self.root,
            "entries": [
                {"name": name, "dtype": e.dtype, "shape": list(e.shape), "digest": e.digest}
                for name, e in self.entries.items()
            ],
        }
        if self.switches is not None:
            result["switches"] = json.loads(json.dumps(dict(self.switches)))
        return result

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Read what `to_dict` wrote, and nothing else.

        Raises:
            ManifestError: anything is missing, unknown, malformed or twice there, or the root does
                not belong to the entries. The message says where.

        Example:
            >>> from torch import nn
            >>> here = manifest(nn.Linear(2, 2))
            >>> Manifest.from_dict(here.to_dict()) == here
            True
        """
        _check_fields("manifest", data, _FIELDS, optional=("switches",))
        _check_equal("format", data["format"], FORMAT)
        _check_equal("version", data["version"], VERSION)
        _check_equal("algorithm", data["algorithm"], digests.ALGORITHM)
        _check_digest("root", data["root"])
        switches = data.get("switches")
        result = cls(
            dict(_parse_entries(data["entries"])),
            None if switches is None else _checked_switches(switches),
        )
        if result.root != data["root"]:
            raise _malformed("root", f"{result.root}, which is over the entries", data["root"])
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest as JSON; the file is replaced in one step, or stays as it was."""
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with partial.open("x", encoding="utf-8") as file:
                json.dump(self.to_dict(), file, indent=1, ensure_ascii=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a manifest that `save` wrote.

        Raises:
            ManifestError: the file is not JSON, has a key twice, or is not a valid manifest.
        """
        try:
            text = Path(path).read_bytes().decode("utf-8")
            return cls.from_dict(json.loads(text, object_pairs_hook=_without_duplicates))
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{path}: not JSON text in UTF-8: {error}") from None

    def __hash__(self) -> int:
        return hash(self.root)

    def __bool__(self) -> bool:
        raise TypeError(
            "a Manifest is not a truth value; ask a.compare(b) for differences, or len(a.entries)"
        )

    def __repr__(self) -> str:
        return f"<Manifest of {plural(len(self.entries), 'tensor')}, {self.root[:15]}>"

    def __str__(self) -> str:
        elements = sum(prod(entry.shape) for entry in self.entries.values())
        count = plural(len(self.entries), "tensor")
        lines = [f"Manifest of {count}, {plural(elements, 'element')}", f"root {self.root}", ""]
        lines += [_row(*item) for item in list(self.entries.items())[:_ROWS]]
        if len(self.entries) > _ROWS:
            lines.append(f"and {len(self.entries) - _ROWS:,} more; .entries has them all")
        return "\n".join(lines)


def manifest(source: Source, select: selection.Selector = None) -> Manifest:
    """List every tensor of a model, a state dict or a frozen part with its digest.

    A model is covered as its state dict is: parameters and persistent buffers, tied ones under
    each of their names. Prefixes that wrappers add to names are left out.

    Args:
        source: a module, a mapping of names to tensors, or what `freeze` returned.
        select: what to cover; everything by default. On a part it leaves out the switches, which
            speak of the whole part.

    Raises:
        SelectionError: `select` matches nothing.
        ManifestError: there is no tensor, something that is no tensor, or one name twice.
        UnsupportedTensor: the content of a tensor cannot be read.

    Example:
        >>> from torch import nn
        >>> list(manifest(nn.BatchNorm1d(3), "running_*").entries)
        ['running_mean', 'running_var']
    """
    tensors = _canonical_names(_tensors_of(source))
    if select is not None:
        tensors = {name: tensors[name] for name in _selected(source, tensors, select)}
    if not tensors:
        raise ManifestError(
            f"{type(source).__name__} has no tensor to cover, and an empty manifest proves "
            "nothing. Pass a model with parameters or persistent buffers."
        )
    switches = _switches_of(source) if select is None else None
    return Manifest(dict(_entries(tensors)), switches)


def digest(source: Source, select: selection.Selector = None) -> str:
    """Digest a model, a state dict or a frozen part: the root of its manifest.

    Args:
        source: as for `manifest`.
        select: as for `manifest`.

    Returns:
        ``blake3:`` and 64 lower-case hexadecimal digits.

    Raises:
        SelectionError: `select` matches nothing.
        ManifestError: as for `manifest`.
        UnsupportedTensor: the content of a tensor cannot be read.

    Example:
        >>> from torch import nn
        >>> net = nn.Linear(2, 2)
        >>> digest(net) == digest(net.state_dict())
        True
    """
    return manifest(source, select).root


def _tensors_of(source: Source) -> Mapping[str, Any]:
    if isinstance(source, nn.Module):
        return source.state_dict(keep_vars=True)
    if isinstance(source, Mapping):
        return source
    if isinstance(source, PartLike):
        return source.tensors
    raise ManifestError(
        f"cannot list the tensors of a {type(source).__name__}: expected a module, a mapping of "
        "names to tensors, or what fl.freeze returned. For a file, load its state dict first."
    )


def _switches_of(source: Source) -> dict[str, Any] | None:
    if isinstance(source, nn.Module | Mapping):
        return None
    return _checked_switches(source.switches)


def _canonical_names(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    given: dict[str, str] = {}
    for name, tensor in tensors.items():
        _check_name(name, name)
        if not isinstance(tensor, Tensor):
            raise ManifestError(
                f"{name}: a {type(tensor).__name__}, expected a tensor. Pass only the tensors: "
                "{k: v for k, v in state.items() if isinstance(v, torch.Tensor)}"
            )
        short = canonical(name)
        if short in given:
            raise ManifestError(
                f"{short!r} is there twice, as {given[short]!r} and as {name!r}. Expected each "
                "name once without the prefixes of wrappers; select one of them."
            )
        given[short] = name
    return {short: tensors[name] for short, name in given.items()}


def _selected(
    source: Source, tensors: Mapping[str, Tensor], select: selection.Selector
) -> Iterable[str]:
    if not isinstance(source, nn.Module):
        return selection.select_names(tensors, select)
    chosen = {entry.name for entry in selection.select(source, select).tensors}
    return [name for name in tensors if name in chosen]


def _entries(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Entry]]:
    seen: dict[int, str] = {}  # a tied tensor is read once
    for name, tensor in tensors.items():
        if id(tensor) not in seen:
            seen[id(tensor)] = digests.digest_tensor(name, tensor)
        shape = tuple(int(size) for size in tensor.shape)
        yield name, Entry(_content.dtype_name(tensor.dtype), shape, seen[id(tensor)])


def _differences(name: str, expected: Entry, found: Entry) -> list[Difference]:
    """The first thing that differs: a dtype or shape changes the digest with it."""
    if expected.dtype != found.dtype:
        return [Difference(name, "dtype", expected.dtype, found.dtype)]
    if expected.shape != found.shape:
        return [Difference(name, "shape", str(expected.shape), str(found.shape))]
    if expected.digest != found.digest:
        return [Difference(name, "value", expected.digest, found.digest)]
    return []


def _start(digest_text: str) -> str:
    """Of a digest the first digits tell enough."""
    return f"{digest_text[:15]}…"


def _end(text: str) -> str:
    return elide(text, 28)


def _row(name: str, entry: Entry) -> str:
    shape = "x".join(map(str, entry.shape)) or "scalar"
    short = entry.digest.partition(":")[2][:8]
    return f"  {elide(name, 37):<37} {elide(entry.dtype, 15):<15} {elide(shape, 14):<14} {short}"


def _malformed(where: str, expected: str, got: object) -> ManifestError:
    shown = repr(got)
    return ManifestError(f"{where}: expected {expected}, got {elide(shown, 90)}")


def _check_fields(
    where: str, data: object, fields: Sequence[str], optional: Sequence[str] = ()
) -> None:
    if not isinstance(data, Mapping):
        raise _malformed(where, f"an object with {', '.join(fields)}", data)
    for name in fields:
        if name not in data and name not in optional:
            raise ManifestError(f"{where}: {name!r} is missing")
    for name in data:
        if name not in fields:
            raise ManifestError(f"{where}: unknown field {name!r}; known are {', '.join(fields)}")


def _check_equal(where: str, value: object, expected: object) -> None:
    if type(value) is not type(expected) or value != expected:
        raise _malformed(where, repr(expected), value)


def _check_digest(where: str, value: object) -> None:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise _malformed(where, "'blake3:' and 64 lower-case hexadecimal digits", value)


def _check_name(where: object, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise _malformed(str(where), "a name that is not empty", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        text = f"{where}: expected a name that UTF-8 can hold, got {value}"
        raise ManifestError(ascii(text)[1:-1]) from None


def _parse_entries(entries: object) -> Iterator[tuple[str, Entry]]:
    if not isinstance(entries, list) or not entries:
        raise _malformed("entries", "a list of at least one tensor", entries)
    seen: set[str] = set()
    for number, data in enumerate(entries):
        where = f"entries[{number}]"
        _check_fields(where, data, _ENTRY_FIELDS)
        _check_name(f"{where}.name", data["name"])
        if data["name"] in seen:
            raise ManifestError(f"{where}.name: {data['name']!r} is there twice")
        seen.add(data["name"])
        yield data["name"], _parse_entry(f"{where} ({data['name']})", data)


def _parse_entry(where: str, data: Mapping[str, Any]) -> Entry:
    dtype, shape = data["dtype"], data["shape"]
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise _malformed(f"{where}.dtype", "the name of a dtype", dtype)
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise _malformed(f"{where}.shape", "a list of sizes", shape)
    _check_digest(f"{where}.digest", data["digest"])
    return Entry(dtype, tuple(shape), data["digest"])


def _checked_switches(switches: Mapping[str, Any]) -> dict[str, Any]:
    _check_fields("switches", switches, _SWITCH_FIELDS, optional=("modules",))
    for name, choices in _SWITCH_CHOICES.items():
        if switches[name] not in choices:
            raise _malformed(f"switches.{name}", f"one of {choices}", switches[name])
    if not isinstance(switches["select"], str):
        raise _malformed("switches.select", "a text", switches["select"])
    if not isinstance(switches["exclude"], str | None):
        raise _malformed("switches.exclude", "a text or null", switches["exclude"])
    if not isinstance(switches["params"], bool):
        raise _malformed("switches.params", "true or false", switches["params"])
    modules = switches.get("modules", [])
    if not isinstance(modules, list | tuple) or not all(isinstance(n, str) for n in modules):
        raise _malformed("switches.modules", "a list of names", modules)
    return {**switches, "modules": list(modules)}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ManifestError(f"the key {twice!r} is there twice in one object")
    return result
