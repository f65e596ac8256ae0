"""What rows have shown: kept in a file, so that a long campaign can be run in parts and go on after an
interruption, and written as the table of docs/faults.md."""
import hashlib
import json
import os
import time

GOOD, SKIPPED = "as expected", "skipped"


class Results:
    """Rows of one program, layout and precision; other lines of the file are left alone. Without a
    path they are kept in memory."""

    def __init__(self, path, program, layout, precision):
        with open(program, "rb") as file:
            self.key = {"program": hashlib.sha256(file.read()).hexdigest()[:16], "layout": layout, "precision": precision}
        self.path, self.found = path, {}
        if path and os.path.exists(path):
            with open(path) as file:
                for entry in map(json.loads, file):
                    if all(entry[k] == v for k, v in self.key.items()):
                        self.found[entry["row"], entry["name"]] = entry

    def good(self, row, name):
        return self.found.get((row, name), {}).get("result") == GOOD

    def add(self, row, name, **what):
        entry = {**self.key, "row": row, "name": name, "date": time.strftime("%Y-%m-%d"), **what}
        self.found[row, name] = entry
        if self.path:
            with open(self.path, "a") as file:
                file.write(json.dumps(entry) + "\n")

    def write_table(self, path, rows):
        """rows: (row, name, scenario, ...) in the order of the table; those without a result are named."""
        found = [(scenario, self.found.get((row, name))) for row, name, scenario, *_ in rows]
        played = [entry for _, entry in found if entry]
        dates = sorted({entry["date"] for entry in played}) or ["-"]
        text = (
            "# Faults\n\nWritten by `tests/faults/run build/bin/maniple --results FILE --table docs/faults.md`, "
            f"{' to '.join(sorted({dates[0], dates[-1]}))}: {len(played)} of {len(rows)} rows, all of one program. 4 slices of 2 ranks "
            f"({self.key['layout']} 2, {self.key['precision']}), 150 steps or more, lease 1 s, one machine. In every row, unless it "
            "says otherwise: all steps done, losses and state of each step bit-identical to the run without faults, no step written "
            "twice, commits and the coordinator's log in order, no copies that differ, no silence, checkpoints whole, verdict and exit "
            "code true, no rank crashed by itself, no process left behind (`tests/faults/invariants.py`).\n\n"
            "| row | fault | expected | epoch changes | seen |\n| --- | --- | --- | --- | --- |\n")
        for (row, name, *_), (scenario, entry) in zip(rows, found):
            seen = f"{entry['changes']} | {entry['result']}" if entry else " | not played"
            text += f"| {row} | {name.replace('_', ' ')} | {scenario.__doc__} | {seen} |\n"
        with open(path, "w") as out:
            out.write(text)
