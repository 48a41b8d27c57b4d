"""A character language model of Shakespeare's plays: two LSTM layers, as many parameters as configs/transformer_lm.py.

python train.py configs/lstm_lm.py
"""

from zoo import Optimizer, Run
from zoo.data.text import Text
from zoo.lstm_lm import LSTMLM

run = Run(
    family=LSTMLM(layers=2, width=232, embedding=128, context=64),
    data=Text(order="stream"),
    optimizer=Optimizer(
        name="adam", learning_rate=3e-3, warmup_steps=100, final_fraction=0.05, weight_decay=0.0, clip_norm=1.0
    ),
    steps=2000,
    batch_size=32,
    log_every=10,
    eval_every=500,
    score_every=500,
    save_every=500,
    sample_every=500,
)
