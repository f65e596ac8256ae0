"""Invariant I9: after many changes of the membership the processes that stayed have as many threads,
descriptors and sockets as before and no more memory, and nothing is left in the temporary folders."""
import os
import subprocess

from job import read

PATIENCE = 300  # seconds for one change
MORE_MEMORY = 1.1, 16 << 10  # times, and KiB above


def members(job):
    """Slices of the epoch that trains; none while an epoch begins."""
    epochs, runs = job.events("epoch"), job.events("run")
    if not runs or epochs[-1]["text"].split()[0] != runs[-1]["text"].split()[1]:
        return 0
    return int(epochs[-1]["text"].split()[2])


def change(job, draw, number):
    """A slice other than the first leaves, every fifth time by a kill, and comes back: two changes."""
    slice = 1 + number % 3
    if number % 5 == 4:
        job.kill("train", slice, draw.randrange(2))
    else:
        subprocess.run([job.program, "ctl", job.run, "drain", str(slice)], check=True, stdout=subprocess.DEVNULL)
    job.until(lambda: members(job) == 3, PATIENCE, f"slice {slice} to leave")
    if number % 5 != 4:
        subprocess.run([job.program, "ctl", job.run, "readmit", str(slice)], check=True, stdout=subprocess.DEVNULL)
    job.until(lambda: members(job) == 4, PATIENCE, f"slice {slice} to come back")


def level(job):
    """What each process that is never ended here holds: {(role, slice, pid): {what: how much}}."""
    result = {}
    for pid, role, slice in job.processes():
        if role in ("mpirun", "train") and slice != 0:
            continue
        status = dict(line.split(":", 1) for line in read(f"/proc/{pid}/status").splitlines())
        descriptors = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")
                       if os.path.islink(f"/proc/{pid}/fd/{fd}")]
        result[role, slice, pid] = {
            "threads": int(status["Threads"]), "descriptors": len(descriptors),
            "sockets": sum(d.startswith("socket:") for d in descriptors), "KiB": int(status["VmRSS"].split()[0])}
    count = {"processes": len(job.processes()), "shared memory": len(os.listdir("/dev/shm")),
             "temporary files": sum(len(files) for _, _, files in os.walk(job.environment["TMPDIR"]))}
    return result, count


def calm_level(job):
    """The lowest of several looks: what is only passing does not count."""
    looks = []
    for n in range(10):
        step = job.last_step()
        job.until(lambda: job.last_step() >= step + 2, PATIENCE, "steps")
        looks.append(level(job))
    processes = {key: {what: min(look[0][key][what] for look in looks) for what in looks[-1][0][key]}
                 for key in looks[-1][0] if all(key in look[0] for look in looks)}
    return processes, {what: min(look[1][what] for look in looks) for what in looks[-1][1]}


def look_for_leaks(changes):
    def many_reconfigurations(job, draw):
        """processes, threads, descriptors, sockets and memory return to their level"""
        job.until_step(5)
        warm = 5  # changes after which everything that is made once is there
        for n in range(warm):
            change(job, draw, n)
        before, count_before = calm_level(job)
        epochs = len(job.epochs())
        for n in range(warm, warm + (changes + 1) // 2):
            change(job, draw, n)
        after, count_after = calm_level(job)
        assert len(job.epochs()) - epochs >= changes, f"{len(job.epochs()) - epochs} changes"
        assert before.keys() == after.keys(), f"processes that should have stayed: {before.keys() ^ after.keys()}"
        grown = [f"{what}: {count_before[what]}, later {count_after[what]}"
                 for what in count_before if count_after[what] > count_before[what]]
        for (role, slice, _), old in before.items():
            new = after[role, slice, _]
            print(f"       {role:11} {slice:2}  " + "  ".join(f"{what} {old[what]} -> {new[what]}" for what in old), flush=True)
            for what in old:
                most = old[what] * MORE_MEMORY[0] + MORE_MEMORY[1] if what == "KiB" else old[what]
                if new[what] > most:
                    grown.append(f"{what} of {role} of slice {slice}: {old[what]}, later {new[what]}")
        print("       " + "  ".join(f"{what} {count_before[what]} -> {count_after[what]}" for what in count_before), flush=True)
        assert not grown, "; ".join(grown)
        job.process.terminate()
    return many_reconfigurations
