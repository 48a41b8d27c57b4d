"""A character language model of Shakespeare's plays: two LSTM layers, the parameter count of configs/transformer_lm.py.

python train.py configs/lstm_lm.py

0.8 minutes on two CPU cores, as for configs/transformer_lm.py; 1.742 nats and 2.512 bits a character (+- 0.006) on the
test plays, Macbeth and Twelfth Night. The learning rates 0.003, 0.005, 0.01 and 0.015 give 2.795, 2.604, 2.652 and
2.491 bits on the dev plays; this one is the best.
"""

from zoo import Optimizer, Run
from zoo.data.text import Text
from zoo.lstm_lm import LSTMLM

run = Run(
    family=LSTMLM(layers=2, width=232, embedding=128, context=64),
    data=Text(order="stream"),
    optimizer=Optimizer(
        name="adam", learning_rate=1.5e-2, warmup_steps=100, final_fraction=0.05, weight_decay=0.0, clip_norm=1.0
    ),
    steps=850,
    batch_size=32,
    log_every=10,
    eval_every=425,
    score_every=425,
    save_every=425,
    sample_every=425,
)
