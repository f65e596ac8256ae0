"""Wrong bits: in data, state, gradients and arithmetic (catalogue.py has the other rows)."""
import os
import struct
import subprocess

from fault_rows import ROWS, ended, ends_naming, fault, flip_byte, said
from job import read


def make_shard(program, common):
    """The text as a Megatron data set of 64-bit tokens, 1.5 MiB: "shard" in the current folder."""
    tokens = open("text.txt", "rb").read()
    with open("shard.bin", "wb") as out:
        out.write(b"".join(struct.pack("<q", token) for token in tokens))
    with open("shard.idx", "wb") as out:
        out.write(b"MMIDIDX\0\0" + struct.pack("<QBQQiqqq", 1, 5, 1, 2, len(tokens), 0, 0, 1))


SHARD = ["data.sources=[{path: shard, kind: megatron}]"]


@fault("F21", before=make_shard, both=SHARD)
def data_shard_changed_while_it_is_used(job, draw):
    """nobody computes with it; the job ends with 65, file and bytes are named"""
    job.until_step(20)
    flip_byte("shard.bin", 100000)
    return ends_naming(job, ["data file shard.bin: bytes 65536 to 131071 have changed"], 65)


@fault("F21", before=make_shard, both=SHARD)
def data_shard_cut_short_while_it_is_used(job, draw):
    """nobody computes with what is left; the job ends with 65, the file is named"""
    job.until_step(20)
    os.truncate("shard.bin", 600000)
    return ends_naming(job, ["data file shard.bin ends at byte"], 65)


@fault("F21", before=make_shard, both=SHARD)
def data_shard_removed_while_it_is_used(job, draw):
    """the job ends with 66, the file is named"""
    job.until_step(20)
    os.remove("shard.bin")
    return ends_naming(job, ["data file shard.bin does not exist"], 66)


@fault("F21", before=make_shard, both=SHARD, overrides=["checkpoint.every=10"])
def data_shard_damaged_between_two_starts(job, draw):
    """the start is refused with 65 until the shard is as it was; then the same end"""
    job.until_step(20)
    job.process.terminate()
    assert job.wait(60) == 75, "TERM ends with 75"
    whole = open("shard.bin", "rb").read()
    flip_byte("shard.bin", 100000)
    job.start()
    assert job.wait(60) == 65 and "the contents of data.sources changed since" in read(job.run + ".out"), "a changed shard is taken"
    os.truncate("shard.bin", 600000)
    job.start()
    assert job.wait(60) == 65 and "of shard.bin, which has 600000 bytes" in read(job.run + ".out"), "a short shard is taken"
    with open("shard.bin", "wb") as file:
        file.write(whole)
    job.start()


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


@fault("F25", overrides=["faults.sticky=2:1:40:hidden:5:0", "sdc.canary_every=16", "checkpoint.every=10"])
def defect_found_in_the_next_launch(job, draw):
    """what the last launch had not verified, the next one does not trust: back beyond its start"""
    job.until_step(25)
    job.process.terminate()
    assert job.wait(60) == 75, "TERM ends with 75"
    job.start()
    job.until_event("rollback")
    assert "resuming after step 2" in read(job.run + ".out"), "it did not go on from its checkpoint"
    assert "goes back to step 0" in said(job, "rollback"), said(job, "rollback")


@fault("F25", overrides=["parallel.slices=2", "faults.sticky=1:1:40:hidden:5:0", "sdc.canary_every=4",
                         "sdc.max_strikes=1", "sdc.burn_in=5", "checkpoint.every=10"])
def two_slices_contradict_each_other(job, draw):
    """79; the same command, when the device is repaired, goes back to the verified checkpoint, after burn-ins"""
    assert job.wait() == 79, "both are quarantined"
    job.overrides = [o for o in job.overrides if not o.startswith("faults.")]
    job.start()
    job.wait()
    output = read(job.run + ".out")
    assert "a slice of the last job computed wrongly: going back to the verified" in output, "it trusts its state"
    assert "slice 1 was quarantined: it must pass its burn-in first" in output, "it trusts the device"


@fault("F23", overrides=["faults.flip=all:1:20:parameter:4321:0"], differs_from=20)
def the_same_bit_flipped_in_a_parameter_of_all_slices(job, draw):
    """missed: all copies are equal, so no check sees it, and the losses differ from step 20 on"""
    job.wait()
    assert not [e for e in job.events() if e["event"].startswith("sdc_")], "it was seen"


@fault("F24", overrides=["faults.flip=1:1:24:row:700:3"])
def bit_flipped_in_a_row_for_an_expert(job, draw):
    """what arrives is not what was sent: replayed, the slice is named"""
    job.until_event("sdc_transient")
    text = said(job, "sdc_transient")
    assert "rows for the experts did not arrive as they were sent" in text and "slice 1 gave another result once" in text, text


@fault("F26", overrides=["faults.sticky=2:1:10:hidden:5:3:0.1", "sdc.canary_every=1", "checkpoint.every=10"])
def wrong_with_probability_0_1(job, draw):
    """the slice is named and quarantined; back to a verified checkpoint, same end"""
    job.until(lambda: "slice 2 is quarantined" in said(job, "slice_banned"), 120, "the quarantine")
    assert all("slice 2 " in e["text"] for e in job.events("strike")), job.events("strike")
    job.wait()


@fault("F25", overrides=["faults.sticky=2:1:20:hidden:5:3", "sdc.canary_every=4", "sdc.burn_in=10"])
def quarantined_slice_readmitted_though_it_is_still_wrong(job, draw):
    """it fails its burn-in and stays quarantined"""
    job.until_event("sdc_defect")
    job.until(lambda: ended(job, 2), 30, "its end")
    subprocess.run([job.program, "ctl", job.run, "readmit", "2"], check=True, stdout=subprocess.DEVNULL)
    job.until(lambda: "slice 2 has failed its burn-in and stays quarantined" in said(job, "slice_banned"), 60, "the burn-in")
    job.wait()
    assert len(job.epochs()) == 2, "it was taken again"


@fault("F25", overrides=["faults.flip=2:0:24:gradient:100:30", "sdc.max_strikes=1", "sdc.burn_in=5", "sdc.probation=30"],
       steps=300)
def quarantined_slice_readmitted_and_healthy(job, draw):
    """it passes its burn-in, joins, and computes a canary in each step of its probation"""
    job.until(lambda: "slice 2 is quarantined" in said(job, "slice_banned"), 60, "the quarantine")
    job.until(lambda: ended(job, 2), 30, "its end")
    subprocess.run([job.program, "ctl", job.run, "readmit", "2"], check=True, stdout=subprocess.DEVNULL)
    job.until_epochs(3)
    status = subprocess.run([job.program, "ctl", job.run, "status"], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert "slice 2 life 2 member" in status and "on probation to step" in status, status


@fault("F27", overrides=["faults.flip=1:0:24:gradient:100:30"])
def value_not_finite_on_one_rank(job, draw):
    """replayed, the slice is named, nothing is skipped"""
    job.until_event("sdc_transient")
    assert "slice 1 gave another result once" in said(job, "sdc_transient"), said(job, "sdc_transient")


@fault("F27", both=["faults.spike=24:5:nan"])
def value_not_finite_from_the_data(job, draw):
    """all executions are equal: the step is skipped, nobody is blamed"""
    job.wait()
    text = said(job, "sdc_genuine")
    assert "a value is not finite: all executions are equal: what the data and the model give" in text, text
    assert not job.events("strike") and not job.events("slice_banned") and len(job.epochs()) == 1, "somebody was blamed"


@fault("F28", both=["faults.spike=140:5:50"])
def loss_spike_with_clean_hardware(job, draw):
    """replayed, genuine, committed; nobody is blamed"""
    job.wait()
    text = said(job, "sdc_genuine")
    assert "step 140" in text and "is an outlier: all executions are equal" in text, text
    assert not job.events("strike") and not job.events("slice_banned") and len(job.epochs()) == 1, "somebody was blamed"


@fault("F24", overrides=["faults.flip=1:0:140:hidden:200:30", "sdc.canary_every=0"])
def wild_element_in_a_layer_that_the_loss_hardly_feels(job, draw):
    """its RMS is an outlier: replayed, the slice is named"""
    job.until_event("sdc_transient")
    text = said(job, "sdc_transient")
    assert "RMS" in text and "slice 1 gave another result once" in text, text


@fault("F29", overrides=["faults.sticky=all:0:30:hidden:5:3:0.5", "sdc.canary_every=8"], differs_from=30)
def nondeterministic_op_switched_on(job, draw):
    """alarm: software; nobody is dropped; the losses are not those of the run without it"""
    job.wait()
    assert "software error or unequal hardware" in said(job, "sdc_software"), said(job, "sdc_software")
    assert not job.events("strike") and not job.events("slice_banned") and len(job.epochs()) == 1, "somebody was blamed"
