"""Everything at once, for a long time: what was asked is there in the end, nothing else is, and the daemon does not grow."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from typing import Callable

from lablib.cases import chance, expect, size, takes_long
from lablib.commands import wait_until
from lablib.daemon import Daemon, daemon, ready_condition
from lablib.node import Attachd
from lablib.steps import attachments_of, cinder_paused, cinder_stopped, daemon_stopped, path_cut, volume

_SECONDS = (40, 2100)
_VOLUMES = (3, 12)
# How long everything may take to be as asked, on a slow machine.
_SETTLED = 900.0


@dataclasses.dataclass
class _Subject:
    """One volume, what is asked of it, and what must be on it."""

    name: str
    volume: str
    mode: str
    paths: int
    wanted: bool = False
    # Its attachment was deleted by somebody else.
    taken: bool = False
    # It was written to once.
    marked: bool = False
    # The last number that was written, and that fsync said is on the disk.
    written: int = 0

    @property
    def mount(self) -> str:
        return f"/mnt/{self.name}"


@dataclasses.dataclass
class _Sample:
    """The daemon's size at one moment of its life."""

    pid: int
    at: float
    memory: int
    descriptors: int


class _Soak:
    def __init__(self, node: Attachd, d: Daemon, subjects: list[_Subject]) -> None:
        self.node, self.d, self.subjects = node, d, subjects
        self.chance = chance("soak")
        self.began = time.monotonic()
        self.done: dict[str, int] = {}
        self.samples: list[_Sample] = []
        self.fixpoints = self.writes = self.helped = 0

    # What happens

    def asks(self) -> None:
        """A request comes or goes."""
        subject = self.chance.choice(self.subjects)
        self._release(subject) if subject.wanted else self._ask(subject)

    def writes_to_all(self) -> None:
        for subject in self.subjects:
            if subject.wanted and not subject.taken and self.is_ready(subject):
                self._write(subject)

    def is_killed(self) -> None:
        self.d.end("KILL")
        self.d.start(ATTACHD_LOG="attachd=info")

    def ends_and_starts(self) -> None:
        self.d.end("TERM", timeout=300)
        self.d.start(ATTACHD_LOG="attachd=info")

    def loses_a_path(self) -> None:
        # Longer on the second, where a volume has another one.
        path = self.chance.choice([1, 2])
        with path_cut(self.node, path):
            time.sleep(2 if path == 1 else self.chance.uniform(1, 20))

    def loses_cinder(self) -> None:
        with self.chance.choice([cinder_stopped, cinder_paused])(self.node):
            time.sleep(self.chance.uniform(1, 8))

    def loses_a_daemon(self) -> None:
        with daemon_stopped(self.node, self.chance.choice(["iscsid", "multipathd"])):
            time.sleep(self.chance.uniform(0, 3))

    def is_robbed(self) -> None:
        """Somebody deletes an attachment in Cinder, while its volume is in use."""
        attached = [subject for subject in self.subjects if subject.wanted and not subject.taken and self.is_ready(subject)]
        for subject in self.chance.sample(attached, min(1, len(attached))):
            for item in attachments_of(self.node, subject.volume):
                self.node.cinder.request("DELETE", f"/attachments/{item['id']}").json()
                subject.taken = True

    # What must hold

    def settle(self) -> None:
        """With the trouble over, everything comes to be as asked, and is what it was."""
        for subject in self.subjects:
            if subject.taken and subject.wanted:
                # A request for a volume that was taken away is told so, and not fought over: it has to be made anew.
                self._release(subject)
                self._wait_gone(subject)
                self._ask(subject)
            subject.taken = False
        for subject in self.subjects:
            if subject.wanted:
                self.wait_until_attached(subject)
                self.check(subject)
                self._write(subject)
            else:
                self._wait_gone(subject)
        self.nothing_else()
        self.fixpoints += 1
        self.sample()

    def _wait_gone(self, subject: _Subject) -> None:
        """Where the target is gone that a restarted iscsid waits for, an administrator does what the status says."""
        deadline = time.monotonic() + _SETTLED

        def stuck() -> bool:
            return "SessionNotTakenOver" in str(self.d.status(subject.name))

        while self.d.status(subject.name) is not None and time.monotonic() < deadline:
            if stuck():
                with daemon_stopped(self.node, "iscsid"):
                    wait_until(lambda: not stuck(), timeout=_SETTLED, what=f"{subject.name} to be let go without iscsid", interval=1)
                self.helped += 1
            time.sleep(1)
        self.d.wait_gone(subject.name, timeout=1)

    def wait_until_attached(self, subject: _Subject) -> None:
        """A status is old until the daemon has looked: so is asked what is there, too."""
        self.d.wait_for(subject.name, "Attached", ready=True, timeout=_SETTLED)

        def there() -> bool:
            statuses = [item["status"] for item in attachments_of(self.node, subject.volume)]
            return statuses == ["attached"] and self.is_ready(subject)

        wait_until(there, timeout=_SETTLED, what=f"{subject.name} to be attached once", interval=1)

    def is_ready(self, subject: _Subject) -> bool:
        return ready_condition(self.d.status(subject.name)).get("reason") == "Attached"

    def check(self, subject: _Subject) -> None:
        """It is this volume, with all that was written to it."""
        if not subject.marked:
            return
        found = self._read(subject)
        last = found.split()[-1] if found.split() else "nothing"
        expect(subject.volume in found, f"{subject.name} is another volume than {subject.volume}: it holds {found[:200]!r}")
        expect(last == str(subject.written), f"{subject.name}: {subject.written} was written, {last} is there")

    def nothing_else(self) -> None:
        wanted = sorted(subject.volume for subject in self.subjects if subject.wanted)

        def exact() -> bool:
            attachments = sorted(item["volume_id"] for item in self.node.cinder.attachments())
            return attachments == wanted and self._on_the_node() == self._expected()

        try:
            wait_until(exact, timeout=120, what="nothing but what was asked", interval=2)
        except Exception as error:
            attachments = [(item["volume_id"], item["status"]) for item in self.node.cinder.attachments()]
            raise AssertionError(f"{error}: expected {self._expected()} and attachments of {wanted}; "
                                 f"there are {self.node.leftovers()}, {attachments}") from error

    def _expected(self) -> dict[str, int]:
        wanted = [subject for subject in self.subjects if subject.wanted]
        paths = sum(subject.paths for subject in wanted)
        return {"session": paths, "disk": paths, "map": len(wanted), "mount": sum(subject.mode != "block" for subject in wanted)}

    def _on_the_node(self) -> dict[str, int]:
        kinds = [line.split()[0] for line in self.node.leftovers() if not line.startswith("mount directory")]
        return {kind: kinds.count(kind) for kind in ("session", "disk", "map", "mount")}

    def sample(self) -> None:
        self.samples.append(_Sample(self.d.pid or 0, time.monotonic() - self.began, self.d.memory(),
                                    int(self.node.shell(f"ls /proc/{self.d.pid}/fd | wc -l"))))

    # Small steps

    def _ask(self, subject: _Subject) -> None:
        spec = {"volumeMode": "Block"} if subject.mode == "block" else {"mountPath": subject.mount, "filesystem": {"type": subject.mode}}
        # Not what is there just now: multipathd comes and goes.
        self.d.request(subject.name, subject.volume, multipath="Required", **spec)
        subject.wanted = True

    def _release(self, subject: _Subject) -> None:
        self.d.remove(f"{subject.name}.yaml")
        subject.wanted = False

    def _write(self, subject: _Subject) -> None:
        """Write the next number; one that fsync did not take does not count."""
        number = subject.written + 1
        line = f"{subject.volume} {number}"
        write = f"mountpoint -q {subject.mount} && echo '{line}' | dd of={subject.mount}/log oflag=append conv=notrunc,fsync status=none"
        if subject.mode == "block":
            write = f"echo '{line}' | dd of={self._device(subject)} bs=512 conv=sync,fsync,nocreat oflag=direct status=none"
        written = self.node.execute(["timeout", "100", "bash", "-c", write])
        # A request may go while it is written to, and then it is refused; at a fixpoint none goes.
        if written.code == 0:
            subject.written, subject.marked = number, True
            self.writes += 1

    def _device(self, subject: _Subject) -> str:
        return str(((self.d.status(subject.name) or {}).get("device") or {}).get("path", "/dev/nothing"))

    def _read(self, subject: _Subject) -> str:
        if subject.mode == "block":
            return self.node.shell(f"dd if={self._device(subject)} bs=512 count=1 iflag=direct status=none | tr -d '\\0'")
        return self.node.shell(f"tail -n 1 {subject.mount}/log")

    def live(self, seconds: float) -> None:
        """Let things happen; the daemon is restarted in the first part only, so that one of them grows old."""
        acts: list[tuple[int, Callable[[], None]]] = [
            (10, self.asks), (6, self.writes_to_all), (3, self.loses_a_path), (2, self.loses_cinder), (2, self.loses_a_daemon),
            (1, self.is_robbed)]
        restarts: list[tuple[int, Callable[[], None]]] = [(2, self.is_killed), (1, self.ends_and_starts)]
        while time.monotonic() - self.began < seconds:
            young = time.monotonic() - self.began < seconds / 3
            for _ in range(self.chance.randint(4, 14)):
                possible = acts + restarts if young else acts
                act = self.chance.choices([act for _, act in possible], [weight for weight, _ in possible])[0]
                act()
                name = act.__name__.replace("_", " ")
                self.done[name] = self.done.get(name, 0) + 1
                time.sleep(self.chance.choice([0, 0, 0.5, 3]))
            self.settle()
            print(f"     {time.monotonic() - self.began:5.0f} s: {sum(self.done.values())} acts, fixpoint {self.fixpoints}, "
                  f"{self.samples[-1].memory} KiB, {self.samples[-1].descriptors} descriptors", flush=True)


def _does_not_grow(samples: list[_Sample]) -> str:
    """The daemon that lived last has no more memory or descriptors than after a third of its life, when it had done everything."""
    last = [sample for sample in samples if sample.pid == samples[-1].pid]
    end = last[-1]
    warm = last[0].at + (end.at - last[0].at) / 3
    last = [sample for sample in last if sample.at >= warm]
    first = last[0]
    top = max(sample.descriptors for sample in last)
    expect(end.memory < first.memory * 1.1 + 1024, f"its memory grew from {first.memory} to {end.memory} KiB: {last}")
    expect(end.descriptors <= first.descriptors + 4, f"its descriptors grew from {first.descriptors} to {end.descriptors}: {last}")
    return (f"memory {first.memory} -> {end.memory} KiB, descriptors {first.descriptors} -> {end.descriptors} (at most {top}) "
            f"over {end.at - first.at:.0f} s and {len(last)} fixpoints")


@takes_long
def test_whatever_goes_on_for_long_nothing_is_lost_or_leaked_and_the_daemon_does_not_grow(node: Attachd) -> None:
    kinds = [("tgt", "ext4", 2), ("tgt", "block", 2), ("tgt-single", "ext4", 1), ("tgt", "xfs", 2), ("tgt-nochap", "ext4", 2)]
    with ExitStack() as stack:
        subjects = []
        for number in range(size(*_VOLUMES)):
            type_, mode, paths = kinds[number % len(kinds)]
            subjects.append(_Subject(f"v{number}", stack.enter_context(volume(node, type_)), mode, paths))
        d: Daemon = stack.enter_context(daemon(node, ATTACHD_LOG="attachd=info"))
        soak = _Soak(node, d, subjects)
        soak.live(size(*_SECONDS))
        for subject in subjects:
            if subject.wanted:
                soak._release(subject)
        for subject in subjects:
            soak._wait_gone(subject)
        print(f"     {time.monotonic() - soak.began:.0f} s with {len(subjects)} volumes: {soak.done}; {soak.fixpoints} fixpoints, "
              f"{soak.writes} writes with fsync, none lost; {soak.helped} times iscsid was stopped for a detach; {_does_not_grow(soak.samples)}")
