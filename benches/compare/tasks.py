"""The tasks that are asked for: text, bodies, answers and exports follow from a task's number alone."""

import json
import os

TOKEN = "compare-token"
STORED_AT = 1767119785


def template(repository):
    """The vendor's example of a finished task, in one line, with `{id}` where its id stands."""
    with open(os.path.join(repository, "tests/fixtures/retrieve.json"), encoding="utf-8") as file:
        task = json.load(file)
    text = json.dumps(task, ensure_ascii=False, separators=(",", ":"))
    return text.replace(task["id"], "{id}")


class Tasks:
    def __init__(self, text):
        self.text = text
        self.size = len(self.body_of(0))

    @staticmethod
    def id_of(number):
        """As `load.lua` makes it."""
        return "%08x-5eed-4000-8000-%012x" % (number, number)

    def body_of(self, number):
        return self.text.replace("{id}", self.id_of(number)).encode()

    def single(self, number):
        """A look-up of one task: what is sent, and what has to come."""
        return b'{"action":"retrieve","id":"%s"}' % self.id_of(number).encode(), self.body_of(number)

    def batch(self, numbers):
        numbers = list(numbers)
        ids = ",".join('"%s"' % self.id_of(number) for number in numbers)
        items = b",".join(self.body_of(number) for number in numbers)
        asked = '{"action":"retrieve_batch","ids":[%s]}' % ids
        return asked.encode(), b'{"items":[%s],"count":%d}' % (items, len(numbers))

    def export(self, output, first, count):
        """Lines for `refrain tasks import`."""
        line = json.dumps({"service": "producer", "id": "{id}", "stored_at": STORED_AT, "text": self.text},
                          ensure_ascii=False)
        before = len(line) - len(line.lstrip())
        for number in range(first, first + count):
            output.write(line[before:].replace("{id}", self.id_of(number)).encode() + b"\n")
