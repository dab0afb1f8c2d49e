#!/usr/bin/python3
"""The files of version 1, with Google's own implementation: what Rust wrote is read, and written again."""

import json
import pathlib
import unittest

from google.protobuf import json_format

import wire

FILES = pathlib.Path(__file__).resolve().parents[3] / "agent/protocol/tests"


def kind(name):
    return getattr(wire.master, name.split(".")[0])


def content(name, folder):
    return (FILES / folder / f"{name}.bin").read_bytes()


def read(name, folder):
    return kind(name).FromString(content(name, folder))


def files(folder):
    return sorted(path.stem for path in (FILES / folder).glob("*.json"))


class Case(unittest.TestCase):
    def said(self, name, folder):
        """What its JSON says; times may be written in several ways there."""
        said = json.loads((FILES / folder / f"{name}.json").read_text())
        return json_format.ParseDict(said, kind(name)())

    def test_version_1(self):
        self.assertGreater(len(files("wire-1")), 40)
        for name in files("wire-1"):
            with self.subTest(name):
                message = read(name, "wire-1")
                self.assertEqual(message, self.said(name, "wire-1"))
                self.assertEqual(message.SerializeToString(deterministic=True), content(name, "wire-1"))

    def test_fields_of_a_later_version(self):
        for name in files("wire-1"):
            with self.subTest(name):
                message = read(name, "wire-later")
                message.DiscardUnknownFields()
                self.assertEqual(message, self.said(name, "wire-1"))

    def test_kinds_of_a_later_version(self):
        self.assertGreater(len(files("wire-later-kinds")), 4)
        for name in files("wire-later-kinds"):
            with self.subTest(name):
                message = read(name, "wire-later-kinds")
                message.DiscardUnknownFields()
                self.assertEqual(message, self.said(name, "wire-later-kinds"))


if __name__ == "__main__":
    unittest.main()
