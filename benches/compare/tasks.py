"""Tasks: id, record, request and response follow from the number of a task."""

import json
import os

TOKEN = "compare-token"
STORED_AT = 1767119785


def template(repository):
    """The vendor's example of a finished task in one line, with `{id}` in place of its id."""
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
        """Has to match `load.lua`."""
        return "%08x-5eed-4000-8000-%012x" % (number, number)

    def body_of(self, number):
        return self.text.replace("{id}", self.id_of(number)).encode()

    def single(self, number):
        """Request and expected response of a lookup of one task."""
        return b'{"action":"retrieve","id":"%s"}' % self.id_of(number).encode(), self.body_of(number)

    def batch(self, numbers):
        numbers = list(numbers)
        ids = ",".join('"%s"' % self.id_of(number) for number in numbers)
        items = b",".join(self.body_of(number) for number in numbers)
        request = '{"action":"retrieve_batch","ids":[%s]}' % ids
        return request.encode(), b'{"items":[%s],"count":%d}' % (items, len(numbers))

    def export(self, output, first, count):
        """Writes lines for `refrain tasks import`."""
        line = json.dumps({"service": "producer", "id": "{id}", "stored_at": STORED_AT, "text": self.text},
                          ensure_ascii=False)
        before = len(line) - len(line.lstrip())
        for number in range(first, first + count):
            output.write(line[before:].replace("{id}", self.id_of(number)).encode() + b"\n")
