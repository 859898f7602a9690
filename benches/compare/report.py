"""Tables in Markdown, and the targets with what was found."""

import statistics


def median(values):
    return statistics.median(values)


def spread(values, form="%.2f"):
    """The median, and in brackets the least and the most."""
    values = list(values)
    middle, least, most = (form % value for value in (median(values), min(values), max(values)))
    return f"{middle} ({least}–{most})" if len(values) > 1 else middle


class Report:
    def __init__(self):
        self.lines, self.targets, self.missed, self.failed = [], [], 0, 0

    def heading(self, text):
        self.lines += [f"### {text}", ""]

    def say(self, text):
        self.lines += [text, ""]

    def table(self, head, rows, left=1):
        """`left` columns are text, the others numbers."""
        self.lines.append("| " + " | ".join(head) + " |")
        self.lines.append("| " + " | ".join("---" if n < left else "--:" for n in range(len(head))) + " |")
        self.lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
        self.lines.append("")

    def servers(self, rounds, base, extra=None):
        """One row a server: `rounds` by its name; CPU time against `base` in the same round, and against `extra`."""
        against = [base] + ([extra] if extra else [])
        rows = []
        for name, own in rounds.items():
            ratios = [spread(self.ratios(rounds, name, other)) if other != name else "1" for other in against]
            rows.append([
                name, spread((one.cpu_us for one in own), "%.1f"), *ratios, f"{median(one.rate for one in own):,.0f}",
                "%.2f" % median(one.p50_ms for one in own), "%.2f" % median(one.p99_ms for one in own),
            ])
        head = ["server", "CPU µs a request", *(f"÷ {other}" for other in against), "requests/s", "p50 ms", "p99 ms"]
        self.table(head, rows)

    @staticmethod
    def ratios(rounds, one, other):
        return [a.cpu_us / b.cpu_us for a, b in zip(rounds[one], rounds[other])]

    def target(self, what, found, limit, aim=None, unit=""):
        """`found` may be at most `limit`."""
        holds = found <= limit
        self.missed += not holds
        verdict = "pass" if holds else "MISS"
        if aim is not None and holds:
            verdict += ", aim reached" if found <= aim else ", aim not reached"
        aimed = "" if aim is None else f" (aim {aim}{unit})"
        self.targets.append([what, f"{found:.2f}{unit}", f"≤ {limit}{unit}{aimed}", verdict])

    def text(self):
        lines = list(self.lines)
        if self.targets:
            lines += ["### Targets", ""]
            kept, self.lines = self.lines, lines
            self.table(["target", "found", "bound", "verdict"], self.targets, left=4)
            lines, self.lines = self.lines, kept
            lines.append(f"{len(self.targets)} targets, {self.missed} missed")
        if self.failed:
            lines.append(f"{self.failed} parts failed")
        return "\n".join(lines).strip() + "\n"
