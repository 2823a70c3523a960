"""One process of a training: `one_of_many.py CONFIG OUTPUT`, started with the environment that torchrun gives.

The first process keeps the loss terms of every step in OUTPUT/losses.json.
"""

import json
import sys
from pathlib import Path

import torch

from mink_decouple.config import load_config
from mink_decouple.engine.leave import leave
from mink_decouple.engine.processes import joined
from mink_decouple.engine.train import Trainer

told = []
original = Trainer._gradients


def gradients(self, *arguments):
    terms = original(self, *arguments)
    told.append(terms)
    return terms


if __name__ == "__main__":
    config, output = Path(sys.argv[1]), Path(sys.argv[2])
    Trainer._gradients = gradients
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as processes:
        trainer = Trainer(load_config(config), output, torch.device("cpu"), processes=processes)
        trainer.run()
        assert processes.first == (trainer.lock is not None)
    if processes.first:
        (output / "losses.json").write_text(json.dumps(told))
    leave(0)
