#!/usr/bin/python3
"""The master against agents that are scripts: each says what it is told to say, and nothing else."""

import json
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import grpc

import wire
from wire import master as m
from wire import task as t

HERE = pathlib.Path(__file__).resolve().parent
LEASE = 2.0
# For what should come at once, on a machine with much else to do.
PATIENCE = 60.0


class Master:
    """The program, its orders and its events."""

    def __init__(self, state, lease=LEASE, listen="127.0.0.1:0", ping_every=None):
        words = [sys.executable, "-B", HERE / "master.py", "--state", state, "--lease", str(lease), "--listen", listen]
        words += ["--ping-every", str(ping_every)] if ping_every else []
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()
        self.seen = []
        listening = self.await_event("listening")
        self.address, self.epoch = f"127.0.0.1:{listening['port']}", listening["epoch"]

    def read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def order(self, do, **more):
        self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self.process.stdin.flush()

    def await_event(self, event, **fields):
        """The next of that kind; what comes before is kept aside."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                found = self.lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                break
            if found is None:
                break
            self.seen.append(found)
            if found["event"] == event and all(found.get(k) == v for k, v in fields.items()):
                return found
        raise AssertionError(f"no {event} {fields} in {self.seen}")

    def status(self):
        self.order("status")
        return self.await_event("status")

    def end(self, kill=False):
        if kill:
            self.process.kill()
        self.process.stdin.close()
        code = self.process.wait(PATIENCE)
        self.process.stdout.close()
        return code


class Agent:
    """A stream, as an agent has it."""

    def __init__(self, master, node, incarnation=1, connection=1, tasks=(), hello=True, **more):
        self.channel = grpc.insecure_channel(master.address)
        self.outgoing = queue.Queue()
        self.sent = self.heard = 0
        self.answers = wire.dial(self.channel)(iter(self.outgoing.get, None))
        self.incoming = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()
        self.quiet = []
        if hello:
            names = dict(version_least=1, version_most=1, node=node, instance=f"{node}-disk", boot_id="boot")
            names.update(incarnation=incarnation, connection=connection, tasks=tasks, **more)
            self.say(hello=m.Hello(**names))

    def read(self):
        try:
            for message in self.answers:
                self.incoming.put(message)
        except grpc.RpcError:
            pass
        self.incoming.put(None)

    def say(self, number=None, **what):
        self.sent += 1
        self.outgoing.put(m.FromAgent(number=number or self.sent, heard=self.heard, **what))

    def next(self, patience=PATIENCE):
        """The next message; `None` at the end of the stream."""
        message = self.incoming.get(timeout=patience)
        if message is not None:
            assert message.number == self.heard + 1, f"{message.number} after {self.heard}"
            self.heard = message.number
        return message

    def expect(self, kind):
        """The next that is no Ping."""
        while True:
            message = self.next()
            got = message and message.WhichOneof("what")
            if got != "ping" or kind == "ping":
                break
        assert got == kind, f"wanted {kind}, got {message}"
        return getattr(message, kind)

    def command(self, kind):
        command = self.expect("command")
        assert command.WhichOneof("what") == kind, f"wanted {kind}, got {command}"
        return command, getattr(command, kind)

    def done(self, command, **more):
        self.say(result=m.CommandResult(command=command.id, **more))

    def update(self, task, sequence, state, kind=t.Reason.KIND_UNSPECIFIED):
        status = t.TaskStatus(id=task, state=state, reason=t.Reason(kind=kind))
        self.say(update=m.TaskUpdate(task=task, sequence=sequence, status=status))

    def acknowledged(self):
        one = self.expect("acknowledge")
        return one.task, one.sequence

    def run(self, *states):
        """Take on what comes, and tell these states of it."""
        command, run = self.command("run_task")
        self.done(command)
        for number, state in enumerate(states, 1):
            self.update(run.task.id, number, state)
            assert self.acknowledged() == (run.task.id, number)
        return run

    def stay(self, stop):
        """Ping for as long as nothing else is to be said."""
        def ping():
            while not stop.wait(LEASE / 5):
                self.say(ping=m.Ping())
        threading.Thread(target=ping, daemon=True).start()

    def silence(self, patience):
        """Nothing but Pings comes."""
        end = time.monotonic() + patience
        while (left := end - time.monotonic()) > 0:
            try:
                message = self.next(left)
            except queue.Empty:
                return
            assert message is not None and message.WhichOneof("what") == "ping", message

    def hang_up(self):
        self.answers.cancel()
        self.channel.close()


SLEEP = {"root": {"host": True}, "command": ["sleep", "600"]}


def held(run, sequence, acknowledged=0, state=t.STATE_RUNNING):
    return m.HeldTask(id=run.task.id, epoch=run.grant.epoch, state=state, sequence=sequence, acknowledged=acknowledged)


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.state = pathlib.Path(self.folder.name, "state")
        self.master = self.begin()
        self.over = threading.Event()
        self.addCleanup(self.over.set)

    def begin(self):
        master = Master(self.state)
        self.addCleanup(lambda: master.process.poll() is not None or master.end(kill=True))
        return master

    def agent(self, node="a", welcome=True, **more):
        agent = Agent(self.master, node, **more)
        self.addCleanup(agent.hang_up)
        if welcome:
            self.welcome = agent.expect("welcome")
        return agent

    def refused(self, kind, **more):
        agent = self.agent(welcome=False, **more)
        self.assertEqual(agent.expect("refused").kind, m.Refused.Kind.Value(kind))
        self.assertIsNone(agent.next())

    def place(self, copies=1, task=SLEEP, **more):
        self.master.order("place", name="web", copies=copies, task=task, **more)

    def test_tasks_run_and_are_followed_to_their_end(self):
        agent = self.agent()
        self.assertEqual((self.welcome.version, wire.seconds(self.welcome.lease)), (1, LEASE))
        self.place(copies=2)
        commands = [agent.command("run_task") for _ in range(2)]
        self.assertEqual([run.task.id for _, run in commands], ["web-0.1", "web-1.1"])
        self.assertEqual(list(commands[0][1].task.command), ["sleep", "600"])
        self.assertEqual(commands[0][1].grant.epoch, 1)
        for command, _ in commands:
            self.assertEqual(command.epoch, self.master.epoch)
            agent.done(command)
        for number, state in enumerate([t.STATE_STARTING, t.STATE_RUNNING], 1):
            agent.update("web-0.1", number, state)
            self.assertEqual(agent.acknowledged(), ("web-0.1", number))
        self.master.await_event("update", task="web-0.1", state="STATE_RUNNING")
        self.master.order("stop", name="web-0", grace=3)
        command, stop = agent.command("stop")
        self.assertEqual((stop.id, wire.seconds(stop.grace)), ("web-0.1", 3))
        agent.done(command)
        agent.update("web-0.1", 3, t.STATE_KILLED, t.Reason.KIND_STOPPED)
        self.assertEqual(agent.acknowledged(), ("web-0.1", 3))
        command, forget = agent.command("forget")
        self.assertEqual(forget.id, "web-0.1")
        agent.done(command)
        self.master.await_event("gone", task="web-0.1")
        self.assertEqual(list(self.master.status()["tasks"]), ["web-1.1"])
        self.assertEqual(self.master.end(), 0)

    def test_a_stream_that_breaks_goes_on_after_the_last_acknowledged_update(self):
        self.place()
        first = self.agent()
        run = first.run(t.STATE_STARTING)
        self.master.order("cut", node="a")
        self.assertIsNone(first.next())
        second = self.agent(connection=2, tasks=[held(run, 3, acknowledged=0)])
        known = [(one.task, one.sequence) for one in self.welcome.acknowledged]
        self.assertEqual(known, [(run.task.id, 1)])
        second.update(run.task.id, 2, t.STATE_RUNNING)
        self.assertEqual(second.acknowledged(), (run.task.id, 2))
        # The acknowledgement was lost.
        second.update(run.task.id, 1, t.STATE_STARTING)
        self.assertEqual(second.acknowledged(), (run.task.id, 2))
        second.silence(LEASE / 2)
        # One is missing.
        second.update(run.task.id, 4, t.STATE_KILLED)
        self.assertEqual(second.expect("refused").kind, m.Refused.KIND_PROTOCOL)
        self.assertIsNone(second.next())
        self.assertEqual(self.master.status()["tasks"][run.task.id]["applied"], 2)

    def test_a_master_from_a_copy_takes_the_nodes_word(self):
        self.place()
        first = self.agent()
        run = first.run(t.STATE_STARTING)
        # Another one has acknowledged more since.
        second = self.agent(connection=2, tasks=[held(run, 7, acknowledged=6)])
        self.assertEqual([one.sequence for one in self.welcome.acknowledged], [6])
        second.update(run.task.id, 7, t.STATE_FINISHED, t.Reason.KIND_EXITED)
        self.assertEqual(second.acknowledged(), (run.task.id, 7))

    def test_what_was_never_confirmed_is_ordered_again(self):
        self.place()
        first = self.agent()
        _, run = first.command("run_task")
        first.hang_up()
        second = self.agent(connection=2)
        _, again = second.command("run_task")
        self.assertEqual((again.task.id, again.grant.epoch), (run.task.id, run.grant.epoch))

    def test_what_was_confirmed_and_is_not_there_gets_another_name(self):
        self.place()
        run = self.agent().run(t.STATE_STARTING)
        second = self.agent(connection=2)
        _, again = second.command("run_task")
        self.assertEqual((run.task.id, again.task.id, again.grant.epoch), ("web-0.1", "web-0.2", 2))

    def test_hellos_that_are_refused(self):
        self.agent(incarnation=2, connection=5)
        self.refused("KIND_STALE", incarnation=2, connection=5)
        self.refused("KIND_STALE", incarnation=1, connection=9)
        self.refused("KIND_TAKEN", incarnation=3, instance="another disk")
        self.refused("KIND_VERSION", incarnation=3, version_least=2, version_most=4)
        self.refused("KIND_PROTOCOL", incarnation=3, instance="")
        self.refused("KIND_EPOCH", incarnation=3, epoch_seen=9)
        self.assertEqual(self.master.process.wait(PATIENCE), 0, "it steps down")

    def test_numbers_without_a_gap(self):
        for number in [1, 3]:
            agent = self.agent(incarnation=number)
            agent.say(number=number, ping=m.Ping())
            self.assertEqual(agent.expect("refused").kind, m.Refused.KIND_PROTOCOL)
            self.assertIsNone(agent.next())

    def test_what_a_later_version_says_is_heard(self):
        agent = self.agent()
        unknown = m.FromAgent.FromString(m.FromAgent(number=2, heard=1).SerializeToString() + bytes([0xA2, 0x1F, 1, 65]))
        agent.sent = 2
        agent.outgoing.put(unknown)
        message = agent.next()
        self.assertEqual((message.WhichOneof("what"), message.heard), ("ping", 2))
        self.place()
        run = agent.run()
        agent.update(run.task.id, 1, 99, 99)
        self.assertEqual(agent.acknowledged(), (run.task.id, 1))
        seen = self.master.await_event("update", state="STATE_UNSPECIFIED")
        self.assertEqual(seen["reason"], "KIND_UNSPECIFIED")

    def test_the_second_stream_of_a_node_closes_the_first(self):
        first = self.agent()
        self.agent(connection=2)
        self.assertIsNone(first.next())

    def test_a_node_that_is_not_heard_loses_its_tasks(self):
        self.place()
        first = self.agent("a")
        run = first.run(t.STATE_STARTING, t.STATE_RUNNING)
        other = self.agent("b")
        other.stay(self.over)
        before = time.monotonic()
        self.master.await_event("unreachable", node="a")
        _, again = other.command("run_task")
        self.assertGreater(time.monotonic() - before, LEASE / 2)
        self.assertEqual((again.task.id, again.grant.epoch), ("web-0.2", 2))
        # The stream was closed, and what comes on it is not taken in.
        first.update(run.task.id, 3, t.STATE_FINISHED)
        while first.next() is not None:
            pass
        back = self.agent("a", connection=2, tasks=[held(run, 3, acknowledged=2)])
        command, stop = back.command("stop")
        self.assertEqual(stop.id, run.task.id)
        back.done(command)
        back.update(run.task.id, 3, t.STATE_KILLED, t.Reason.KIND_STOPPED)
        self.assertEqual(back.acknowledged(), (run.task.id, 3))
        _, forget = back.command("forget")
        self.assertEqual(forget.id, run.task.id)

    def test_a_grace_and_a_return_within_it(self):
        self.place(grace=60)
        run = self.agent("a").run(t.STATE_STARTING, t.STATE_RUNNING)
        other = self.agent("b")
        other.stay(self.over)
        self.master.await_event("unreachable", node="a")
        back = self.agent("a", connection=2, tasks=[held(run, 2, acknowledged=2)])
        back.silence(LEASE / 2)
        other.silence(LEASE / 2)

    def test_what_must_not_run_twice_waits_for_the_fence(self):
        task = {**SLEEP, "stopAfterDisconnect": "2s", "kill": {"grace": "1s"}}
        plain = self.agent("plain")
        plain.stay(self.over)
        self.place(task=task, once=True)
        plain.silence(LEASE / 2)
        first = self.agent("a", features=["fence"])
        run = first.run(t.STATE_STARTING, t.STATE_RUNNING)
        silent = time.monotonic()
        other = self.agent("b", features=["fence"])
        other.stay(self.over)
        self.master.await_event("unreachable", node="a")
        _, again = other.command("run_task")
        # (2 s + 1 s) * 1.01 + 1 s, and the last message was sent a little before.
        self.assertGreater(time.monotonic() - silent, 3.9)
        self.assertEqual((run.task.id, again.task.id), ("web-0.1", "web-0.2"))

    def test_what_has_fenced_itself_is_replaced_at_once(self):
        self.place()
        agent = self.agent()
        run = agent.run(t.STATE_STARTING, t.STATE_RUNNING)
        agent.update(run.task.id, 3, t.STATE_KILLED, t.Reason.KIND_DISCONNECTED)
        self.assertEqual(agent.acknowledged(), (run.task.id, 3))
        kinds = [agent.expect("command") for _ in range(2)]
        self.assertEqual([c.WhichOneof("what") for c in kinds], ["forget", "run_task"])
        self.assertEqual(kinds[1].run_task.task.id, "web-0.2")

    def test_a_node_that_refuses_is_not_asked_again(self):
        first = self.agent("a")
        first.stay(self.over)
        self.place()
        command, run = first.command("run_task")
        first.done(command, failure=m.Failure(kind=m.Failure.KIND_CAPACITY, sentence="full"))
        self.master.await_event("placed", place="web-0", node=None)
        _, again = self.agent("b").command("run_task")
        self.assertEqual((run.task.id, again.task.id), ("web-0.1", "web-0.2"))
        first.silence(LEASE / 4)

    def test_requests_fit(self):
        room = lambda cpu: {"capacity": wire.node.Capacity(allocatable=t.Amounts(cpu_milli=cpu))}
        small = self.agent("a", **room(1000))
        small.stay(self.over)
        self.agent("b", **room(4000)).stay(self.over)
        self.place(copies=4, task={**SLEEP, "resources": {"request": {"cpuMilli": "1000"}}})
        for _ in range(4):
            self.master.await_event("placed")
        nodes = [one["node"] for one in self.master.status()["tasks"].values()]
        self.assertEqual(sorted(nodes), ["a", "b", "b", "b"])

    def test_a_drained_node_is_left(self):
        first = self.agent("a")
        first.stay(self.over)
        self.place()
        run = first.run(t.STATE_STARTING, t.STATE_RUNNING)
        other = self.agent("b")
        other.stay(self.over)
        # The node itself wishes it.
        first.say(drain=m.DrainWish(on=True))
        command, drain = first.command("drain")
        self.assertTrue(drain.on)
        first.done(command)
        _, stop = first.command("stop")
        self.assertEqual(stop.id, run.task.id)
        _, again = other.command("run_task")
        self.assertEqual(again.task.id, "web-0.2")

    def test_strangers_go(self):
        tasks = [
            m.HeldTask(id="runs", state=t.STATE_RUNNING, sequence=2),
            m.HeldTask(id="ended", state=t.STATE_FINISHED, sequence=4, acknowledged=4),
            m.HeldTask(id="untold", state=t.STATE_FAILED, sequence=4, acknowledged=2),
        ]
        agent = self.agent(tasks=tasks)
        _, stop = agent.command("stop")
        _, forget = agent.command("forget")
        self.assertEqual((stop.id, forget.id), ("runs", "ended"))
        for number in (3, 4):
            agent.update("untold", number, t.STATE_FAILED)
            self.assertEqual(agent.acknowledged(), ("untold", number))
            _, forget = agent.command("forget")
            self.assertEqual(forget.id, "untold")

    def test_a_reconciliation(self):
        self.place()
        agent = self.agent()
        agent.run(t.STATE_STARTING)
        self.master.order("reconcile", node="a")
        command, reconcile = agent.command("reconcile")
        self.assertEqual([one.id for one in reconcile.expected], ["web-0.1"])
        agent.done(command, tasks=m.Tasks(missing=["web-0.1"]))
        _, again = agent.command("run_task")
        self.assertEqual(again.task.id, "web-0.2")

    def test_a_master_that_was_killed_goes_on(self):
        self.place()
        first = self.agent()
        run = first.run(t.STATE_STARTING, t.STATE_RUNNING)
        epoch = self.master.epoch
        self.master.end(kill=True)
        self.master = self.begin()
        self.assertEqual(self.master.epoch, epoch + 1)
        self.refused("KIND_STALE")
        second = self.agent(connection=2, epoch_seen=epoch, tasks=[held(run, 3, acknowledged=2)])
        self.assertEqual([one.sequence for one in self.welcome.acknowledged], [2])
        second.update(run.task.id, 3, t.STATE_FINISHED, t.Reason.KIND_EXITED)
        self.assertEqual(second.acknowledged(), (run.task.id, 3))
        _, forget = second.command("forget")
        self.assertEqual(forget.id, run.task.id)
        second.silence(LEASE / 4)

    def test_a_fenced_master_steps_down(self):
        self.place()
        agent = self.agent()
        command, _ = agent.command("run_task")
        agent.done(command, failure=m.Failure(kind=m.Failure.KIND_FENCED))
        self.master.await_event("deposed")
        self.assertEqual(self.master.process.wait(PATIENCE), 0)


if __name__ == "__main__":
    unittest.main()
