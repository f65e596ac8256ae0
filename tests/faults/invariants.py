"""The invariants of shared/spec/elastic.md section 8, as far as what a job leaves behind can show them:
its rows, its events, the journals of its slices, the coordinator's log, its checkpoints, its processes.
Journals and log are those of the folder's last launch."""
import calendar
import glob
import os
import signal
import struct
import subprocess
import time

from job import lines

# Numbers that must have the same bits as in the run without faults (I1).
EXACT = ("loss", "grad_norm", "lr", "tokens", "aux_loss", "z_loss", "state_fingerprint")
STARTED, EPOCH, VERDICT = 0, 1, 8  # kinds of records in the coordinator's log (src/elastic/history.h)
START_SECONDS = 10  # a slice that starts says nothing until its first unit: LibTorch, weights, data


class Epoch:
    """The first fields of a record of the log."""

    def __init__(self, fields):
        self.incarnation, self.number, lineage, self.committed = struct.unpack_from("<QQQq", fields)
        self.loads_checkpoint = lineage == self.number


def records(log):
    """(kind, fields as bytes) of a coordinator's log; what is behind the last whole record is left out."""
    at, found = 8, []
    while at + 14 <= len(log):
        size = struct.unpack_from("<I", log, at)[0]
        if size == 0 or at + 12 + size > len(log):
            break
        found.append((log[at + 13], log[at + 14 : at + 12 + size]))
        at += 12 + size
    return found


def epochs_of(log):
    return [Epoch(fields) for kind, fields in records(log) if kind == EPOCH]


def same_bits(job, reference, differs_from):
    """I1. From step `differs_from` on the rows are expected to differ."""
    compared = [(step, key, row.get(key), reference[step].get(key)) for step, row in job.rows().items() for key in EXACT]
    for step, key, seen, wanted in compared:
        if seen != wanted and not (differs_from and step >= differs_from):
            return [f"I1: step {step}: {key} is {seen}, without faults {wanted}"]
    if differs_from and all(seen == wanted for _, _, seen, wanted in compared):
        return ["the fault has changed nothing"]
    return []


def once_and_in_order(job, reference, complete):
    """I2."""
    steps = [r["step"] for r in lines(job.run + "/metrics.jsonl") if "loss" in r]
    if steps != list(range(1, len(steps) + 1)):
        return ["I2: steps are not written once and in order"]
    if complete and len(steps) != len(reference):
        return [f"I2: {len(steps)} of {len(reference)} steps are written"]
    return []


def commits_in_order(job, epochs):
    """I3 and I5: commits of a life increase by one from what it restored; it commits in epochs that it
    has restored only; and a step that it says it has committed is not taken back by an epoch in which it
    takes part (an answer to STOP after which it committed would be), but by a rollback."""
    bad = [f"I3: {event['text']}" for event in job.events("row_differs")]
    for slice in range(16):
        life, epoch, last = None, None, None
        for e in job.journal(slice):
            if e["life"] != life:
                life, epoch, last = e["life"], None, None
            if e["event"] == "restored":
                back = any(n.loads_checkpoint for n in epochs if (epoch or 0) < n.number <= e["epoch"])
                if last is not None and e["step"] < last and not back:
                    bad.append(f"I5: slice {slice} has committed {last} and begins epoch {e['epoch']} at {e['step']}")
                epoch, last = e["epoch"], e["step"]
            elif e["event"] == "commit":
                if e["epoch"] != epoch:  # only the missing update of K comes before an epoch is restored
                    bad += [f"I5: slice {slice} commits {e['step']} in epoch {e['epoch']}, which is not K"
                            for n in epochs if n.number == e["epoch"] and n.committed != e["step"]]
                if last is not None and e["step"] != last + 1:
                    bad.append(f"I3: slice {slice} commits {e['step']} after {last}")
                last = e["step"]
    return bad


def replicas_equal(job):
    """I4: every vote compares all copies of every block and of the parameters, and a block that lacks a
    holder does not add up either. Nobody found a difference, unless bits were flipped on purpose."""
    if job.flips:
        return []
    found = [e["text"] for e in job.events() if e["event"].startswith("sdc_")]
    return [f"I4: {found[0]}"] if found else []


def log_in_order(job):
    """I6: incarnations and epochs count up, each epoch belongs to the incarnation that wrote it, K falls
    by a rollback only, and a coordinator that was killed left a prefix of what its successors have."""
    bad, incarnation, before = [], 0, None
    log = job.decision_log()
    for kind, fields in records(log):
        if kind == STARTED:
            started = struct.unpack_from("<Q", fields)[0]
            if started <= incarnation:
                bad.append(f"I6: incarnation {started} after {incarnation}")
            incarnation = started
        elif kind == EPOCH:
            epoch = Epoch(fields)
            if epoch.incarnation != incarnation:
                bad.append(f"I6: epoch {epoch.number} of incarnation {epoch.incarnation} in {incarnation}")
            if before and epoch.number != before.number + 1:
                bad.append(f"I6: epoch {epoch.number} after {before.number}")
            if before and epoch.committed < before.committed and not epoch.loads_checkpoint:
                bad.append(f"I3: K falls from {before.committed} to {epoch.committed} in epoch {epoch.number}")
            before = epoch
    logs = [log] + [open(path, "rb").read() for path in glob.glob(job.run + "/elastic/decisions.log.*")]
    for snapshot in job.snapshots:
        known = records(snapshot)
        if not any(records(one)[: len(known)] == known for one in logs):
            bad.append("I6: a restarted coordinator has another history than the one that was killed")
    return bad


def no_silence(job):
    """I7: slices and coordinator do not fall silent together for longer than the hang limit, or than a
    start takes."""
    offset = time.time() - time.monotonic()
    journals = [job.journal(slice) for slice in range(16)]
    moments = [e["us"] / 1e6 for journal in journals for e in journal]
    gaps = [b["us"] - a["us"] for journal in journals for a, b in zip(journal, journal[1:]) if b["event"] == "commit"]
    if not moments or "LD_PRELOAD" in job.environment:  # clocks that jump
        return []
    began = min(moments)
    for e in job.events():
        whole, milliseconds = e["time"].rstrip("Z").split(".")
        at = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float("0." + milliseconds)
        moments.append(at - offset)
    moments = sorted(m for m in moments if m >= began)
    lease = next((float(o.split("=")[1]) for o in reversed(job.overrides) if o.startswith("elastic.lease=")), 1.0)
    limit = max(3 * lease, 20e-6 * sorted(gaps)[len(gaps) // 2] if gaps else 0) + START_SECONDS
    longest = max((b - a for a, b in zip(moments, moments[1:])), default=0)
    return [f"I7: nothing was heard for {longest:.1f} s, the limit is {limit:.1f}"] if longest > limit else []


def checkpoints_whole(job):
    """I8: the newest checkpoint is complete and its hashes are right."""
    if not glob.glob(job.run + "/checkpoints/step-*/manifest.json"):
        return []
    done = subprocess.run([job.program, "verify", job.run], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return [f"I8: {done.stdout.strip()}"] if done.returncode else []


def nothing_left(job):
    """I9: no process outlives the job, and none crashed by itself. (leaks.py looks at the rest.)"""
    bad = []
    for slice in range(16):
        log = job.run + f"/logs/slice-{slice}.log"
        text = open(log, errors="replace").read() if os.path.exists(log) else ""
        if "Signal: Segmentation fault" in text or "Signal: Bus error" in text:  # nobody sends these
            bad.append(f"a rank of slice {slice} crashed by itself")
    left = job.processes()
    if left:
        time.sleep(1)
        left = job.processes()
    if left:
        bad.append(f"I9: {len(left)} processes are left: {left}")
        for pid, _, _ in left:
            job.send(pid, signal.SIGKILL)
    return bad


def verdict_true(job, code, expected):
    """I10: the exit code is the expected one and that of the verdict in the log."""
    if code != expected:
        return [f"I10: exit code {code}, expected {expected}"]
    said = [struct.unpack_from("<i", fields)[0] for kind, fields in records(job.decision_log()) if kind == VERDICT]
    return [f"I10: exit code {code}, the log's verdict is {said[-1]}"] if said and said[-1] != code else []


def check(job, reference, code, expected_code=0, complete=True, differs_from=None):
    """The violated invariants; `reference`: rows of the run without faults."""
    epochs = epochs_of(job.decision_log())
    return [*verdict_true(job, code, expected_code), *same_bits(job, reference, differs_from),
            *once_and_in_order(job, reference, complete), *commits_in_order(job, epochs), *replicas_equal(job),
            *log_in_order(job), *no_silence(job), *checkpoints_whole(job), *nothing_left(job)]
