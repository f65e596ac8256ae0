"""Faults and what is expected of the job (rows of shared/spec/elastic.md section 9). A scenario gets
a started job and disturbs it; its docstring is the expectation. It may return the exit code that is
expected instead of 0. Each ends with all steps done, bit-identical, unless it says otherwise."""
import glob
import os
import resource
import shutil
import signal
import socket
import subprocess
import time

import relay
from fault_rows import ended, ends_naming, fault, flip_byte, only_dropped, said
from job import Skipped, read
from stalled_thread import StalledThread


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


@fault("F7", steps=200)
def training_thread_hangs(job, draw):
    """its slice, whose heart goes on beating, is dropped at the hang limit, and no other"""
    job.until_step(5)
    victim = draw.randrange(4)
    began = time.monotonic()
    thread = StalledThread(job.pid("train", victim, draw.randrange(2)))
    job.until(thread.ended, 60, "its end")
    seconds = time.monotonic() - began
    job.until_epochs(2)
    assert seconds > 2.5, f"dropped after {seconds:.1f} s: silence, not a hang"
    assert only_dropped(job, victim), f"dropped: {job.events('slice_dropped')}"


@fault("F8", steps=400)
def rank_three_times_slower(job, draw):
    """its slice is named as a straggler, nobody is dropped"""
    job.until_step(5)
    victim = draw.randrange(4)
    pid = job.pid("train", victim, draw.randrange(2))
    deadline = time.monotonic() + 100
    while not job.events("straggler") and time.monotonic() < deadline and job.process.poll() is None:
        for number, seconds in ((signal.SIGSTOP, 0.04), (signal.SIGCONT, 0.02)):
            job.send(pid, number)
            time.sleep(seconds)
    assert said(job, "straggler").startswith(f"slice {victim} takes"), f"straggler: {job.events('straggler')}"
    assert only_dropped(job, victim) and not job.events("slice_dropped"), job.events("slice_dropped")


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


@fault("F19", overrides=["checkpoint.every=20"], steps=300, short=True)
def disk_full_while_saving(job, draw):
    """training goes on, the logs warn, a later checkpoint is good"""
    folder = job.run + "/checkpoints"
    os.makedirs(folder)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", folder], stderr=subprocess.DEVNULL).returncode:
        raise Skipped("a small file system cannot be mounted here")
    try:
        with open(folder + "/.filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                pass  # the disk is full
        warned = lambda: "warning: no checkpoint of step" in "".join(read(f"{job.run}/logs/slice-{s}.log") for s in range(4))
        job.until(warned, 60, "the warning")
        os.remove(folder + "/.filler")
        job.until_event("checkpoint")
        job.wait()
        newest = sorted(f for f in os.listdir(folder) if f.startswith("step-"))[-1]
        subprocess.run([job.program, "verify", folder + "/" + newest], check=True, stdout=subprocess.DEVNULL)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
    assert len(job.epochs()) == 1, "the epoch was changed"


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


@fault("F30", overrides=["faults.flip=1:0:24:gradient:100:30"])
def killed_during_a_replay(job, draw):
    """the new epoch wins, the step is computed again"""
    job.until(lambda: any(e["event"] == "suspicion" for e in job.journal(0)), 60, "the suspicion")
    job.kill("train", draw.choice([0, 2, 3]), draw.randrange(2))
    job.until_epochs(2)


@fault("F32", overrides=["checkpoint.every=20"])
def no_file_descriptors_left_on_a_rank(job, draw):
    """no checkpoint meanwhile; in the next epoch, which needs links, its slice is dropped and comes back"""
    job.until_step(5)
    pid = job.pid("train", 2, 1)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3))
    job.until(lambda: "warning: no checkpoint of step" in read(f"{job.run}/logs/slice-2.log"), 60, "the warning")
    job.kill("train", 0)
    job.until(lambda: pid not in [p for p, _, _ in job.processes()], 60, "its end")
    job.wait()
    assert all(e["text"].split()[1] in "02" for e in job.events("slice_ended")[:2]), job.events("slice_ended")


@fault("F32")
def no_memory_left_on_a_rank(job, draw):
    """as a kill"""
    job.until_step(5)
    pid = job.pid("train", 1, 1)
    resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))
    job.kill("train", 0)  # the next epoch needs new memory
    job.until(lambda: pid not in [p for p, _, _ in job.processes()], 60, "its end")


@fault("F32", steps=200, short=True)
def no_shared_memory_left_for_a_slice(job, draw):
    """it starts without, or is tried again until there is some; the others go on"""
    job.until_step(5)
    folder = glob.glob("/dev/shm/maniple-*-3")
    mine = [f for f in folder if any(f in read(f"/proc/{pid}/environ") for pid, _, _ in job.processes("train", 3))]
    assert len(mine) == 1, f"folders of slice 3: {folder}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", mine[0]], stderr=subprocess.DEVNULL).returncode:
        raise Skipped("a small file system cannot be mounted here")
    try:
        job.kill("train", 3)
        job.until_epochs(2)
        job.until(lambda: ended(job, 3, 2) or len(job.epochs()) > 2, 60, "what it does without shared memory")
    finally:
        subprocess.run(["umount", "-l", mine[0]], check=True)
    job.until_epochs(3)
    assert only_dropped(job, 3), f"dropped: {job.events('slice_dropped')}"


def knock(family, address, draw):
    """Whatever stands in the first bytes: no answer."""
    for _ in range(3):
        try:
            with socket.socket(family) as s:
                s.settimeout(2)
                s.connect(address)
                s.sendall(draw.randbytes(draw.randrange(1, 5000)))
                s.settimeout(0.05)
                try:
                    got = s.recv(100)
                except OSError:
                    got = b""
                assert not got, f"{address} answered {got!r}"
        except OSError:
            pass


@fault("F33", steps=600)
def random_bytes_on_every_port(job, draw):
    """as a wrong token of an operator: counted, nothing dies"""
    job.until_step(5)
    pids, sockets = {p for p, _, _ in job.processes()}, set()
    for pid in pids:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    ports, agents = [], []
    for line in open("/proc/net/tcp").read().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and words[9] in sockets and words[1].startswith("0100007F"):
            ports.append(("127.0.0.1", int(words[1].split(":")[1], 16)))
    for line in open("/proc/net/unix").read().splitlines()[1:]:
        words = line.split()
        if words[6] in sockets and words[-1].endswith("/agent") and words[3] == "00010000":
            agents.append(words[-1])
    assert len(ports) >= 9 and len(agents) == 4, f"ports {ports}, agents {agents}"  # coordinator, 8 ranks
    for port in ports:
        knock(socket.AF_INET, port, draw)
    for agent in agents:
        knock(socket.AF_UNIX, agent, draw)
    address, token = open(job.run + "/elastic/control").read().split()
    forged = job.run + "-forged/elastic"
    os.makedirs(forged)
    with open(forged + "/control", "w") as file:
        file.write(f"{address}\n{token[::-1]}\n")
    asked = subprocess.run([job.program, "ctl", job.run + "-forged", "pause"], capture_output=True, text=True, timeout=60)
    assert asked.returncode != 0 and not asked.stdout, f"a wrong token got {asked.stdout!r}"
    job.until_step(40)
    assert {p for p, _, _ in job.processes()} >= pids, "a process died"
    assert len(job.epochs()) == 1, "the epoch was changed"


@fault("F9", hosts=4, slow=True, steps=40)
def network_delayed_and_stalled(job, draw):
    """50 ms from host to host, now and then 200 ms: slower, nobody is dropped"""
    job.wait(600)
    assert not job.events("slice_dropped") and len(job.epochs()) == 1, "the epoch was changed"


@fault("F10", hosts=4, steps=300, short=True)
def one_host_cut_off(job, draw):
    """its slice is dropped at the lease, the others go on; it comes back behind the cut"""
    job.until_step(5)
    victim = job.network.hosts[2]
    job.network.cut(victim)
    job.until_epochs(2)
    time.sleep(draw.uniform(0, 4))
    job.network.heal(victim)
    job.until_epochs(3)
    assert only_dropped(job, 2), f"dropped: {job.events('slice_dropped')}"


@fault("F10", hosts=4, steps=300)
def one_host_cannot_send(job, draw):
    """its slice is dropped, never one of the others"""
    job.until_step(5)
    victim = job.network.hosts[1]
    job.network.cut_one_way(victim, towards=False)
    job.until_epochs(2)
    job.network.heal_one_way(victim, towards=False)
    job.until_epochs(3)
    assert only_dropped(job, 1), f"dropped: {job.events('slice_dropped')}"


@fault("F10", hosts=4, steps=300)
def one_host_cannot_hear(job, draw):
    """its slice is dropped, never one of the others"""
    job.until_step(5)
    victim = job.network.hosts[3]
    job.network.cut_one_way(victim, towards=True)
    job.until_epochs(2)
    job.network.heal_one_way(victim, towards=True)
    job.until_epochs(3)
    assert only_dropped(job, 3), f"dropped: {job.events('slice_dropped')}"


@fault("F11", hosts=4, steps=400, short=True)
def coordinator_cut_off_from_all(job, draw):
    """training goes on in the same epoch; when the cut is over, its rows arrive"""
    job.until_step(5)
    job.network.cut(job.network.head)
    time.sleep(3 + draw.uniform(0, 3))
    heard = job.last_step()
    job.until(lambda: min(job.commits(slice) for slice in range(4)) > heard + 20, 120, "20 steps without a coordinator")
    assert job.last_step() == heard, "the coordinator was not cut off"
    job.network.heal(job.network.head)
    job.until(lambda: job.last_step() > heard + 20, 60, "the rows of the cut")
    assert len(job.epochs()) == 1 and not job.events("slice_dropped"), "the epoch was changed"


def preload_clock_jumps(program, common):
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clock_jumps.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", "clock_jumps.so", source], check=True)


@fault("F31", before=preload_clock_jumps, environment={"LD_PRELOAD": "./clock_jumps.so"}, steps=300,
       overrides=["checkpoint.every=10"])
def clocks_jump_by_an_hour(job, draw):
    """nothing happens"""
    job.wait()
    hours = {e["time"][11:13] for e in job.events()}
    assert len(hours) >= 2, f"the clock did not jump: {hours}"
    assert not job.events("slice_dropped") and len(job.epochs()) == 1, "the epoch was changed"


def move(job, group):
    """All processes of the job into a control group; until no new ones are found outside."""
    for _ in range(3):
        for pid, _, _ in job.processes():
            try:
                with open(group + "/cgroup.procs", "w") as file:
                    file.write(str(pid))
            except ProcessLookupError:
                pass


@fault("F34", steps=300, short=True)
def processor_time_cut_to_a_tenth(job, draw):
    """for 20 s: slower, nobody is dropped"""
    job.until_step(5)
    group = f"/sys/fs/cgroup/cpu/maniple-{os.getpid()}"
    try:
        os.mkdir(group)
        with open(group + "/cpu.cfs_quota_us", "w") as file:
            file.write(str(len(os.sched_getaffinity(0)) * 10000))  # of 100,000 us
        if os.path.exists(group + "/cpu.rt_runtime_us"):  # else threads of real time may not move there
            with open(group + "/cpu.rt_runtime_us", "w") as file:
                file.write("100000")  # of a second
    except OSError as error:
        raise Skipped(f"no cgroup for processor time can be made here: {error}")
    try:
        move(job, group)
        step, began = job.last_step(), time.monotonic()
        while time.monotonic() < began + 20:
            time.sleep(0.5)
        print(f"       {job.last_step() - step} steps in 20 s", flush=True)
    finally:
        move(job, os.path.dirname(group))
        os.rmdir(group)
    job.wait()
    assert not job.events("slice_dropped") and len(job.epochs()) == 1, "the epoch was changed"


@fault("F35", hosts=4, steps=300, short=True)
def host_loses_power(job, draw):
    """its slice is dropped at the lease; it comes back with the power"""
    job.until_step(5)
    victim = draw.randrange(4)
    job.network.power_off(job.network.hosts[victim])
    job.until_epochs(2)
    time.sleep(2)
    job.network.power_on(job.network.hosts[victim])
    job.until_epochs(3)
    assert only_dropped(job, victim), f"dropped: {job.events('slice_dropped')}"


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


@fault("hosts", far=4, short=True, steps=300)
def ssh_to_a_host_killed(job, draw):
    """the agent there sees its input end and ends its slice; it is started again"""
    job.until_step(5)
    assert job.kill(relay.__file__, 2), "nothing was killed"
    job.until_epochs(3)
    assert only_dropped(job, 2), f"dropped: {job.events('slice_dropped')}"
    token = open(job.run + "/elastic/control").read().split()[1]
    for pid, _, _ in job.processes():
        for name in ("cmdline", "environ"):
            assert token not in read(f"/proc/{pid}/{name}"), f"the token is in the {name} of process {pid}"


@fault("hosts", far=4, steps=300)
def ssh_to_a_host_killed_and_the_host_does_not_notice(job, draw):
    """the agent that is started instead is taken; the old one is refused and ends its slice"""
    job.until_step(5)
    old = job.pid("agent", 2)
    job.network.deaf = True
    assert job.kill(relay.__file__, 2), "nothing was killed"
    job.until(lambda: old not in [pid for pid, _, _ in job.processes()], 60, "the end of the old agent")
    job.network.deaf = False
    job.until_epochs(3)
    assert "a later agent of slice 2 was started" in read(job.network.output), "it was not refused"
    assert only_dropped(job, 2), f"dropped: {job.events('slice_dropped')}"


@fault("ssh", hosts=4, ssh=True, steps=300)
def ssh_itself_killed(job, draw):
    """sshd closes the agent's input, which ends its slice; it is started again"""
    job.until_step(5)
    assert job.kill("ssh", 2), "nothing was killed"
    job.until_epochs(3)
    assert only_dropped(job, 2), f"dropped: {job.events('slice_dropped')}"


@fault("ssh", hosts=4, ssh=True, steps=300)
def host_behind_ssh_loses_power(job, draw):
    """ssh waits for a word from it for ever; it is ended, and the host is used again when it is back"""
    job.until_step(5)
    victim = draw.randrange(4)
    job.network.power_off(job.network.hosts[victim])
    job.until_epochs(2)
    job.network.power_on(job.network.hosts[victim])
    job.until_epochs(3)
    assert only_dropped(job, victim), f"dropped: {job.events('slice_dropped')}"


@fault("hosts", far=4, overrides=["checkpoint.every=10"])
def agent_on_a_host_killed(job, draw):
    """as an agent here"""
    job.until_step(5)
    job.kill("agent", draw.randrange(4))
    job.until_epochs(2)


@fault("hosts", far=4, overrides=["checkpoint.every=10"])
def launcher_killed_and_job_on_hosts_started_again(job, draw):
    """no orphan on any host; the same command goes on from the newest checkpoint"""
    job.until_step(25)
    job.process.kill()
    job.process.wait()
    time.sleep(1.5)
    assert not job.processes(), f"left: {job.processes()}"
    job.start()


@fault("hosts", far=4, overrides=["checkpoint.every=50"])
def job_on_hosts_stopped_by_term_and_started_again(job, draw):
    """a checkpoint at a step boundary, exit code 75, no orphan on any host"""
    job.until_step(20)
    job.process.terminate()
    assert job.wait(60) == 75, "TERM ends with 75"
    assert not job.processes(), f"left: {job.processes()}"
    job.start()


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


@fault("F21", before=make_store, both=["objective.kind=distill", "distill.store=store", "distill.alpha=0.3"])
def teacher_chunk_damaged(job, draw):
    """nobody computes with it; the job ends with 65, file and row are named"""
    job.until_step(20)
    for file in glob.glob("store/**/*.h5", recursive=True):
        for place in range(os.path.getsize(file) // 8, os.path.getsize(file), 997):
            flip_byte(file, place)
    code = ends_naming(job, ["teacher store: ", "its hash is not the one that was written with it"], 65)
    shutil.rmtree("store")  # the next row makes its own
    return code


@fault("grid", both=["quant.format=q4_0"])
def slice_killed_in_quantised_training(job, draw):
    """goes on with the same bits"""
    job.until_step(20)
    job.kill("train", draw.randrange(4), draw.randrange(2))
    job.until_epochs(2)
