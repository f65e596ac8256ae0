#!/usr/bin/env python3
"""The checker of the fault harness finds what it is there for: a small made-up run folder, damaged in
one way at a time."""
import json
import os
import struct
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import invariants
from job import Job

STEPS, K = 6, 3


def record(kind, fields):
    payload = bytes([2, kind]) + fields
    return struct.pack("<IQ", len(payload), 0) + payload


def epoch(number, committed, incarnation=1, lineage=1):
    return record(invariants.EPOCH, struct.pack("<QQQq", incarnation, number, lineage, committed))


def write(path, entries):
    with open(path, "w") as out:
        out.writelines(json.dumps(e) + "\n" for e in entries)


class Invariants(unittest.TestCase):
    """Two slices, six steps, a second epoch from step 3 on, in which slice 0 has committed and slice 1 has
    not."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.job = Job("true", "", folder.name + "/run")
        os.makedirs(self.job.run + "/elastic")
        self.rows = [{"step": s, "loss": 1 / s, "grad_norm": 2.0 / s} for s in range(1, STEPS + 1)]
        self.events = [{"time": "2026-01-01T00:00:00.000Z", "event": "done", "text": ""}]
        self.journals = [self.journal(0), self.journal(1)]
        self.log = [record(invariants.STARTED, struct.pack("<Q", 1)), epoch(1, 0), epoch(2, K),
                    record(invariants.VERDICT, struct.pack("<i", 0))]

    def journal(self, slice):
        ahead = K if slice == 0 else K - 1
        entries = [("restored", 1, 0), *(("commit", 1, s) for s in range(1, ahead + 1)), ("halt", 1, ahead),
                   *(("commit", 2, s) for s in range(ahead + 1, K + 1)), ("restored", 2, K),
                   *(("commit", 2, s) for s in range(K + 1, STEPS + 1))]
        return [{"us": 1000 * i, "life": 1, "event": e, "epoch": n, "step": s} for i, (e, n, s) in enumerate(entries)]

    def found(self, code=0, **options):
        write(self.job.run + "/metrics.jsonl", self.rows)
        write(self.job.run + "/events.jsonl", self.events)
        for slice, entries in enumerate(self.journals):
            write(f"{self.job.run}/elastic/slice-{slice}.jsonl", entries)
        with open(self.job.run + "/elastic/decisions.log", "wb") as out:
            out.write(b"MANIPLE1" + b"".join(self.log))
        reference = {s: {"step": s, "loss": 1 / s, "grad_norm": 2.0 / s} for s in range(1, STEPS + 1)}
        return [text.split(":")[0] for text in invariants.check(self.job, reference, code, **options)]

    def test_nothing_is_wrong(self):
        self.assertEqual(self.found(), [])
        self.job.snapshots = [b"MANIPLE1" + b"".join(self.log[:2]), b"MANIPLE1" + b"".join(self.log[:2]) + b"\5"]
        self.assertEqual(self.found(), [])

    def test_another_loss(self):
        self.rows[2]["loss"] += 1e-9
        self.assertEqual(self.found(), ["I1"])
        self.assertEqual(self.found(differs_from=3), [])
        self.assertEqual(self.found(differs_from=4), ["I1"])

    def test_a_fault_that_has_changed_nothing(self):
        self.assertEqual(self.found(differs_from=4), ["the fault has changed nothing"])

    def test_rows(self):
        self.rows.insert(3, self.rows[2])
        self.assertEqual(self.found(), ["I2"])
        self.rows = self.rows[:3]
        self.assertEqual(self.found(), ["I2"])
        self.assertEqual(self.found(complete=False), [])

    def test_a_commit_is_left_out(self):
        del self.journals[1][-2]
        self.assertEqual(self.found(), ["I3"])

    def test_a_commit_after_the_answer_to_stop(self):
        at = [e["event"] for e in self.journals[0]].index("halt") + 1
        self.journals[0].insert(at, {"us": 1, "life": 1, "event": "commit", "epoch": 1, "step": K + 1})
        self.assertIn("I5", self.found())

    def test_a_commit_in_an_epoch_that_is_not_restored(self):
        self.journals[1][K]["step"], self.journals[1][K]["event"] = K, "commit"
        self.journals[1][K]["epoch"] = 1
        self.journals[1][K + 1]["step"] = K + 1
        self.assertIn("I5", self.found())

    def test_a_rollback_takes_commits_back(self):
        self.log[2] = epoch(2, 0, lineage=2)
        self.journals = [[e for e in self.journal(0) if e["epoch"] == 1]]
        self.journals[0] += [{"us": 0, "life": 1, "event": "restored", "epoch": 2, "step": 0}]
        self.assertEqual(self.found(), [])
        self.log[2] = epoch(2, 0)
        self.assertEqual(self.found(), ["I5"])

    def test_copies_differ(self):
        self.events.insert(0, {"time": "2026-01-01T00:00:00.000Z", "event": "sdc_copies", "text": "x"})
        self.assertEqual(self.found(), ["I4"])
        self.job.flips = True
        self.assertEqual(self.found(), [])

    def test_the_log(self):
        good = list(self.log)
        for damaged in (epoch(3, K), epoch(2, K, incarnation=2)):
            self.log[2] = damaged
            self.assertEqual(self.found(), ["I6"])
        self.log = [*good[:3], epoch(3, K - 1), good[3]]
        self.assertEqual(self.found(), ["I3"])
        self.log = [good[0], *good]
        self.assertEqual(self.found(), ["I6"])
        self.log, self.job.snapshots = good, [b"MANIPLE1" + good[0] + epoch(1, 1)]
        self.assertEqual(self.found(), ["I6"])

    def test_silence(self):
        for e in self.journals[0] + self.journals[1]:
            if e["epoch"] == 2:
                e["us"] += 60_000_000
        self.assertEqual(self.found(), ["I7"])

    def test_a_checkpoint_that_cannot_be_verified(self):
        os.makedirs(self.job.run + "/checkpoints/step-3")
        write(self.job.run + "/checkpoints/step-3/manifest.json", [])
        self.assertEqual(self.found(), [])
        self.job.program = "false"
        self.assertEqual(self.found(), ["I8"])

    def test_the_verdict(self):
        self.assertEqual(self.found(code=70), ["I10"])
        self.log[3] = record(invariants.VERDICT, struct.pack("<i", 80))
        self.assertEqual(self.found(), ["I10"])


if __name__ == "__main__":
    unittest.main()
