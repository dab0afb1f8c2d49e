#!/usr/bin/python3
"""Somebody between an agent and a master, who makes both look older or newer to each other than they are.

    between.py older|newer LISTEN MASTER

"older" takes away whatever a version 1 without later additions would not say. "newer" adds what only a later version knows:
fields in every message, values of enums, words in place of a Ping, and a command, whose result is printed."""

import sys
from concurrent import futures

import grpc

import wire
from wire import master as m

# Number 1000, three bytes.
UNKNOWN_FIELD = b"\xc2\x3e\x03new"
# By message: what has to be missing without harm.
ADDITIONS = {
    "Hello": ["software", "features", "attributes", "domains", "epoch_seen", "draining"],
    "HeldTask": ["digest"],
    "Capacity": ["reserved", "allocated", "used", "cpu_pressure", "memory_pressure", "io_pressure"],
    "NodeReport": ["tasks", "pressure", "used_firm"],
    "TaskStatus": ["addresses", "ports", "checks"],
    "DrainWish": ["within"],
    "Welcome": ["ping_every", "master", "max_message", "report_every", "masters"],
    "TaskGrant": ["digest"],
    "StopTask": ["epoch", "why"],
    "ForgetTask": ["keep_logs"],
    "Drain": ["sentence"],
}
FUTURE = "of-the-future"


def messages(message):
    """It, and all that are in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for one in value if field.label == field.LABEL_REPEATED else [value]:
            yield from messages(one)


def older(message):
    for part in messages(message):
        for name in ADDITIONS.get(part.DESCRIPTOR.name, []):
            part.ClearField(name)
    return message


def newer(message):
    for part in list(messages(message)):
        if part.DESCRIPTOR.name in ("Reason", "Failure"):
            part.kind = 99
        part.MergeFromString(UNKNOWN_FIELD)
    if message.WhichOneof("what") == "ping":
        message.ClearField("ping")
    return message


class Stream:
    """Numbers are those of each side: the command of the future and its result are between the two of us."""

    def __init__(self):
        self.inserted = self.swallowed = None

    def up(self, message):
        if message.WhichOneof("what") == "result" and message.result.command == FUTURE:
            print("the command of the future:", m.Failure.Kind.Name(message.result.failure.kind), flush=True)
            self.swallowed = message.number
            return None
        if self.inserted and message.heard >= self.inserted:
            message.heard -= 1
        if self.swallowed:
            message.number -= 1
        return newer(message)

    def down(self, message):
        if self.swallowed and message.heard >= self.swallowed:
            message.heard += 1
        if self.inserted:
            message.number += 1
        is_welcome = message.WhichOneof("what") == "welcome"
        yield newer(message)
        if is_welcome:
            self.inserted = message.number + 1
            command = m.Command(id=FUTURE, epoch=message.epoch)
            command.MergeFromString(UNKNOWN_FIELD)
            yield m.FromMaster(number=self.inserted, heard=message.heard, epoch=message.epoch, command=command)


class Between:
    def __init__(self, kind, master):
        self.is_newer, self.channel = kind == "newer", grpc.insecure_channel(master)

    def connect(self, requests, context):
        stream = Stream()
        up = filter(None, map(stream.up, requests)) if self.is_newer else map(older, requests)
        call = wire.dial(self.channel)(up)
        context.add_callback(call.cancel)
        try:
            for message in call:
                yield from stream.down(message) if self.is_newer else [older(message)]
        except grpc.RpcError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"the master is gone: {error.code()}")

    def pass_on(self, requests, context):
        """Bytes, whatever they mean."""
        call = self.channel.stream_stream("/hafen.v1.Master/Channel")(requests)
        context.add_callback(call.cancel)
        yield from call

    def handlers(self):
        own = grpc.stream_stream_rpc_method_handler(self.pass_on)
        return [wire.handler(self.connect), grpc.method_handlers_generic_handler("hafen.v1.Master", {"Channel": own})]


def main():
    kind, listen, master = sys.argv[1:]
    between = Between(kind, master)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
    server.add_generic_rpc_handlers(between.handlers())
    assert server.add_insecure_port(listen), listen
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
