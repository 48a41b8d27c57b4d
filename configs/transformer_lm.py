"""A character language model of Shakespeare's plays: nanoGPT's CPU setting, with another learning rate and no biases.

python train.py configs/transformer_lm.py

0.8 minutes on two CPU cores; 1.797 nats and 2.592 bits a character (+- 0.006) on the test plays, Macbeth and Twelfth
Night. The learning rates 0.001, 0.002, 0.003 and 0.006 give 2.702, 2.584, 2.556 and 2.554 bits on the dev plays; this
one is the best.
"""

from zoo import Optimizer, Run
from zoo.data.text import Text
from zoo.transformer_lm import TransformerLM

run = Run(
    family=TransformerLM(layers=4, heads=4, width=128, context=64, dropout=0.0),
    data=Text(),
    optimizer=Optimizer(
        learning_rate=6e-3, warmup_steps=100, final_fraction=0.1, beta2=0.99, weight_decay=0.1, clip_norm=1.0
    ),
    steps=2000,
    batch_size=12,
    log_every=10,
    eval_every=500,
    score_every=500,
    save_every=500,
    sample_every=500,
)
