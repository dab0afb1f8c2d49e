#!/usr/bin/python3
"""The master with a real agent, which dials the socket HAFEN_TEST_SOCKET and is the process HAFEN_TEST_AGENT. Tasks stand on
the folder HAFEN_TEST_ROOTFS, which has a shell."""

import os
import pathlib
import signal
import tempfile
import time
import unittest

from test_master import Master

SOCKET = os.environ["HAFEN_TEST_SOCKET"]
AGENT = int(os.environ["HAFEN_TEST_AGENT"])
PLACE = {"rootfs": os.environ["HAFEN_TEST_ROOTFS"]}
# Ends when it is asked to.
OBEDIENT = ["/bin/sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done"]
# Longer than an agent may pause between two dials.
LEASE = 45
UNHEARD = 6


def runs(pid):
    return pathlib.Path(f"/proc/{pid}/root").exists()


def await_end(pid, patience):
    end = time.monotonic() + patience
    while runs(pid):
        assert time.monotonic() < end, f"process {pid} goes on"
        time.sleep(0.05)


class Case(unittest.TestCase):
    """One story: the agent knows the epochs of the master before."""

    def begin(self):
        master = Master(self.state, lease=LEASE, listen=f"unix:{SOCKET}", ping_every=1)
        self.addCleanup(lambda: master.process.poll() is not None or master.end(kill=True))
        return master

    def place(self, name, copies=1, **more):
        self.master.order("place", name=name, copies=copies, task={"root": PLACE, "command": OBEDIENT, **more})
        tasks = {}
        while len(tasks) < copies:
            update = self.master.await_event("update", state="STATE_RUNNING")
            tasks[update["task"]] = update["pid"]
        return tasks

    def stop(self, task):
        self.master.order("stop", name=task)
        ended = self.master.await_event("update", task=task, state="STATE_KILLED")
        self.assertEqual(ended["reason"], "KIND_STOPPED")
        self.master.await_event("gone", task=task)

    def test_the_whole_story(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.state = pathlib.Path(folder.name, "state")
        self.master = self.begin()
        node = self.master.await_event("connected")["node"]

        tasks = self.place("web", copies=2)
        self.assertTrue(all(runs(pid) for pid in tasks.values()))
        first, second = sorted(tasks)
        self.stop(first)
        self.assertFalse(runs(tasks[first]))

        self.master.order("reconcile", node=node)
        self.assertEqual(self.master.await_event("reconciled")["tasks"], [second])

        # The stream breaks: nothing happens to what runs.
        self.master.order("cut", node=node)
        self.assertEqual(self.master.await_event("connected")["tasks"], [second])

        # So does a master that is killed.
        self.master.end(kill=True)
        self.master = self.begin()
        self.assertEqual(self.master.await_event("connected")["tasks"], [second])
        self.assertTrue(runs(tasks[second]))
        self.stop(second)

        # What ends while nobody listens is told later.
        tasks = self.place("ends")
        (task, pid), = tasks.items()
        self.master.end(kill=True)
        os.kill(pid, signal.SIGTERM)
        await_end(pid, 10)
        self.master = self.begin()
        ended = self.master.await_event("update", task=task)
        self.assertEqual((ended["state"], ended["reason"]), ("STATE_FAILED", "KIND_EXITED"))
        self.master.await_event("gone", task=task)

        # No master, and no agent: the keepers are left.
        for agent_too in (False, True):
            tasks = self.place(f"fenced-{agent_too}", stopAfterDisconnect=f"{UNHEARD}s", restart={"when": "WHEN_ALWAYS"})
            others = self.place(f"free-{agent_too}")
            (task, pid), = tasks.items()
            (other, other_pid), = others.items()
            self.assertTrue(runs(pid))
            if agent_too:
                os.kill(AGENT, signal.SIGSTOP)
            self.master.end(kill=True)
            try:
                silent = time.monotonic()
                await_end(pid, UNHEARD + 20)
                self.assertGreater(time.monotonic() - silent, UNHEARD / 2)
                self.assertTrue(runs(other_pid))
            finally:
                if agent_too:
                    os.kill(AGENT, signal.SIGCONT)
            self.master = self.begin()
            ended = self.master.await_event("update", task=task, state="STATE_KILLED")
            self.assertEqual(ended["reason"], "KIND_DISCONNECTED")
            self.master.await_event("gone", task=task)
            again = self.master.await_event("update", state="STATE_RUNNING")
            self.assertNotEqual(again["task"], task)
            self.stop(again["task"])
            self.stop(other)

        # A node that is drained takes nothing.
        tasks = self.place("last")
        self.master.order("drain", node=node, on=True)
        self.master.await_event("gone", task=next(iter(tasks)))
        self.assertEqual([one["node"] for one in self.master.status()["tasks"].values()], [None])
        self.master.order("stop", name="last-0")
        self.master.order("drain", node=node, on=False)
        self.master.await_event("result", command="drain")
        self.stop(next(iter(self.place("again"))))


if __name__ == "__main__":
    unittest.main()
