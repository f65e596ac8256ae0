"""One replica group of a torchft job, one process: the peer of against_torchft.py.

Trains a small byte model (embedding, one hidden layer) whose width makes the wanted number of
parameters. One manager.allreduce per step over all gradients; a sleep before it stands for the rest
of a step as long as Maniple's. The batch of a step is keyed by step and replica. Writes one JSON
object per step to the log, with the machine's monotonic clock.
"""
import argparse
import json
import time
import zlib
from datetime import timedelta

import torch
from torch.distributed import TCPStore
from torchft import Manager, ProcessGroupGloo

CONTEXT, WIDTH, BYTES = 16, 16, 256


def byte_model(parameters):
    hidden = round((parameters - BYTES * WIDTH - BYTES) / (CONTEXT * WIDTH + 1 + BYTES))
    return torch.nn.Sequential(torch.nn.Embedding(BYTES, WIDTH), torch.nn.Flatten(),
                               torch.nn.Linear(CONTEXT * WIDTH, hidden), torch.nn.Tanh(),
                               torch.nn.Linear(hidden, BYTES))


def batch(data, step, replica, tokens):
    at = torch.randint(0, len(data) - CONTEXT - 1, (tokens,),
                       generator=torch.Generator().manual_seed(1000 * step + replica))
    rows = data[at[:, None] + torch.arange(CONTEXT + 1)].long()
    return rows[:, :-1], rows[:, -1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replica", type=int, required=True)
    parser.add_argument("--groups", type=int, required=True)
    parser.add_argument("--lighthouse", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="of a replica and step")
    parser.add_argument("--pause", type=float, required=True, help="seconds of sleep per step")
    parser.add_argument("--timeout", type=float, help="seconds, of manager and process group (60)")
    parser.add_argument("--first", action="store_true", help="begin when all groups are there")
    a = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = byte_model(a.parameters)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with open(a.text, "rb") as file:
        data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    log = open(a.log, "a", buffering=1)

    def note(event, **values):
        log.write(json.dumps({"us": time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000,
                              "event": event, **values}) + "\n")

    def load(state):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    limit = timedelta(seconds=a.timeout or 60)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=limit), load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        min_replica_size=1, timeout=limit, connect_timeout=limit, init_sync=False,
        rank=0, world_size=1, store_addr="127.0.0.1", store_port=store.port, hostname="127.0.0.1",
        lighthouse_addr=a.lighthouse, replica_id=f"replica_{a.replica}")
    parameters = list(model.parameters())
    note("ready", parameters=sum(p.numel() for p in parameters))
    waiting = a.first
    while True:
        manager.start_quorum()
        if waiting and manager.num_participants() < a.groups:
            continue
        waiting = False
        time.sleep(a.pause)
        optimizer.zero_grad()
        inputs, targets = batch(data, manager.current_step(), a.replica, a.tokens)
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in parameters])
        manager.allreduce(gradients).wait()
        if not manager.should_commit():
            note("discard", step=manager.current_step() + 1)
            continue
        for p, g in zip(parameters, gradients.split([p.numel() for p in parameters])):
            p.grad.copy_(g.view_as(p))
        optimizer.step()
        state = zlib.crc32(torch.cat([p.detach().flatten() for p in parameters]).numpy())
        note("commit", step=manager.current_step(), participants=manager.num_participants(),
             batches=manager.batches_committed(), loss=loss.item(), state=state)


main()
