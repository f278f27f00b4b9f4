"""Run as a script: a training in child processes, which must end as the parent's does, bit for bit.

Arguments: fork or spawn, and a line of docs/works-with.md. Prints what went wrong in each of its columns.
"""

from __future__ import annotations

import json
import sys
from multiprocessing.connection import Connection

import torch
import torch.multiprocessing as mp

from page import table
from pairs import Training, batch, check, network

STEPS = 6


def train(training: Training) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    for _ in range(STEPS):
        training.step(*batch())
    return training.model.state_dict()


def child(training: Training | str, pipe: Connection, feature: str) -> None:
    if isinstance(training, str):  # spawned: nothing of the parent exists
        torch.manual_seed(0)
        training = Training(training, network())
    torch.set_num_threads(1)  # otherwise torch's own ops hang after a fork if the parent has used several
    result = {name: t.numpy().copy() for name, t in train(training).items()}
    (cell,) = (cell for cell in table()[feature] if cell.column == training.column)
    check(cell, training.step, *batch())
    pipe.send(result)


def compare(method: str, column: str, feature: str) -> str | None:
    context = mp.get_context(method)
    torch.set_num_threads(2)
    (torch.ones(512, 512) @ torch.ones(512, 512)).sum()  # a parallel region, after which a fork may hang
    torch.manual_seed(0)
    training = Training(column, network())
    mine, theirs = context.Pipe(duplex=False)
    # Fork after it has worked: with its recordings, its optimizer's state and its buffers.
    if method == "fork":
        train(training)
    process = context.Process(target=child, args=(training if method == "fork" else column, theirs, feature))
    process.start()
    want = train(training)
    if not mine.poll(60):
        process.kill()
        return "the child says nothing"
    got = mine.recv()
    process.join()
    if process.exitcode != 0:
        return f"the child ends with {process.exitcode}"
    wrong = [name for name, t in want.items() if not torch.equal(torch.from_numpy(got[name]), t)]
    return f"{wrong} differ" if wrong else None


if __name__ == "__main__":
    method, feature = sys.argv[1:]
    columns = [cell.column for cell in table()[feature]]
    print(json.dumps({column: compare(method, column, feature) for column in columns}))
