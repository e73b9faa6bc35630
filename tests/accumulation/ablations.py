"""Each mechanism of accumulation, how to turn off this one alone, and what must fail then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from frostline.accumulation import window
from frostline.accumulation.exact import refusals
from frostline.accumulation.exact import window as exact_window
from frostline.accumulation.exact.recomputing import Recomputation, _WithoutUpdates
from frostline.accumulation.exact.windowed import engine
from frostline.accumulation.exact.windowed.cutting import Cutter
from frostline.accumulation.gradients import _Kept
from frostline.accumulation.undoing import Before
from frostline.lockstep import holdings, lockstep, thread_state
from frostline.lockstep.lockstep import Interposition, Lockstep
from frostline.lockstep.places import Places
from frostline.lockstep.shelving import Shelf
from frostline.lockstep.spectral import SpectralNorms
from frostline.lockstep.thread_state import ThreadState
from frostline.lockstep.updates import Updates
from tests.switches import Ablation, Switch, replace, skip

_TESTS = "tests/accumulation/"
_EXACT, _REFUSED = _TESTS + "exact/test_constructs.py::", _TESTS + "exact/test_refused.py::"
_DRAWS, _HOOKS = _TESTS + "exact/test_draws.py::", _TESTS + "exact/test_hooks.py::"
_RAISED, _LEAKS = _TESTS + "exact/test_or_raised.py::", _TESTS + "exact/test_leaks.py::"
_LOCKSTEP = "tests/lockstep/test_"


def _ablation(mechanism: str, turn_off: Switch, *tests: str) -> Ablation:
    return Ablation(f"exact: {mechanism}", turn_off, tests)


@contextmanager
def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


def _written_each_time(self: Shelf, tensor: Tensor) -> Any:
    """A storage that was written once is never looked at again."""
    entry = self._entries.get(tensor.untyped_storage()._cdata)
    if entry is not None and (slot := entry.slot()) is not None:
        object.__setattr__(entry, "version", tensor._version)
        del slot
    return _put(self, tensor)


_put = Shelf.put


def _every_time(self: Lockstep, thing: object) -> bool:
    self.current.seen[id(thing)] += 1
    return True


def _first_alone(self: Updates, call: Any, moments: Any) -> None:
    return None


def _same_stream(count: int, start: Any) -> list[Any]:
    return [start] * count


def _without_modes(self: ThreadState) -> None:
    """Everything but grad mode."""
    modes = self.grad
    self.grad = True
    _put_state(self)
    self.grad = modes


_put_state = ThreadState.put


ACCUMULATING: list[Ablation] = [
    _ablation(
        "grad mode goes along with a run",
        replace(ThreadState, "put", _without_modes),
        _LOCKSTEP + "lockstep.py::test_grad_mode_belongs_to_the_run",
        _EXACT + "test_every_construct[teacher after-None]",
    ),
    _ablation(
        "switches go along with a run",
        replace(thread_state, "_SWITCHES", ()),
        _LEAKS + "test_a_switch_that_each_microbatch_turns[default dtype-None]",
    ),
    _ablation(
        "each run has its own random numbers",
        replace(lockstep, "streams", _same_stream),
        _DRAWS + "test_microbatches_draw_masks_of_their_own[None]",
    ),
    _ablation(
        "counters count once",
        replace(Interposition, "counted", lambda self, counter, add: add()),
        _EXACT + "test_every_construct[shared norm, no momentum-None]",
    ),
    _ablation(
        "spectral norms iterate once",
        skip(SpectralNorms, "install"),
        _EXACT + "test_every_construct[spectral norm, new-None]",
    ),
    _ablation(
        "running statistics are updated",
        replace(Updates, "batch_norm", _first_alone),
        _LOCKSTEP + "lockstep.py::test_runs_together_are_the_big_batch",
    ),
    _ablation(
        "places that cannot wait are refused",
        skip(Places, "refuse"),
        _REFUSED + "test_is_refused_in_words[functional_call-None]",
    ),
    _ablation(
        "a tensor of another microbatch is refused",
        skip(holdings, "_refuse"),
        _LEAKS + "test_a_memory_of_the_sample_before[None]",
        _LOCKSTEP + "holdings.py::test_what_depends_on_a_batch_is_its_runs_alone",
    ),
    _ablation(
        "a gradient inside of the loss is refused",
        skip(Recomputation, "refuse_early"),
        _REFUSED + "test_is_refused_in_words[gradient penalty-None]",
    ),
    _ablation(
        "samples that see each other elsewhere are refused",
        skip(window, "refuse_coupling"),
        _REFUSED + "test_is_refused_in_words[contrastive loss-None]",
    ),
    _ablation(
        "a sum is refused",
        skip(window, "refuse_sum"),
        _RAISED + "test_a_sum_is_refused_each_time",
    ),
    _ablation(
        "a loss is known by what it closes over",
        skip(refusals, "first_time", False),
        _RAISED + "test_another_loss_of_the_same_code_is_looked_at_too[closure]",
    ),
    _ablation(
        "unknown writes are refused",
        skip(exact_window, "_refuse_unknown"),
        _REFUSED + "test_is_refused_in_words[codebook-None]",
    ),
    _ablation(
        "hooks do not see the checks",
        replace(refusals, "unseen", _nothing),
        _TESTS + "exact/test_unseen.py::test_hooks_do_not_see_the_checks[None]",
    ),
    _ablation(
        "after an error all is as before",
        skip(Before, "restore"),
        _TESTS + "test_one_by_one.py::test_after_an_exception_all_is_as_before[plain-forward]",
    ),
    _ablation(
        "old gradients are set aside",
        skip(_Kept, "restore"),
        _TESTS + "test_gradients.py::test_a_failure_brings_back_the_objects_and_their_bits",
    ),
    _ablation(
        "checkpoints know their norms",
        replace(Recomputation, "checkpoints", _nothing),
        _EXACT + "test_every_construct[checkpointed-None]",
    ),
    _ablation(
        "a checkpoint that runs again counts nothing",
        replace(_WithoutUpdates, "counted", lambda self, counter, add: add()),
        _EXACT + "test_every_construct[checkpointed-None]",
    ),
    _ablation(
        "compiled parts run as they were written",
        replace(exact_window, "_uncompiled", _nothing),
        _DRAWS + "test_a_compiled_part[None]",
    ),
    _ablation(
        "windowed: a graph is cut where it waits",
        skip(Cutter, "cut", []),
        _EXACT + "test_every_construct[shuffled halves-disk]",
    ),
    _ablation(
        "windowed: writes to shared memory are refused",
        skip(Cutter, "refuse_writes"),
        _RAISED + "test_a_view_that_is_written_to_after_a_norm[disk]",
    ),
    _ablation(
        "windowed: hooks of parameters see the window",
        replace(engine, "windows_hooks", _nothing),
        _HOOKS + "test_hooks_of_parameters_fire_once_a_window[disk]",
    ),
    _ablation(
        "windowed: a write to what is on the shelf is seen",
        replace(Shelf, "put", _written_each_time),
        _LOCKSTEP + "shelving.py::test_a_write_in_between_is_seen",
    ),
]
