"""Faults and what is expected of the job (rows of shared/spec/elastic.md section 9). A scenario gets
a started job and disturbs it; its docstring is the expectation. It may return the exit code that is
expected instead of 0. Each ends with all steps done, bit-identical, unless it says otherwise."""
import os
import random
import signal
import socket
import subprocess
import time

ROWS = []  # (row, name, function, options)


def fault(row, **options):
    def note(function):
        ROWS.append((row, function.__name__, function, options))
        return function
    return note


def ended(job, slice, count=1):
    return sum(f"slice {slice} life" in e["text"] for e in job.events("slice_ended")) >= count


@fault("F1", short=True)
def one_rank_killed(job, draw):
    """the slice is dropped, one epoch change"""
    job.until_step(5)
    job.kill("train", draw.randrange(4), draw.randrange(2))
    job.until_epochs(2)


@fault("F1")
def one_rank_killed_five_times(job, draw):
    """every time one slice is dropped; they come back"""
    for n in range(5):
        job.until_step(5 + 20 * n)
        time.sleep(draw.uniform(0, 0.2))
        alive = sorted({s for _, _, s in job.processes("train")})
        if len(alive) > 1:
            job.kill("train", draw.choice(alive), draw.randrange(2))


@fault("F2")
def mpirun_killed(job, draw):
    """one epoch change, no orphan"""
    job.until_step(5)
    job.kill("mpirun", draw.randrange(4))
    job.until_epochs(2)


@fault("F2")
def agent_killed(job, draw):
    """one epoch change, no orphan"""
    job.until_step(5)
    job.kill("agent", draw.randrange(4))
    job.until_epochs(2)


@fault("F2")
def whole_slice_killed(job, draw):
    """one epoch change, no orphan"""
    job.until_step(5)
    slice = draw.randrange(4)
    for role in ("train", "mpirun"):
        for pid, _, _ in job.processes(role, slice):
            job.send(pid, signal.SIGKILL)
    job.until_epochs(2)


@fault("F3")
def rank_aborts(job, draw):
    """as a kill"""
    job.until_step(5)
    job.kill("train", draw.randrange(4), draw.randrange(2), signal.SIGABRT)
    job.until_epochs(2)


@fault("F4")
def rank_stopped_for_ever(job, draw):
    """dropped at the lease"""
    job.until_step(5)
    job.kill("train", draw.randrange(4), draw.randrange(2), signal.SIGSTOP)
    job.until_epochs(2)


@fault("F5")
def rank_stopped_for_half_a_lease(job, draw):
    """nobody is dropped"""
    job.until_step(5)
    pid = job.pid("train", draw.randrange(4), draw.randrange(2))
    job.send(pid, signal.SIGSTOP)
    time.sleep(0.4)
    job.send(pid, signal.SIGCONT)
    job.until_step(40)
    assert not job.events("slice_dropped"), "a slice was dropped"


@fault("F6")
def slice_stopped_beyond_the_lease(job, draw):
    """dropped; what it does when it goes on does not count"""
    job.until_step(5)
    pids = [p for p, _, _ in job.processes("train", 1)] + [job.pid("agent", 1)]
    for pid in pids:
        job.send(pid, signal.SIGSTOP)
    job.until_epochs(2)
    for pid in pids:
        job.send(pid, signal.SIGCONT)


@fault("F12", short=True)
def coordinator_killed(job, draw):
    """training goes on, the restarted one continues the history"""
    job.until_step(5)
    job.kill("coordinator")
    job.until_step(40)
    assert len(job.epochs()) == 1, "the epoch was changed"


@fault("F12")
def coordinator_killed_in_a_recovery(job, draw):
    """the recovery is completed"""
    job.until_step(5)
    job.kill("train", 2)
    time.sleep(draw.uniform(0, 0.01))
    job.kill("coordinator")
    job.until_epochs(2)


@fault("F13")
def two_slices_killed_at_once(job, draw):
    """goes on, or goes back to the start and comes to the same end"""
    job.until_step(5)
    a, b = draw.sample(range(4), 2)
    job.kill("train", a)
    job.kill("train", b, 1)
    job.until_epochs(2)


@fault("F14")
def second_kill_in_the_recovery(job, draw):
    """the next epoch, no deadlock"""
    job.until_step(5)
    job.kill("train", 0)
    job.until_event("stop")
    time.sleep(draw.uniform(0, 0.03))
    job.kill("train", 1, 1)
    job.until_step(30)


@fault("F15", overrides=["checkpoint.every=5"])
def slices_killed_while_checkpoints_are_written(job, draw):
    """checkpoints stay whole"""
    for n in range(3):
        job.until_step(10 + 25 * n)
        time.sleep(draw.uniform(0, 0.1))
        alive = sorted({s for _, _, s in job.processes("train")})
        if len(alive) > 1:
            job.kill("train", draw.choice(alive))


@fault("F16", steps=400)
def joining_slice_killed(job, draw):
    """the join is given up, a later one succeeds"""
    job.until_step(5)
    job.kill("train", 3)
    job.until(lambda: any(e["event"] == "register" and e["life"] == 2 for e in job.journal(3)), 60, "a new life")
    job.until(lambda: job.events("stop_after"), 60, "the join")
    time.sleep(draw.uniform(0, 0.05))
    job.kill("train", 3)
    job.until_epochs(3)


@fault("F17", overrides=["elastic.max_restarts=2"])
def flapping_slice(job, draw):
    """banned after max_restarts failures; the others go on"""
    for n in range(3):
        job.until(lambda: job.pid("train", 3) is not None, 60, "slice 3")
        time.sleep(0.2)
        job.kill("train", 3)
        job.until(lambda: ended(job, 3, n + 1), 60, "its end")
    job.until_event("slice_banned")


@fault("F18")
def all_but_one_die(job, draw):
    """goes on with one slice or goes back; same end"""
    job.until_step(5)
    for slice in (0, 1, 3):
        job.kill("train", slice)
    job.until_epochs(2)


@fault("F18", short=True, overrides=["checkpoint.every=10"])
def all_die(job, draw):
    """goes back to the newest checkpoint"""
    job.until_step(25)
    for slice in range(4):
        job.kill("train", slice)
    job.until_event("rollback")


@fault("F18", overrides=["checkpoint.every=10"])
def launcher_killed_and_job_started_again(job, draw):
    """no orphan; the same command goes on from the newest checkpoint"""
    job.until_step(25)
    job.process.kill()
    job.process.wait()
    time.sleep(1.5)
    assert not job.processes(), f"left: {job.processes()}"
    job.start()


@fault("F20", overrides=["checkpoint.every=10", "checkpoint.keep=3"])
def newest_checkpoint_damaged(job, draw):
    """refused with its name, the one before is used"""
    job.until_step(45)
    job.process.terminate()
    assert job.wait(60) == 75, "TERM ends with 75"
    newest = sorted(f for f in os.listdir(job.run + "/checkpoints") if f.startswith("step-"))[-1]
    part = job.run + f"/checkpoints/{newest}/part-00000.h5"
    with open(part, "r+b") as file:
        file.seek(os.path.getsize(part) // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 64]))
    job.start()
    job.until_step(60)
    output = open(job.run + ".out").read()
    assert newest in output and "resuming after step" in output, "the damaged one is not named"


def said(job, event):
    return " ".join(e["text"] for e in job.events(event))


def flipped(what, element, bit):
    @fault("F22", overrides=[f"faults.flip=1:1:20:{what}:{element}:{bit}"])
    def bit_flipped(job, draw):
        """the slice is named and leaves before anybody uses its copy"""
        job.until_epochs(2)
        job.until(lambda: ended(job, 1), 20, "its end")
        text = said(job, "slice_ended") + said(job, "sdc_copies")
        named = "of the state after step 19 differ: slice 1" if what == "parameter" else \
            "slice 1 position 1: memory has changed since step 19: master, m or v"
        assert named in text, "the flip is not named: " + text
    ROWS[-1] = (ROWS[-1][0], f"bit_{bit}_flipped_in_{what}", *ROWS[-1][2:])


for place in (("master", 777, 30), ("m", 5000, 3), ("v", 12, 22), ("parameter", 4321, 0)):
    flipped(*place)


@fault("F24", overrides=["faults.flip=1:1:20:reduced:100:3"])
def bit_flipped_in_a_reduced_gradient(job, draw):
    """its holders differ: the step is computed again"""
    job.until_event("sdc_genuine")
    assert "the holders of a block have different sums" in said(job, "sdc_genuine"), said(job, "sdc_genuine")


@fault("F25", overrides=["faults.sticky=2:1:60:hidden:5:0", "sdc.canary_every=4", "checkpoint.every=10"], short=True)
def one_ulp_always_wrong_on_one_rank(job, draw):
    """the slice is named and quarantined; back to a verified checkpoint, same end"""
    job.until_event("sdc_defect")
    assert "slice 2 computes wrongly" in said(job, "sdc_defect"), said(job, "sdc_defect")
    job.until_event("rollback")
    job.wait()
    assert "slice 2 is quarantined" in said(job, "slice_banned")


@fault("F27", overrides=["faults.flip=1:0:24:gradient:100:30"])
def value_not_finite_on_one_rank(job, draw):
    """replayed, the slice is named, nothing is skipped"""
    job.until_event("sdc_transient")
    assert "slice 1 gave another result once" in said(job, "sdc_transient"), said(job, "sdc_transient")


@fault("F30", overrides=["faults.flip=1:0:24:gradient:100:30"])
def killed_during_a_replay(job, draw):
    """the new epoch wins, the step is computed again"""
    job.until(lambda: any(e["event"] == "suspicion" for e in job.journal(0)), 60, "the suspicion")
    job.kill("train", draw.choice([0, 2, 3]), draw.randrange(2))
    job.until_epochs(2)


@fault("F33")
def random_bytes_on_every_port(job, draw):
    """counted, nothing dies"""
    job.until_step(5)
    pids = {p for p, _, _ in job.processes()}
    ports = set()
    for pid in pids:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            if target.startswith("socket:["):
                ports.add(target[8:-1])
    listening = []
    for line in open("/proc/net/tcp").read().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and words[9] in ports and words[1].startswith("0100007F"):
            listening.append(int(words[1].split(":")[1], 16))
    assert len(listening) >= 9, f"ports {listening}"  # coordinator and 8 ranks
    for port in listening:
        for _ in range(3):
            try:
                with socket.create_connection(("127.0.0.1", port), 2) as s:
                    s.sendall(draw.randbytes(draw.randrange(1, 5000)))
                    s.settimeout(0.05)
                    try:
                        got = s.recv(100)
                    except OSError:
                        got = b""
                    assert not got, f"port {port} answered {got!r}"
            except OSError:
                pass
    job.until_step(40)
    assert {p for p, _, _ in job.processes()} >= pids, "a process died"
    assert len(job.epochs()) == 1, "the epoch was changed"


@fault("F36")
def coordinator_stopped_for_three_leases(job, draw):
    """nobody is dropped, training never stops"""
    job.until_step(5)
    pid = job.pid("coordinator")
    job.send(pid, signal.SIGSTOP)
    time.sleep(3)
    job.send(pid, signal.SIGCONT)
    job.until_step(40)
    assert not job.events("slice_dropped"), "a slice was dropped"


@fault("stop", short=True, overrides=["checkpoint.every=50"])
def stopped_by_term_and_started_again(job, draw):
    """a checkpoint at a step boundary, exit code 75; the same command goes on from there"""
    job.until_step(20)
    job.process.terminate()
    assert job.wait(60) == 75, "TERM ends with 75"
    kept = [f for f in os.listdir(job.run + "/checkpoints") if f.startswith("step-")]
    assert kept, "no checkpoint"
    job.start()


@fault("drain")
def slice_drained_and_readmitted(job, draw):
    """leaves at a step boundary, nothing is redone"""
    job.until_step(5)
    subprocess.run([job.program, "ctl", job.run, "drain", "2"], check=True, stdout=subprocess.DEVNULL)
    job.until_epochs(2)
    assert not job.events("stop"), "the epoch was stopped at once"
    subprocess.run([job.program, "ctl", job.run, "readmit", "2"], check=True, stdout=subprocess.DEVNULL)


@fault("pause")
def paused_and_resumed(job, draw):
    """stands still at a step boundary and goes on"""
    job.until_step(5)
    subprocess.run([job.program, "ctl", job.run, "pause"], check=True, stdout=subprocess.DEVNULL)
    job.until_event("paused")
    step = job.last_step()
    time.sleep(1)
    assert job.last_step() == step, "it trains on"
    subprocess.run([job.program, "ctl", job.run, "resume"], check=True, stdout=subprocess.DEVNULL)


def make_store(program, common):
    """A teacher and its targets for the rows of the run, in the current folder."""
    alone = ["tiny.yaml", *common, "parallel.slices=1", "parallel.slice_size=1", "parallel.ep=1", "parallel.tp=1"]
    for command in ([program, "train", *alone, "run.dir=teacher", "train.steps=20", "checkpoint.every=20"],
                    [program, "teach", *alone, "run.dir=unused", "distill.teacher=teacher", "distill.store=store", "--rows-of-run"]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@fault("distil", before=make_store,
       both=["objective.kind=distill", "distill.store=store", "distill.alpha=0.3"])
def slice_killed_in_a_distillation(job, draw):
    """the distillation goes on with the same bits"""
    job.until_step(20)
    job.kill("train", draw.randrange(4), draw.randrange(2))
    job.until_epochs(2)


@fault("grid", both=["quant.format=q4_0"])
def slice_killed_in_quantised_training(job, draw):
    """goes on with the same bits"""
    job.until_step(20)
    job.kill("train", draw.randrange(4), draw.randrange(2))
    job.until_epochs(2)
