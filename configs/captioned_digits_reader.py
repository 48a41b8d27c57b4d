"""A reader of scenes of coloured digits, by which models of captioned digits are scored.

python train.py configs/captioned_digits_reader.py
python evaluate.py runs/captioned_digits_reader --split test --scenes 2000

33 minutes on one CPU core with other work beside it. On 2,000 test scenes 99.15 +- 0.15 % of the digits and all colours
and places are read right, and all of a scene in 98.4 %.
"""

from zoo import Optimizer, Run
from zoo.data.captions import CaptionedImages
from zoo.reader import Reader

run = Run(
    family=Reader(width=32, features=256, dropout=0.25),
    data=CaptionedImages(caption_dropout=0.0),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=200, weight_decay=0.05, clip_norm=1.0, ema_decay=0.999),
    steps=12000,
    batch_size=64,
    log_every=100,
    eval_every=1000,
    save_every=1000,
    sample_every=0,
)
