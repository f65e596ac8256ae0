"""What the files of the catalogue share: the list of rows, how a scenario gets into it, small tools."""
from job import read

ROWS = []  # (row, name, function, options)


def fault(row, **options):
    def note(function):
        ROWS.append((row, function.__name__, function, options))
        return function
    return note


def ended(job, slice, count=1):
    return sum(f"slice {slice} life" in e["text"] for e in job.events("slice_ended")) >= count


def only_dropped(job, slice):
    """No other slice was dropped or ended before the job did."""
    gone = [e["text"] for name in ("slice_dropped", "slice_ended") for e in job.events(name)]
    return all(text.startswith(f"slice {slice} ") for text in gone)


def said(job, event):
    return " ".join(e["text"] for e in job.events(event))


def flip_byte(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def ends_naming(job, words, code):
    """The job ends with this code, and it was said why."""
    got = job.wait()
    text = read(job.run + ".out")
    assert all(word in text for word in words), f"{words} is not said (exit code {got}): {text[-1000:]}"
    return code
