#!/usr/bin/python3
"""A master that is none of Hafen's: written from docs/protocol.md and the .proto files alone.

It runs copies of tasks on nodes, follows them, and gives away what ran on a node that is not heard any more. Orders come on
stdin, what happens goes to stdout, each as a line of JSON. docs/external-masters.md goes through it.
"""

import argparse
import asyncio
import json
import os
import pathlib
import sys
import time
import uuid

import grpc
from google.protobuf import json_format

import wire
from wire import master as m
from wire import task as t

VERSION = 1
ENDS = {t.STATE_FINISHED, t.STATE_FAILED, t.STATE_KILLED, t.STATE_ERROR}
MOST_COMMANDS = 1024
# Between two looks at the clocks.
TICK = 0.05


def now():
    """Counts on while the machine sleeps; asyncio's own clock does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def name_of(kind, value):
    """What a later version says is as if nothing had been said."""
    return kind.Name(value if value in kind.values() else 0)


def say(event, **more):
    print(json.dumps({"event": event, **more}), flush=True)


class Store:
    """What this master may not forget, in one file that is replaced as a whole, and is on the disk before anybody is told."""

    def __init__(self, path):
        self.path = path
        known = json.loads(path.read_text()) if path.exists() else {}
        self.epoch = known.get("epoch", 0)
        # Of each: instance, incarnation, connection.
        self.nodes = known.get("nodes", {})
        # Of each: spec, node, grant, place, applied, state, phase, grace, once, confirmed.
        self.tasks = known.get("tasks", {})
        # The greatest grant of each place.
        self.places = known.get("places", {})

    def save(self):
        draft = self.path.with_suffix(".draft")
        known = {"epoch": self.epoch, "nodes": self.nodes, "tasks": self.tasks, "places": self.places}
        with open(draft, "w") as file:
            json.dump(known, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self.path)
        folder = os.open(self.path.parent, os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


class Refuse(Exception):
    def __init__(self, kind, sentence):
        super().__init__(sentence)
        self.kind = m.Refused.Kind.Value(kind)


class Stream:
    """One Connect of a node."""

    def __init__(self, context, epoch):
        self.context, self.epoch = context, epoch
        self.sent = 0
        self.heard = 0
        # An answer that says nothing but what was heard is due then.
        self.ping_at = None
        # Commands without a result: what each is for.
        self.asked = {}
        self.waiting = []
        self.queue = asyncio.Queue()

    def send(self, **what):
        self.sent += 1
        self.ping_at = None
        message = m.FromMaster(number=self.sent, heard=self.heard, epoch=self.epoch, **what)
        self.queue.put_nowait(message)

    def command(self, purpose, **what):
        if len(self.asked) >= MOST_COMMANDS:
            self.waiting.append((purpose, what))
            return
        command = m.Command(id=uuid.uuid4().hex, epoch=self.epoch, **what)
        self.asked[command.id] = purpose
        self.send(command=command)

    def answered(self, id):
        purpose = self.asked.pop(id, None)
        if self.waiting and purpose is not None:
            self.command(self.waiting[0][0], **self.waiting.pop(0)[1])
        return purpose

    def close(self, why=None):
        """What comes after this is not taken in: the reader sees that it is not the node's stream any more."""
        if why:
            self.context.set_code(grpc.StatusCode.UNAVAILABLE)
            self.context.set_details(why)
        self.queue.put_nowait(None)

    async def write(self):
        """Until it is closed. Only here something is written."""
        while (message := await self.queue.get()) is not None:
            await self.context.write(message)


class Node:
    def __init__(self, name, last):
        self.name = name
        self.stream = None
        # When it was heard last.
        self.last = last
        self.reachable = False
        self.draining = False
        self.features = set()
        self.room = None


class Master:
    def __init__(self, store, lease, ping_every):
        self.store, self.lease, self.ping_every = store, lease, ping_every
        # Somebody else is the master now.
        self.deposed = False
        store.epoch += 1
        store.save()
        # Each has two leases to come back.
        started = now() + lease
        self.nodes = {name: Node(name, started) for name in store.nodes}
        for node in self.nodes.values():
            node.reachable = True

    # Streams

    async def connect(self, _, context):
        stream = Stream(context, self.store.epoch)
        writer = asyncio.ensure_future(stream.write())
        reader = asyncio.ensure_future(self.read(stream, context))
        try:
            # Whoever is first ends it: the agent, or we.
            done, _ = await asyncio.wait([writer, reader], return_when=asyncio.FIRST_COMPLETED)
            if reader in done:
                stream.close()
                await writer
        except (grpc.aio.BaseError, asyncio.CancelledError):
            pass
        finally:
            writer.cancel()
            reader.cancel()
            self.ended(stream)

    async def read(self, stream, context):
        try:
            hello = await context.read()
            if hello == grpc.aio.EOF:
                return
            node = self.welcome(stream, hello)
            while True:
                message = await context.read()
                # The clock first: a message that comes after the lease is not taken in, nor is one of a stream that was replaced.
                self.tick()
                if message == grpc.aio.EOF or node.stream is not stream:
                    return
                self.take(node, stream, message)
        except Refuse as refused:
            say("refused", kind=m.Refused.Kind.Name(refused.kind), sentence=str(refused))
            stream.send(refused=m.Refused(kind=refused.kind, sentence=str(refused), version_least=VERSION, version_most=VERSION))

    def ended(self, stream):
        for node in self.nodes.values():
            if node.stream is stream:
                # No statement about the node: only the end of the lease is.
                node.stream = None
                say("disconnected", node=node.name)

    def welcome(self, stream, first):
        if first.number != 1 or first.WhichOneof("what") != "hello":
            raise Refuse("KIND_PROTOCOL", "the first message is a Hello with number 1")
        hello = first.hello
        if not hello.version_least <= VERSION <= hello.version_most:
            raise Refuse("KIND_VERSION", f"version {VERSION} is spoken here")
        if not hello.node or not hello.instance:
            raise Refuse("KIND_PROTOCOL", "a Hello has a node and an instance")
        if hello.epoch_seen > self.store.epoch:
            self.deposed = True
            raise Refuse("KIND_EPOCH", f"epoch {hello.epoch_seen} was seen, and this is {self.store.epoch}")
        known = self.store.nodes.get(hello.node)
        if known and known["instance"] != hello.instance:
            raise Refuse("KIND_TAKEN", f"another machine is {hello.node}")
        pair = [hello.incarnation, hello.connection]
        if known and pair <= [known["incarnation"], known["connection"]]:
            raise Refuse("KIND_STALE", f"a later connection of {hello.node} is known")
        names = dict(instance=hello.instance, incarnation=hello.incarnation, connection=hello.connection)
        self.store.nodes[hello.node] = names

        node = self.nodes.setdefault(hello.node, Node(hello.node, now()))
        if node.stream is not None:
            node.stream.close("a later stream of this node has come")
        node.stream, node.last, node.reachable = stream, now(), True
        node.draining, node.features = hello.draining, set(hello.features)
        node.room = hello.capacity.allocatable if hello.HasField("capacity") else None
        stream.heard = 1
        applied = []
        for held in hello.tasks:
            task = self.mine(node, held.id)
            if task is not None:
                # More than we know of was acknowledged only if we were restored from a copy: the agent has forgotten that.
                task["applied"] = max(task["applied"], held.acknowledged)
                applied.append(m.Acknowledge(task=held.id, sequence=task["applied"]))
        self.store.save()
        welcome = m.Welcome(version=VERSION, lease=wire.duration(self.lease), acknowledged=applied, master="python")
        if self.ping_every:
            welcome.ping_every.CopyFrom(wire.duration(self.ping_every))
        stream.send(welcome=welcome)
        say("connected", node=node.name, incarnation=hello.incarnation, connection=hello.connection, tasks=[h.id for h in hello.tasks])
        self.compare(node, stream, hello.tasks)
        self.place_all()
        return node

    def take(self, node, stream, message):
        if message.number != stream.heard + 1:
            raise Refuse("KIND_PROTOCOL", f"number {message.number} after {stream.heard}")
        if message.heard > stream.sent:
            raise Refuse("KIND_PROTOCOL", f"message {message.heard} was not sent yet")
        stream.heard, node.last = message.number, now()
        stream.ping_at = stream.ping_at or node.last + self.lease / 20
        kind = message.WhichOneof("what")
        if kind == "hello":
            raise Refuse("KIND_PROTOCOL", "a second Hello")
        if kind == "update":
            self.update(node, stream, message.update)
        elif kind == "result":
            self.result(node, stream, message.result)
        elif kind == "report":
            if message.report.capacity.HasField("allocatable"):
                node.room = message.report.capacity.allocatable
        elif kind == "tasks":
            self.compare(node, stream, message.tasks.tasks)
        elif kind == "drain":
            self.drain(node.name, message.drain.on)
        elif kind == "leaving":
            say("leaving", node=node.name, sentence=message.leaving.sentence)
        # Ping, and what a later version may say: it was heard.

    # Tasks

    def mine(self, node, id):
        """What is known of a task that is on that node."""
        task = self.store.tasks.get(id)
        return task if task and task["node"] == node.name else None

    def compare(self, node, stream, held):
        """The agent's whole truth with ours."""
        listed = {one.id: one for one in held}
        for id, one in listed.items():
            task = self.mine(node, id)
            if task is not None:
                task["confirmed"] = True
            if task is not None and task["phase"] == "wanted":
                continue
            if one.state not in ENDS:
                self.stop_there(stream, id, task)
            elif one.acknowledged >= one.sequence:
                stream.command(("forget", id), forget=m.ForgetTask(id=id))
            # Otherwise its updates come first, and are acknowledged.
        for id, task in list(self.store.tasks.items()):
            if task["node"] != node.name or id in listed:
                continue
            if task["phase"] in ("stopping", "ended"):
                self.gone(id)
            elif task["confirmed"]:
                # It was there, and is not any more: its place gets another one, under another name.
                say("lost", task=id, node=node.name)
                self.gone(id)
                self.place(task)
            else:
                self.run_there(stream, id, task)
        self.store.save()

    def run_there(self, stream, id, task):
        spec = json_format.ParseDict(task["spec"], t.TaskSpec())
        spec.id = id
        run = m.RunTask(task=spec, grant=m.TaskGrant(epoch=task["grant"]))
        stream.command(("run", id), run_task=run)

    def stop_there(self, stream, id, task):
        why = t.Reason.KIND_STOPPED
        stop = m.StopTask(id=id, why=why)
        if task and task.get("stop_grace") is not None:
            stop.grace.CopyFrom(wire.duration(task["stop_grace"]))
        stream.command(("stop", id), stop=stop)

    def update(self, node, stream, update):
        task = self.mine(node, update.task)
        state = name_of(t.State, update.status.state)
        if task is None:
            # Nobody's: it may forget it.
            stream.send(acknowledge=m.Acknowledge(task=update.task, sequence=update.sequence))
            if update.status.state in ENDS:
                stream.command(("forget", update.task), forget=m.ForgetTask(id=update.task))
            else:
                self.stop_there(stream, update.task, None)
            return
        if update.sequence > task["applied"] + 1:
            # The agent begins after the last that is acknowledged.
            raise Refuse("KIND_PROTOCOL", f"{update.task}: update {update.sequence} after {task['applied']}")
        if update.sequence == task["applied"] + 1:
            task["applied"], task["state"], task["confirmed"] = update.sequence, state, True
            ended = update.status.state in ENDS
            wanted = task["phase"] == "wanted"
            if ended:
                task["phase"] = "ended"
            self.store.save()
            reason = update.status.reason
            say("update", task=update.task, node=node.name, sequence=update.sequence, state=state,
                reason=name_of(t.Reason.Kind, reason.kind), sentence=reason.sentence, ready=update.status.ready,
                pid=update.status.pid)
            stream.send(acknowledge=m.Acknowledge(task=update.task, sequence=update.sequence))
            if ended:
                stream.command(("forget", update.task), forget=m.ForgetTask(id=update.task))
                # What fenced itself, or went down with its machine, was meant to run on.
                again = {t.Reason.KIND_DISCONNECTED, t.Reason.KIND_REBOOTED, t.Reason.KIND_PREEMPTED}
                if (wanted and reason.kind in again) or task.get("move"):
                    self.place(task)
            elif update.status.state == t.STATE_LOST and task["phase"] == "wanted":
                # It is not started again there; one more update follows when nothing is left of it.
                task["phase"] = "stopping"
                self.store.save()
                self.stop_there(stream, update.task, task)
        else:
            stream.send(acknowledge=m.Acknowledge(task=update.task, sequence=task["applied"]))
            if task["phase"] == "ended":
                stream.command(("forget", update.task), forget=m.ForgetTask(id=update.task))

    def result(self, node, stream, result):
        purpose = stream.answered(result.command)
        if purpose is None:
            return
        kind, id = purpose
        failed = result.HasField("failure")
        why = name_of(m.Failure.Kind, result.failure.kind) if failed else None
        say("result", node=node.name, command=kind, task=id, failure=why, sentence=result.failure.sentence)
        task = self.mine(node, id)
        if why == "KIND_FENCED" and not (kind == "run" and task and "stopAfterDisconnect" in task["spec"]):
            self.deposed = True
        elif kind == "run" and task is not None:
            if not failed:
                task["confirmed"] = True
                self.store.save()
            elif task["phase"] == "wanted":
                self.gone(id)
                self.place(task, but=task.get("but", []) + [node.name])
        elif kind == "forget" and not failed and task is not None and task["phase"] != "wanted":
            self.gone(id)
        elif kind == "reconcile" and not failed:
            say("reconciled", node=node.name, tasks=[h.id for h in result.tasks.tasks], missing=list(result.tasks.missing))
            self.compare(node, stream, result.tasks.tasks)

    def gone(self, id):
        """Nothing is left of it there."""
        if self.store.tasks.pop(id, None) is not None:
            self.store.save()
            say("gone", task=id)

    # Places

    def place(self, task, but=()):
        """Into the same place, another task: a name is never used twice."""
        name = task["place"]
        node = self.choose(task, but)
        grant = self.store.places.get(name, 0) + 1
        id = f"{name}.{grant}"
        self.store.places[name] = grant
        keep = ("spec", "place", "once", "grace")
        new = {key: task[key] for key in keep}
        new.update(node=node.name if node else None, grant=grant, phase="wanted", state=None, applied=0, confirmed=False, but=list(but))
        self.store.tasks[id] = new
        # Before the order goes out.
        self.store.save()
        say("placed", task=id, place=name, node=new["node"], grant=grant)
        if node is not None and node.stream is not None:
            self.run_there(node.stream, id, new)

    def place_all(self):
        """What found no node before."""
        for id, task in list(self.store.tasks.items()):
            if task["node"] is None and task["phase"] == "wanted":
                node = self.choose(task, task["but"])
                if node is not None:
                    task["node"] = node.name
                    self.store.save()
                    say("placed", task=id, place=task["place"], node=node.name, grant=task["grant"])
                    self.run_there(node.stream, id, task)

    def choose(self, task, but):
        """The node with the fewest of ours on which the requests fit."""
        def load(node):
            return sum(task["node"] == node.name for task in self.store.tasks.values())

        def fits(node):
            if node.room is None:
                return True
            for field in ("cpu_milli", "memory", "disk", "pids"):
                if not node.room.HasField(field):
                    continue
                there = [one for one in self.store.tasks.values() if one["node"] == node.name]
                asked = sum(requested(one["spec"], field) for one in [*there, task])
                if asked > getattr(node.room, field):
                    return False
            return True

        nodes = [
            node for node in self.nodes.values()
            if node.stream is not None and not node.draining and node.name not in but
            and (not task["once"] or "fence" in node.features) and fits(node)
        ]
        return min(nodes, key=lambda node: (load(node), node.name), default=None)

    def replace(self, id):
        """What is in its place from now on is another one. The old one is stopped as soon as its node is heard."""
        task = self.store.tasks[id]
        task["phase"] = "stopping"
        self.store.save()
        say("replaced", task=id, node=task["node"])
        self.place(task)

    def stop(self, name, grace=None):
        """A task, or all in a place."""
        for id, task in list(self.store.tasks.items()):
            if name not in (id, task["place"]) or task["phase"] != "wanted":
                continue
            if task["node"] is None:
                self.gone(id)
                continue
            task["phase"], task["stop_grace"] = "stopping", grace
            self.store.save()
            stream = self.nodes[task["node"]].stream
            if stream is not None:
                self.stop_there(stream, id, task)

    def drain(self, name, on):
        node = self.nodes[name]
        node.draining = on
        if node.stream is not None:
            node.stream.command(("drain", name), drain=m.Drain(on=on, sentence="asked for"))
        if not on:
            self.place_all()
        else:
            for id, task in list(self.store.tasks.items()):
                if task["node"] == name and task["phase"] == "wanted":
                    self.move(node, id, task)

    def move(self, node, id, task):
        # One that must not run twice is replaced when it has ended.
        if task["once"]:
            task["phase"], task["move"] = "stopping", True
            self.store.save()
        else:
            self.replace(id)
        if node.stream is not None:
            self.stop_there(node.stream, id, task)

    # Time

    def tick(self):
        moment = now()
        for node in self.nodes.values():
            if node.reachable and moment - node.last > self.lease:
                node.reachable = False
                say("unreachable", node=node.name)
                if node.stream is not None:
                    node.stream.close("nothing was heard for the whole lease")
                    node.stream = None
            if node.stream is not None and node.stream.ping_at is not None and moment >= node.stream.ping_at:
                node.stream.send(ping=m.Ping())
            if not node.reachable:
                self.give_away(node, moment - node.last)

    def give_away(self, node, silence):
        """Also what was never confirmed: the order may have arrived, and nobody could say so."""
        for id, task in list(self.store.tasks.items()):
            if task["node"] == node.name and task["phase"] == "wanted" and silence > self.patience(task):
                self.replace(id)

    def patience(self, task):
        if not task["once"]:
            return self.lease + task["grace"]
        spec = json_format.ParseDict(task["spec"], t.TaskSpec())
        grace = wire.seconds(spec.kill.grace) if spec.kill.HasField("grace") else 10
        return max(self.lease, (wire.seconds(spec.stop_after_disconnect) + grace) * 1.01 + 1)

    # Orders

    def order(self, order):
        kind = order.pop("do")
        if kind == "place":
            spec = order["task"]
            json_format.ParseDict(spec, t.TaskSpec())
            for number in range(order.get("copies", 1)):
                place = f"{order['name']}-{number}"
                self.place(dict(spec=spec, place=place, once=order.get("once", False), grace=order.get("grace", 0)))
        elif kind == "stop":
            self.stop(order["name"], order.get("grace"))
        elif kind == "drain":
            self.drain(order["node"], order.get("on", True))
        elif kind == "reconcile":
            node = self.nodes[order["node"]]
            expected = [m.HeldTask(id=id, epoch=task["grant"]) for id, task in self.store.tasks.items() if task["node"] == node.name]
            node.stream.command(("reconcile", node.name), reconcile=m.Reconcile(expected=expected))
        elif kind == "cut":
            # As a network does it.
            self.nodes[order["node"]].stream.close("as it was ordered")
        elif kind == "status":
            tasks = {id: {k: v for k, v in task.items() if k != "spec"} for id, task in self.store.tasks.items()}
            nodes = {n.name: dict(reachable=n.reachable, connected=n.stream is not None, draining=n.draining) for n in self.nodes.values()}
            say("status", epoch=self.store.epoch, tasks=tasks, nodes=nodes)
        else:
            say("wrong", order=kind)


def requested(spec, field):
    task = json_format.ParseDict(spec, t.TaskSpec())
    return getattr(task.resources.request, field)


async def listen(options):
    keeper = Master(Store(options.state), options.lease, options.ping_every)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 4 << 20)])
    server.add_generic_rpc_handlers((wire.handler(keeper.connect),))
    if options.tls:
        key, certificate, authority = [path.read_bytes() for path in options.tls]
        secure = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
        port = server.add_secure_port(options.listen, secure)
    else:
        port = server.add_insecure_port(options.listen)
    await server.start()
    say("listening", port=port, epoch=keeper.store.epoch)

    lines = asyncio.Queue()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def read_orders():
        while line := await reader.readline():
            lines.put_nowait(json.loads(line))
        lines.put_nowait(None)

    reading = asyncio.ensure_future(read_orders())
    while not keeper.deposed:
        try:
            order = await asyncio.wait_for(lines.get(), TICK)
        except asyncio.TimeoutError:
            keeper.tick()
            continue
        if order is None:
            break
        try:
            keeper.order(order)
        except (KeyError, AttributeError, json_format.ParseError) as e:
            say("wrong", order=order, why=repr(e))
    if keeper.deposed:
        say("deposed", epoch=keeper.store.epoch)
    reading.cancel()
    await server.stop(TICK)


def main():
    parser = argparse.ArgumentParser(description="A small master: orders as JSON on stdin, events as JSON on stdout.")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--state", type=pathlib.Path, required=True, help="the file that it may not lose")
    parser.add_argument("--lease", type=float, default=10, help="seconds")
    parser.add_argument("--ping-every", type=float, help="seconds")
    parser.add_argument("--tls", type=pathlib.Path, nargs=3, metavar=("KEY", "CERTIFICATE", "AUTHORITY"))
    asyncio.run(listen(parser.parse_args()))


if __name__ == "__main__":
    main()
