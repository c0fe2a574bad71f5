"""Train an audio-visual classifier with an adaptive decision layer.

accelerate launch train.py                                               # synthetic clips, tiny towers, on any machine
accelerate launch train.py --config grid_digits --data_dir GRID
accelerate launch train.py --dataset my_clips/                           # a folder of class folders
python train.py --help                                                   # the main options
python train.py --dataset grid --help_all                                # every option that applies to a dataset
"""

import sys

from hf_mmbalance.training.cli import train


if __name__ == "__main__":
    sys.exit(train())
