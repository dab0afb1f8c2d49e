"""The messages of the protocol, made from the .proto files by protoc (Debian: protobuf-compiler) each time."""

import importlib
import pathlib
import subprocess
import sys
import tempfile

import grpc
from google.protobuf import descriptor_pb2, duration_pb2, timestamp_pb2

PROTO = pathlib.Path(__file__).resolve().parents[3] / "agent/protocol/proto"
FILES = ["hafen/v1/task.proto", "hafen/v1/node.proto", "hafen/v1/master.proto"]


def load(proto=PROTO):
    """The modules of the files."""
    with tempfile.TemporaryDirectory() as folder:
        # Debian has the .proto files of Google's own types in another package; the Python library knows them.
        known = descriptor_pb2.FileDescriptorSet()
        for module in (duration_pb2, timestamp_pb2):
            module.DESCRIPTOR.CopyToProto(known.file.add())
        known_file = pathlib.Path(folder, "known")
        known_file.write_bytes(known.SerializeToString())
        words = ["protoc", f"--descriptor_set_in={known_file}", f"--proto_path={proto}"]
        subprocess.run([*words, f"--python_out={folder}", *FILES], check=True)
        sys.path.insert(0, folder)
        try:
            names = [file.removesuffix(".proto").replace("/", ".") + "_pb2" for file in FILES]
            return [importlib.import_module(name) for name in names]
        finally:
            sys.path.remove(folder)


task, node, master = load()

CONNECT = "/hafen.v1.Master/Connect"


def handler(connect):
    """What a gRPC server is given; the other calls are not there."""
    method = grpc.stream_stream_rpc_method_handler(
        connect,
        request_deserializer=master.FromAgent.FromString,
        response_serializer=master.FromMaster.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("hafen.v1.Master", {"Connect": method})


def dial(channel):
    """As an agent does it."""
    return channel.stream_stream(
        CONNECT,
        request_serializer=master.FromAgent.SerializeToString,
        response_deserializer=master.FromMaster.FromString,
    )


def seconds(duration):
    return duration.seconds + duration.nanos / 1e9


def duration(number):
    made = duration_pb2.Duration()
    made.FromNanoseconds(round(number * 1e9))
    return made
