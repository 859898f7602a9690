"""Tables in Markdown, and the targets with their results."""

import statistics


def median(values):
    return statistics.median(values)


def spread(values, form="%.2f"):
    """The median, with minimum and maximum in parentheses."""
    values = list(values)
    middle, least, most = (form % value for value in (median(values), min(values), max(values)))
    return f"{middle} ({least}–{most})" if len(values) > 1 else middle


class Report:
    def __init__(self):
        self.lines, self.targets, self.missed, self.failed = [], [], 0, 0

    def heading(self, text):
        self.lines += [f"### {text}", ""]

    def paragraph(self, text):
        self.lines += [text, ""]

    def table(self, head, rows, left=1):
        """`left` columns are text, the others numbers."""
        self.lines.append("| " + " | ".join(head) + " |")
        self.lines.append("| " + " | ".join("---" if n < left else "--:" for n in range(len(head))) + " |")
        self.lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
        self.lines.append("")

    def servers(self, rounds, base, extra=None):
        """Adds a table with one row per server.

        `rounds` are by server name. CPU time is also shown relative to `base` and `extra` in the same round.
        """
        against = [base] + ([extra] if extra else [])
        rows = []
        for name, own in rounds.items():
            ratios = [spread(self.ratios(rounds, name, other)) if other != name else "1" for other in against]
            rows.append([
                name, spread((one.cpu_us for one in own), "%.1f"), *ratios, f"{median(one.rate for one in own):,.0f}",
                "%.2f" % median(one.p50_ms for one in own), "%.2f" % median(one.p99_ms for one in own),
            ])
        head = ["server", "CPU µs per request", *(f"÷ {other}" for other in against), "requests/s", "p50 ms", "p99 ms"]
        self.table(head, rows)

    @staticmethod
    def ratios(rounds, one, other):
        return [a.cpu_us / b.cpu_us for a, b in zip(rounds[one], rounds[other])]

    def target(self, what, found, limit, aim=None, unit=""):
        """`found` may be at most `limit`."""
        holds = found <= limit
        self.missed += not holds
        result = "pass" if holds else "MISS"
        if aim is not None and holds:
            result += ", aim reached" if found <= aim else ", aim not reached"
        aimed = "" if aim is None else f" (aim {aim}{unit})"
        self.targets.append([what, f"{found:.2f}{unit}", f"≤ {limit}{unit}{aimed}", result])

    def text(self):
        lines = list(self.lines)
        if self.targets:
            lines += ["### Targets", ""]
            kept, self.lines = self.lines, lines
            self.table(["target", "found", "bound", "result"], self.targets, left=4)
            lines, self.lines = self.lines, kept
            lines.append(f"{len(self.targets)} targets, {self.missed} missed")
        if self.failed:
            lines.append(f"{self.failed} parts failed")
        return "\n".join(lines).strip() + "\n"
