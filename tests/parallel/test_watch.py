"""A process that is gone is named to all others. Threads and a dictionary stand in for processes
and for the coordination service."""

from __future__ import annotations

import threading
import time

import pytest

from unicom_jax.parallel.watch import Watch

SECONDS = 0.6


class Service:
    """What `Watch` uses of JAX's client."""

    def __init__(self):
        self.kept, self.gone = {}, False

    def key_value_set(self, key, value, allow_overwrite=False):
        self._reach()
        self.kept[key] = value

    def key_value_dir_get(self, prefix):
        self._reach()
        return [(key, value) for key, value in self.kept.items() if key.startswith(f"{prefix}/")]

    def _reach(self):
        if self.gone:
            raise RuntimeError("UNAVAILABLE: failed to connect to all addresses")


class Ended(list):
    """The line that each process ended with."""

    def watch(self, service, index, count=3) -> Watch:
        return Watch(service, index, count, SECONDS, lambda line: self.append((index, line)))

    def wait(self, count: int) -> dict[int, str]:
        until = time.monotonic() + 10 * SECONDS
        while len(self) < count and time.monotonic() < until:
            time.sleep(0.01)
        return dict(self)


def leave_without_a_word(watch: Watch) -> None:
    with pytest.raises(ValueError), watch:
        raise ValueError("an error that only this process has")


def test_a_process_without_a_sign_is_named_to_all_others():
    service, ended = Service(), Ended()
    with ended.watch(service, 0), ended.watch(service, 1):
        leave_without_a_word(ended.watch(service, 2))
        lines = ended.wait(2)
    assert sorted(lines) == [0, 1]
    for line in lines.values():
        assert line.startswith("process 2 of 3 gave no sign for 0.6 s") and "\n" not in line


def test_when_process_0_is_gone_with_its_service_the_others_say_so():
    service, ended = Service(), Ended()
    watch = ended.watch(service, 1)
    with watch:
        time.sleep(SECONDS / 4)
        service.gone = True
        assert ended.wait(1)[1].startswith("process 0 of 3 gave no sign")
        service.gone = False


@pytest.mark.parametrize("stopped", [False, True])
def test_a_process_that_ends_in_order_is_not_missed(stopped):
    service, ended = Service(), Ended()
    error = ValueError()
    error.exit_status = 75

    def end_in_order():
        with ended.watch(service, 1, count=2):
            time.sleep(SECONDS / 4)
            if stopped:
                raise error

    with ended.watch(service, 0, count=2):
        thread = threading.Thread(target=lambda: pytest.raises(ValueError, end_in_order))
        thread = thread if stopped else threading.Thread(target=end_in_order)
        thread.start()
        thread.join()
        time.sleep(2 * SECONDS)
    assert ended == []


def test_it_can_be_asked_who_is_missing_before_the_time_is_over():
    service, ended = Service(), Ended()
    with ended.watch(service, 0) as asked, ended.watch(service, 1):
        leave_without_a_word(ended.watch(service, 2))
        time.sleep(SECONDS / 6)
        assert asked.missing() == [2]
