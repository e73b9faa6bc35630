"""Bytes come back as they went, and the file stays as small as what is kept."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch

from frostline.errors import AccumulationError
from frostline.lockstep import storing
from frostline.lockstep.storing import DiskStore, HostStore, Store

STORES = {"disk": DiskStore, "host": HostStore}


@pytest.mark.parametrize("kind", STORES)
def test_bytes_come_back(kind: str) -> None:
    store: Store = STORES[kind]()
    tensors = [torch.randn(n, dtype=torch.float64) for n in (1, 512, 5000)]
    tensors.append(torch.full((7,), float("nan")))
    slots = [store.put(tensor.untyped_storage()) for tensor in tensors]
    for tensor, slot in zip(tensors, slots, strict=True):
        before = tensor.clone()
        tensor.zero_()
        slot.read(tensor.untyped_storage())
        assert torch.equal(tensor.view(torch.uint8), before.view(torch.uint8))


def size_of(store: DiskStore) -> int:
    return os.fstat(store._file.fileno()).st_size


def test_room_that_is_let_go_is_used_again() -> None:
    store, tensor = DiskStore(), torch.randn(1000)
    slots = [store.put(tensor.untyped_storage()) for _ in range(4)]
    size = size_of(store)
    assert size == 16000
    del slots[1:3]
    gc.collect()
    others = [store.put((tensor + k).untyped_storage()) for k in range(2)]
    assert size_of(store) == size
    for k, slot in enumerate(others):
        read = torch.empty(1000)
        slot.read(read.untyped_storage())
        assert torch.equal(read, tensor + k)
    read = torch.empty(1000)
    slots[0].read(read.untyped_storage())
    assert torch.equal(read, tensor)


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "_file_system", lambda directory: "ext4")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = DiskStore()
    store.put(torch.ones(10).untyped_storage())
    assert store.directory == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_in_memory_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(
        storing, "_file_system", lambda d: "tmpfs" if d == str(tmp_path) else "ext4"
    )
    assert DiskStore().directory != str(tmp_path)
    monkeypatch.setattr(storing, "_file_system", lambda directory: "tmpfs")
    with pytest.raises(AccumulationError, match="TMPDIR"):
        DiskStore()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no RAM disk here")
def test_file_systems_are_told_apart() -> None:
    assert storing._file_system("/dev/shm") == "tmpfs"
    assert storing._file_system("/proc") == "proc"


def test_a_full_disk_is_said_in_words() -> None:
    """A limit on the size of files stands for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = DiskStore()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        with pytest.raises(AccumulationError, match="more room"):
            store.put(torch.zeros(1 << 16).untyped_storage())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_nothing_is_left_after_a_kill(tmp_path: Path) -> None:
    code = """
        import os, signal, torch
        from frostline.lockstep import storing
        storing._file_system = lambda directory: "ext4"
        slot = storing.DiskStore().put(torch.ones(10_000).untyped_storage())
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
